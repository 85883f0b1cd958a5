"""The source `packed`: a folder of ArrayRecord files, as `packing.pack` writes it.

The folder holds:

    images-00000.array_record, ...  encoded pictures, one per record (group_size 1)
    manifest.parquet                the manifest, with the locations `packed:<shard>:<row>`
    preprocessing.csv               what preprocessing found, one row per picture, if there was any
    index.json                      written last: settings, sizes and SHA-256 digests
    plan.json                       the settings, until index.json is written
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable

import pandas as pd

from input_pipeline import manifest_files
from input_pipeline.decode import UnreadableImage
from input_pipeline.errors import DataError, counted
from input_pipeline.manifest import Manifest, digest
from input_pipeline.sources import missing_path

KIND = 'packed images'
VERSION = 1
INDEX, PLAN, MANIFEST, RECORDS = 'index.json', 'plan.json', 'manifest.parquet', 'preprocessing.csv'


def load(path: str) -> Manifest:
    """The manifest of a packed folder.

    Raises:
        DataError: it is not a packed folder, is unfinished or is damaged.
    """
    if not path:
        raise DataError('data.packed is empty: give a folder that `main.py pack` wrote.')
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(full):
        raise DataError(f'The packed folder {path!r} {missing_path(full)}: correct data.packed.'
                        if not os.path.exists(full) else
                        f'data.packed={path!r} is a file: give the folder that contains it.')
    return open_packed(full)


def read_bytes(root: str, location: str) -> bytes:
    """The encoded picture of a record.

    Raises:
        UnreadableImage: the shard is missing, or the record is damaged.
    """
    path, row = _place(root, location)
    refuse_fork()
    try:
        return _reader(path).read([row])[0]
    except (RuntimeError, IndexError, OSError) as error:
        raise UnreadableImage.of(location, f'in {path!r} is damaged ({error})') from None


def stamp(root: str, location: str) -> tuple[int, int]:
    """(size in bytes, mtime in ns) of the shard.

    Raises:
        UnreadableImage: the shard is missing.
    """
    path, _ = _place(root, location)
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreadableImage.of(location, f'is lost, with {path!r} ({error.strerror})') from None
    return status.st_size, status.st_mtime_ns


def open_packed(folder: str) -> Manifest:
    """The manifest of a packed folder, after a check that takes milliseconds.

    The manifest is compared with its digest and every shard with its size. Damage inside a shard
    shows when the record is read, or in `verify`.

    Raises:
        DataError: it is not a packed folder, is unfinished or is damaged.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    index = read_json(os.path.join(folder, INDEX))
    if index.get('kind') != KIND:
        if read_json(os.path.join(folder, PLAN)):
            raise DataError(f'The packed folder {folder!r} is not finished: run pack again with '
                            f'the same settings, it continues where it stopped.')
        raise DataError(f'The folder {folder!r} is not a packed folder (it has no {INDEX}): write '
                        f'one with `main.py pack`, or correct data.packed.')
    if index.get('version') != VERSION:
        raise DataError(f'The packed folder {folder!r} has version {index.get("version")}, but '
                        f'this program reads version {VERSION}: pack the data again.')
    if not _is_index(index):
        raise DataError(f'The file {os.path.join(folder, INDEX)!r} is damaged: delete it and run '
                        f'pack again.')
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path) or fingerprint(path) != index.get('manifest'):
        raise DataError(f'The file {path!r} is missing or damaged: run pack again with the same '
                        f'settings, it rewrites what is damaged.')
    for shard in index['shards']:
        path = os.path.join(folder, shard['name'])
        found = os.path.getsize(path) if os.path.isfile(path) else 0
        if found != shard['bytes']:
            raise DataError(f'The shard {path!r} has {found:,} of {shard["bytes"]:,} bytes: copy '
                            f'it again, or run pack again with the same settings.')
    return dataclasses.replace(manifest_files.load(os.path.join(folder, MANIFEST)), root=folder)


