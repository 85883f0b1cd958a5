"""Compiled programs kept between plans, in the subfolder `plans` of the cache folder.

A program is two files, KEY.json with its numbers and KEY.hlo.gz with its text. Each is written
whole or not at all, and the numbers last, so that a process that is killed leaves nothing that
looks like a program. What is damaged counts as absent. The folder only saves time: where it cannot
be read or written, programs are compiled again.
"""

import contextlib
import gzip
import json
import os
import zlib
from pathlib import Path

from input_pipeline.atomic_files import atomic_open
from train_lib.runtime.cache_folder import cache_folder

LARGEST = 512 << 20  # bytes of all programs together


def keep(key: str, numbers: dict, text: str, *, largest: int = LARGEST) -> None:
    """Keeps a program, and drops the least recently used ones beyond `largest` bytes."""
    with contextlib.suppress(OSError):
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_open(folder / f'{key}.hlo.gz', 'wb', shared=True) as file:
            file.write(gzip.compress(text.encode(), 6))
        with atomic_open(folder / f'{key}.json', shared=True) as file:
            json.dump(numbers, file, indent=2)
        _drop_oldest(folder, largest)


def kept(key: str) -> tuple[dict, str] | None:
    """(numbers, text) of a program; None if it is not there or damaged."""
    folder = _folder()
    try:
        numbers = json.loads((folder / f'{key}.json').read_text('utf-8'))
        packed = (folder / f'{key}.hlo.gz').read_bytes()
        text = gzip.decompress(packed).decode()
        for end in ('.json', '.hlo.gz'):
            os.utime(folder / f'{key}{end}')  # used now
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    # gzip takes an empty file for an empty text
    return (numbers, text) if packed and isinstance(numbers, dict) else None


def _folder() -> Path:
    return Path(cache_folder()) / 'plans'


def _drop_oldest(folder: Path, largest: int) -> None:
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > largest:
            path.unlink(missing_ok=True)
