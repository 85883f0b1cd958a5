"""Seconds by kind add up to the wall time of all starts, whatever they ended by."""

import json
import os
import subprocess
import sys
import time

import pytest

from train_lib.run_dir import goodput as clocks
from train_lib.run_dir.goodput import Clock, goodput, process_start, together


@pytest.fixture
def tick(monkeypatch):
    """tick(seconds) lets time pass; nothing else does."""
    now = [100.0]
    monkeypatch.setattr(clocks.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(clocks, 'BEAT', 1e3)

    def tick(seconds):
        now[0] += seconds
    return tick


def start(folder, tick, known, *, killed: bool):
    """One start: 2 s of start, 3 of steps, then what it says of its seconds; killed 5 s later."""
    clock = Clock(clocks.time.perf_counter() - 1.5, 'start')
    try:
        with clock.kept(folder):
            tick(0.5)
            clock.resume(known)
            with clock('data'):
                tick(1)
                clock.rename('step')
            with clock('step'):
                tick(2)
                with clock('compile'):
                    tick(0.25)
            saved = clock.seconds()
            tick(5)
            if killed:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    return saved


def test_kinds_of_several_starts_add_up(tick, tmp_path):
    first = start(tmp_path, tick, {}, killed=True)
    assert first == dict(compile=0.25, other=0.0, start=2.0, step=3.0, total=5.25)
    second = start(tmp_path, tick, {}, killed=True)  # there was no checkpoint
    assert second == dict(compile=0.25, lost=10.25, other=0.0, restart=2.0, step=3.0, total=15.5)
    third = start(tmp_path, tick, second, killed=False)
    assert third == dict(compile=0.5, lost=15.25, other=0.0, restart=4.0, step=6.0, total=25.75)
    after = start(tmp_path, tick, third, killed=False)  # it was over, so nothing was lost
    assert after == dict(compile=0.75, lost=15.25, other=5.0, restart=6.0, step=9.0, total=36.0)
    assert goodput(after) == 0.25


def test_a_roll_back_loses_what_came_after_its_checkpoint(tick):
    clock = Clock()
    with clock('step'):
        tick(4)
    known = clock.seconds()
    with clock('eval'):
        tick(2)
    with clock('step'):
        tick(3)
        clock.go_back(known)
        tick(1)
    assert clock.seconds() == dict(lost=5.0, other=0.0, step=5.0, total=10.0)
    both = together([known, clock.seconds()])
    assert both == dict(lost=5.0, other=0.0, step=9.0, total=14.0)


@pytest.mark.parametrize('content', [
    b'', b'[]', b'{"total": "x", "kinds": null}', b'{"total": NaN, "kinds": null}',
    b'{"total": 5, "kinds": {"step": -1}}', b'{"total": 5, "kinds": 3}', b'\xff'])
def test_a_damaged_file_counts_as_none(tick, tmp_path, content):
    (tmp_path / 'clock.json').write_bytes(content)
    assert start(tmp_path, tick, {}, killed=False)['total'] == 5.25


def test_a_process_that_is_killed_has_said_how_long_it_lived(tmp_path):
    program = ('import pathlib, sys, time\nfrom train_lib.run_dir import goodput\n'
               'goodput.BEAT = 0.05\n'
               'one = goodput.Clock(goodput.process_start())\n'
               'with one.kept(pathlib.Path(sys.argv[1])):\n    time.sleep(60)\n')
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, '-c', program, str(tmp_path)],
                               cwd=clocks.__file__.rpartition('/train_lib')[0])
    while not (tmp_path / 'clock.json').exists():
        assert process.poll() is None and time.monotonic() - begun < 60
        time.sleep(0.01)
    time.sleep(0.5)
    process.kill()
    process.wait()
    lived = time.monotonic() - begun
    found = json.loads((tmp_path / 'clock.json').read_text())
    assert found['kinds'] is None
    assert found['total'] == pytest.approx(lived, abs=0.3)


@pytest.mark.parametrize('error, lost', [(EOFError, 0), (KeyError, 5)])
def test_who_stops_when_all_is_saved_has_lost_nothing(tick, tmp_path, error, lost):
    clock = Clock()
    with pytest.raises(error), clock.kept(tmp_path, saved=EOFError):
        clock.resume({})
        with clock('step'):
            tick(3)
        known = clock.seconds()
        with clock('checkpoint'):
            tick(5)
            raise error
    clock = Clock()
    with clock.kept(tmp_path):
        clock.resume(known)
    seconds = clock.seconds()
    assert (seconds['step'], seconds.get('lost', 0)) == (3, lost)
    assert seconds.get('checkpoint', 0) == 5 - lost


def test_a_disk_that_is_gone_does_not_end_a_run(tick, tmp_path):
    clock = Clock()
    with clock.kept(tmp_path / 'nowhere'):
        tick(1)
    assert clock.seconds()['total'] == 1


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='no /proc')
def test_the_start_of_the_process():
    program = ('import time\nat = time.perf_counter()\n'
               'from train_lib.run_dir.goodput import process_start\n'
               'print(at - process_start())')
    begun = time.monotonic()
    out = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                         cwd=clocks.__file__.rpartition('/train_lib')[0])
    assert 0 < float(out.stdout) < time.monotonic() - begun
    assert process_start() < time.perf_counter() - 0.1
