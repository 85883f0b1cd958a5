"""Starts the worker processes of a study, gives each its share of the machine, and watches them."""

import dataclasses
import glob
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from train_lib.run_dir.code_digest import code_digest
from train_lib.runtime.signals import STOPPED
from train_lib.studies import ledger
from train_lib.studies.definition import Cell, Study
from train_lib.studies.processes import machine
from train_lib.studies.screen import Screen
from train_lib.studies.search import current
from train_lib.studies.stopping import open_cells, unfinished
from train_lib.studies.tables import write_tables

log = logging.getLogger(__name__)
PARENT = 'STUDY_PARENT'  # in the environment of a worker: the pid of the process that started it
LOGS = 'logs'  # folder of what workers say outside of a cell
POLL = 1.0  # seconds
DEATHS = 3  # after so many of a worker in one cell without a new checkpoint, the cell has failed


@dataclasses.dataclass
class Worker:
    """A worker process.

    Attributes:
        number: from 0 to config.study.workers - 1.
        process: the process.
        log: the file for its output that does not belong to a cell.
    """

    number: int
    process: subprocess.Popen
    log: Path


@dataclasses.dataclass(frozen=True)
class Deaths:
    """How often in a row workers died in one place without getting on.

    Attributes:
        count: the number of deaths.
        progress: what had been reached at the last one; any other value starts the count again.
    """

    count: int = 0
    progress: object = None

    def once_more(self, progress: object) -> 'Deaths':
        """After a further death."""
        return Deaths(self.count + 1 if self.progress == progress else 1, progress)


def supervise(study: Study, workdir: Path, worker_command: Sequence[str],
              stop: Callable[[], bool], leave: bool = False) -> int:
    """Runs workers until every cell is over, whoever ran it, or until `stop()` is true.

    Args:
        study: see `read_study`.
        workdir: of the study.
        worker_command: program and arguments that start one worker on the same study and workdir.
        stop: asked about once per second.
        leave: end as soon as no cell is free, and do not wait for those that others run.

    Returns:
        0, or 2 if a worker found a mistake of the user.

    Raises:
        RuntimeError: workers die before they begin a cell.
    """
    if study.settings.retry and not leave:  # of several that leave, each would reopen them
        reopen_failed(study, workdir)
    workers: dict[int, Worker] = {}
    deaths: dict[str, Deaths] = {}
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
                if code not in (0, STOPPED):
                    note_death(study, workdir, worker, code, deaths)
                    screen.begin_below()
            study = current(study, workdir)  # a search goes on to other cells
            left = unfinished(study, workdir)
            if len(left) != known:
                known = len(left)
                write_tables(study, workdir, page=False)
            screen.show()
            if not left or stop():
                break
            free = [cell for cell in open_cells(study, workdir)
                    if not ledger.is_running(workdir / cell.folder)]
            if leave and not workers and not free:
                break
            starting = len(workers) - len(_held_by(workers.values(), study, workdir))
            for number in range(study.settings.workers):
                if number not in workers and len(free) > starting:
                    workers[number] = _start(number, study, workdir, worker_command)
                    starting += 1
            time.sleep(POLL)
    finally:
        _stop_all(workers.values())
        screen.show()
    for cell in current(study, workdir).cells():
        # A worker may have died after cell.json and before tidying up.
        if (ledger.record(workdir / cell.folder) or {}).get('status') == 'done':
            ledger.tidy(workdir / cell.folder, study.settings.keep_checkpoints)
    return 0


def _held_by(workers: Iterable[Worker], study: Study, workdir: Path) -> list[Cell]:
    """The cells that these workers hold."""
    pids = {worker.process.pid for worker in workers}
    here = machine()
    found = []
    for cell in unfinished(study, workdir):
        holder = ledger.holder(workdir / cell.folder)
        if holder.get('pid') in pids and holder['machine'] == here \
                and not holder.get('given_back'):
            found.append(cell)
    return found


