"""Are all files readable? Checked once before training, in parallel; the answers are cached."""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from input_pipeline import sixteen_bits
from input_pipeline.atomic_files import atomic_open
from input_pipeline.decode import UnreadableImage
from input_pipeline.diagnosis import problem
from input_pipeline.errors import DataError
from input_pipeline.manifest import CONTENT, Manifest, class_counts
from input_pipeline.missing_files import refuse_all_missing, why_missing
from input_pipeline.sixteen_bits import FULL, Range
from input_pipeline.sources import DRAWN, read_bytes, scheme_of, stamp

POLICIES = ('error', 'drop')
_VERSION = 2  # of the check: a stricter one must not trust old answers
_CHUNK = 64
_SHOWN = 20
_MISSING = 'is missing'  # in the reason of a file that is not there
# What is wrong, the peak of a 16-bit picture, the digest of the bytes ('' if they were not read).
_Answer = tuple[str, int | None, str]

_log = logging.getLogger(__name__)


def check_readable(manifest: Manifest, *, policy: str = 'error', cache_dir: str | None = None,
                   range16: str | Range = FULL, workers: int | None = None,
                   progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Decodes every file once and returns the manifest of those that can be read, with the range
    of its 16-bit pictures.

    Args:
        manifest: drawn pictures (doodles, digits) are not checked. A column `content`, as tables
            have it, is filled in.
        policy: 'error' refuses unreadable files, 'drop' continues without their rows.
        cache_dir: folder in which answers are kept, by path, size and modification time (in
            an archive: checksum), so that an unchanged file is checked only once; None keeps
            no answers.
        range16: which values of 16-bit pictures become black and white, see `sixteen_bits.check`.
        workers: threads; None for a number that fits the machine.
        progress: called with (files done, files) from time to time.

    Raises:
        DataError: files are unreadable, with 'error'; no image is left in total or in some
            class, with 'drop'; the policy or the range is not valid.
    """
    if policy not in POLICIES:
        raise DataError(f'data.unreadable={policy!r} is unknown: use one of {", ".join(POLICIES)}.')
    wanted = sixteen_bits.check(range16)
    bad, peaks, digests, asked = check_files(manifest, cache_dir=cache_dir, workers=workers,
                                             progress=progress)
    chosen = sixteen_bits.choose(wanted, peaks.values())
    sixteen_bits.warn(chosen)
    if chosen.limits != manifest.range16:
        manifest = dataclasses.replace(manifest, range16=chosen.limits)
    if CONTENT in manifest.table:
        manifest = manifest.with_column(CONTENT, [digests.get(row, '')
                                                  for row in range(len(manifest))])
    if not bad:
        return manifest
    locations = manifest.table['location'].tolist()
    shown = '; '.join(f'{locations[row]!r} {reason}' for row, reason in list(bad.items())[:_SHOWN])
    more = f'; and {len(bad) - _SHOWN} more' if len(bad) > _SHOWN else ''
    missing = [locations[row] for row, reason in bad.items() if _MISSING in reason]
    why = why_missing(manifest.root, missing) if missing else ''
    found = (f'{len(bad)} of {asked} images in {manifest.root!r} cannot be read '
             f'({shown}{more})')
    if policy == 'error':
        raise DataError(f'{found}: {why or "restore them"}, or continue without them with '
                        f'--config.data.unreadable=drop.')
    _log.warning('%s: they are dropped%s.', found, why and f', though {why}')
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


class Checked(NamedTuple):
    """What is known of the files of a manifest.

    Attributes:
        bad: {row: reason, such as 'is truncated'} of the unreadable ones.
        peaks: {row: the largest value, 0 to 65535} of the 16-bit ones.
        contents: {row: digest of the bytes} of those that could be read.
        asked: how many files were checked.
    """

    bad: dict[int, str]
    peaks: dict[int, int]
    contents: dict[int, str]
    asked: int


def check_files(manifest: Manifest, *, cache_dir: str | None = None, workers: int | None = None,
                progress: Callable[[int, int], None] | None = None) -> Checked:
    """Decodes every file once.

    Args: as in `check_readable`.

    Raises:
        DataError: all files are missing; it says why, if one reason holds for all.
    """
    locations = manifest.table['location'].tolist()
    rows = [row for row, location in enumerate(locations) if scheme_of(location) not in DRAWN]
    if not rows:
        return Checked({}, {}, {}, 0)
    answers = _check_files(manifest.root, [locations[row] for row in rows], cache_dir,
                           workers or min(32, 2 * (os.cpu_count() or 1)), progress)
    refuse_if_all_missing(manifest.root, [locations[row] for row in rows],
                          [answer[0] for answer in answers])
    return Checked({row: reason for row, (reason, _, _) in zip(rows, answers) if reason},
                   {row: peak for row, (_, peak, _) in zip(rows, answers) if peak is not None},
                   {row: content for row, (_, _, content) in zip(rows, answers) if content},
                   len(rows))


def refuse_if_all_missing(root: str, locations: list[str], reasons: list[str]) -> None:
    """Raises a DataError if no file is there; it says why, if one reason holds for all.

    Args:
        root: of the manifest.
        locations: of its files.
        reasons: what is wrong with each, or ''.
    """
    if locations and all(_MISSING in reason for reason in reasons):
        refuse_all_missing(root, locations)


class Checks:
    """The check of files below a root, which remembers the answers of earlier runs."""

    def __init__(self, root: str, cache_dir: str | None):
        """
        Args:
            root: of the manifest.
            cache_dir: as in `check_readable`.
        """
        self._root, self._path = root, _cache_path(root, cache_dir)
        self._known = _read_cache(self._path)
        self._fresh: dict[str, list] = {}

    def answer(self, location: str, read: Callable[[], bytes] | None = None) -> _Answer:
        """(what is wrong with a file or '', the peak of a 16-bit picture, digest of the bytes).

        Args:
            location: of the file.
            read: () -> its bytes, where they are wanted for something else too.
        """
        try:
            now = list(stamp(self._root, location))
            answer = self._known.get(location)
            if answer and answer[:2] == now:
                return answer[2], answer[3], answer[4]
            data = read() if read else read_bytes(self._root, location)
        except UnreadableImage as error:
            return error.reason, None, ''
        reason = problem(data)
        peak = None if reason else sixteen_bits.peak(data)
        # Cached only here: a file that cannot be opened may be there again next time.
        content = hashlib.sha256(data).hexdigest()
        self._fresh[location] = [*now, reason, peak, content]
        return reason, peak, content

    def keep(self) -> None:
        """Saves the answers for the next run."""
        if self._path and self._fresh:
            _write_cache(self._path, self._known | self._fresh)


def _check_files(root: str, locations: list[str], cache_dir: str | None, workers: int,
                 progress: Callable[[int, int], None] | None) -> list[_Answer]:
    """What is found out about each file."""
    checks = Checks(root, cache_dir)
    found: list[_Answer] = []
    chunks = [locations[i:i + _CHUNK] for i in range(0, len(locations), _CHUNK)]
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for answers in pool.map(lambda chunk: list(map(checks.answer, chunk)), chunks):
            found += answers
            if progress is not None:
                progress(len(found), len(locations))
    finally:  # answers found before an interrupt are kept too
        pool.shutdown(wait=True, cancel_futures=True)
        checks.keep()
    return found


def _cache_path(root: str, cache_dir: str | None) -> str:
    if not cache_dir:
        return ''
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return os.path.join(cache_dir, f'readable_{name}.json')


def _read_cache(path: str) -> dict[str, list]:
    """Location -> [size in bytes, mtime in ns, reason, peak, digest]; {} if there is no valid
    cache."""
    if not path:
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            cache = json.load(file)
        if cache['version'] != _VERSION:
            return {}
        return {str(location): [int(size), int(mtime), str(reason),
                                None if peak is None else int(peak), str(content)]
                for location, (size, mtime, reason, peak, content) in cache['files'].items()}
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
