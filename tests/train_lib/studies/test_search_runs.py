"""Searches of real runs: killed, with two workers, and where there is nothing to be found."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from train_lib.commands.command_line import parse
from train_lib.commands.study import study_of
from train_lib.commands.train import run_any
from train_lib.studies.search import best_of, trials_of
from train_lib.studies.study_file import claim
from train_lib.studies.tables import write_tables
from train_lib.studies.worker import work

ROOT = Path(__file__).parents[3]
FILE = '''
from configs.studies import digits

def get_config(arg=None):
    config = digits.get_config(arg)
    config.duration = dict(epochs=4)
    config.report.heat_maps = False
    config.study.seeds = (0,)
    config.study.search.update(trials=4, rungs=(25, 50), factor=2.0)
    return config

def search():
    return {'schedule.lr': (1e-3, 1e-1, 'log'), 'batch_size': [32, 64]}
'''
RANDOM = '''
from configs import common

def get_config(arg=None):
    config = common.get_config()
    config.data.doodles.update(classes=2, per_class=150, size=16, wrong_labels=0.5)
    config.split.update(val=0.1, test=0.4)
    config.image.size = 16
    config.model = dict(name='small_cnn', width=4, stages=1)
    config.duration = dict(epochs=4)
    config.log.tensorboard = False
    config.report.heat_maps = False
    config.study.search.update(trials=6, rungs=(50,), factor=2.0)
    return config

def search():
    return {'schedule.lr': (1e-3, 1e-1, 'log'), 'optimizer.weight_decay': (1e-3, 1.0, 'log')}
'''


def start(path: Path, workdir: Path, *more: str) -> subprocess.Popen:
    argv = [sys.executable, str(ROOT / 'main.py'), 'study', f'--config={path}',
            f'--workdir={workdir}', *more]
    return subprocess.Popen(argv, cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'},
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def tables(workdir: Path) -> dict[str, bytes]:
    return {name: (workdir / name).read_bytes() for name in (
        'search.md', 'search.csv', 'table.md', 'table.csv', 'table.tex')}


def finish(path: Path, workdir: Path, *more: str) -> dict[str, bytes]:
    process = start(path, workdir, *more)
    log = process.communicate(timeout=1500)[1]
    assert process.returncode == 0, log
    assert all(len(line) <= 80 for line in log.splitlines()
               if line.startswith(('search', 'study', 'cell'))), log
    return tables(workdir)


@pytest.mark.slow
def test_killed_again_and_again_two_workers_end_the_same(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(FILE)
    wanted = finish(path, tmp_path / 'whole', '--workers=2')  # of one core each, as below
    broken = tmp_path / 'broken'
    rng = random.Random(0)
    for _ in range(5):
        process = start(path, broken, '--workers=2')
        seen = len(list(broken.glob('*/*/rung_*.json'))) + len(list(broken.glob('*/*/cell.json')))
        end, after = time.monotonic() + 300, rng.random() * 5
        while process.poll() is None and time.monotonic() < end:  # some progress, then some time
            now = len(list(broken.glob('*/*/rung_*.json'))) + len(
                list(broken.glob('*/*/cell.json')))
            if now > seen:
                time.sleep(after)
                break
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert finish(path, broken, '--workers=2') == wanted


@pytest.mark.slow
def test_where_labels_are_random_the_winner_is_announced_at_chance(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(RANDOM)
    study = study_of(parse(['study', f'--config={path}']))
    workdir = tmp_path / 'run'
    claim(study, workdir)
    assert work(study, workdir, run_any) == 0
    write_tables(study, workdir, page=False)
    best = best_of(study, trials_of(study, workdir))
    fresh = [json.loads((workdir / f'winner/seed_{seed}/result.json').read_text())['test']
             for seed in study.seeds]
    announced = np.mean([one['accuracy'] for one in fresh])
    assert f'{announced:.4f}' in (workdir / 'table.md').read_text()
    print(f'best trial {best.score:.3f}, announced {announced:.3f}, n {fresh[0]["n"]}')
    assert best.score > 0.55  # the largest of several noisy scores
    assert abs(announced - 0.5) < 2.6 * (0.25 / fresh[0]['n']) ** 0.5
    assert best.score > announced + 0.05
