"""Packing: any source as a few large ArrayRecord files, which read faster than many small ones.

sources/array_records.py describes and reads the folder that is written here. Shard k holds the
rows k * shard_records, ... of the source's manifest in their order, so a killed run continues
where it was. Until the whole folder is finished, each finished shard has an `images-00000.json`
beside it, and an `images-00000.csv` with what preprocessing found in its pictures.
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

from input_pipeline import manifest_files, preprocessing
from input_pipeline.atomic_files import atomic_open, atomic_path, write_text
from input_pipeline.csv_table import quoting_for
from input_pipeline.decode import decode
from input_pipeline.encode import encode
from input_pipeline.errors import DataError, in_one_line
from input_pipeline.image_headers import probe
from input_pipeline.manifest import Manifest, digest
from input_pipeline.resize import resize
from input_pipeline.sixteen_bits import FULL, Range
from input_pipeline.sources.array_records import (
    INDEX,
    KIND,
    MANIFEST,
    PLAN,
    RECORDS,
    VERSION,
    fingerprint,
    intact_records,
    read_json,
    read_table,
    shard_name,
)

SIDES = ('longest', 'shortest', 'both')
# Bounds the open files of a reader; a kill costs at most one shard.
_MAX_SHARDS, _MIN_RECORDS = 256, 1024
_CHUNK = 256  # pictures in memory at once: more than enough to keep the threads busy
_JPEG_SIDE = 65_500  # pixels, the longest side that a JPEG can have


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackSpec:
    """How pictures are packed (config.pack without its folder).

    Attributes:
        size: pixels of `side`; larger pictures are shrunk to it by averaging areas, smaller
            ones keep their bytes (with 'raw', their pixels). 0: no resizing.
        side: 'longest' or 'shortest'; with 'both', every picture becomes size x size, as a model of
            that size with image.resize='squash' sees it.
        quality: 1 to 100 for JPEG, 'lossless' for PNG, 'raw' for pixels that are not compressed
            (PPM: nothing to decode, three bytes per pixel), 0 to keep the bytes of the files
            (only with size=0 and without preprocess).
        preprocess: steps (see `preprocessing.make_steps`) before the resizing. What they find is
            recorded; see `array_records.load_records`.
        shard_records: pictures per file; 0 for 1024, or more if that would make over 256 files.
    """

    size: int = 0
    side: str = 'longest'
    quality: int | str = 0
    preprocess: Sequence[str | Mapping] = ()
    shard_records: int = 0


def pack(manifest: Manifest, read_bytes: Callable[[str, str], bytes], folder: str,
         spec: PackSpec = PackSpec(), *, workers: int | None = None,
         progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Writes the pictures of a manifest into a packed folder and returns its manifest.

    The same call continues an unfinished folder, and repairs one that lost shards. The packed
    manifest has the same digest: the same ids, labels, groups and weights.

    Args:
        manifest: its pictures must be readable (see `readable.check_readable`).
        read_bytes: (root, location) -> the encoded picture, such as `sources.read_bytes`.
        folder: a new or empty folder, or one that this call began.
        spec: how pictures are packed.
        workers: threads; None for one per core.
        progress: called with (pictures done, pictures).

    Raises:
        DataError: a setting is wrong, the folder contains something else, the disk is full, or a
            picture cannot be read.
    """
    _check(spec)
    steps = preprocessing.make_steps(spec.preprocess)
    folder = os.path.abspath(os.path.expanduser(folder))
    records = spec.shard_records or max(_MIN_RECORDS, -(-len(manifest) // _MAX_SHARDS))
    plan = {'kind': KIND, 'version': VERSION, 'size': spec.size,
            'side': spec.side if spec.size else '', 'quality': spec.quality,
            'preprocess': preprocessing.describe(steps), 'shard_records': records,
            'images': len(manifest), 'digest': digest(manifest),
            'order': hashlib.sha256('\0'.join(manifest.table['id']).encode()).hexdigest()}
    if spec.quality and manifest.range16 != FULL:
        plan['range16'] = list(manifest.range16)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise DataError(f'The folder {folder!r} cannot be made ({error.strerror}): '
                        f'give another one.') from None
    with _locked(folder):
        known = _begin(folder, plan)
        ids, locations = (manifest.table[name].tolist() for name in ('id', 'location'))
        old = intact_records(folder) if steps else None
        report = progress or (lambda done, total: None)
        shards, found = [], []
        with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            def make(location: str) -> tuple[bytes, dict]:
                return _repack(read_bytes(manifest.root, location), location, spec, steps,
                               manifest.range16)
            for number, start in enumerate(range(0, len(manifest), records)):
                rows = slice(start, start + records)
                shard = _finished(folder, number, known)
                part = _kept_records(folder, number, ids[rows], old) if steps else None
                if not shard or (steps and part is None):
                    shard, part = _write_shard(
                        folder, number, locations[rows], ids[rows], make, pool,
                        lambda done, start=start: report(start + done, len(manifest)))
                shards.append(shard)
                found.append(part)
                report(start + len(ids[rows]), len(manifest))
        packed = dataclasses.replace(
            manifest.with_column('location', [f'packed:{row // records}:{row % records}'
                                              for row in range(len(manifest))]), root=folder)
        path = os.path.join(folder, MANIFEST)
        manifest_files.save(packed, path)
        index = {**plan, 'shards': shards, 'manifest': fingerprint(path)}
        if steps:
            path = os.path.join(folder, RECORDS)
            _write_table(path, pd.concat(found))
            index['records'] = fingerprint(path)
        _write_json(os.path.join(folder, INDEX), index)
        for name in [PLAN, *(shard_name(n, ending) for n in range(len(shards))
                             for ending in ('.json', '.csv'))]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
    return packed


def repack_like(about: Mapping) -> Callable[[bytes, str], bytes]:
    """A function (bytes of a file, its name) -> the bytes that the file would be packed as.

    Args:
        about: see `array_records.packed_as`.

    Raises:
        DataError: a preprocessing step is another one today, or its detector is missing.
    """
    described = ('version', 'detector_sha256')
    steps = preprocessing.make_steps([{key: value for key, value in step.items()
                                       if key not in described} for step in about['preprocess']])
    if preprocessing.describe(steps) != about['preprocess']:
        names = ', '.join(step.name for step in steps)
        raise DataError(f'The pictures of the training were preprocessed ({names}) by another '
                        f'version of the steps, or with another detector: install that version, '
                        f'or train again.')
    spec = PackSpec(size=about['size'], side=about['side'] or 'longest', quality=about['quality'])
    low, high = about.get('range16', FULL)
    return lambda data, name: _repack(data, name, spec, steps, (low, high))[0]


def _check(spec: PackSpec) -> None:
    if spec.side not in SIDES:
        raise DataError(f'pack.side={spec.side!r} is unknown: use {", ".join(SIDES)}.')
    if spec.quality not in ('lossless', 'raw') and (isinstance(spec.quality, str)
                                                    or not 0 <= spec.quality <= 100):
        raise DataError(f"pack.quality={spec.quality!r} is unknown: use 1 to 100 (JPEG), "
                        f"'lossless', 'raw', or 0 to keep the bytes of the files.")
    if spec.size < 0:
        raise DataError(f'pack.size={spec.size} is below 0: use pixels, or 0 for no resizing.')
    if spec.size and not spec.quality:
        raise DataError(f"pack.size={spec.size} encodes pictures again: set pack.quality, to 1 to "
                        f"100 or 'lossless'.")
    if spec.preprocess and not spec.quality:
        raise DataError("pack.preprocess encodes pictures again: set pack.quality, to 1 to 100 or "
                        "'lossless'.")


def _begin(folder: str, plan: dict) -> dict[str, dict]:
    """Checks or starts the folder; returns the shards that a finished index lists, by name."""
    names = [name for name in os.listdir(folder) if name != f'{PLAN}.tmp']
    index, begun = (read_json(os.path.join(folder, name)) for name in (INDEX, PLAN))
    found = index or begun
    if names and found.get('kind') != plan['kind']:
        raise DataError(f'The folder {folder!r} is not empty and not a packed folder (it has '
                        f'{sorted(names)[0]!r}): give a new one.')
    for key, value in plan.items():
        if found and found.get(key) != value:
            raise DataError(f'The folder {folder!r} was packed with another {key} '
                            f'({found.get(key)}, not {value}): give a new folder, or delete it'
                            + (', or, if an older version packed it, go on with '
                               '--config.data.rules=1.' if key == 'digest' else '.'))
    if not found:
        _write_json(os.path.join(folder, PLAN), plan)
    return {shard['name']: shard for shard in index.get('shards', ())}


def _finished(folder: str, number: int, known: dict[str, dict]) -> dict | None:
    """The entry of a shard if its file is complete, else None."""
    name = shard_name(number)
    entry = read_json(os.path.join(folder, shard_name(number, '.json'))) or known.get(name)
    path = os.path.join(folder, name)
    complete = entry and os.path.exists(path) and os.path.getsize(path) == entry['bytes']
    return entry if complete else None


def _kept_records(folder: str, number: int, ids: list[str],
                  old: pd.DataFrame | None) -> pd.DataFrame | None:
    """The preprocessing records of a shard's pictures, if they were kept."""
    path = os.path.join(folder, shard_name(number, '.csv'))
    kept = read_table(path) if os.path.exists(path) else old
    if kept is None:
        return None
    kept = kept[kept['id'].isin(ids)]
    return kept if kept['id'].tolist() == ids else None


def _write_table(path: str, table: pd.DataFrame) -> None:
    with atomic_open(path) as file:
        table.to_csv(file, index=False, lineterminator='\n', quoting=quoting_for(table))


def _write_json(path: str, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1))


def _write_shard(folder: str, number: int, locations: list[str], ids: list[str], make, pool,
                 report) -> tuple[dict, pd.DataFrame]:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
    path = os.path.join(folder, shard_name(number))

    def failure(why: object) -> DataError:
        return DataError(f'The shard {path!r} could not be written ({in_one_line(why)}): free '
                         f'some space and run pack again, it continues where it stopped.')

    try:
        with atomic_path(path, durable=True) as temporary:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
            writer = ArrayRecordWriter(temporary, 'group_size:1,uncompressed')
            records = []
            for start in range(0, len(locations), _CHUNK):
                for data, record in pool.map(make, locations[start:start + _CHUNK]):
                    writer.write(data)
                    records.append(record)
                report(len(records))
            writer.close()
            if ArrayRecordReader(temporary).num_records() != len(locations):
                raise failure('records are missing')
            entry = {'name': shard_name(number), 'records': len(locations),
                     **fingerprint(temporary)}
            table = pd.DataFrame({'id': ids}).join(pd.DataFrame(records))
            if len(table.columns) > 1:
                _write_table(os.path.join(folder, shard_name(number, '.csv')), table)
    except (OSError, RuntimeError) as error:
        raise failure(error) from None
    _write_json(os.path.join(folder, shard_name(number, '.json')), entry)
    return entry, table


def _repack(data: bytes, name: str, spec: PackSpec, steps, range16: Range) -> tuple[bytes, dict]:
    """(the bytes to pack, what preprocessing found) of the picture in the file `data`."""
    if not spec.quality:
        return data, {}
    whole = decode(data, name=name, range16=range16)
    image, record = preprocessing.apply(steps, whole)
    if spec.size:
        size = _packed_size(image.shape[:2], spec)
        if size != image.shape[:2]:
            image = resize(image, size)
        elif image is whole and spec.quality != 'raw' and (
                range16 == FULL or not probe(data).deep):
            return data, record
    try:
        jpeg = not isinstance(spec.quality, str)
        quality = 'lossless' if jpeg and max(image.shape) >= _JPEG_SIDE else spec.quality
        return encode(image, quality), record
    except cv2.error as error:
        raise DataError(f'Image {name!r} cannot be encoded ({in_one_line(error)}): leave it '
                        f'out.') from None


def _packed_size(size: tuple[int, int], spec: PackSpec) -> tuple[int, int]:
    if spec.side == 'both':
        return spec.size, spec.size
    ratio = min(1, spec.size / (max if spec.side == 'longest' else min)(size))
    height, width = (max(1, round(side * ratio)) for side in size)
    return height, width


@contextlib.contextmanager
def _locked(folder: str):
    """Refuses a second process that packs into the folder: they would overwrite each other."""
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