def verify(folder: str, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Compares every byte of a packed folder with its digests; returns the manifest.

    Args:
        folder: the packed folder.
        progress: called with (shards done, shards).

    Raises:
        DataError: files are damaged; the message names them.
    """
    manifest = open_packed(folder)
    index = read_json(os.path.join(manifest.root, INDEX))
    if digest(manifest) != index['digest']:
        raise DataError(f'The manifest in {manifest.root!r} is not the one that was packed: '
                        f'pack the data again.')
    damaged = []
    for number, shard in enumerate(index['shards']):
        if fingerprint(os.path.join(manifest.root, shard['name']))['sha256'] != shard['sha256']:
            damaged.append(shard['name'])
        if progress is not None:
            progress(number + 1, len(index['shards']))
    if 'records' in index and intact_records(manifest.root) is None:
        damaged.append(RECORDS)
    if damaged:
        raise DataError(f'{counted(len(damaged), "file")} in {manifest.root!r} '
                        f'{"is" if len(damaged) == 1 else "are"} damaged '
                        f'({", ".join(damaged[:5])}): delete them and run pack again with the '
                        f'same settings, it writes what is missing.')
    return manifest


def packed_as(manifest: Manifest) -> dict | None:
    """How the pictures of a manifest were changed when they were packed, as JSON for
    `packing.repack_like`: {} if they were packed as they were, None if they are not packed."""
    locations = manifest.table['location']
    if not len(locations) or not locations.iloc[0].startswith('packed:'):
        return None
    index = read_json(os.path.join(manifest.root, INDEX))
    keys = ('size', 'side', 'quality', 'preprocess', 'range16')
    return {key: index[key] for key in keys if key in index} if index.get('quality') else {}


def load_records(folder: str) -> pd.DataFrame:
    """What preprocessing found: one row per picture, in the manifest's order, with `id` and the
    columns '<step>/<what>', such as 'face/score'.

    Raises:
        DataError: it is not a packed folder, or was packed without preprocessing.
    """
    manifest = open_packed(folder)
    if intact_records(manifest.root) is None:
        raise DataError(f'The packed folder {folder!r} has no intact {RECORDS}: pack with '
                        f'pack.preprocess, or again with the same settings.')
    return pd.read_csv(os.path.join(manifest.root, RECORDS), dtype={'id': str},
                       keep_default_na=False)


def intact_records(folder: str) -> pd.DataFrame | None:
    """The preprocessing records of a finished folder, as text; None if absent or damaged."""
    path = os.path.join(folder, RECORDS)
    expected = read_json(os.path.join(folder, INDEX)).get('records')
    if not expected or not os.path.exists(path) or fingerprint(path) != expected:
        return None
    return read_table(path)


def read_table(path: str) -> pd.DataFrame:
    """A table of records as text, so that it is written again byte for byte."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_json(path: str) -> dict:
    """The object in a JSON file; {} if the file is absent.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError('it holds no JSON object')
        return content
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f'The file {path!r} cannot be read ({error}): delete it and run pack '
                        f'again.') from None


def fingerprint(path: str) -> dict:
    """{'bytes': size, 'sha256': digest} of a file."""
    with open(path, 'rb') as file:
        return {'bytes': os.fstat(file.fileno()).st_size,
                'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}


def shard_name(number: int, ending: str = '.array_record') -> str:
    """The name of a shard's file, or of another file that belongs to the shard."""
    return f'images-{number:05d}{ending}'


def _is_index(index: dict) -> bool:
    """Whether it has a digest, and shards with their own names, sizes and digests."""
    shards = index.get('shards')
    return isinstance(index.get('digest'), str) and isinstance(shards, list) and all(
        isinstance(shard, dict) and shard.get('name') == shard_name(number)
        and isinstance(shard.get('bytes'), int) and isinstance(shard.get('sha256'), str)
        for number, shard in enumerate(shards))


def _place(root: str, location: str) -> tuple[str, int]:
    place = re.fullmatch(r'packed:(\d{1,9}):(\d{1,18})', location, re.ASCII)
    if not place:
        raise UnreadableImage.of(location, 'is not of the form packed:<shard>:<row>')
    return os.path.join(root, shard_name(int(place[1]))), int(place[2])


_owner: list[int] = []  # the process that reads ArrayRecord files


def refuse_fork() -> None:
    """Refuses to read in a forked process, which would hang or crash in ArrayRecord's C++ threads.

    Raises:
        DataError: this process was forked from a process that has read ArrayRecord files.
    """
    if not _owner:
        _owner.append(os.getpid())
    elif _owner[0] != os.getpid():
        raise DataError('ArrayRecord files (data.packed, data.tfds) cannot be read in a process '
                        "forked from one that reads them: start it with 'spawn', as "
                        'loader.workers does.')


@functools.lru_cache(maxsize=512)
def _reader(path: str):  # threads may share the reader
    from array_record.python.array_record_module import ArrayRecordReader
    return ArrayRecordReader(path, options='readahead_buffer_size:0')
