"""Who runs which cell, on a folder that several processes and machines may share.

A cell is a folder with an ordinary run in it, and besides

    lease.<n>   n-th attempt: machine, process, code; touched while its process lives
    cell.json   the cell is over: status 'done' or 'failed', attempts, codes, memory

The holder of a cell is the attempt with the highest number. A lease is made by O_EXCL, so of two
processes that want attempt n one gets it; leases are neither removed nor replaced before the cell
is done, so nobody can take a number that was given before. A new attempt begins where there is
none, where the last was given back, or where its process is dead: on the same machine the kernel
says so (by pid and start time, in the same pid namespace of the same boot); of another machine
the lease has not been touched for `LIMIT` seconds, by the clock of the file system and not by ours.
A process that was suspended for longer than that finds a higher number when it wakes, and ends at
once (`Heart`). What is over is found in cell.json, which is written whole or not at all, and looked
for again after a lease was taken.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from train_lib.run_dir.metrics_log import write_json

BEAT = 5.0  # seconds between two touches of a lease
LIMIT = 120.0  # seconds without a touch after which another machine's attempt is dead


@dataclasses.dataclass(frozen=True)
class Lease:
    """An attempt of ours."""

    folder: Path
    number: int

    @property
    def path(self) -> Path:
        """The lease's file."""
        return self.folder / f'lease.{self.number}'

    def touch(self) -> None:
        """Says that we live."""
        os.utime(self.path)

    def held(self) -> bool:
        """Whether no later attempt has begun."""
        return last_attempt(self.folder) == self.number

    def give_back(self) -> None:
        """The attempt is over, the cell is not."""
        write_json(self.path, _read(self.path) | dict(given_back=True))


def machine() -> str:
    """This machine, boot and pid namespace, within which a pid means something."""
    parts = [socket.gethostname()]
    for read in (lambda: Path('/proc/sys/kernel/random/boot_id').read_text().strip(),
                 lambda: os.readlink('/proc/self/ns/pid')):
        with contextlib.suppress(OSError):  # no Linux
            parts.append(read())
    return ' '.join(parts)


def started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None if it is dead.
    Where the kernel does not tell, '' for every process that lives."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return None if fields[0] in 'ZX' else fields[19]
    except FileNotFoundError:
        if Path('/proc/self/stat').exists():
            return None
    except ProcessLookupError:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ''


def last_attempt(folder: Path) -> int:
    """The highest number of a lease, 0 if there was none."""
    numbers = (path.name.partition('.')[2] for path in folder.glob('lease.*'))
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def record(folder: Path) -> dict | None:
    """cell.json, None before the cell is over."""
    try:
        return json.loads((folder / 'cell.json').read_text())
    except FileNotFoundError:
        return None


def is_running(folder: Path) -> bool:
    """Whether a process that lives has the cell."""
    number = last_attempt(folder)
    return bool(number) and _lives(folder / f'lease.{number}')


def holder(folder: Path) -> dict:
    """machine and pid of the last attempt, {} if they are not known."""
    return _read(folder / f'lease.{last_attempt(folder)}')


def _lives(path: Path) -> bool:
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
    """The time of the file system: ours, that of its machine and another's may differ."""
    path = folder / f'clock-{uuid.uuid4().hex}'
    path.touch()
    try:
        return path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict:
    """A lease; {} where it is gone, or its process died before it had written it."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def take(folder: Path, code: str, retry: bool = False) -> Lease | None:
    """A new attempt of a cell that nobody has.

    Args:
        folder: of the cell; made if need be.
        code: digest of the code that we run.
        retry: whether to begin a failed cell again.

    Returns:
        The lease, or None: it is over, somebody has it, or somebody was quicker.
    """
    def is_over():
        known = record(folder)
        return known is not None and not (retry and known['status'] == 'failed')

    before = last_attempt(folder)  # once: the one that is judged is the one that is followed
    if is_over() or (before and _lives(folder / f'lease.{before}')):
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
    if is_over():  # it ended between our two looks
        lease.path.unlink()
        return None
    (folder / 'cell.json').unlink(missing_ok=True)
    return lease


def codes(folder: Path) -> list[str]:
    """Digests of the code of every attempt, each once."""
    found = [_read(folder / f'lease.{number}').get('code', '')
             for number in range(1, last_attempt(folder) + 1)]
    return list(dict.fromkeys(code for code in found if code))


def finish(lease: Lease, status: str, **facts) -> None:
    """Says that the cell is over, 'done' or 'failed'."""
    write_json(lease.folder / 'cell.json', dict(
        status=status, attempts=lease.number, codes=codes(lease.folder), **facts))
    if status == 'failed':
        lease.give_back()


def tidy(folder: Path, keep_checkpoints: bool) -> None:
    """Removes what a cell that is done needs no more: leases, and checkpoints, of its folds too."""
    for number in range(last_attempt(folder), 0, -1):
        (folder / f'lease.{number}').unlink(missing_ok=True)
    if not keep_checkpoints:
        for path in (folder / 'checkpoints', *folder.glob('fold_*/checkpoints')):
            shutil.rmtree(path, ignore_errors=True)


def write_shared(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, also while other machines write the same one."""
    temporary = shared_temporary(path)
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def shared_temporary(path: Path) -> Path:
    """A name beside a file that is this process's own."""
    return path.with_name(f'.{path.name}.{socket.gethostname()}.{os.getpid()}')


class Heart:
    """Touches a lease while the block runs, and ends the process if the lease is lost."""

    def __init__(self, lease: Lease, orphaned: Callable[[], None] = lambda: None):
        """`orphaned` is called about once a second."""
        self._lease, self._orphaned = lease, orphaned
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _beat(self):
        waited = 0.0
        while not self._over.wait(1.0):
            self._orphaned()
            waited += 1.0
            with contextlib.suppress(OSError):  # a shared folder may be away for a while
                if not self._lease.held():
                    print(f'{self._lease.folder}: another process has taken this cell, because '
                          f'this one did not move for {LIMIT:g} s.', file=sys.stderr, flush=True)
                    os._exit(1)
                if waited >= BEAT:
                    self._lease.touch()
                    waited = 0.0
