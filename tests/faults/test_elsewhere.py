"""A run started again elsewhere or otherwise: what may change goes on, the rest is named."""

import csv
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import main
from tests.faults.running import QUICK, SMALL, Start, finish
from train_lib.training import row_splits

EIGHT = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8 '
                      '--xla_backend_optimization_level=0 '
                      '--xla_llvm_disable_expensive_passes=true'}


def settings(folder: Path, steps: int = 4) -> list[str]:
    return [*(flag.replace('data=digits', f'folder={folder / "data"}') for flag in SMALL[:-2]),
            *QUICK, '--config.batch_size=8', f'--config.duration.steps={steps}',
            '--config.checkpoint.every.steps=2', '--config.log.tensorboard=no']


def pictures(folder: Path, first: int, last: int) -> None:
    rng = np.random.default_rng(first)
    for i in range(first, last):
        home = folder / f'data/{"ab"[i % 2]}'
        home.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(home / f'{i}.png'), rng.integers(0, 255, (16, 16, 3), np.uint8))


def moved(home: Path, target: Path) -> Path:
    """A copy of the run whose data lie below `target`."""
    run = shutil.copytree(home / 'run', target / 'run')
    config = json.loads((run / 'config.json').read_text())
    config['data']['folder'] = str(target / 'data')
    del config['sha256']
    (run / 'config.json').write_text(json.dumps(config))
    return run


def cut_otherwise(monkeypatch) -> None:
    assign = row_splits.assign_splits
    monkeypatch.setattr(row_splits, 'assign_splits', lambda manifest, split, seed, known: assign(
        manifest, split, seed=seed + 1, known=known))


def sides(run: Path) -> dict[str, str]:
    with open(run / 'split.csv', newline='') as file:
        return {row['id']: row['split'] for row in csv.DictReader(file)}


@pytest.fixture(scope='module')
def home(tmp_path_factory) -> Path:
    """data/ and a run of four steps on it."""
    folder = tmp_path_factory.mktemp('home')
    pictures(folder, 0, 40)
    assert main.main([*settings(folder), f'--workdir={folder / "run"}']) == 0
    return folder


def test_what_may_change_is_noted_and_the_run_goes_on(home, tmp_path, capfd):
    shutil.copytree(home / 'run', tmp_path / 'run')
    assert main.main([*settings(home, 6), '--config.loader.threads=1',
                      f'--workdir={tmp_path / "run"}']) == 0
    log = capfd.readouterr().err
    assert 'changed  config.loader.threads: 2 -> 1' in log
    assert 'changed  config.duration.steps: 4 -> 6' in log
    assert 'resume: from step 4 of 6' in log


def test_other_data_are_refused(home, tmp_path, capfd):
    pictures(tmp_path, 0, 41)  # one more
    moved(home, tmp_path)
    before = (tmp_path / 'run/metrics.jsonl').read_bytes()
    assert main.main([*settings(tmp_path), f'--workdir={tmp_path / "run"}']) == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert 'data have changed' in message and 'put them back' in message
    assert (tmp_path / 'run/metrics.jsonl').read_bytes() == before


def test_other_data_are_accepted_when_told_and_nothing_changes_sides(home, tmp_path, capfd):
    pictures(tmp_path, 0, 50)
    (tmp_path / 'data/a/0.png').unlink()
    run, before = moved(home, tmp_path), sides(home / 'run')
    accept = '--config.data.changed=accept'
    assert main.main([*settings(tmp_path, 8), accept, f'--workdir={run}']) == 0
    log = capfd.readouterr().err
    assert 'changed  the data' in log and 'split    10 pictures are new, 1 is gone' in log
    assert 'resume: from step 4 of 8' in log
    after = sides(run)
    assert len(after) == 50
    assert all(after[name] == side for name, side in before.items())
    assert {after[name] for name in after.keys() - before.keys()} == {'train'}
    # From then on they are the data of the run.
    assert main.main([*settings(tmp_path, 9), f'--workdir={run}']) == 0
    assert 'split    as the run was started with' in capfd.readouterr().err
    assert sides(run) == after
    code = main.main(['predict', f'--workdir={run}'])
    assert code == 0, capfd.readouterr().err
    assert main.main(['report', f'--workdir={run}']) == 0
    # What comes back is where it was.
    pictures(tmp_path, 0, 50)
    assert main.main([*settings(tmp_path, 9), accept, f'--workdir={run}']) == 0
    assert 'split    0 pictures are new, 0 are gone' in capfd.readouterr().err
    assert sides(run) == after


@pytest.mark.parametrize('at', ['split.csv', 'config.json'])
def test_a_kill_while_other_data_are_accepted(home, tmp_path, monkeypatch, capfd, at):
    pictures(tmp_path, 0, 50)
    run, before = moved(home, tmp_path), sides(home / 'run')
    flags = [*settings(tmp_path, 8), f'--workdir={run}']

    def replace(source, target):
        if Path(target).name == at:
            raise KeyError('killed')
        move(source, target)

    with monkeypatch.context() as patched:
        move = os.replace
        patched.setattr(os, 'replace', replace)
        with pytest.raises(KeyError):
            main.main([*flags, '--config.data.changed=accept'])
    assert main.main(flags) == 2
    assert 'data.changed=accept' in capfd.readouterr().err.splitlines()[-1]
    assert main.main([*flags, '--config.data.changed=accept']) == 0
    after = sides(run)
    assert len(after) == 50 and all(after[name] == side for name, side in before.items())
    assert not (run / 'split-before.csv').exists()


