"""Packing: any source as a few large ArrayRecord files, which read faster than many small ones.

A packed folder holds `images-00000.array_record`, ... (one encoded picture a record,
group_size 1), `manifest.parquet` with the locations `packed:<shard>:<row>`, and
`index.json`, written last, with the settings, sizes and SHA-256 digests. Shard k holds the
rows k * shard_records, ... of the source's manifest in their order, so a killed run goes on
where it was: a finished shard has an `images-00000.json` beside it.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable

import cv2

from input_pipeline import manifest as manifests
from input_pipeline.decode import decode, encode, resize
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest

SIDES = ('longest', 'shortest')
_VERSION = 1
_INDEX, _PLAN, _MANIFEST = 'index.json', 'plan.json', 'manifest.parquet'
# Bounds the open files of a reader; a kill costs at most one shard.
_MAX_SHARDS, _MIN_RECORDS = 256, 1024
_CHUNK = 256  # pictures in memory at once, and more than enough to keep the threads busy
_JPEG_SIDE = 65_500  # pixels, the most that a JPEG can have


def pack(manifest: Manifest, read_bytes: Callable[[str, str], bytes], folder: str, *,
         size: int = 0, side: str = 'longest', quality: int | str = 0, shard_records: int = 0,
         workers: int | None = None,
         progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Writes the pictures of a manifest into a packed folder and returns its manifest.

    The same call goes on with an unfinished folder, and repairs one that lost shards. The
    packed manifest has the same digest: ids, labels, groups and weights.

    Args:
        manifest: of readable pictures (see `readable.check_readable`).
        read_bytes: (root, location) -> the encoded picture: `sources.read_bytes`.
        folder: a new or empty folder, or one that this call began.
        size: pixels of `side`; larger pictures are shrunk to it by area averages, smaller
            ones stay the bytes they are. 0: no resizing.
        side: 'longest' or 'shortest'.
        quality: 1 to 100: JPEG; 'lossless': PNG; 0: the bytes as they are (only if size=0).
        shard_records: pictures a file; 0 for 1024, or more where it would be 256 files.
        workers: threads; None for one a core.
        progress: called with (pictures done, pictures).

    Raises:
        DataError: a wrong setting; the folder holds something else; a full disk; a picture
            that cannot be read.
    """
    _check_settings(size, side, quality)
    folder = os.path.abspath(os.path.expanduser(folder))
    records = shard_records or max(_MIN_RECORDS, -(-len(manifest) // _MAX_SHARDS))
    plan = {'kind': 'packed images', 'version': _VERSION, 'size': size,
            'side': side if size else '', 'quality': quality, 'shard_records': records,
            'images': len(manifest), 'digest': manifests.digest(manifest),
            'order': hashlib.sha256('\0'.join(manifest.table['id']).encode()).hexdigest()}
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise DataError(f'The folder {folder!r} cannot be made ({error.strerror}): '
                        f'give another one.') from None
    with _locked(folder):
        known = _begin(folder, plan)
        locations = manifest.table['location'].tolist()
        shards = []
        with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            def make(location: str) -> bytes:
                data = read_bytes(manifest.root, location)
                return _repack(data, location, size, side, quality)
            for number, start in enumerate(range(0, len(locations), records)):
                chunk = locations[start:start + records]
                shards.append(_finished(folder, number, known)
                              or _write_shard(folder, number, chunk, make, pool))
                if progress is not None:
                    progress(start + len(chunk), len(locations))
        packed = dataclasses.replace(
            manifest.with_column('location', [f'packed:{row // records}:{row % records}'
                                              for row in range(len(manifest))]), root=folder)
        path = os.path.join(folder, _MANIFEST)
        manifests.save(packed, path)
        _write_json(os.path.join(folder, _INDEX), {
            **plan, 'shards': shards, 'manifest': _fingerprint(path)})
        for name in [_PLAN, *(_shard_name(n, '.json') for n in range(len(shards)))]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
    return packed


def open_packed(folder: str) -> Manifest:
    """The manifest of a packed folder, after a check that costs milliseconds.

    The manifest is held against its digest and every shard against its size; damage inside
    a shard shows when the record is read, and by `verify`.

    Raises:
        DataError: no packed folder, one that is unfinished or damaged.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    index = _read_json(os.path.join(folder, _INDEX))
    if index.get('kind') != 'packed images':
        if _read_json(os.path.join(folder, _PLAN)):
            raise DataError(f'The packed folder {folder!r} is not finished: run pack again with '
                            f'the same settings, it goes on where it stopped.')
        raise DataError(f'The folder {folder!r} is no packed folder (it has no {_INDEX}): write '
                        f'one by `main.py pack`, or correct data.packed.')
    if index['version'] != _VERSION:
        raise DataError(f'The packed folder {folder!r} has version {index["version"]}, but '
                        f'{_VERSION} is read here: pack it again.')
    path = os.path.join(folder, _MANIFEST)
    if not os.path.exists(path) or _fingerprint(path) != index['manifest']:
        raise DataError(f'The file {path!r} is missing or damaged: run pack again with the same '
                        f'settings, it rewrites what is damaged.')
    for shard in index['shards']:
        path = os.path.join(folder, shard['name'])
        found = os.path.getsize(path) if os.path.exists(path) else 0
        if found != shard['bytes']:
            raise DataError(f'The shard {path!r} has {found:,} of {shard["bytes"]:,} bytes: copy '
                            f'it again, or run pack again with the same settings.')
    return dataclasses.replace(manifests.load(os.path.join(folder, _MANIFEST)), root=folder)


def verify(folder: str, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Holds every byte of a packed folder against its digests; returns its manifest.

    Raises:
        DataError: names the damaged shards.
    """
    manifest = open_packed(folder)
    index = _read_json(os.path.join(manifest.root, _INDEX))
    if manifests.digest(manifest) != index['digest']:
        raise DataError(f'The manifest in {manifest.root!r} is not the one that was packed: '
                        f'pack the data again.')
    damaged = []
    for number, shard in enumerate(index['shards']):
        if _fingerprint(os.path.join(manifest.root, shard['name']))['sha256'] != shard['sha256']:
            damaged.append(shard['name'])
        if progress is not None:
            progress(number + 1, len(index['shards']))
    if damaged:
        raise DataError(f'{len(damaged)} shards in {manifest.root!r} are damaged '
                        f'({", ".join(damaged[:5])}): delete them and run pack again with the '
                        f'same settings, it writes what is missing.')
    return manifest


def shard_path(folder: str, number: int) -> str:
    """The file of a shard."""
    return os.path.join(folder, _shard_name(number))


def _shard_name(number: int, ending: str = '.array_record') -> str:
    return f'images-{number:05d}{ending}'


def _check_settings(size: int, side: str, quality: int | str) -> None:
    if side not in SIDES:
        raise DataError(f'pack.side={side!r} is unknown: use {" or ".join(SIDES)}.')
    if quality != 'lossless' and (isinstance(quality, str) or not 0 <= quality <= 100):
        raise DataError(f"pack.quality={quality!r} is unknown: use 1 to 100 (JPEG), 'lossless', "
                        f'or 0 for the bytes as they are.')
    if size < 0:
        raise DataError(f'pack.size={size} is below 0: use pixels, or 0 for no resizing.')
    if size and not quality:
        raise DataError(f"pack.size={size} encodes pictures anew: set pack.quality, to 1 to 100 "
                        f"or 'lossless'.")


def _begin(folder: str, plan: dict) -> dict[str, dict]:
    """Checks or starts the folder; the shards that a finished index lists, by name."""
    names = [name for name in os.listdir(folder) if name != f'{_PLAN}.tmp']
    index, begun = (_read_json(os.path.join(folder, name)) for name in (_INDEX, _PLAN))
    found = index or begun
    if names and found.get('kind') != plan['kind']:
        raise DataError(f'The folder {folder!r} is not empty and no packed folder (it has '
                        f'{sorted(names)[0]!r}): give a new one.')
    for key, value in plan.items():
        if found and found.get(key) != value:
            raise DataError(f'The folder {folder!r} was packed with another {key} '
                            f'({found.get(key)}, not {value}): give a new folder, or delete it.')
    if not found:
        _write_json(os.path.join(folder, _PLAN), plan)
    return {shard['name']: shard for shard in index.get('shards', ())}


def _finished(folder: str, number: int, known: dict[str, dict]) -> dict | None:
    """What is recorded of a shard if it lies there whole, else None."""
    name = _shard_name(number)
    entry = _read_json(os.path.join(folder, _shard_name(number, '.json'))) or known.get(name)
    path = os.path.join(folder, name)
    whole = entry and os.path.exists(path) and os.path.getsize(path) == entry['bytes']
    return entry if whole else None


def _write_shard(folder: str, number: int, locations: list[str], make, pool) -> dict:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
    path = shard_path(folder, number)
    temporary = f'{path}.tmp'
    with contextlib.suppress(FileNotFoundError):
        os.remove(temporary)
    failure = (f'The shard {path!r} could not be written (%s): free some space and run pack '
               f'again, it goes on where it stopped.')
    try:
        writer = ArrayRecordWriter(temporary, 'group_size:1,uncompressed')
        for start in range(0, len(locations), _CHUNK):
            for data in pool.map(make, locations[start:start + _CHUNK]):
                writer.write(data)
        writer.close()
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        if ArrayRecordReader(temporary).num_records() != len(locations):
            raise DataError(failure % 'records are missing')
        entry = {'name': _shard_name(number), 'records': len(locations), **_fingerprint(temporary)}
    except (OSError, RuntimeError) as error:
        raise DataError(failure % error) from None
    os.replace(temporary, path)
    _write_json(os.path.join(folder, _shard_name(number, '.json')), entry)
    return entry


def _repack(data: bytes, name: str, size: int, side: str, quality: int | str) -> bytes:
    if not quality:
        return data
    image = decode(data, name=name)
    if size:
        ratio = size / (max if side == 'longest' else min)(image.shape[:2])
        if ratio >= 1:
            return data
        image = resize(image, tuple(max(1, round(n * ratio)) for n in image.shape[:2]))
    try:
        return encode(image, quality if max(image.shape) < _JPEG_SIDE else 'lossless')
    except cv2.error as error:
        raise DataError(f'Image {name!r} cannot be encoded ({error}): leave it out.') from None


def _fingerprint(path: str) -> dict:
    with open(path, 'rb') as file:
        return {'bytes': os.fstat(file.fileno()).st_size,
                'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}


def _read_json(path: str) -> dict:
    """The object in a file; {} if it is absent, a DataError if it is damaged."""
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f'The file {path!r} cannot be read ({error}): delete it and run pack '
                        f'again.') from None


def _write_json(path: str, content: dict) -> None:
    with open(f'{path}.tmp', 'w', encoding='utf-8') as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f'{path}.tmp', path)


@contextlib.contextmanager
def _locked(folder: str):
    """Two processes that pack into one folder would overwrite each other's files."""
    import fcntl  # absent on Windows, where only packing needs it
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f'Another process packs into {folder!r}: wait for it.') from None
        yield
    finally:
        os.close(handle)
