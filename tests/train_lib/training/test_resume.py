"""Killed and started again, a run ends as if nothing had happened: bit for bit.

Real processes, real signals, at moments that nobody chose. The setting has everything that could
go wrong: dropout, drop path, BatchNorm, a curriculum, mixing, resampling and class weights that
start late, batches that straddle epochs, evaluations, best checkpoints, and saves that come at
steps between log lines; batches in parts, averaged weights, a rate that falls on a plateau, steps
that are not finite, two roll-backs, one farther than the other, and an early end.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from train_lib.run_dir import checkpoints

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name('harmed_main.py')
SETTINGS = [
    '--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
    '--config.model=dict(name="small_cnn", width=8, stages=2, drop_path=0.2, drop_rate=0.2)',
    '--config.duration.epochs=6', '--config.batch_size=60', '--config.log.every.steps=3',
    '--config.eval.every.steps=13', '--config.checkpoint.every.steps=5',
    '--config.curriculum[0].until.epochs=2.5', '--config.log.tensorboard=false',
    '--config.mixing=[dict(kind="mixup", p=0.5), dict(kind="cutmix", p=0.3, per="example")]',
    '--config.resample.kind=balanced', '--config.resample.start.epochs=1.3',
    '--config.loss.class_weights.kind=effective', '--config.loss.class_weights.start.epochs=3',
    '--config.accumulate=2', '--config.ema.decay=0.9', '--config.guard.skip=2',
    '--config.schedule.plateau.patience=dict(steps=13)',
    '--config.schedule.plateau.min_delta=0.1',
    '--config.early_stopping.patience=dict(steps=60)', '--config.early_stopping.min_delta=0.4']
HARMED_STEPS = '9,31,32,33,34,70'


def start(workdir: Path, *more: str) -> subprocess.Popen:
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'HARMED_STEPS': HARMED_STEPS}
    return subprocess.Popen([sys.executable, str(PROGRAM), *SETTINGS, *more,
                             f'--workdir={workdir}'],
                            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(workdir: Path, *more: str) -> str:
    process = start(workdir, *more)
    log = process.communicate(timeout=300)[1]
    assert process.returncode == 0, log
    return log


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def last_checkpoint(workdir: Path) -> Path:
    folder = workdir / 'checkpoints'
    return folder / str(checkpoints.committed_steps(folder)[-1])


def final_arrays(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint: weights, statistics, optimizer, average, sums."""
    folder = workdir / 'checkpoints' / str(step) if step else last_checkpoint(workdir)
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(folder / 'state')
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]} | {
                'name': np.array(int(folder.name))}


def assert_same_run(left: Path, right: Path) -> None:
    assert (left / 'metrics.jsonl').read_bytes() == (right / 'metrics.jsonl').read_bytes()
    a, b = final_arrays(left), final_arrays(right)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    hosts = [checkpoints.read_host(last_checkpoint(folder)) for folder in (left, right)]
    for host in hosts:
        host.pop('seconds')
    assert hosts[0] == hosts[1]
    for split in ('val', 'test'):
        with np.load(left / f'predictions/{split}.npz') as x, \
                np.load(right / f'predictions/{split}.npz') as y:
            for name in x.files:
                np.testing.assert_array_equal(x[name], y[name])
        tables = [(folder / f'predictions/{split}.csv').read_bytes() for folder in (left, right)]
        assert tables[0] == tables[1]
    results = [json.loads((folder / 'result.json').read_text()) for folder in (left, right)]
    for key in ('val', 'test', 'best_step', 'steps', 'stopped_early', 'steps_skipped', 'rollbacks'):
        assert results[0][key] == results[1][key], key


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('unbroken') / 'run'
    finish(workdir)
    return workdir


