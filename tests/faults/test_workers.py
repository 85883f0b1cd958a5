"""Data workers and signals: whatever is killed or stopped, nothing hangs, and nothing stays."""

import os
import signal
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from input_pipeline.batches import RESTARTS, Batches
from input_pipeline.errors import WorkerError
from tests.faults.running import (
    QUICK,
    SMALL,
    Start,
    assert_all_gone,
    finish,
    leftovers,
    workers,
)

LONG = [*SMALL, *QUICK, '--config.duration.steps=100000', '--config.log.every.steps=10',
        '--config.eval.every.steps=100000', '--config.checkpoint.every.steps=50']


def shared_memory() -> set[str]:
    return {path.name for path in Path('/dev/shm').glob('psm_*')}


def assert_shared_memory_freed(before: set[str]) -> None:
    """Blocks of others come and go."""
    left, end = shared_memory() - before, time.monotonic() + 30
    while left := left & shared_memory():
        assert time.monotonic() < end, left
        time.sleep(0.1)


def number(step: int) -> dict:
    return {'step': np.array(step)}


def test_the_number_of_the_next_batch_is_all_that_a_state_knows():
    batches = Batches(number, 9, threads=2)
    assert [int(next(batches)['step']) for _ in range(3)] == [0, 1, 2]
    assert batches.get_state() == {'next_index': 3}
    batches.set_state({'next_index': 7})
    assert [int(batch['step']) for batch in batches] == [7, 8]
    batches.close()
    with pytest.raises(ValueError, match='closed'):
        next(batches)


def test_workers_that_die_are_started_again_and_then_end_the_run(monkeypatch, caplog):
    class Dead:
        def __next__(self):
            raise RuntimeError('Worker process was terminated unexpectedly with exit code -9. See')

        def close(self):
            closed.append(self)

    closed = []
    batches = Batches(number, 9, threads=1, workers=1, first=4)
    monkeypatch.setattr(batches, '_started', Dead)
    monkeypatch.setattr(batches, '_drop', lambda: closed.append(1))
    with pytest.raises(WorkerError, match='SIGKILL'):
        next(batches)
    assert len(closed) == RESTARTS and caplog.text.count('SIGKILL') == RESTARTS
    assert batches.get_state() == {'next_index': 4}


def test_what_a_batch_raises_is_no_death():
    def broken(step):
        raise RuntimeError(f'cause {step}')

    batches = Batches(broken, 9, threads=1)
    with pytest.raises(RuntimeError, match='cause 0'):
        next(batches)
    batches.close()


def test_only_threads_of_workers_have_their_signals_blocked():
    from input_pipeline.batches import _blocked_signals

    masks = []
    with _blocked_signals():
        thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(
            signal.SIG_BLOCK, ())))
        thread.start()
        thread.join()
    assert {signal.SIGINT, signal.SIGTERM} <= masks[0]
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.faults
def test_ctrl_c_in_a_terminal_with_workers(tmp_path):
    """Every process of the group has the signal; the run saves, and goes on without workers."""
    workdir = tmp_path / 'run'
    start = Start(workdir, *LONG, '--config.loader.workers=2')
    assert start.wait_for('^step ') is not None
    assert len(workers(start)) == 2
    os.killpg(start.process.pid, signal.SIGINT)
    assert start.end(120) == 75, start.log
    assert 'SIGINT: saving' in start.log and 'Traceback' not in start.log
    assert_all_gone(start)
    assert leftovers(workdir) == []
    saved = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    more = finish(workdir, *LONG, f'--config.duration.steps={saved + 20}')
    assert f'resume: from step {saved} of' in more.log


@pytest.mark.faults
def test_a_killed_worker_changes_nothing(tmp_path):
    flags = [*SMALL, *QUICK, '--config.duration.steps=400', '--config.log.every.steps=1',
             '--config.eval.every.steps=100']
    finish(tmp_path / 'unbroken', *flags)
    start = Start(tmp_path / 'run', *flags, '--config.loader.workers=2')
    for _ in range(RESTARTS):
        said = len(start.lines)
        assert start.wait_for('^step ', after=said) is not None
        for victim in workers(start)[:1]:
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            assert start.wait_for('data worker was killed by SIGKILL', after=said) is not None
            print(f'{time.monotonic() - killed:.1f} s until it was said')
    assert start.end() == 0, start.log
    assert_all_gone(start)
    assert (tmp_path / 'run/metrics.jsonl').read_bytes() == (
        tmp_path / 'unbroken/metrics.jsonl').read_bytes()


