"""Starts the worker processes of a study, gives each its share of the machine, and watches them."""

import dataclasses
import glob
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from train_lib.commands.command_line import Command
from train_lib.run_dir.code_digest import code_digest
from train_lib.studies import ledger
from train_lib.studies.definition import Cell, Study
from train_lib.studies.stopping import open_cells, unfinished
from train_lib.studies.study_progress import Screen
from train_lib.studies.tables import write_tables

log = logging.getLogger(__name__)
PARENT = 'STUDY_PARENT'  # in the environment of a worker: the pid of the process that started it
POLL = 1.0  # seconds
DEATHS = 3  # of a worker in one cell, without a new checkpoint between: the cell has failed


@dataclasses.dataclass
class Worker:
    """A process, and where it writes what does not belong to a cell."""

    number: int
    process: subprocess.Popen
    log: Path


def supervise(study: Study, workdir: Path, command: Command, stop) -> int:
    """Runs workers until every cell is over, here or elsewhere, or `stop()`.

    Returns:
        0, or 2 if a worker found a mistake of the user.
    """
    if study.settings.retry:
        _reopen(study, workdir)
    workers: dict[int, Worker] = {}
    deaths: dict[str, tuple] = {}
    screen, known = Screen(study, workdir), None
    try:
        while True:
            for number, worker in list(workers.items()):
                code = worker.process.poll()
                if code is None:
                    continue
                del workers[number]
                if code == 2:
                    print(_last_line(worker.log), file=sys.stderr)
                    return 2
                if code not in (0, 75):
                    _note_death(study, workdir, worker, code, deaths)
                    screen.begin_below()
            left = unfinished(study, workdir)
            if len(left) != known:
                known = len(left)
                write_tables(study, workdir, page=False)
            screen.show()
            if not left or stop():
                break
            free = [cell for cell in open_cells(study, workdir)
                    if not ledger.is_running(workdir / cell.folder)]
            starting = len(workers) - len(_busy(study, workdir, workers))
            for number in range(study.settings.workers):
                if number not in workers and len(free) > starting:
                    workers[number] = _start(number, study, workdir, command)
                    starting += 1
            time.sleep(POLL)
    finally:
        _end(workers.values())
        screen.close()
    for cell in study.cells():  # a worker may have died between the end of a cell and this
        if (ledger.record(workdir / cell.folder) or {}).get('status') == 'done':
            ledger.tidy(workdir / cell.folder, study.settings.keep_checkpoints)
    return 0


def _busy(study: Study, workdir: Path, workers: dict[int, Worker]) -> list[Cell]:
    """The cells that our workers have."""
    pids = {worker.process.pid for worker in workers.values()}
    here = ledger.machine()
    found = []
    for cell in unfinished(study, workdir):
        held = ledger.holder(workdir / cell.folder)
        if held.get('pid') in pids and held['machine'] == here and not held.get('given_back'):
            found.append(cell)
    return found


def _reopen(study: Study, workdir: Path) -> None:
    """Failed cells are open again."""
    for cell in study.cells():
        known = ledger.record(workdir / cell.folder)
        if known and known['status'] == 'failed':
            lease = ledger.take(workdir / cell.folder, code_digest(), retry=True)
            if lease:
                lease.give_back()


def _start(number: int, study: Study, workdir: Path, command: Command) -> Worker:
    path = workdir / 'logs' / f'{os.uname().nodename}-{os.getpid()}-{number}.log'
    path.parent.mkdir(exist_ok=True)
    program = Path(__file__).parents[2] / 'main.py'
    environment = (os.environ | {PARENT: str(os.getpid()), 'PYTHONFAULTHANDLER': '1'}
                   | share_of_devices(number, study.settings.workers))
    before = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None
    try:
        if before and study.settings.workers > 1:
            os.sched_setaffinity(0, share_of_cores(number, study.settings.workers, sorted(before)))
        with open(path, 'ab') as out:
            process = subprocess.Popen([sys.executable, str(program), *command.argv,
                                        f'--workdir={workdir}'], stdin=subprocess.DEVNULL,
                                       stdout=out, stderr=out, env=environment)
    finally:
        if before:
            os.sched_setaffinity(0, before)
    return Worker(number, process, path)


