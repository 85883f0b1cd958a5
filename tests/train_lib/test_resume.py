"""Killed and started again, a run ends as if nothing had happened: bit for bit.

Real processes, real signals, at moments that nobody chose. The setting has everything that could
go wrong: dropout, drop path, BatchNorm, a curriculum, mixing, resampling and class weights that
start late, batches that straddle epochs, evaluations, best checkpoints, and saves that come at
steps between log lines.
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

from train_lib import checkpoints

ROOT = Path(__file__).parents[2]
SETTINGS = [
    '--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
    '--config.model=dict(name="small_cnn", width=8, stages=2, drop_path=0.2, drop_rate=0.2)',
    '--config.duration.epochs=6', '--config.batch_size=60', '--config.log.every.steps=7',
    '--config.eval.every.steps=13', '--config.checkpoint.every.steps=5',
    '--config.curriculum[0].until.epochs=2.5', '--config.log.tensorboard=false',
    '--config.mixing=[dict(kind="mixup", p=0.5), dict(kind="cutmix", p=0.3, per="example")]',
    '--config.resample.kind=balanced', '--config.resample.start.epochs=1.3',
    '--config.loss.class_weights.kind=effective', '--config.loss.class_weights.start.epochs=3']


def start(workdir: Path, *more: str) -> subprocess.Popen:
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen([sys.executable, 'main.py', *SETTINGS, *more, f'--workdir={workdir}'],
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


def final_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint: weights, statistics, optimizer, sums."""
    folder = max((path for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()),
                 key=lambda path: int(path.name))
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
    for split in ('val', 'test'):
        with np.load(left / f'predictions/{split}.npz') as x, \
                np.load(right / f'predictions/{split}.npz') as y:
            for name in x.files:
                np.testing.assert_array_equal(x[name], y[name])
    results = [json.loads((folder / 'result.json').read_text()) for folder in (left, right)]
    assert results[0]['test'] == results[1]['test']
    assert results[0]['best_step'] == results[1]['best_step']


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('unbroken') / 'run'
    finish(workdir)
    return workdir


def rows(workdir: Path) -> int:
    try:
        return len((workdir / 'metrics.jsonl').read_text().splitlines())
    except FileNotFoundError:
        return 0


def test_sigkill_at_random_moments_changes_nothing(unbroken, tmp_path):
    """Each start is killed some random time after it wrote its first new row."""
    workdir = tmp_path / 'run'
    moments = random.Random(time.time_ns())
    seed = moments.randrange(10**6)
    moments.seed(seed)
    total, kills = rows(unbroken), 0
    while kills < 4:
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
    assert 'already finished' in log
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
    taken = checkpoints.read_weights(tmp_path / 'run/checkpoints/1')['params']
    given = checkpoints.read_weights(unbroken / f'checkpoints/{best}')['params']
    jax.tree.map(np.testing.assert_array_equal, taken, given)
