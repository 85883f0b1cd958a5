"""Damage on the disk: every bit of a checkpoint counts, and no run goes on from a damaged one.

The short form flips 300 random bits of a real checkpoint; `pytest -m faults` flips every bit of its
digests.json and 5,000 of the rest, and puts all kinds of damage before all that reads a workdir.
"""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

import main
from tests.faults.old_runs.make import SETTINGS
from train_lib.run_dir import checkpoints, digests, workdirs
from train_lib.run_dir.checkpoints import committed_steps, damage, latest_good
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path

RUN = [flag for flag in SETTINGS if 'every.steps' not in flag] + [
    '--config.log.every.steps=1', '--config.eval.every.steps=2',
    '--config.checkpoint.every.steps=2', '--config.checkpoint.keep=9']


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 2, 4, 6 and 8."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    assert main.main([*RUN, '--config.eval.ties=first', f'--workdir={workdir}']) == 0
    assert committed_steps(workdir / 'checkpoints') == [2, 4, 6, 8]
    return workdir


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """The same as it was after six steps, with the best at step 2."""
    workdir = shutil.copytree(whole, tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints/8')
    assert checkpoints.read_host(workdir / 'checkpoints/6')['best_step'] == 2
    return workdir


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size)


def flip(path: Path, bit: int) -> None:
    with open(path, 'r+b') as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def flips_found(folder: Path, moments: random.Random, count: int) -> None:
    """Flips random bits one at a time, in every file alike often, and puts them back."""
    every = files(folder)
    for number in range(count):
        path = every[number % len(every)]
        bit = moments.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert damage(folder), f'bit {bit} of {path}'
        flip(path, bit)
    assert not damage(folder)


def test_flipped_bits_are_found(run):
    flips_found(run / 'checkpoints/6', random.Random(0), 240)
    flips_found(run / 'checkpoints/frozen', random.Random(0), 60)


@pytest.mark.faults
def test_any_flipped_bit_is_found(run):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    flips_found(run / 'checkpoints/6', random.Random(seed), 4500)
    flips_found(run / 'checkpoints/frozen', random.Random(seed), 500)
    for folder in (run / 'checkpoints/6', run / 'checkpoints/frozen'):
        record = folder / digests.NAME
        for bit in range(8 * record.stat().st_size):
            flip(record, bit)
            assert damage(folder), f'bit {bit} of {record}'
            flip(record, bit)
        assert not damage(folder)


@pytest.mark.faults
def test_the_newest_good_step_is_used_whatever_is_flipped(run, caplog):
    moments = random.Random(seed := random.randrange(10**6))
    print(f'seed {seed}')
    folder = run / 'checkpoints'
    for number in range(100):
        steps = moments.sample([2, 4, 6], moments.randint(1, 2))
        broken = {}
        for step in steps:
            path = moments.choice(files(folder / str(step)))
            broken[step] = path, moments.randrange(8 * path.stat().st_size)
            flip(*broken[step])
        caplog.clear()
        good = max({2, 4, 6} - set(steps))
        assert latest_good(folder) == folder / str(good), (number, broken)
        for step in steps:
            aside = folder / f'damaged-{step}-1'
            # Older ones are not looked at, but for the best.
            assert aside.exists() == (step > good or step == 2)
            if aside.exists():
                assert f'step {step} is damaged' in caplog.text
                aside.rename(folder / str(step))
            flip(*broken[step])


