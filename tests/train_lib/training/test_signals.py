"""SIGTERM and Ctrl-C before there is anything to save."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import main
from train_lib.commands import train as verb
from train_lib.runtime.signals import Left, StopSignal, leaving_at_once, twice_is_at_once
from train_lib.training import run

ROOT = Path(__file__).parents[3]
NUMBERS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize('number', NUMBERS)
def test_a_signal_leaves_from_wherever_the_program_is(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    cleared = []
    with pytest.raises(Left, match=number.name), leaving_at_once():
        try:
            signal.raise_signal(number)
        except Exception:
            pytest.fail('it was caught')
        finally:
            signal.raise_signal(number)  # a second one does not disturb what clears up
            cleared.append(number)
    assert cleared == [number]
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_what_saves_is_asked_first():
    with leaving_at_once():
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop()
        with pytest.raises(Left):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_during_garbage_collection_is_not_lost():
    class Deaf:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)

    hook, handler = sys.unraisablehook, signal.getsignal(signal.SIGTERM)
    with pytest.raises(Left, match='SIGTERM'), leaving_at_once():
        Deaf()
        time.sleep(5)
        pytest.fail('it was lost')
    assert sys.unraisablehook is hook and signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_that_came_too_late_is_passed_on():
    """As one does that comes while the report of a fold is written."""
    with pytest.raises(Left), leaving_at_once(), StopSignal():
        signal.raise_signal(signal.SIGTERM)
    with StopSignal() as outer:
        with StopSignal():
            signal.raise_signal(signal.SIGINT)
        assert outer()
    with StopSignal():  # outside there is only what Python or the system does: not wanted
        signal.raise_signal(signal.SIGTERM)


DEAF = '''
import hashlib
from train_lib.runtime import signals
signals._GRACE = 0.2
with signals.twice_is_at_once(), signals.StopSignal():
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)  # minutes, and no Python until then
'''


def test_ctrl_c_twice_ends_what_does_not_listen():
    process = subprocess.Popen([sys.executable, '-c', DEAF], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.6)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert 'at once' in process.communicate()[1]


def test_what_was_set_up_for_ctrl_c_is_taken_down():
    threads, wakeup = threading.active_count(), signal.set_wakeup_fd(-1)
    with twice_is_at_once():
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads and signal.set_wakeup_fd(-1) == wakeup


@pytest.mark.parametrize('where', ['load_data', 'assemble', 'write_stages'])
def test_a_run_that_is_stopped_before_its_first_step(tmp_path, monkeypatch, capfd, where):
    """While data are checked, the model is built, and when the workdir is a run already."""
    monkeypatch.setattr(verb if where == 'load_data' else run, where,
                        lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert main.main(['--config=configs/sketch_vit.py:data=digits', '--config.image.size=8',
                      '--config.model=dict(name="small_cnn", width=4, stages=1)',
                      f'--workdir={tmp_path / "run"}']) == 75
    assert 'The same command with --workdir=' in capfd.readouterr().err
    assert not (tmp_path / 'run/lock').exists()
    assert (tmp_path / 'run').exists() == (where == 'write_stages')
    assert not list(tmp_path.rglob('*.tmp'))