def share_of_cores(number: int, workers: int, cores: list[int]) -> list[int]:
    """The cores of one of several workers; more workers than cores take turns."""
    if workers >= len(cores):
        return [cores[number % len(cores)]]
    return cores[number * len(cores) // workers:(number + 1) * len(cores) // workers]


def share_of_devices(number: int, workers: int, environment=os.environ) -> dict[str, str]:
    """What tells JAX which NVIDIA GPUs are one worker's, all workers having equally many; if there
    are more workers than GPUs, they share them, and their memory. {} for a single worker, or where
    there are none."""
    listed = environment.get('CUDA_VISIBLE_DEVICES')
    devices = [name for name in listed.split(',') if name] if listed is not None else [
        str(i) for i in range(len(glob.glob('/dev/nvidia[0-9]*')))]
    if not devices or workers == 1:
        return {}
    each = len(devices) // workers
    if each:
        return {'CUDA_VISIBLE_DEVICES': ','.join(devices[number * each:(number + 1) * each])}
    crowd = -(-workers // len(devices))
    found = {'CUDA_VISIBLE_DEVICES': devices[number % len(devices)]}
    if 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in environment:
        found['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / crowd:.3f}'
    return found


def _note_death(study: Study, workdir: Path, worker: Worker, code: int, deaths: dict) -> None:
    """A worker died in a cell: another one will go on with it, unless that goes on and on."""
    from train_lib.run_dir import checkpoints  # slow to import, and rarely needed

    words = signal.Signals(-code).name if code < 0 else f'exit code {code}'
    held = [cell for cell in unfinished(study, workdir) if
            ledger.holder(workdir / cell.folder).get('pid') == worker.process.pid]
    if not held:
        log.warning('a worker ended by %s between two cells; see %s', words, worker.log)
        # One that cannot even begin a cell shall not be started for ever.
        begun = sum(ledger.last_attempt(workdir / cell.folder) for cell in study.cells())
        before, count = deaths.get('', (None, 0))
        deaths[''] = begun, count + 1 if before == begun else 1
        if deaths[''][1] >= DEATHS:
            raise RuntimeError(f'Workers end by {words} before they begin a cell; see {worker.log}')
        return
    for cell in held:
        folder = workdir / cell.folder
        steps = tuple(checkpoints.committed_steps(folder / 'checkpoints')[-1:])
        before, count = deaths.get(cell.folder, (None, 0))
        count = count + 1 if before == steps else 1
        deaths[cell.folder] = steps, count
        log.warning('%s: its worker ended by %s%s', cell.folder, words,
                    '' if count >= DEATHS else '; another one goes on')
        if count >= DEATHS:
            lease = ledger.take(folder, code_digest())
            if lease:
                text = f'The worker process ended by {words}, {DEATHS} times. Its last words:\n'
                (folder / 'error.txt').write_text(text + _tail(worker.log))
                ledger.finish(lease, 'failed', error=f'the process ended by {words}')


def _end(workers) -> None:
    """Tells the workers to stop and save until they have. A signal that comes at the end of a cell
    is lost, hence more than one."""
    running = [worker.process for worker in workers if worker.process.poll() is None]
    while running:
        for process in running:
            process.terminate()
        end = time.monotonic() + 1
        while running and time.monotonic() < end:
            time.sleep(0.05)
            running = [process for process in running if process.poll() is None]


def _tail(path: Path, lines: int = 40) -> str:
    return '\n'.join(path.read_text(errors='replace').splitlines()[-lines:]) + '\n'


def _last_line(path: Path) -> str:
    return (path.read_text(errors='replace').strip().splitlines() or [''])[-1]
