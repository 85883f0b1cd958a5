"""A packed folder (see `packing.pack`): locations `packed:<shard>:<row>`."""

import functools
import os
import re

from input_pipeline.decode import UnreadableImage
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.packing import open_packed, shard_path
from input_pipeline.sources import missing_path


def load(path: str) -> Manifest:
    """The manifest of a packed folder.

    Raises:
        DataError: no packed folder, one that is unfinished or damaged.
    """
    if not path:
        raise DataError('data.packed is empty: give the folder that `main.py pack` wrote.')
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(full):
        raise DataError(f'The packed folder {path!r} {missing_path(full)}: correct data.packed.'
                        if not os.path.exists(full) else
                        f'data.packed={path!r} is a file: give the folder that holds it.')
    return open_packed(full)


def read_bytes(root: str, location: str) -> bytes:
    """The encoded picture of a record.

    Raises:
        UnreadableImage: the shard is missing or damaged there.
    """
    path, row = _place(root, location)
    refuse_fork()
    try:
        return _reader(path).read([row])[0]
    except (RuntimeError, IndexError, OSError) as error:
        raise UnreadableImage.of(location, f'in {path!r} is damaged ({error})') from None


def stamp(root: str, location: str) -> tuple[int, int]:
    """(bytes, mtime in ns) of the shard."""
    path, _ = _place(root, location)
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreadableImage.of(location, f'is lost, with {path!r} ({error.strerror})') from None
    return status.st_size, status.st_mtime_ns


def _place(root: str, location: str) -> tuple[str, int]:
    place = re.fullmatch(r'packed:(\d{1,9}):(\d{1,18})', location, re.ASCII)
    if not place:
        raise UnreadableImage.of(location, 'is no packed:<shard>:<row>')
    return shard_path(root, int(place[1])), int(place[2])


_owner: list[int] = []  # the process that reads ArrayRecord files


def refuse_fork() -> None:
    """Stops a forked process, which would hang or crash in ArrayRecord's C++ threads.

    Raises:
        DataError: this process was forked from one that has read ArrayRecord files.
    """
    if not _owner:
        _owner.append(os.getpid())
    elif _owner[0] != os.getpid():
        raise DataError('ArrayRecord files (data.packed, data.tfds) cannot be read in a process '
                        "forked from one that reads them: start it by 'spawn', as loader.workers "
                        'are.')


@functools.lru_cache(maxsize=512)
def _reader(path: str):  # threads may share it
    from array_record.python.array_record_module import ArrayRecordReader
    return ArrayRecordReader(path, options='readahead_buffer_size:0')
