"""Measures of files, kept between runs in one .npz per data set."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from input_pipeline.atomic_files import atomic_open
from input_pipeline.curation.picture_measures import NUMBERS, THUMB, WORDS, Row
from input_pipeline.curation.variants import SIDE
from input_pipeline.sixteen_bits import FULL, Range

_VERSION = 2  # of the measures: those of other versions must not be mixed with these
_SHAPES = {'stamps': (2,), 'numbers': (len(NUMBERS),), 'hashes': (8,), 'thumbs': (THUMB, THUMB),
           'tints': (SIDE, SIDE, 3)}

_log = logging.getLogger(__name__)


class Cache:
    """Rows by location, each valid for one size and modification time of the file."""

    def __init__(self, locations: list[str], words: list[list[str]], arrays: Mapping):
        self._locations, self._words, self._arrays = locations, words, arrays
        self._row = {location: row for row, location in enumerate(locations)}

    def get(self, location: str, stamp: tuple[int, int]) -> Row | None:
        """The measures of a file, if they are kept and the file has not changed."""
        row = self._row.get(location)
        if row is None or self._arrays['stamps'][row].tolist() != list(stamp):
            return None
        return Row(self._arrays['numbers'][row], tuple(self._words[row]),
                   self._arrays['hashes'][row], self._arrays['thumbs'][row],
                   self._arrays['tints'][row])

    def updated(self, fresh: Mapping[str, tuple[tuple[int, int], Row]]) -> 'Cache':
        """A cache with these rows added or replaced."""
        kept = [row for row, location in enumerate(self._locations) if location not in fresh]
        stamps, rows = zip(*fresh.values())
        added = {'stamps': stamps, 'numbers': [row.numbers for row in rows],
                 'hashes': [row.hashes for row in rows], 'thumbs': [row.thumb for row in rows],
                 'tints': [row.tint for row in rows]}
        return Cache([self._locations[row] for row in kept] + list(fresh),
                     [self._words[row] for row in kept] + [list(row.words) for row in rows],
                     {name: np.concatenate([array[kept], np.array(added[name], array.dtype)])
                      for name, array in self._arrays.items()})

    def save(self, path: str) -> None:
        """Writes the file, whole or not at all."""
        about = {'version': _VERSION, 'locations': self._locations, 'words': self._words}
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        with atomic_open(path, 'wb', shared=True) as file:  # two runs may share the folder
            np.savez(file, about=text, **self._arrays)


def path_of(cache_dir: str | None, root: str, range16: Range = FULL) -> str:
    """The path of the cache for the pictures under `root`, 16-bit ones read by `range16`; '' if
    there is no cache folder."""
    if not cache_dir:
        return ''
    name = hashlib.sha256(root.encode('utf-8', 'surrogateescape')).hexdigest()[:12]
    name += '' if range16 == FULL else '_{}_{}'.format(*range16)
    return os.path.join(cache_dir, f'measures_{name}.npz')


def read(path: str) -> Cache:
    """The cache in the file at `path`; an empty cache if the file is absent or damaged."""
    types = {'stamps': np.int64, 'numbers': np.float64, 'hashes': np.uint64, 'thumbs': np.uint8,
             'tints': np.uint8}
    empty = Cache([], [], {name: np.empty((0, *shape), types[name])
                           for name, shape in _SHAPES.items()})
    if not path or not os.path.exists(path):
        return empty
    try:
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as parts:
            about = json.loads(parts['about'].tobytes())
            arrays = {name: parts[name] for name in _SHAPES}
        locations, words = about['locations'], about['words']
        sound = about['version'] == _VERSION and len(words) == len(locations) and all(
            array.shape == (len(locations), *_SHAPES[name]) and array.dtype == types[name]
            for name, array in arrays.items()) and all(len(row) == len(WORDS) for row in words)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return empty  # damaged: only time is lost
    return Cache(locations, words, arrays) if sound else empty


def write(path: str, cache: Cache) -> None:
    """Saves a cache for `read`. A read-only or full disk only causes a warning."""
    if not path:
        return
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        cache.save(path)
    except OSError as error:
        _log.warning('The measures of the pictures could not be kept in %r (%s).', path,
                     error.strerror)
