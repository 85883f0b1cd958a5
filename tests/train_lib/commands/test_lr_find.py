"""lr_find: suggestions for known curves; it trains as the run would, and leaves the run alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import main
from train_lib.training.lr_finder import Sweep, longest_decrease, suggestions

TINY = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
        '--config.model=dict(name="small_cnn", width=8, stages=2, drop_rate=0.2)',
        '--config.log.every.steps=1', '--config.checkpoint.every.steps=2',
        '--config.checkpoint.keep=9', '--config.batch_size=32', '--config.log.tensorboard=false',
        '--config.duration.steps=8', '--config.optimizer.name=sgd',
        '--config.mixing=[dict(kind="mixup", p=0.5)]']
WRITTEN = {'lr_find.csv', 'lr_find.json', 'lr_find.png'}


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('lr') / 'run'
    assert main.main([*TINY, f'--workdir={workdir}']) == 0
    return workdir


def sweep(workdir, *more) -> pd.DataFrame:
    assert main.main(['lr_find', *TINY, f'--workdir={workdir}', *more]) == 0
    return pd.read_csv(workdir / 'lr_find.csv')


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(folder.rglob('*')) if path.is_file()}


def rows(workdir) -> dict[int, dict]:
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return {line['step']: line for line in lines if line['split'] == 'train'}


def test_the_state_of_a_run_stays_untouched_and_the_sweep_goes_on_from_it(run, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(run, workdir)
    shutil.rmtree(workdir / 'checkpoints/8')
    shutil.rmtree(workdir / 'checkpoints/6')
    (workdir / 'checkpoints/5').mkdir()  # damaged: a run would set it aside
    before = files(workdir)
    table = sweep(workdir, '--config.lr_find.steps=12')
    after = files(workdir)
    assert set(after) - set(before) == WRITTEN
    assert {name: after[name] for name in before} == before
    assert (workdir / 'checkpoints/5').is_dir()
    assert len(table) == 12  # although the run has only four steps left
    # The rate of a step does not change its loss: this is the run's own fifth step.
    assert table['loss'][0] == pytest.approx(rows(run)[5]['loss'], rel=1e-6)
    assert table['lr'].iloc[[0, -1]].to_numpy() == pytest.approx([1e-7, 10], rel=1e-3)


def test_from_scratch_it_sees_what_the_first_step_sees(run, tmp_path):
    table = sweep(tmp_path / 'new', '--config.lr_find.steps=200', '--config.lr_find.high=1e9')
    assert table['loss'][0] == pytest.approx(rows(run)[1]['loss'], rel=1e-6)
    assert {path.name for path in (tmp_path / 'new').iterdir()} == WRITTEN
    found = json.loads((tmp_path / 'new/lr_find.json').read_text())
    assert found['ended'] in ('diverged', 'not finite') and 20 < len(table) < 200
    mean = 0
    for i, loss in enumerate(table['loss']):
        mean = 0.9 * mean + 0.1 * loss
        assert table['smoothed'][i] == pytest.approx(mean / (1 - 0.9 ** (i + 1)), rel=1e-4)


def test_suggestions_of_a_known_curve():
    rates = np.geomspace(1e-7, 10, 161)  # 20 steps per decade
    place = np.log10(rates)
    loss = 3 - np.tanh((place + 3) / 0.5) + np.exp((place + 0.5) * 6)
    found = suggestions(Sweep(rates, loss, loss, 'done'))
    assert found['steepest'] == pytest.approx(1e-3, rel=0.15)
    assert found['minimum/10'] == pytest.approx(rates[np.argmin(loss)] / 10, rel=0.05)
    assert 1e-4 < found['valley'] < 1e-2
    rising = suggestions(Sweep(rates, place, place, 'done'))
    assert rising == {}
    assert suggestions(Sweep(rates[:2], loss[:2], loss[:2], 'not finite')) == {}


def test_the_longest_decrease_steps_over_bumps():
    values = np.array([5, 9, 8, 8.5, 7, 6, 6.5, 1, 2.0])
    begin, end = longest_decrease(values)
    assert (begin, end) == (1, 7)  # 9, 8 (or 8.5), 7, 6 (or 6.5), 1
    assert longest_decrease(np.arange(4.0)) == (0, 0)


@pytest.mark.parametrize('flags, words', [
    (['--config.lr_find.low=0'], ['lr_find.low', 'above 0']),
    (['--config.lr_find.high=1e-9'], ['lr_find.high', '1e-07']),
    (['--config.lr_find.steps=3'], ['lr_find.steps', '10 or more']),
    (['--config.lr_find.smoothing=1.0'], ['lr_find.smoothing']),
    (['--config.lr_find.stop_at=1.0'], ['lr_find.stop_at']),
    (['--config.batch_size=16'], ['config.batch_size']),
    (['--config.split.kind=kfold', '--config.split.fold=all'], ['split.fold=0']),
    (['--config.probe.heads=[dict(name="linear")]'], ['probe.heads'])])
def test_mistakes_write_nothing(run, capfd, flags, words):
    before = files(run)
    assert main.main(['lr_find', *TINY, f'--workdir={run}', *flags]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert all(word in said for word in words), said
    assert files(run) == before