def truncate(run: Path, step: int) -> None:
    path = max(files(run / f'checkpoints/{step}'), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def half(run: Path, step: int) -> None:
    path = max(files(run / f'checkpoints/{step}/state/d'), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def emptied(run: Path, step: int) -> None:
    shutil.rmtree(run / f'checkpoints/{step}')
    (run / f'checkpoints/{step}').mkdir()


def added(run: Path, step: int) -> None:
    (run / f'checkpoints/{step}/state/{digests.NAME}').write_text('{}')


def no_record(run: Path, step: int) -> None:
    (run / f'checkpoints/{step}/digests.json').unlink()


def no_metadata(run: Path, step: int) -> None:
    (run / f'checkpoints/{step}/state/_METADATA').unlink()


def a_bit(run: Path, step: int) -> None:
    flip(max(files(run / f'checkpoints/{step}/state'), key=lambda path: path.stat().st_size), 999)


HARMS = [truncate, half, emptied, added, no_record, no_metadata, a_bit]


def start(capfd, run, *more, verb='train') -> tuple[int, str]:
    """(exit code, what it said)"""
    capfd.readouterr()
    code = main.main([verb, *(RUN if verb != 'predict' else ()), f'--workdir={run}', *more])
    said = capfd.readouterr().err
    assert 'Traceback' not in said
    return code, said


def same_end(run: Path, whole: Path) -> None:
    assert (run / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    ours, theirs = (checkpoints.read_weights(one / 'checkpoints/8') for one in (run, whole))
    ours, theirs = by_path(ours), by_path(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_run_goes_on_from_the_step_before_the_damaged_ones(run, whole, capfd):
    a_bit(run, 6)
    no_record(run, 4)
    (run / 'checkpoints/writing-8').mkdir()
    (run / 'checkpoints/writing-9.orbax-checkpoint-tmp').mkdir()
    code, said = start(capfd, run)
    assert code == 0
    for words in ('step 6 is damaged', 'damaged-6-1', 'step 4 is damaged', 'resume: from step 2'):
        assert words in said
    assert not list((run / 'checkpoints').glob('writing-*'))
    same_end(run, whole)


@pytest.mark.faults
@pytest.mark.parametrize('harm', HARMS)
@pytest.mark.parametrize('step', [2, 6])
def test_each_damage_is_survived(run, whole, capfd, harm, step):
    """Of the newest step, and of the best."""
    harm(run, step)
    code, said = start(capfd, run)
    assert code == 0
    assert f'step {step} is damaged' in said and (run / f'checkpoints/damaged-{step}-1').exists()
    if step == 6:
        assert 'resume: from step 4' in said
        same_end(run, whole)
    else:
        assert 'resume: from step 6' in said and 'best checkpoint so far, step 2, is gone' in said
        assert json.loads((run / 'result.json').read_text())['best_step'] == 8


def test_a_best_checkpoint_that_breaks_while_the_run_goes_on_is_noticed(run, capfd, monkeypatch):
    from train_lib.training import run as training
    loop = training.train_loop

    def harmed(*arguments):
        a_bit(run, 2)
        return loop(*arguments)

    monkeypatch.setattr(training, 'train_loop', harmed)
    code, said = start(capfd, run)
    assert code == 0 and 'step 2, is lost' in said
    assert json.loads((run / 'result.json').read_text())['best_step'] == 8
    assert start(capfd, run, verb='predict')[0] == 0


def test_without_a_good_step_nothing_starts_anew(run, capfd):
    for step in (2, 4, 6):
        a_bit(run, step)
    before = (run / 'metrics.jsonl').read_bytes()
    for _ in range(2):
        code, said = start(capfd, run)
        assert code == 1 and 'holds no good checkpoint' in said.splitlines()[-1]
    assert (run / 'metrics.jsonl').read_bytes() == before


@pytest.mark.parametrize('verb, harmed', [('train', 'frozen'), ('predict', 'frozen'),
                                          ('predict', '6'), ('predict', '2'), ('init', '2')])
def test_weights_that_are_damaged_are_never_used(run, tmp_path, capfd, verb, harmed):
    (run / 'result.json').unlink()  # so that the newest step says which is the best
    flip(max(files(run / f'checkpoints/{harmed}'), key=lambda path: path.stat().st_size), 99)
    if verb == 'init':
        code, said = start(capfd, tmp_path / 'new', f'--config.init.from={run}')
    else:
        code, said = start(capfd, run, verb=verb)
    assert code == 1
    assert f'checkpoints/{harmed} is damaged' in said.splitlines()[-1]


@pytest.mark.parametrize('harm', [
    'flipped', 'gone', *(pytest.param(harm, marks=pytest.mark.faults) for harm in (
        'shorter', 'empty'))])
def test_rows_of_metrics_are_put_back(run, whole, capfd, harm):
    path = run / 'metrics.jsonl'
    if harm == 'shorter':
        path.write_bytes(path.read_bytes()[:200])
    elif harm == 'flipped':
        flip(path, 801)
    elif harm == 'gone':
        path.unlink()
    else:
        path.write_bytes(b'')
    code, said = start(capfd, run)
    assert code == 0
    assert f'metrics.jsonl is {"missing" if harm == "gone" else "damaged"}' in said
    same_end(run, whole)


@pytest.mark.parametrize('content', ['', '{"seed": 0', '[]', '{"sched', '\0' * 4096])
@pytest.mark.parametrize('name', ['config.json', 'result.json'])
def test_a_damaged_file_of_a_run_is_one_sentence(whole, tmp_path, capfd, name, content):
    run = shutil.copytree(whole, tmp_path / 'run')
    (run / name).write_text(content)
    code, said = start(capfd, run, verb='predict')
    assert code == 2 and name in said.splitlines()[-1]
    if name == 'config.json':
        code, said = start(capfd, run)
        assert code == 2 and name in said.splitlines()[-1]


@pytest.mark.parametrize('every', [97, pytest.param(1, marks=pytest.mark.faults)])
def test_no_flipped_bit_of_the_config_is_believed(whole, tmp_path, every):
    path = Path(shutil.copy(whole / 'config.json', tmp_path))
    before, found = workdirs.saved_config(tmp_path), 0
    for bit in range(0, 8 * path.stat().st_size, every):
        flip(path, bit)
        try:
            after = workdirs.saved_config(tmp_path)
        except ConfigError as error:
            assert str(path) in str(error)
            found += 1
        else:
            assert after == before, f'bit {bit}'  # 1e-05 and 1E-05
        flip(path, bit)
    print(f'{found} of {-(-8 * path.stat().st_size // every)} bits found')
    assert found > 0.99 * 8 * path.stat().st_size / every
