"""Who holds a cell: one of many that want it, never a dead process, nobody once it is over."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from train_lib.studies import heartbeat, ledger, processes
from train_lib.studies.ledger import take

ROOT = Path(__file__).parents[3]


def of_another(path: Path, **content) -> None:
    """Makes a lease that of a process of another machine."""
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | dict(machine='elsewhere') | content))


def grow_old(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_one_of_many_gets_a_cell(tmp_path):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        ready = threading.Barrier(8)

        def race(_, folder=folder, ready=ready):
            ready.wait()
            return take(folder, 'code')

        with ThreadPoolExecutor(8) as pool:
            leases = [lease for lease in pool.map(race, range(8)) if lease]
        assert len(leases) == 1


def test_a_dead_process_gives_its_cell_to_one_of_many(tmp_path):
    """Processes that see the same dead lease do not both take it, nor a newer one from another."""
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        old = take(folder, 'code')
        of_another(old.path)
        grow_old(old.path, ledger.LIMIT + 60)
        ready = threading.Barrier(8)

        def race(_, folder=folder, ready=ready):
            ready.wait()
            return take(folder, 'code')

        with ThreadPoolExecutor(8) as pool:
            leases = [lease for lease in pool.map(race, range(8)) if lease]
        assert [lease.number for lease in leases] == [2]
        assert leases[0].is_held() and not old.is_held()


def test_processes_of_this_machine_are_known_to_be_dead_at_once(tmp_path):
    program = ('import sys; from pathlib import Path; from train_lib.studies.ledger import take\n'
               'print(take(Path(sys.argv[1]), "code").number, flush=True); sys.stdin.read()')
    process = subprocess.Popen([sys.executable, '-c', program, str(tmp_path / 'cell')], cwd=ROOT,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == '1'
    assert take(tmp_path / 'cell', 'code') is None
    process.kill()
    time.sleep(0.1)  # a zombie until we wait for it, which counts as dead
    assert not ledger.is_running(tmp_path / 'cell')
    process.communicate()
    assert take(tmp_path / 'cell', 'code').number == 2


def test_another_process_with_the_number_of_a_dead_one_is_not_it(tmp_path):
    lease = take(tmp_path, 'code')
    known = json.loads(lease.path.read_text())
    lease.path.write_text(json.dumps(known | dict(started='1')))
    assert take(tmp_path, 'code').number == 2


def test_another_machine_is_dead_after_a_while(tmp_path):
    lease = take(tmp_path, 'code')
    of_another(lease.path)
    assert take(tmp_path, 'code') is None
    grow_old(lease.path, ledger.LIMIT - 20)
    assert take(tmp_path, 'code') is None
    lease.touch()
    assert ledger.is_running(tmp_path)
    grow_old(lease.path, ledger.LIMIT + 1)
    assert take(tmp_path, 'code').number == 2


def test_a_lease_that_was_never_written_is_dead_after_a_while(tmp_path):
    (tmp_path / 'lease.1').touch()
    assert take(tmp_path, 'code') is None
    grow_old(tmp_path / 'lease.1', ledger.LIMIT + 1)
    assert take(tmp_path, 'code').number == 2


def test_a_cell_that_was_given_back_is_free_but_its_number_is_used(tmp_path):
    take(tmp_path, 'code').give_back()
    assert not ledger.is_running(tmp_path)
    assert take(tmp_path, 'other').number == 2
    assert ledger.codes(tmp_path) == ['code', 'other']


def test_a_finished_cell_is_over_for_good(tmp_path):
    lease = take(tmp_path, 'code')
    (tmp_path / 'fold_0/checkpoints/7').mkdir(parents=True)
    ledger.finish(lease, 'done', memory_bytes=5)
    ledger.tidy(tmp_path, keep_checkpoints=True)
    assert not list(tmp_path.glob('lease.*')) and (tmp_path / 'fold_0/checkpoints/7').exists()
    ledger.tidy(tmp_path, keep_checkpoints=False)
    assert not (tmp_path / 'fold_0/checkpoints').exists()
    assert take(tmp_path, 'code') is None
    assert take(tmp_path, 'code', retry=True) is None
    assert ledger.record(tmp_path) == dict(status='done', attempts=1, codes=['code'],
                                           memory_bytes=5)


def test_a_failed_cell_begins_again_only_when_asked(tmp_path):
    ledger.finish(take(tmp_path, 'code'), 'failed', error='x')
    assert take(tmp_path, 'code') is None
    lease = take(tmp_path, 'code', retry=True)
    assert lease.number == 2 and ledger.record(tmp_path) is None


def test_a_process_that_looked_before_the_end_and_takes_after_it_backs_off(tmp_path, monkeypatch):
    """Between its two looks the cell is run to its end, and the leases are gone."""
    def meanwhile(path):
        ledger.finish(ledger.Lease(tmp_path, 1), 'done')
        ledger.tidy(tmp_path, keep_checkpoints=False)
        return False

    take(tmp_path, 'code').give_back()
    monkeypatch.setattr(ledger, '_is_alive', meanwhile)
    assert take(tmp_path, 'code') is None
    assert ledger.record(tmp_path)['status'] == 'done'
    assert not list(tmp_path.glob('lease.*'))


def test_a_heartbeat_touches_its_lease_and_notices_that_it_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, 'BEAT', 1.0)
    ended = threading.Event()

    monkeypatch.setattr(heartbeat.os, '_exit', lambda code: ended.set())
    lease = take(tmp_path, 'code')
    grow_old(lease.path, 1000)
    called = []
    with heartbeat.Heartbeat(lease, lambda: called.append(1)):
        for _ in range(100):
            if time.time() - lease.path.stat().st_mtime < 100:
                break
            time.sleep(0.05)
        assert time.time() - lease.path.stat().st_mtime < 100
        assert called and not ended.is_set()
        (tmp_path / 'lease.2').write_text('{}')
        assert ended.wait(5)


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='the kernel does not tell')
def test_a_process_is_alive_until_its_last_thread_has_ended():
    """A killed process may hold its files while its main thread is a zombie already."""
    program = ('import ctypes, sys, threading\n'
               'threading.Thread(target=sys.stdin.read).start()\n'
               'print("begun", flush=True)\n'
               'ctypes.CDLL(None).pthread_exit(None)')
    process = subprocess.Popen([sys.executable, '-c', program], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == 'begun'
        stat = Path(f'/proc/{process.pid}/stat')
        end = time.monotonic() + 60
        while stat.read_text().rpartition(')')[2].split()[0] != 'Z' and time.monotonic() < end:
            time.sleep(0.01)
        assert stat.read_text().rpartition(')')[2].split()[0] == 'Z'
        assert processes.started(process.pid) is not None
    finally:
        process.kill()
    while stat.read_text().rpartition(')')[2].split()[17] != '1' and time.monotonic() < end:
        time.sleep(0.01)
    assert processes.started(process.pid) is None  # a zombie that nobody has waited for
    process.communicate()


@pytest.mark.parametrize('pid, alive', [(os.getpid(), True), (2 ** 22 + 1, False)],
                         ids=['this one', 'none'])
def test_which_processes_are_alive(pid, alive):
    assert (processes.started(pid) is not None) is alive
