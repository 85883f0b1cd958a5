"""Packing: any source as a few large ArrayRecord files, which read faster than many small ones.

A packed folder holds `images-00000.array_record`, ... (one encoded picture a record,
group_size 1), `manifest.parquet` with the locations `packed:<shard>:<row>`, and
`index.json`, written last, with the settings, sizes and SHA-256 digests. Shard k holds the
rows k * shard_records, ... of the source's manifest in their order, so a killed run goes on
where it was: a finished shard has an `images-00000.json` beside it. What preprocessing found
in each picture stands in `preprocessing.csv`, while packing in a `images-00000.csv` a shard.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence

import cv2
import pandas as pd

from input_pipeline import manifest as manifests
from input_pipeline import preprocessing
from input_pipeline.csv_table import quoting_for
from input_pipeline.decode import decode, encode, resize
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest

SIDES = ('longest', 'shortest')
_VERSION = 1
_INDEX, _PLAN, _MANIFEST = 'index.json', 'plan.json', 'manifest.parquet'
_RECORDS = 'preprocessing.csv'
# Bounds the open files of a reader; a kill costs at most one shard.
_MAX_SHARDS, _MIN_RECORDS = 256, 1024
_CHUNK = 256  # pictures in memory at once, and more than enough to keep the threads busy
_JPEG_SIDE = 65_500  # pixels, the most that a JPEG can have


def pack(manifest: Manifest, read_bytes: Callable[[str, str], bytes], folder: str, *,
         size: int = 0, side: str = 'longest', quality: int | str = 0,
         preprocess: Sequence[str | Mapping] = (), shard_records: int = 0,
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
        quality: 1 to 100: JPEG; 'lossless': PNG; 0: the bytes as they are (only if size=0 and
            without preprocess).
        preprocess: steps (see `preprocessing.make_steps`) before the resizing; `load_records`
            tells what they found.
        shard_records: pictures a file; 0 for 1024, or more where it would be 256 files.
        workers: threads; None for one a core.
        progress: called with (pictures done, pictures).

    Raises:
        DataError: a wrong setting; the folder holds something else; a full disk; a picture
            that cannot be read.
    """
    _check_settings(size, side, quality, preprocess)
    steps = preprocessing.make_steps(preprocess)
    folder = os.path.abspath(os.path.expanduser(folder))
    records = shard_records or max(_MIN_RECORDS, -(-len(manifest) // _MAX_SHARDS))
    plan = {'kind': 'packed images', 'version': _VERSION, 'size': size,
            'side': side if size else '', 'quality': quality,
            'preprocess': preprocessing.describe(steps), 'shard_records': records,
            'images': len(manifest), 'digest': manifests.digest(manifest),
            'order': hashlib.sha256('\0'.join(manifest.table['id']).encode()).hexdigest()}
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise DataError(f'The folder {folder!r} cannot be made ({error.strerror}): '
                        f'give another one.') from None
    with _locked(folder):
        known = _begin(folder, plan)
        ids, locations = (manifest.table[name].tolist() for name in ('id', 'location'))
        old = _old_records(folder) if steps else None
        tell = progress or (lambda done, total: None)
        shards, found = [], []
        with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            def make(location: str) -> tuple[bytes, dict]:
                data = read_bytes(manifest.root, location)
                return _repack(data, location, size, side, quality, steps)
            for number, start in enumerate(range(0, len(manifest), records)):
                rows = slice(start, start + records)
                shard = _finished(folder, number, known)
                part = _kept_records(folder, number, ids[rows], old) if steps else None
                if not shard or (steps and part is None):
                    shard, part = _write_shard(
                        folder, number, locations[rows], ids[rows], make, pool,
                        lambda done, start=start: tell(start + done, len(manifest)))
                shards.append(shard)
                found.append(part)
                tell(start + len(ids[rows]), len(manifest))
        packed = dataclasses.replace(
            manifest.with_column('location', [f'packed:{row // records}:{row % records}'
                                              for row in range(len(manifest))]), root=folder)
        path = os.path.join(folder, _MANIFEST)
        manifests.save(packed, path)
        index = {**plan, 'shards': shards, 'manifest': _fingerprint(path)}
        if steps:
            path = os.path.join(folder, _RECORDS)
            _write_table(path, pd.concat(found))
            index['records'] = _fingerprint(path)
        _write_json(os.path.join(folder, _INDEX), index)
        for name in [_PLAN, *(_shard_name(n, ending) for n in range(len(shards))
                              for ending in ('.json', '.csv'))]:
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
    if index.get('version') != _VERSION:
        raise DataError(f'The packed folder {folder!r} has version {index.get("version")}, but '
                        f'{_VERSION} is read here: pack it again.')
    if not _is_index(index):
        raise DataError(f'The file {os.path.join(folder, _INDEX)!r} is damaged: delete it and run '
                        f'pack again.')
    path = os.path.join(folder, _MANIFEST)
    if not os.path.isfile(path) or _fingerprint(path) != index.get('manifest'):
        raise DataError(f'The file {path!r} is missing or damaged: run pack again with the same '
                        f'settings, it rewrites what is damaged.')
    for shard in index['shards']:
        path = os.path.join(folder, shard['name'])
        found = os.path.getsize(path) if os.path.isfile(path) else 0
        if found != shard['bytes']:
            raise DataError(f'The shard {path!r} has {found:,} of {shard["bytes"]:,} bytes: copy '
                            f'it again, or run pack again with the same settings.')
    return dataclasses.replace(manifests.load(os.path.join(folder, _MANIFEST)), root=folder)


def _is_index(index: dict) -> bool:
    """Whether it names a digest, and shards by their own names with their sizes and digests."""
    shards = index.get('shards')
    return isinstance(index.get('digest'), str) and isinstance(shards, list) and all(
        isinstance(shard, dict) and shard.get('name') == _shard_name(number)
        and isinstance(shard.get('bytes'), int) and isinstance(shard.get('sha256'), str)
        for number, shard in enumerate(shards))


def verify(folder: str, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Holds every byte of a packed folder against its digests; returns its manifest.

    Raises:
        DataError: names the damaged files.
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
    if 'records' in index and _old_records(manifest.root) is None:
        damaged.append(_RECORDS)
    if damaged:
        raise DataError(f'{len(damaged)} files in {manifest.root!r} are damaged '
                        f'({", ".join(damaged[:5])}): delete them and run pack again with the '
                        f'same settings, it writes what is missing.')
    return manifest


def load_records(folder: str) -> pd.DataFrame:
    """What preprocessing found: a row a picture in the manifest's order, `id` and the columns
    '<step>/<what>', as 'face/score'.

    Raises:
        DataError: no packed folder, or one without preprocessing.
    """
    manifest = open_packed(folder)
    if _old_records(manifest.root) is None:
        raise DataError(f'The packed folder {folder!r} has no whole {_RECORDS}: pack with '
                        f'pack.preprocess, or again with the same settings.')
    return pd.read_csv(os.path.join(manifest.root, _RECORDS), dtype={'id': str},
                       keep_default_na=False)


def shard_path(folder: str, number: int) -> str:
    """The file of a shard."""
    return os.path.join(folder, _shard_name(number))


def _shard_name(number: int, ending: str = '.array_record') -> str:
    return f'images-{number:05d}{ending}'


def _check_settings(size: int, side: str, quality: int | str, preprocess) -> None:
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
    if preprocess and not quality:
        raise DataError("pack.preprocess encodes pictures anew: set pack.quality, to 1 to 100 or "
                        "'lossless'.")


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


def _old_records(folder: str) -> pd.DataFrame | None:
    """The records of a finished folder, if they are whole."""
    path = os.path.join(folder, _RECORDS)
    whole = _read_json(os.path.join(folder, _INDEX)).get('records')
    if not whole or not os.path.exists(path) or _fingerprint(path) != whole:
        return None
    return _read_table(path)


def _kept_records(folder: str, number: int, ids: list[str],
                   old: pd.DataFrame | None) -> pd.DataFrame | None:
    """The records of a shard's pictures, if they were kept."""
    path = os.path.join(folder, _shard_name(number, '.csv'))
    kept = _read_table(path) if os.path.exists(path) else old
    if kept is None:
        return None
    kept = kept[kept['id'].isin(ids)]
    return kept if kept['id'].tolist() == ids else None


def _write_table(path: str, table: pd.DataFrame) -> None:
    table.to_csv(f'{path}.tmp', index=False, lineterminator='\n', quoting=quoting_for(table))
    os.replace(f'{path}.tmp', path)


def _read_table(path: str) -> pd.DataFrame:
    """As text, so that it is written again byte for byte."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _write_shard(folder: str, number: int, locations: list[str], ids: list[str], make, pool,
                 tell) -> tuple[dict, pd.DataFrame]:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
    path = shard_path(folder, number)
    temporary = f'{path}.tmp'
    with contextlib.suppress(FileNotFoundError):
        os.remove(temporary)
    failure = (f'The shard {path!r} could not be written (%s): free some space and run pack '
               f'again, it goes on where it stopped.')
    try:
        writer = ArrayRecordWriter(temporary, 'group_size:1,uncompressed')
        records = []
        for start in range(0, len(locations), _CHUNK):
            for data, record in pool.map(make, locations[start:start + _CHUNK]):
                writer.write(data)
                records.append(record)
            tell(len(records))
        writer.close()
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        if ArrayRecordReader(temporary).num_records() != len(locations):
            raise DataError(failure % 'records are missing')
        entry = {'name': _shard_name(number), 'records': len(locations), **_fingerprint(temporary)}
        table = pd.DataFrame({'id': ids}).join(pd.DataFrame(records))
        if len(table.columns) > 1:
            _write_table(os.path.join(folder, _shard_name(number, '.csv')), table)
    except (OSError, RuntimeError) as error:
        raise DataError(failure % error) from None
    os.replace(temporary, path)
    _write_json(os.path.join(folder, _shard_name(number, '.json')), entry)
    return entry, table


def _repack(data: bytes, name: str, size: int, side: str, quality: int | str,
            steps) -> tuple[bytes, dict]:
    if not quality:
        return data, {}
    whole = decode(data, name=name)
    image, record = preprocessing.apply(steps, whole)
    if size:
        ratio = size / (max if side == 'longest' else min)(image.shape[:2])
        if ratio < 1:
            image = resize(image, tuple(max(1, round(n * ratio)) for n in image.shape[:2]))
        elif image is whole:
            return data, record
    try:
        return encode(image, quality if max(image.shape) < _JPEG_SIDE else 'lossless'), record
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
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError('it holds no JSON object')
        return content
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
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
