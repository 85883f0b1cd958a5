"""A study that is killed and restarted until it is done equals one that was never killed.

Real processes get SIGKILL at random moments: the whole study, the process that watches, or a
worker. The tables have the same bytes as without kills, no finished cell is touched again, and no
cell is lost.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train_lib.studies import ledger

ROOT = Path(__file__).parents[3]
TABLES = ('table.md', 'table.csv', 'table.tex')
SHORT = ('--config.study.seeds=(0,)', '--config.report.heat_maps=False')


def start(workdir: Path, *more: str) -> subprocess.Popen:
    argv = [sys.executable, str(ROOT / 'main.py'), 'study',
            '--config=configs/studies/digits.py', f'--workdir={workdir}',
            '--config.duration.epochs=3', *more]
    return subprocess.Popen(argv, cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'},
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(workdir: Path, *more: str, code: int = 0) -> str:
    process = start(workdir, *more)
    log = process.communicate(timeout=600)[1]
    assert process.returncode == code, log
    return log


def over(workdir: Path) -> dict[str, tuple]:
    """Finished cells, and facts that change if their files are written again."""
    found = {}
    for path in workdir.glob('*/*/cell.json'):
        stat = path.stat(), (path.parent / 'result.json').stat()
        found[str(path.parent.relative_to(workdir))] = tuple(
            (one.st_ino, one.st_mtime_ns) for one in stat)
    return found


def moment(workdir: Path) -> tuple:
    """Changes whenever a cell makes progress."""
    return tuple(sorted((str(path), path.stat().st_size) for pattern in
                        ('*/*/metrics.jsonl', '*/*/cell.json') for path in workdir.glob(pattern)))


def workers_of(process: subprocess.Popen) -> list[int]:
    found = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def kill(process: subprocess.Popen, whom: str) -> None:
    """Kills all of a study, its parent, or one of its workers."""
    if whom == 'worker':
        for pid in workers_of(process)[:1]:
            os.kill(pid, signal.SIGKILL)
        return
    if whom == 'all':
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=60)  # its workers notice within a second or two


def break_study(workdir: Path, kills: int, *more: str) -> list[str]:
    """Kills a study this many times, then lets it end. Returns what was killed."""
    rng = random.Random(time.time_ns())
    seed = rng.randrange(10**6)
    rng.seed(seed)
    print(f'seed {seed}')
    victims, known, process = [], {}, start(workdir, *more)
    while len(victims) < kills and process.poll() is None:
        before, end = moment(workdir), time.monotonic() + 60
        if rng.random() < 0.7:
            while moment(workdir) == before and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
        if process.poll() is not None:
            break
        victims.append(rng.choice(('all', 'parent', 'worker')))
        kill(process, victims[-1])
        now = over(workdir)
        assert {key: now.get(key) for key in known} == known
        known = now
        if victims[-1] != 'worker':
            process = start(workdir, *more)
    log = process.communicate(timeout=600)[1]
    assert process.returncode == 0, log
    now = over(workdir)
    assert {key: now[key] for key in known} == known, 'a finished cell ran again'
    return victims


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('unbroken') / 'study'
    finish(workdir)
    return workdir


@pytest.fixture(scope='module')
def short(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('short') / 'study'
    finish(workdir, *SHORT)
    return workdir


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_same_study(left: Path, right: Path, cells: int) -> None:
    for name in TABLES:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert len(over(right)) == len(over(left)) == cells
    for path in left.glob('*/*/metrics.jsonl'):
        assert path.read_bytes() == (right / path.relative_to(left)).read_bytes()
    for path in right.glob('*/*/cell.json'):
        assert json.loads(path.read_text())['status'] == 'done'
    assert not list(right.glob('*/*/lease.*'))
    assert not list(right.glob('*/*/checkpoints'))


@pytest.mark.faults
@pytest.mark.parametrize('workers', [1, 3])
def test_ten_kills_change_nothing(unbroken, tmp_path, workers):
    workdir = tmp_path / 'study'
    victims = break_study(workdir, 10, f'--workers={workers}')
    print(f'{len(victims)} kills: {victims}')
    assert len(victims) == 10
    assert_same_study(unbroken, workdir, 9)


@pytest.mark.faults
def test_several_commands_share_one_ledger(unbroken, tmp_path):
    """As the jobs of a Slurm array do; one of them is killed."""
    workdir = tmp_path / 'study'
    processes = [start(workdir) for _ in range(3)]
    wait_for(lambda: over(workdir), processes[0])
    kill(processes[0], 'all')
    for process in processes[1:]:
        log = process.communicate(timeout=600)[1]
        assert process.returncode == 0, log
    assert_same_study(unbroken, workdir, 9)


@pytest.mark.slow
def test_a_study_that_was_stopped_and_killed_goes_on(short, tmp_path):
    """SIGTERM in a run, SIGKILL to a worker in one, then to everything."""
    workdir = tmp_path / 'study'
    begun = lambda: list(workdir.glob('*/*/metrics.jsonl'))
    process = start(workdir, *SHORT)
    wait_for(begun, process)
    process.send_signal(signal.SIGTERM)
    log = process.communicate(timeout=60)[1]
    assert process.returncode == 75, log
    assert f'--workdir={workdir}' in log
    assert not any(ledger.is_running(path) for path in workdir.glob('*/seed_*'))
    known = over(workdir)

    process = start(workdir, *SHORT)
    cells = len(known)
    wait_for(lambda: len(over(workdir)) > cells, process)
    kill(process, 'worker')
    cells = len(over(workdir))
    wait_for(lambda: len(over(workdir)) > cells, process)
    known |= over(workdir)
    kill(process, 'all')

    log = finish(workdir, *SHORT)
    assert f'{len(known)} of 3 cells are over already' in log or len(over(workdir)) > len(known)
    now = over(workdir)
    assert {key: now[key] for key in known} == known, 'a finished cell ran again'
    assert_same_study(short, workdir, 3)


def test_an_arm_that_cannot_run_is_refused_before_any_cell(tmp_path):
    path = tmp_path / 'wrong.py'
    path.write_text('from configs.studies.digits import get_config\n'
                    "study = lambda: {'base': {}, 'wrong': {'schedule.name': 'cosin'}}\n")
    log = finish(tmp_path / 'study', f'--config={path}', code=2)
    assert log.splitlines()[-1].startswith('main.py: ') and 'Traceback' not in log
    for text in ("'wrong'", 'cosin', 'cosine'):
        assert text in log
    assert not list((tmp_path / 'study').glob('*/seed_*'))
    assert not (tmp_path / 'study/study.json').exists()  # the corrected command may use the folder