def test_an_older_run_keeps_its_split_too(home, tmp_path, monkeypatch):
    run = shutil.copytree(home / 'run', tmp_path / 'run')
    config = json.loads((run / 'config.json').read_text())
    for key in ('sha256', 'split_digest', 'classes'):
        del config[key]
    (run / 'config.json').write_text(json.dumps(config))
    cut_otherwise(monkeypatch)
    assert main.main([*settings(home, 6), f'--workdir={run}']) == 0
    assert sides(run) == sides(home / 'run')


@pytest.mark.slow
def test_folds_that_would_be_cut_otherwise_are_refused_at_once(home, tmp_path, monkeypatch, capfd):
    flags = [*settings(home), '--config.split.kind=kfold', '--config.split.folds=3',
             '--config.split.fold=all', f'--workdir={tmp_path / "run"}']
    assert main.main(flags) == 0
    with monkeypatch.context() as patched:
        cut_otherwise(patched)
        assert main.main(flags) == 0  # all have begun
        shutil.rmtree(tmp_path / 'run/fold_2')
        capfd.readouterr()
        assert main.main(flags) == 2
        assert 'would cut other folds' in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / 'run/fold_2').exists()
    assert main.main(flags) == 0


def test_other_classes_are_never_accepted(home, tmp_path, capfd):
    pictures(tmp_path, 0, 40)
    (tmp_path / 'data/a').rename(tmp_path / 'data/c')
    run = moved(home, tmp_path)
    assert main.main([*settings(tmp_path), '--config.data.changed=accept',
                      f'--workdir={run}']) == 2
    assert 'classes have changed' in capfd.readouterr().err.splitlines()[-1]


def test_libraries_that_cut_otherwise_change_no_side(home, tmp_path, monkeypatch, capfd):
    run = shutil.copytree(home / 'run', tmp_path / 'run')
    cut_otherwise(monkeypatch)
    assert main.main([*settings(home, 6), f'--workdir={run}']) == 0
    assert 'split    as the run was started with' in capfd.readouterr().err
    assert sides(run) == sides(home / 'run')
    new = tmp_path / 'new'
    assert main.main([*settings(home, 6), f'--workdir={new}',
                      f'--config.init.resume_from={home / "run"}']) == 0
    assert sides(new) == sides(run)
    text = (run / 'split.csv').read_text()
    (run / 'split.csv').write_text(text.replace('"val"', '"test"', 1))
    assert main.main([*settings(home, 7), f'--workdir={run}']) == 2
    assert 'split.csv has changed since it was written' in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.faults
def test_workers_and_threads_come_and_go(tmp_path):
    flags = [*SMALL, *QUICK, '--config.checkpoint.every.steps=10', '--config.log.every.steps=1']
    finish(tmp_path / 'unbroken', *flags, '--config.duration.steps=80')
    for steps, workers, threads in ((20, 0, 2), (40, 2, 1), (60, 1, 3), (80, 0, 1)):
        log = finish(tmp_path / 'run', *flags, f'--config.duration.steps={steps}',
                     f'--config.loader.workers={workers}', f'--config.loader.threads={threads}').log
        assert ('resume: from step' in log) == (steps > 20)

    def train(name):
        lines = map(json.loads, (tmp_path / name / 'metrics.jsonl').read_text().splitlines())
        return [line for line in lines if line['split'] == 'train']

    assert train('run') == train('unbroken') and len(train('run')) == 80


@pytest.mark.faults
def test_eight_devices_then_one_then_eight(tmp_path):
    flags = [*SMALL, *QUICK, '--config.batch_size=64', '--config.sharding.min_size=0',
             '--config.log.every.steps=1', '--config.model=dict(name="small_cnn", width=8)']
    finish(tmp_path / 'unbroken', *flags, '--config.duration.steps=60')
    for steps, fsdp, environment in ((20, 8, EIGHT), (40, 1, {}), (60, 2, EIGHT)):
        start: Start = finish(
            tmp_path / 'run', *flags, f'--config.duration.steps={steps}',
            f'--config.mesh.fsdp={fsdp}', environment=environment)
        assert ('resume: from step' in start.log) == (steps > 20)
        assert f'{8 if environment else 1} x cpu' in start.log

    def losses(name):
        lines = map(json.loads, (tmp_path / name / 'metrics.jsonl').read_text().splitlines())
        return [line['loss'] for line in lines if line['split'] == 'train']

    assert len(losses('run')) == 60
    np.testing.assert_allclose(losses('run'), losses('unbroken'), rtol=1e-3)
