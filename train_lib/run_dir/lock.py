"""One run at a time in a workdir: the process that works there holds its file `lock`.

On one machine the kernel keeps the lock (flock): it ends with its process, in whatever way that
ended, and a file left behind locks nothing. Of a process on another machine that shares the disk
one can only see whether it touches the file, every BEAT seconds; if it does not for SILENT seconds,
it counts as dead. A process that finds its own lock missing or taken (it slept for long, somebody
removed the file or the folder) ends at once and writes nothing more.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from train_lib.run_dir import made_folders
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError

NAME = 'lock'
BEAT = 10.0  # seconds
SILENT = 60.0  # seconds
log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes the folder if needed, and holds its lock in the block; with several processes the
    first one does. Folders that were made for it and are still empty are removed at the end. The
    folds of a run share the lock of the run.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written to.
    """
    locks: list[_Lock] = []
    distributed.on_first(lambda: locks.append(_Lock(workdir)))
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def _home(workdir: Path) -> Path:
    parent = workdir.absolute().parent
    is_fold = re.fullmatch(r'fold_\d+', workdir.name) and (parent / 'config.json').exists()
    return parent if is_fold else workdir


class _Lock:
    def __init__(self, workdir: Path):
        workdir = _home(workdir)
        self._path = workdir / NAME
        try:
            self._made = made_folders.make(workdir)
        except OSError as error:
            raise ConfigError(f'The workdir {workdir} cannot be made ({error.strerror}): '
                              f'give another --workdir.') from None
        self._owner = json.dumps(_this_process()).encode()
        try:
            self._descriptor = _take(self._path, self._owner)
        except OSError as error:
            raise ConfigError(f'The workdir {workdir} cannot be written to ({error.strerror}): '
                              f'give another --workdir, or make room there.') from None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name='lock', daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            if not self._is_ours():
                print(f'main.py: {self._path} disappeared, or another process has it: this one '
                      f'ends at once, so that two never write there; start it again.',
                      file=sys.stderr, flush=True)
                os._exit(1)

    def _is_ours(self) -> bool:
        """Touches the file. An error on the way to it, of the network for one, proves nothing."""
        try:
            if self._path.read_bytes() != self._owner:
                return False
            os.utime(self._descriptor)
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._path.read_bytes() == self._owner:
                self._path.unlink()
        made_folders.remove_empty(self._made)
        os.close(self._descriptor)


def _take(path: Path, owner: bytes) -> int:
    """The descriptor of the lock file, which is locked and names its new owner."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            found = os.pread(descriptor, 4096, 0)
            kernel = _flock(descriptor, path)
            if not _is_still(path, descriptor):  # released between the two
                os.close(descriptor)
                continue
            if found:
                _refuse_living(path, _read(found), kernel)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner, 0)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise


def _flock(descriptor: int, path: Path) -> bool:
    """Whether the kernel gave us the lock; some file systems have no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(path, _newest_owner(path)) from None
    except OSError:
        return False
    return True


def _newest_owner(path: Path) -> Mapping:
    """Who has the lock. A process that has just taken it may not have written its name yet."""
    end = time.monotonic() + 1
    while True:
        try:
            owner = _read(path.read_bytes())
        except OSError:
            return {}
        here = owner.get('boot') == _boot()
        known = owner and not (here and _started(owner.get('pid', 0)) != owner.get('started'))
        if known or time.monotonic() > end:
            return owner
        time.sleep(0.02)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refuse_living(path: Path, owner: Mapping, kernel: bool) -> None:
    """Returns if the owner is dead, which takes a while to find out for another machine.

    Raises:
        ConfigError: it is alive.
    """
    if owner.get('boot') == _boot():
        if not kernel and _started(owner.get('pid', 0)) == owner.get('started'):
            raise _taken(path, owner)
    else:
        log.info('lock     held by %s, on another machine or before a restart of this one: '
                 'waiting %.0f s for a sign of life', _words(owner), SILENT)
        before, end = path.stat().st_mtime_ns, time.monotonic() + SILENT
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENT / 10))
            with open(path, 'rb') as file:  # opened again: a network disk caches times
                if os.fstat(file.fileno()).st_mtime_ns != before:
                    raise _taken(path, owner)
    log.info('lock     taken over from %s, which has ended', _words(owner))


def _taken(path: Path, owner: Mapping) -> ConfigError:
    return ConfigError(f'{path.parent} is in use by {_words(owner)}: let it end or stop it, or '
                       f'give another --workdir.')


def _words(owner: Mapping) -> str:
    if not owner:
        return 'another process'
    return f'process {owner.get("pid")} on {owner.get("host")} since {owner.get("since")}'


def _read(content: bytes) -> Mapping:
    """The owner in a lock file; {} if a killed process left it half written."""
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _this_process() -> dict:
    return dict(pid=os.getpid(), host=socket.gethostname(), boot=_boot(),
                started=_started(os.getpid()), since=time.strftime('%Y-%m-%d %H:%M:%S'))


def _boot() -> str:
    """An id of this machine since it was last switched on."""
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process of this machine began, because numbers of processes are used again; '' if
    there is no such process, or no /proc."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    except (OSError, IndexError):
        return ''
