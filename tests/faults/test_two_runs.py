"""Two starts in one workdir, and starts that are told to stop before they have begun."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import main
from tests.faults.old_runs.make import SETTINGS
from tests.faults.running import Start, assert_same_run, finish, leftovers
from train_lib.run_dir import lock
from train_lib.run_dir.checkpoints import committed_steps

OLD = Path(__file__).parent / 'old_runs/format_2'
RUN = [flag for flag in SETTINGS if 'duration' not in flag]
LONG = [*RUN, '--config.duration.steps=2000', '--config.schedule.name=constant']


def test_a_workdir_in_use_is_left_alone(tmp_path, capfd):
    run = shutil.copytree(OLD, tmp_path / 'run')
    with lock.held(run):
        before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
        for verb, settings in (('train', SETTINGS), ('predict', []), ('lr_find', SETTINGS),
                               ('explore', SETTINGS), ('curate', SETTINGS),
                               ('vote', [f'--config=configs/vote/digits.py:members={run}'])):
            assert main.main([verb, *settings, f'--workdir={run}']) == 2
            assert f'{run} is in use by process ' in capfd.readouterr().err.splitlines()[-1]
        assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file()} == before
        assert main.main(['report', f'--workdir={run}']) == 0  # which only reads
    assert main.main(['predict', f'--workdir={run}']) == 0
    assert not (run / 'lock').exists()


@pytest.mark.faults
def test_of_starts_at_once_one_trains(tmp_path):
    """Three at once, five times in one workdir; the winner is killed each time."""
    killed = []
    for number in range(5):
        starts = [Start(tmp_path / 'run', *LONG) for _ in range(3)]
        known = set(committed_steps(tmp_path / 'run/checkpoints'))
        end = time.monotonic() + 240
        while sum(start.process.poll() is None for start in starts) > 1 or not (
                set(committed_steps(tmp_path / 'run/checkpoints')) - known):
            assert time.monotonic() < end and any(s.process.poll() is None for s in starts), \
                [start.log for start in starts]
            time.sleep(0.02)
        winner = next(start for start in starts if start.process.poll() is None)
        for start in starts:
            if start is not winner:
                assert start.end() == 2, start.log
                assert f'in use by process {winner.process.pid} on ' in start.lines[-1]
                assert 'Traceback' not in start.log
        assert not number or any(f'taken over from process {killed[-1]}' in start.log
                                 for start in starts)
        killed.append(winner.process.pid)
        assert winner.kill() == -signal.SIGKILL
    print('killed', killed)


@pytest.mark.faults
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_before_it_began(tmp_path, number):
    """At 8 random moments of the first seconds; the same command then goes on to the same end."""
    settings = [*RUN, '--config.duration.steps=8', '--config.compile_cache=no']
    took = finish(tmp_path / 'whole', *settings).seconds
    moments = random.Random(seed := random.randrange(10**6))
    codes = []
    for _ in range(8):
        start = Start(tmp_path / 'run', *settings)
        time.sleep(moments.uniform(0, 0.9 * took))
        start.signal(number)
        codes.append(start.end(120))
        assert 'Traceback' not in start.log or number == signal.SIGINT
        # While Python still loads our modules, the system decides.
        assert codes[-1] in (0, 75) or not any(line.startswith('workdir ') for line in start.lines)
        assert [name for name in leftovers(tmp_path / 'run') if name != 'clock.json.tmp'] == []
        if codes[-1] == 0:
            shutil.rmtree(tmp_path / 'run')
    print(f'seed {seed}: {codes}')
    finish(tmp_path / 'run', *settings)
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')