def test_the_setting_has_what_it_promises(unbroken):
    result = json.loads((unbroken / 'result.json').read_text())
    assert result['stopped_early']
    assert result['steps'] == 78
    assert result['rollbacks'] == 2
    assert result['steps_skipped'] == 8  # 9 and 70; 29 to 34
    lines = list(map(json.loads, (unbroken / 'metrics.jsonl').read_text().splitlines()))
    assert [line['step'] for line in lines] == sorted(line['step'] for line in lines)
    train = [line for line in lines if line['split'] == 'train']
    assert [line['step'] for line in train if line['loss'] is None] == [33]
    host = checkpoints.read_host(last_checkpoint(unbroken))
    assert host['guard']['ranges'] == [[30, 33], [29, 35]]
    assert host['patience']['plateau']['scale'] < 1
    arrays = final_arrays(unbroken)
    assert arrays["['lr_factor']"] == np.float32(host['patience']['plateau']['scale'])
    assert any(not np.array_equal(value, arrays[name.removeprefix("['ema']")])
               for name, value in arrays.items() if name.startswith("['ema']['params']"))


def rows(workdir: Path) -> int:
    try:
        return len((workdir / 'metrics.jsonl').read_text().splitlines())
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize('most', [2, pytest.param(6, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_nothing(unbroken, tmp_path, most):
    """Each start is killed some random time after it wrote its first new row."""
    workdir = tmp_path / 'run'
    moments = random.Random(time.time_ns())
    seed = moments.randrange(10**6)
    moments.seed(seed)
    total, kills = rows(unbroken), 0
    while kills < most:
        before = rows(workdir)
        process = start(workdir, f'--config.loader.threads={1 + kills}')
        wait_for(lambda known=(before, 0): rows(workdir) not in known, process)
        time.sleep(moments.uniform(0, 0.8))
        process.kill()
        process.communicate()
        kills += 1
        if rows(workdir) >= total:
            break
    finish(workdir)
    print(f'seed {seed}, killed {kills} times')
    assert_same_run(unbroken, workdir)


@pytest.mark.slow  # the random moments above may be any, these too
def test_sigkill_at_the_roll_backs_changes_nothing(unbroken, tmp_path):
    """Killed when the first is said, then between the second and the next save."""
    for said in ('roll back: to step 30', 'roll back: to step 25'):
        process = start(tmp_path / 'run')
        for line in process.stderr:
            if said in line:
                process.kill()
                break
        process.communicate()
        assert process.returncode == -signal.SIGKILL, said
    finish(tmp_path / 'run')
    assert_same_run(unbroken, tmp_path / 'run')


def test_sigterm_saves_and_the_next_start_goes_on(unbroken, tmp_path):
    workdir = tmp_path / 'run'
    process = start(workdir)
    wait_for(lambda: rows(workdir) >= 3, process)
    process.send_signal(signal.SIGTERM)
    log = process.communicate(timeout=60)[1]
    assert process.returncode == 75, log
    assert 'SIGTERM' in log
    log = finish(workdir)
    assert 'resume: from step' in log
    assert_same_run(unbroken, workdir)


def test_a_finished_run_only_evaluates(unbroken):
    before = (unbroken / 'metrics.jsonl').read_bytes()
    log = finish(unbroken)
    assert 'early stopping' in log
    assert 'img/s' not in log
    assert (unbroken / 'metrics.jsonl').read_bytes() == before


def test_other_settings_in_the_same_workdir_are_refused(unbroken):
    process = start(unbroken, '--config.schedule.lr=0.5')
    log = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert 'config.schedule.lr' in log
    assert 'Traceback' not in log


def test_a_new_run_can_start_from_the_weights_of_another(unbroken, tmp_path):
    log = finish(tmp_path / 'run', f'--config.init.from={unbroken}', '--config.duration.steps=1',
                 '--config.schedule.lr=0')
    assert 'init: weights of' in log
    best = json.loads((unbroken / 'result.json').read_text())['best_step']
    taken, given = final_arrays(tmp_path / 'run', 1), final_arrays(unbroken, best)
    names = [name for name in taken if name.startswith("['params']")]
    for name in names:  # a rate of 0 moves nothing, and the average of the same is the same
        np.testing.assert_array_equal(taken[name], given["['ema']" + name], err_msg=name)
        np.testing.assert_array_equal(taken["['ema']" + name], taken[name], err_msg=name)
