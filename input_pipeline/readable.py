"""Are all files readable? Checked once before training, in parallel; the answers are cached."""

import concurrent.futures
import hashlib
import json
import logging
import os
from collections.abc import Callable

import numpy as np

from input_pipeline.atomic_files import atomic_open
from input_pipeline.decode import UnreadableImage
from input_pipeline.diagnosis import problem
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest, class_counts
from input_pipeline.sources import DRAWN, read_bytes, scheme_of, stamp

POLICIES = ('error', 'drop')
_VERSION = 1  # of the check: a stricter one must not trust old answers
_CHUNK = 64
_SHOWN = 20

_log = logging.getLogger(__name__)


def check_readable(manifest: Manifest, *, policy: str = 'error', cache_dir: str | None = None,
                   workers: int | None = None,
                   progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Decodes every file once and returns the manifest of those that can be read.

    Args:
        manifest: drawn pictures (doodles, digits) are not checked.
        policy: 'error' refuses unreadable files, 'drop' continues without their rows.
        cache_dir: folder in which answers are kept, by path, size and modification time (in
            an archive: checksum), so that an unchanged file is checked only once; None keeps
            no answers.
        workers: threads; None for a number that fits the machine.
        progress: called with (files done, files) from time to time.

    Raises:
        DataError: files are unreadable, with 'error'; no image is left in total or in some
            class, with 'drop'.
    """
    if policy not in POLICIES:
        raise DataError(f'data.unreadable={policy!r} is unknown: use one of {", ".join(POLICIES)}.')
    bad, asked = unreadable(manifest, cache_dir=cache_dir, workers=workers, progress=progress)
    if not bad:
        return manifest
    locations = manifest.table['location'].tolist()
    shown = '; '.join(f'{locations[row]!r} {reason}' for row, reason in list(bad.items())[:_SHOWN])
    more = f'; and {len(bad) - _SHOWN} more' if len(bad) > _SHOWN else ''
    found = (f'{len(bad)} of {asked} images in {manifest.root!r} cannot be read '
             f'({shown}{more})')
    if policy == 'error':
        raise DataError(f'{found}: restore them, or continue without them with '
                        f'--config.data.unreadable=drop.')
    _log.warning('%s: they are dropped.', found)
    keep = np.ones(len(manifest), bool)
    keep[list(bad)] = False
    kept = manifest.select(keep)
    if not len(kept):
        raise DataError(f'{found} and no image is left: check data.folder, data.csv or '
                        f'data.images.')
    for head, names in manifest.classes.items():
        gone = np.flatnonzero((class_counts(manifest, head) > 0) & (class_counts(kept, head) == 0))
        if len(gone):
            raise DataError(f'Class {names[gone[0]]!r} of head {head!r} has no readable image '
                            f'left ({shown}{more}): restore some or remove the class.')
    return kept


def unreadable(manifest: Manifest, *, cache_dir: str | None = None, workers: int | None = None,
               progress: Callable[[int, int], None] | None = None) -> tuple[dict[int, str], int]:
    """Which rows cannot be read.

    Args: as in `check_readable`.

    Returns:
        {row: reason, such as 'is truncated'}, and how many files were checked.
    """
    locations = manifest.table['location'].tolist()
    rows = [row for row, location in enumerate(locations) if scheme_of(location) not in DRAWN]
    if not rows:
        return {}, 0
    reasons = _check_files(manifest.root, [locations[row] for row in rows], cache_dir,
                           workers or min(32, 2 * (os.cpu_count() or 1)), progress)
    return {row: reason for row, reason in zip(rows, reasons) if reason}, len(rows)


def _check_files(root: str, locations: list[str], cache_dir: str | None, workers: int,
                 progress: Callable[[int, int], None] | None) -> list[str]:
    """What is wrong with each file; '' if nothing is."""
    path = _cache_path(root, cache_dir)
    known = _read_cache(path)
    fresh: dict[str, list] = {}
    reasons: list[str] = []

    def check(chunk: list[str]) -> list[str]:
        return [_check_file(root, location, known, fresh) for location in chunk]

    chunks = [locations[i:i + _CHUNK] for i in range(0, len(locations), _CHUNK)]
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for answers in pool.map(check, chunks):
            reasons += answers
            if progress is not None:
                progress(len(reasons), len(locations))
    finally:  # answers found before an interrupt are kept too
        pool.shutdown(wait=True, cancel_futures=True)
        if path and fresh:
            _write_cache(path, known | fresh)
    return reasons


def _check_file(root: str, location: str, known: dict, fresh: dict) -> str:
    try:
        now = list(stamp(root, location))
        answer = known.get(location)
        if answer and answer[:2] == now:
            return answer[2]
        data = read_bytes(root, location)
    except UnreadableImage as error:
        return error.reason
    reason = problem(data)
    # Cached only here: a file that cannot be opened may be there again next time.
    fresh[location] = [*now, reason]
    return reason


def _cache_path(root: str, cache_dir: str | None) -> str:
    if not cache_dir:
        return ''
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return os.path.join(cache_dir, f'readable_{name}.json')


def _read_cache(path: str) -> dict[str, list]:
    """Location -> [size in bytes, mtime in ns, reason]; {} if there is no valid cache."""
    if not path:
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            cache = json.load(file)
        if cache['version'] != _VERSION:
            return {}
        return {str(location): [int(size), int(mtime), str(reason)]
                for location, (size, mtime, reason) in cache['files'].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # absent or damaged: only time is lost


def _write_cache(path: str, files: dict[str, list]) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with atomic_open(path, shared=True) as file:  # two runs may share the folder
            json.dump({'version': _VERSION, 'files': files}, file)
    except OSError as error:  # a read-only or full disk must not stop a run
        _log.warning('The answers of the readability check could not be kept in %r (%s).',
                     path, error.strerror)
