"""Who runs which cell, in a folder that several processes and machines may share.

A cell is a folder with an ordinary run in it, and also

    lease.<n>   attempt number n: machine, process, code; touched as long as its process is alive
    cell.json   the cell is over: status 'done' or 'failed', attempts, codes, memory

The attempt with the highest number holds the cell. A lease is created with O_EXCL, so of two
processes that want attempt n only one gets it. Leases are not removed before the cell is done, so
no number is given out twice. A new attempt may begin where there is no lease, where the last one
was given back, or where its process is dead. On the same machine the kernel tells (by pid and
start time, within the same boot and pid namespace). A process of another machine counts as dead
when its lease has not been touched for `LIMIT` seconds by the clock of the file system. A process
that was suspended for longer than that finds a higher number when it wakes up, and ends at once
(heartbeat.py). cell.json is written whole or not at all, and is looked for again after a lease was
taken.
"""

import dataclasses
import json
import os
import shutil
import uuid
from pathlib import Path

from input_pipeline.atomic_files import write_json
from train_lib.studies.processes import machine, started

LIMIT = 120.0  # seconds without a touch after which an attempt of another machine is dead


@dataclasses.dataclass(frozen=True)
class Lease:
    """An attempt of this process."""

    folder: Path
    number: int

    @property
    def path(self) -> Path:
        """The file of the lease."""
        return self.folder / f'lease.{self.number}'

    def touch(self) -> None:
        """Tells other machines that this process is alive."""
        os.utime(self.path)

    def is_held(self) -> bool:
        """Whether no later attempt has begun."""
        return last_attempt(self.folder) == self.number

    def give_back(self) -> None:
        """Ends the attempt; the cell is not over."""
        write_json(self.path, _read(self.path) | dict(given_back=True))


def last_attempt(folder: Path) -> int:
    """The highest number of a lease, 0 if there is none."""
    numbers = (path.name.partition('.')[2] for path in folder.glob('lease.*'))
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def record(folder: Path) -> dict | None:
    """The content of cell.json; None as long as the cell is not over."""
    try:
        return json.loads((folder / 'cell.json').read_text())
    except FileNotFoundError:
        return None


def is_running(folder: Path) -> bool:
    """Whether a living process holds the cell."""
    number = last_attempt(folder)
    return bool(number) and _is_alive(folder / f'lease.{number}')


def holder(folder: Path) -> dict:
    """machine, pid and more of the last attempt; {} if they are not known."""
    return _read(folder / f'lease.{last_attempt(folder)}')


def _is_alive(path: Path) -> bool:
    """Whether the process of a lease is alive and has not given it back."""
    lease = _read(path)
    if lease.get('given_back'):
        return False
    if lease.get('machine') == machine():
        return started(lease['pid']) == lease['started']
    try:
        return _now(path.parent) - path.stat().st_mtime < LIMIT
    except FileNotFoundError:
        return False


def _now(folder: Path) -> float:
    """The time of the file system, which the clocks of the machines may differ from."""
    path = folder / f'clock-{uuid.uuid4().hex}'
    path.touch()
    try:
        return path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict:
    """The content of a lease; {} if it is missing, or its process died before writing it."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def take(folder: Path, code: str, retry: bool = False) -> Lease | None:
    """Begins a new attempt of a cell that nobody holds.

    Args:
        folder: of the cell; it is created if necessary.
        code: digest of the code that this process runs.
        retry: whether a failed cell may begin again.

    Returns:
        The lease. None if the cell is over, somebody holds it, or another process was faster.
    """
    def is_over():
        known = record(folder)
        return known is not None and not (retry and known['status'] == 'failed')

    before = last_attempt(folder)  # read once: the next number follows the lease that is judged
    if is_over() or (before and _is_alive(folder / f'lease.{before}')):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(folder, before + 1)
    content = dict(machine=machine(), pid=os.getpid(), started=started(os.getpid()), code=code)
    try:
        file = os.open(lease.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    with open(file, 'w') as stream:
        stream.write(json.dumps(content))
    if is_over():  # another process finished it after the first look
        lease.path.unlink()
        return None
    (folder / 'cell.json').unlink(missing_ok=True)
    return lease


def codes(folder: Path) -> list[str]:
    """Digests of the code of all attempts, without repetitions."""
    found = [_read(folder / f'lease.{number}').get('code', '')
             for number in range(1, last_attempt(folder) + 1)]
    return list(dict.fromkeys(code for code in found if code))


def finish(lease: Lease, status: str, **facts) -> None:
    """Writes cell.json: the cell is over.

    Args:
        lease: of this process.
        status: 'done' or 'failed'.
        facts: further keys of cell.json, JSON values.
    """
    write_json(lease.folder / 'cell.json', dict(
        status=status, attempts=lease.number, codes=codes(lease.folder), **facts))
    if status == 'failed':
        lease.give_back()


def tidy(folder: Path, keep_checkpoints: bool) -> None:
    """Removes what a finished cell no longer needs: its leases, and unless they are kept, its
    checkpoints and those of its folds."""
    for number in range(last_attempt(folder), 0, -1):
        (folder / f'lease.{number}').unlink(missing_ok=True)
    if not keep_checkpoints:
        for path in (folder / 'checkpoints', *folder.glob('fold_*/checkpoints')):
            shutil.rmtree(path, ignore_errors=True)
