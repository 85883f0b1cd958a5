"""The lock of a workdir: one holder at a time, and nobody is kept out by the dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from train_lib.run_dir import lock
from train_lib.runtime.errors import ConfigError

FOREIGN = dict(pid=1, host='elsewhere', boot='another', started='1', since='2026-01-01 00:00:00')


@pytest.fixture
def quick(monkeypatch):
    """Everything that takes half a minute takes a moment."""
    monkeypatch.setattr(lock, 'BEAT', 0.05)
    monkeypatch.setattr(lock, 'SILENT', 0.5)


def check(workdir) -> None:
    with lock.held(workdir):
        pass


def leave(workdir, **changes) -> None:
    """A lock file as a process leaves it that was killed."""
    workdir.mkdir(exist_ok=True)
    (workdir / 'lock').write_text(json.dumps(lock._this_process() | changes))


def test_the_second_is_refused_and_told_who_is_there(tmp_path):
    with lock.held(tmp_path / 'run'):
        for attempt in (lock.held(tmp_path / 'run').__enter__,
                        lambda: check(tmp_path / 'run')):
            with pytest.raises(ConfigError, match=rf'in use by process {os.getpid()} on \S+ since '
                                                  r'\d{4}-'):
                attempt()
        (tmp_path / 'run/config.json').touch()
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['config.json']
    check(tmp_path / 'run')


def test_an_exception_releases_it_and_an_empty_folder_goes(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), lock.held(tmp_path / 'a/run'):
            raise RuntimeError
    assert not (tmp_path / 'a/run').exists()


def test_never_two_at_once(tmp_path):
    """Four threads (the kernel's lock is of the open file, so they are like processes)."""
    inside, entered, problems = [], [0] * 4, []
    end = time.monotonic() + 60

    def work(i):
        while sum(entered) < 100 and time.monotonic() < end:
            try:
                with lock.held(tmp_path / 'run'):
                    inside.append(i)
                    if len(inside) > 1:
                        problems.append(list(inside))
                    entered[i] += 1
                    inside.remove(i)
            except ConfigError:
                time.sleep(0.0005)
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert sum(entered) >= 100 and sum(map(bool, entered)) > 1, entered


def test_a_lock_that_was_released_while_it_was_opened_is_none(tmp_path, monkeypatch):
    flock, asked = lock._flock, []

    def late(descriptor, path):
        asked.append(path)
        if len(asked) == 1:
            path.unlink()
        return flock(descriptor, path)

    monkeypatch.setattr(lock, '_flock', late)
    with lock.held(tmp_path / 'run'), pytest.raises(ConfigError, match='in use'):
        check(tmp_path / 'run')
    assert len(asked) == 3


def test_who_has_just_taken_it_is_named_when_it_has_said_so(tmp_path):
    with lock.held(tmp_path):
        owner = (tmp_path / 'lock').read_bytes()
        for before in (b'', json.dumps(json.loads(owner) | dict(started='1', pid=77)).encode()):
            (tmp_path / 'lock').write_bytes(before)
            later = threading.Timer(0.2, (tmp_path / 'lock').write_bytes, (owner,))
            later.start()
            with pytest.raises(ConfigError, match=f'process {os.getpid()} '):
                check(tmp_path)
            later.join()


def test_a_killed_process_keeps_nobody_out(tmp_path, caplog):
    program = ('import sys, time, pathlib; from train_lib.run_dir import lock\n'
               'with lock.held(pathlib.Path(sys.argv[1])): print("held", flush=True); '
               'time.sleep(60)')
    process = subprocess.Popen([sys.executable, '-c', program, str(tmp_path / 'run')],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(ConfigError, match=f'process {process.pid} '):
        check(tmp_path / 'run')
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / 'run/lock').exists()
    with caplog.at_level('INFO'), lock.held(tmp_path / 'run'):
        assert f'taken over from process {process.pid}' in caplog.text


def test_another_machine_is_believed_as_long_as_it_gives_signs_of_life(tmp_path, quick):
    leave(tmp_path / 'run', **FOREIGN)
    over = threading.Event()

    def live():
        while not over.wait(0.1):
            os.utime(tmp_path / 'run/lock')

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(ConfigError, match='process 1 on elsewhere'):
        check(tmp_path / 'run')
    over.set()
    thread.join()
    began = time.monotonic()
    with lock.held(tmp_path / 'run'):
        assert time.monotonic() - began >= 0.5
        assert json.loads((tmp_path / 'run/lock').read_text())['pid'] == os.getpid()


@pytest.mark.parametrize('content', [b'', b'{"pid": 12', b'[]', b'\xff'])
def test_what_a_kill_left_half_written_is_no_owner(tmp_path, quick, content):
    (tmp_path / 'lock').write_bytes(content)
    check(tmp_path)


def test_on_a_disk_without_locks_the_process_itself_is_asked_for(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'flock', refuse)
    with lock.held(tmp_path / 'run'), pytest.raises(ConfigError, match=f'process {os.getpid()}'):
        check(tmp_path / 'run')
    leave(tmp_path / 'run', started='123')  # the number is another process's now
    check(tmp_path / 'run')
    leave(tmp_path / 'run', pid=2**22 + 1)
    check(tmp_path / 'run')


@pytest.mark.parametrize('harm', ['gone', 'taken', 'folder'])
def test_who_loses_the_lock_ends_at_once(tmp_path, quick, monkeypatch, harm, capfd):
    ended = threading.Event()
    monkeypatch.setattr(lock.os, '_exit', lambda code: ended.set())
    with lock.held(tmp_path / 'run'):
        assert not ended.wait(0.2)
        if harm == 'taken':
            leave(tmp_path / 'run', **FOREIGN)
        else:
            (tmp_path / 'run/lock').unlink()
        if harm == 'folder':
            (tmp_path / 'run').rmdir()
        assert ended.wait(5)
    assert 'another process has it' in capfd.readouterr().err
    assert (tmp_path / 'run/lock').exists() == (harm == 'taken')  # not ours to remove


def test_it_shows_that_it_lives(tmp_path, quick):
    with lock.held(tmp_path):
        before = (tmp_path / 'lock').stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / 'lock').stat().st_mtime_ns > before


def test_folds_have_the_lock_of_their_run(tmp_path):
    (tmp_path / 'config.json').touch()
    with lock.held(tmp_path / 'fold_3'):
        assert (tmp_path / 'lock').exists()
        with pytest.raises(ConfigError, match='in use'):
            check(tmp_path)
        with pytest.raises(ConfigError, match='in use'):
            check(tmp_path / 'fold_0')
    with lock.held(tmp_path / 'other_3'):
        assert (tmp_path / 'other_3/lock').exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r'cannot be made \(.*another --workdir'):
        lock.held(tmp_path / 'file/run').__enter__()
