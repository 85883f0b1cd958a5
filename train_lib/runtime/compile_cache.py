"""Compiled programs kept between runs, so that a second start does not compile again."""

import contextlib
import logging
import os
import zlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from train_lib.runtime.cache_folder import cache_folder

log = logging.getLogger(__name__)

LARGEST = 4 << 30  # bytes of all programs together
_PROGRAMS = '*-cache'


def use_compile_cache(wanted: bool = True) -> None:
    """Keeps compiled programs in the subfolder `xla` of the cache folder, and reuses them.

    Small programs are kept too: building a model on a CPU runs dozens of them. A folder that cannot
    be written to is not used. A folder that the user chose by JAX_COMPILATION_CACHE_DIR stays.

    Args:
        wanted: config.compile_cache; False switches the cache off.
    """
    if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return
    folder = Path(cache_folder()) / 'xla'
    if wanted and not _usable(folder):
        log.info('cache    %s cannot be written to: programs are compiled at every start', folder)
        wanted = False
    if jax.config.jax_compilation_cache_dir == (str(folder) if wanted else None):
        return
    jax.config.update('jax_compilation_cache_dir', str(folder) if wanted else None)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    compilation_cache.reset_cache()  # JAX reads the folder's name only once
    if wanted:
        with contextlib.suppress(OSError):  # a full disk, for one: the cache only saves time
            _drop_broken(folder)
            _drop_oldest(folder, LARGEST)


def _usable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _drop_broken(folder: Path) -> None:
    """Removes programs that a killed process left half written: JAX would warn about them at every
    start and never replace them. Only those newer than the last check are read."""
    looked = folder / 'looked'
    since = looked.stat().st_mtime_ns if looked.exists() else 0
    looked.touch()
    for path, status in _programs(folder):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            if status.st_mtime_ns >= since and not _whole(path.read_bytes()):
                path.unlink()


def _whole(program: bytes) -> bool:
    if program[:1] != b'\x78':  # not zlib: JAX uses zstandard where it is installed
        return bool(program)
    try:
        zlib.decompress(program)
    except zlib.error:
        return False
    return True


def _drop_oldest(folder: Path, largest: int) -> None:
    """Removes the least recently used programs until the others fit into `largest` bytes."""
    programs = sorted(_programs(folder), reverse=True,
                      key=lambda item: max(item[1].st_atime_ns, item[1].st_mtime_ns))
    total = 0
    for path, status in programs:
        total += status.st_size
        if total > largest:
            path.unlink(missing_ok=True)


def _programs(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob(_PROGRAMS):
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:  # another process removed it
            continue
    return found