def reopen_failed(study: Study, workdir: Path) -> None:
    """Lets failed cells begin again."""
    for cell in current(study, workdir).cells():
        known = ledger.record(workdir / cell.folder)
        if known and known['status'] == 'failed':
            lease = ledger.take(workdir / cell.folder, code_digest(), retry=True)
            if lease:
                lease.give_back()


def of_this_process() -> str:
    """How the names of its logs begin."""
    return f'{os.uname().nodename}-{os.getpid()}'


def _start(number: int, study: Study, workdir: Path, worker_command: Sequence[str]) -> Worker:
    path = workdir / LOGS / f'{of_this_process()}-{number}.log'
    path.parent.mkdir(exist_ok=True)
    environment = (os.environ | {PARENT: str(os.getpid()), 'PYTHONFAULTHANDLER': '1'}
                   | share_of_devices(number, study.settings.workers))
    before = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None
    try:
        if before and study.settings.workers > 1:
            os.sched_setaffinity(0, share_of_cores(number, study.settings.workers, sorted(before)))
        with open(path, 'ab') as out:
            process = subprocess.Popen(worker_command, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=out, env=environment)
    finally:
        if before:
            os.sched_setaffinity(0, before)
    return Worker(number, process, path)


def share_of_cores(number: int, workers: int, cores: list[int]) -> list[int]:
    """The cores of worker `number`. If there are more workers than cores, several share one."""
    if workers >= len(cores):
        return [cores[number % len(cores)]]
    return cores[number * len(cores) // workers:(number + 1) * len(cores) // workers]


def share_of_devices(number: int, workers: int, environment: Mapping[str, str] = os.environ
                     ) -> dict[str, str]:
    """Environment variables that show JAX the NVIDIA GPUs of worker `number`.

    Every worker has the same number of GPUs. If there are more workers than GPUs, several share
    one GPU and its memory.

    Returns:
        The variables; {} for a single worker, or without GPUs.
    """
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


def note_death(study: Study, workdir: Path, worker: Worker, code: int,
               deaths: dict[str, Deaths]) -> None:
    """Counts the death of a worker, and gives up the cell that it dies in again and again.

    Args:
        study, workdir: of the study.
        worker: it has ended.
        code: how, as `Popen.returncode` says.
        deaths: those before, by the folder of the cell ('' between cells); it is updated.

    Raises:
        RuntimeError: workers die before they begin a cell.
    """
    from train_lib.run_dir import checkpoints  # slow to import, and rarely needed

    words = signal.Signals(-code).name if code < 0 else f'exit code {code}'
    held = [cell for cell in unfinished(study, workdir) if
            ledger.holder(workdir / cell.folder).get('pid') == worker.process.pid]
    if not held:
        log.warning('A worker ended by %s between two cells; see %s', words, worker.log)
        begun = sum(ledger.last_attempt(workdir / cell.folder) for cell in study.cells())
        deaths[''] = deaths.get('', Deaths()).once_more(begun)
        if deaths[''].count >= DEATHS:
            raise RuntimeError(f'Workers end by {words} before they begin a cell; see {worker.log}')
        return
    for cell in held:
        folder = workdir / cell.folder
        newest = tuple(checkpoints.committed_steps(folder / 'checkpoints')[-1:])
        deaths[cell.folder] = deaths.get(cell.folder, Deaths()).once_more(newest)
        hopeless = deaths[cell.folder].count >= DEATHS
        log.warning('%s: its worker ended by %s%s', cell.folder, words,
                    '' if hopeless else '; another one resumes it')
        if hopeless:
            lease = ledger.take(folder, code_digest())
            if lease:
                text = f'The worker process ended by {words}, {DEATHS} times. Its last output:\n'
                (folder / 'error.txt').write_text(text + _tail(worker.log))
                ledger.finish(lease, 'failed', error=f'the process ended by {words}')


def _stop_all(workers: Iterable[Worker]) -> None:
    """Tells the workers to save and stop, and waits until they have. A signal that arrives at the
    end of a cell is lost, so it is repeated."""
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
