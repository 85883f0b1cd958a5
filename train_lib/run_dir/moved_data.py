"""A run whose data lie at another path than when it began: they must be the same pictures.

config.json keeps, in `pictures`, a digest of the sizes of all files and the digests of a sample of
them. Both are by id, so they do not depend on where the files lie.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from input_pipeline.decode import UnreadableImage
from input_pipeline.manifest import Manifest
from input_pipeline.sources import DRAWN, read_bytes, scheme_of, stamp
from train_lib.run_dir.json_files import json_digest
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

# Keys that only say where something lies. What lies there is compared by the digests of the data,
# of the split, and of the pictures.
PLACES = ('data.folder', 'data.csv', 'data.images', 'data.packed', 'data.tfds_dir',
          'data.decisions', 'split.file')
_OF_PICTURES = ('data.folder', 'data.csv', 'data.images', 'data.packed', 'data.tfds_dir')
_SAMPLE = 64
_MISSING = 'missing'


def may_differ(key: str, before, now) -> bool:
    """Whether a key names a place on either side; a place that was '' is that of the table."""
    return key in PLACES and (key == 'data.images' or bool(before and now))


def pictures_of(manifest: Manifest) -> dict:
    """What a run remembers of its pictures: {} if they are drawn by the program.

    Returns:
        count: of the files; sizes: a digest of {id: bytes}; sample: {id: SHA-256 of the file} of at
        most 64, chosen by their ids.
    """
    places = _places(manifest)
    if not places:
        return {}
    sizes = dict(zip(places, _each(lambda name: _size(manifest.root, places[name]), places)))
    chosen = sorted(places, key=lambda name: hashlib.sha256(
        name.encode('utf-8', 'surrogateescape')).digest())[:_SAMPLE]
    return dict(count=len(places), sizes=json_digest(sizes),
                sample=_digests(manifest.root, {name: places[name] for name in sorted(chosen)}))


def compare(known: Mapping, manifest: Manifest, run: str, keys: Sequence[str]) -> None:
    """Compares pictures at another path with those that a run was started with.

    Args:
        known: `pictures` in its config.json; {} for an older run.
        manifest: of this start.
        run: the workdir, for messages.
        keys: the keys that name another place now.

    Raises:
        ConfigError: a file has another size or other bytes.
    """
    if not any(key in _OF_PICTURES for key in keys):
        return
    places = _places(manifest)
    if not places:
        return
    if not known:
        log.warning('moved    not checked: the files (%s noted neither sizes nor digests)', run)
        return
    where = next(key for key in keys if key in _OF_PICTURES)
    found = _digests(manifest.root, {name: places[name] for name in known['sample']
                                     if name in places})
    others = [name for name, digest in found.items() if digest != known['sample'][name]]
    if others:
        raise ConfigError(f'config.{where} holds other pictures than {run} was started with: '
                          f'{len(others)} of {len(found)} compared files differ '
                          f'({", ".join(map(repr, others[:3]))}{", ..." if len(others) > 3 else ""}'
                          f'): give the place of the same files, or a new --workdir.')
    sizes = dict(zip(places, _each(lambda name: _size(manifest.root, places[name]), places)))
    if len(places) == known['count'] and json_digest(sizes) != known['sizes']:
        raise ConfigError(f'config.{where} holds other pictures than {run} was started with: the '
                          f'sizes of the {known["count"]:,} files differ: give the place of the '
                          f'same files, or a new --workdir.')
    log.info('moved    the data: ids, labels, sizes and %d whole files agree', len(found))


def _places(manifest: Manifest) -> dict[str, str]:
    """{id: location} of the rows that are encoded pictures."""
    table = manifest.table
    if 'location' not in table:
        return {}
    return {name: place for name, place in sorted(zip(table['id'], table['location']))
            if scheme_of(place) not in DRAWN}


def _digests(root: str, places: Mapping[str, str]) -> dict[str, str]:
    return dict(zip(places, _each(lambda name: _digest(root, places[name]), places)))


def _each(function, names: Iterable[str]) -> list:
    with ThreadPoolExecutor(16) as pool:  # network storage answers slowly
        return list(pool.map(function, names))


def _size(root: str, place: str) -> int:
    try:
        return stamp(root, place)[0]
    except UnreadableImage:  # what becomes of it is up to data.unreadable
        return -1


def _digest(root: str, place: str) -> str:
    try:
        return hashlib.sha256(read_bytes(root, place)).hexdigest()
    except UnreadableImage:
        return _MISSING
