"""What explore wants of each picture, from one reading of its file.

Only 16-bit pictures may be read twice: which of their values are black and white depends on all of
them (`sixteen_bits`).
"""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from input_pipeline import descriptors, sources
from input_pipeline.curation import picture_statistics
from input_pipeline.curation.measures import Measurer, Measures, collect
from input_pipeline.curation.picture_measures import Row, unmeasured
from input_pipeline.decode import UnreadableImage, decode
from input_pipeline.manifest import Manifest
from input_pipeline.readable import Checks, refuse_if_all_missing
from input_pipeline.sixteen_bits import FULL, Chosen, Range, choose

_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Looked:
    """What is known of N pictures.

    Attributes:
        manifest: N rows, with the range of its 16-bit pictures.
        problems: object [N], '' or why a picture cannot be read.
        measures: of the pictures.
        statistics: float32 [N, S], of `picture_statistics`; NaN where a picture cannot be read.
        descriptors: float16 [N, D], of `descriptors`; [N, 0] if they were not wanted.
        range_note: what is unusual about the values of 16-bit pictures, or ''.
    """

    manifest: Manifest
    problems: np.ndarray
    measures: Measures
    statistics: np.ndarray
    descriptors: np.ndarray
    range_note: str


def look_at(manifest: Manifest, *, range16: str | Range, cache_dir: str | None,
            described: bool = False, progress: Callable[[int, int], None] = lambda done, n: None
            ) -> Looked:
    """Checks, measures and describes every picture.

    Args:
        manifest: N rows.
        range16: as `sixteen_bits.check` returns it.
        cache_dir: folder in which checks and measures are kept between runs; None keeps none.
        described: whether the descriptors are wanted.
        progress: called with (pictures done, pictures) from time to time.

    Raises:
        DataError: all files are missing.
    """
    locations = manifest.table['location'].tolist()
    count = len(locations)
    of_files = np.array([sources.scheme_of(one) not in sources.DRAWN for one in locations], bool)
    problems, peaks = np.full(count, '', object), {}
    rows: list[Row] = [unmeasured('')] * count
    statistics = np.full((count, len(picture_statistics.NAMES)), np.nan, np.float32)
    described_as = np.full((count, descriptors.WIDTH if described else 0), np.nan, np.float16)
    checks = Checks(manifest.root, cache_dir)

    def look(row: int, measurer: Measurer, limits: Range | None) -> None:
        location, data = locations[row], _Once(manifest.root, locations[row])
        if of_files[row] and limits is None:
            problems[row], peak, _ = checks.answer(location, data)
            if peak is not None:  # its range is not known yet
                peaks[row] = peak
                return
        rows[row] = measurer.row(location, data)
        problems[row] = problems[row] or rows[row].words[0]
        if problems[row]:
            return
        try:
            for side, function, found in (
                    (picture_statistics.SIDE, _values, statistics),
                    *[(descriptors.SIDE, descriptors.describe, described_as)] * described):
                picture = (decode(data(), name=location, min_size=(side, side),
                                  range16=limits or FULL) if of_files[row] else
                           sources.read_image(manifest.root, location))
                found[row] = function(picture)
        except UnreadableImage as error:
            problems[row] = error.reason

    done = 0
    for deep in (False, True):
        chosen = choose(range16, peaks.values()) if deep else Chosen(FULL)
        manifest = dataclasses.replace(manifest, range16=chosen.limits)
        todo = list(peaks) if deep else list(range(count))
        if not todo:
            break
        measurer = Measurer(manifest, cache_dir)
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            parts = [todo[start:start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
            limits = chosen.limits if deep else None
            for part in pool.map(lambda part, measurer=measurer, limits=limits: [
                    look(row, measurer, limits) for row in part], parts):
                done += len(part)
                progress(done, count + len(peaks) * deep)
        finally:  # what was found before an interrupt is kept too
            pool.shutdown(wait=True, cancel_futures=True)
            measurer.keep()
            checks.keep()
        refuse_if_all_missing(manifest.root, [one for one, is_file in zip(locations, of_files)
                                              if is_file], list(problems[of_files]))
    return Looked(manifest, problems, collect(rows), statistics, described_as, chosen.note)


class _Once:
    """The bytes of a file, read when they are first wanted."""

    def __init__(self, root: str, location: str):
        self._where, self._data = (root, location), None

    def __call__(self) -> bytes:
        if self._data is None:
            self._data = sources.read_bytes(*self._where)
        return self._data


def _values(picture: np.ndarray) -> list[float]:
    return list(picture_statistics.statistics(picture).values())