@pytest.mark.faults
def test_workers_that_are_killed_again_and_again_end_the_run(tmp_path):
    before = shared_memory()
    start = Start(tmp_path / 'run', *LONG, '--config.loader.workers=2')
    assert start.wait_for('^step ') is not None
    said = 0
    for _ in range(RESTARTS):
        assert start.wait_until(lambda: len(workers(start)) == 2)
        os.kill(workers(start)[-1], signal.SIGKILL)
        said = start.wait_for('are started again', after=said)
    assert start.wait_until(lambda: len(workers(start)) == 2)
    os.kill(workers(start)[0], signal.SIGKILL)
    killed = time.monotonic()
    assert start.end(120) == 1
    print(f'ended after {time.monotonic() - killed:.1f} s')
    assert time.monotonic() - killed < 30
    assert 'config.loader.workers' in start.sentence and 'Traceback' not in start.log
    assert_all_gone(start)
    assert_shared_memory_freed(before)


@pytest.mark.faults
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
@pytest.mark.parametrize('count', [0, 2])
def test_nothing_is_left(tmp_path, number, count):
    """After each way to end: no process, no shared memory, no temporary file."""
    before, workdir = shared_memory(), tmp_path / 'run'
    temporary = tmp_path / 'tmp'
    temporary.mkdir()
    start = Start(workdir, *LONG, f'--config.loader.workers={count}',
                  *([] if number else ['--config.duration.steps=60']),
                  environment={'TMPDIR': str(temporary)})
    assert start.wait_for('^step +50/') is not None
    if number:
        time.sleep(0.3)
        start.signal(number)
    assert start.end(120) == {signal.SIGKILL: -signal.SIGKILL, None: 0}.get(number, 75), start.log
    ended = time.monotonic()
    assert_all_gone(start)
    print(f'{number}, {count} workers: the last was gone after {time.monotonic() - ended:.1f} s')
    assert_shared_memory_freed(before)
    assert list(temporary.iterdir()) == []
    if number != signal.SIGKILL:
        assert leftovers(workdir) == []


@pytest.mark.faults
@pytest.mark.parametrize(('phase', 'line'), [
    ('start', '^workdir'), ('compiling', '^start '), ('training', '^step +20/'),
    ('evaluating', '^step +90/')])
@pytest.mark.parametrize('times', [1, 2])
def test_ctrl_c(tmp_path, phase, line, times):
    workdir = tmp_path / 'run'
    start = Start(workdir, *LONG, '--config.eval.every.steps=90', '--config.compile_cache=no',
                  '--config.eval.batch_size=2')
    assert start.wait_for(line) is not None
    time.sleep(0.1)
    start.signal(signal.SIGINT)
    begun = time.monotonic()
    if times == 2:
        time.sleep(0.1)
        if start.process.poll() is None:
            start.signal(signal.SIGINT)
    code = start.end(120)
    print(f'{phase}, {times} times: code {code} after {time.monotonic() - begun:.1f} s')
    assert code in ((75,) if times == 1 else (75, 130)), start.log
    if times == 1:
        assert 'Traceback' not in start.log
    assert_all_gone(start)
    assert finish(workdir, *LONG, '--config.eval.every.steps=90', '--config.eval.batch_size=2',
                  f'--config.duration.steps={saved(workdir) + 5}')


def saved(workdir: Path) -> int:
    found = [int(path.name) for path in workdir.glob('checkpoints/[0-9]*')]
    return max(found, default=0)


@pytest.mark.faults
@pytest.mark.parametrize('count', [0, 2])
def test_a_picture_that_breaks_ends_the_run_with_its_name(tmp_path, count):
    rng = np.random.default_rng(0)
    for i in range(120):
        folder = tmp_path / f'data/{"ab"[i % 2]}'
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 255, (16, 16, 3), np.uint8))
    flags = [flag.replace('data=digits', f'folder={tmp_path / "data"}') for flag in LONG]
    start = Start(tmp_path / 'run', *flags, f'--config.loader.workers={count}',
                  '--config.image.cache_mb=0', '--config.batch_size=16')
    assert start.wait_for('^step ') is not None
    (tmp_path / 'data/a/6.png').unlink()
    (tmp_path / 'data/b/7.png').unlink()
    assert start.end(120) == 2, start.log
    assert '.png' in start.sentence and 'Traceback' not in start.log
    assert_all_gone(start)


@pytest.mark.faults
def test_predict_stops_and_goes_on(tmp_path):
    workdir = tmp_path / 'run'
    finish(workdir, *LONG, '--config.duration.steps=5')
    flags = ['--config.predict.views=identity,hflip,crops5', '--config.eval.batch_size=1']
    start = Start(workdir, *flags, verb='predict')
    assert start.wait_for('.', seconds=60) is not None
    time.sleep(1)
    start.signal(signal.SIGINT)
    assert start.end(120) in (75, 0), start.log
    assert 'Traceback' not in start.log
    assert_all_gone(start)
    assert Start(workdir, *flags, verb='predict').end() == 0
