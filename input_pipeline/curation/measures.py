"""What can be measured without a model: one row per image, in one pass over the files.

Columns of the table (N rows, in the order of the manifest):

    problem         why the picture could not be measured ('' if it could); then numbers are NaN
    width, height   pixels, after EXIF orientation; aspect = width / height
    mode            as stored, in Pillow's words ('RGB', 'L', 'P', 'CMYK', ...)
    file_type       'JPEG', 'PNG', ..., or 'drawn' for pictures without a file
    bytes           size of the file, 0 if drawn
    brightness      mean of grey, 0 (black) to 1; contrast is its standard deviation
    darkest         grey level below which 1 % of the pixels lie, 0 to 1
    brightest       grey level above which 1 % of the pixels lie, 0 to 1
    sharpness       variance of the Laplacian, grey levels squared
    colourfulness   of Hasler and Suesstrunk (2003): 0 none, 15 slight, 33 moderate, 82 strong
    chroma          distance from grey in CIELAB that 1 % of the picture exceeds
    edges           share of pixels on an edge (Canny, 100 and 200)
    flat            share of pixels whose 3 x 3 neighbourhood spans at most 4 grey levels
    entropy         entropy of the histogram of grey, bits, 0 to 8
    white           share of pixels in which every channel is 240 or more
    sha256          digest of the file's bytes ('' if drawn)
    pixels          digest of the decoded pixels and their shape

Everything but the sizes is measured on the picture shrunk to 256 px (never enlarged), so that
values can be compared; chroma is measured at 64 px, where the noise of a JPEG is gone.
"""

import dataclasses
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image

from input_pipeline import sources
from input_pipeline.curation import measures_cache
from input_pipeline.curation.picture_measures import (
    NUMBERS,
    WORDS,
    Row,
    measure_picture,
    unmeasured,
)
from input_pipeline.decode import UnreadableImage, decode
from input_pipeline.image_headers import FORMATS
from input_pipeline.manifest import Manifest
from input_pipeline.sixteen_bits import Range

_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Measures:
    """The measures of N pictures. All but the table is 0 where a picture could not be measured.

    Attributes:
        table: the columns above.
        hashes: uint64 [N, 8], see `hashes.dct_hashes`.
        thumbs: uint8 [N, 64, 64], the pictures in grey, squashed to a square.
        tints: uint8 [N, 16, 16, 3], the pictures in RGB, squashed to a square.
    """

    table: pd.DataFrame
    hashes: np.ndarray
    thumbs: np.ndarray
    tints: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def select(self, rows) -> 'Measures':
        """The measures of some rows, given as a boolean mask or as positions, in that order."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Measures(self.table.iloc[rows].reset_index(drop=True), self.hashes[rows],
                        self.thumbs[rows], self.tints[rows])


def measure(manifest: Manifest, *, cache_dir: str | None = None, workers: int | None = None,
            progress: Callable[[int, int], None] | None = None) -> Measures:
    """Measures every picture of a manifest.

    Args:
        manifest: N rows.
        cache_dir: folder in which measures are kept, by path, size and modification time (in an
            archive: checksum); None keeps none. Drawn pictures are always measured again.
        workers: threads; None for one per core.
        progress: called with (pictures done, pictures) from time to time.
    """
    locations = manifest.table['location'].tolist()
    measurer = Measurer(manifest, cache_dir)
    rows: list[Row] = []
    chunks = [locations[i:i + _CHUNK] for i in range(0, len(locations), _CHUNK)]
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        for found in pool.map(lambda chunk: list(map(measurer.row, chunk)), chunks):
            rows += found
            if progress is not None:
                progress(len(rows), len(locations))
    finally:  # measures taken before an interrupt are kept too
        pool.shutdown(wait=True, cancel_futures=True)
        measurer.keep()
    return collect(rows)


class Measurer:
    """Measures the pictures of a manifest one by one, and remembers those of earlier runs."""

    def __init__(self, manifest: Manifest, cache_dir: str | None):
        """
        Args:
            manifest, cache_dir: as in `measure`.
        """
        self._manifest = manifest
        self._path = measures_cache.path_of(cache_dir, manifest.root, manifest.range16)
        self._known = measures_cache.read(self._path)
        self._fresh: dict[str, tuple[tuple[int, int], Row]] = {}

    def row(self, location: str, read: Callable[[], bytes] | None = None) -> Row:
        """The measures of the picture at a location.

        Args:
            location: of a row of the manifest.
            read: () -> the bytes of the file, where they are wanted for something else too.
        """
        root = self._manifest.root
        if sources.scheme_of(location) in sources.DRAWN:
            return measure_picture(sources.read_image(root, location))
        try:
            stamp = sources.stamp(root, location)
            row = self._known.get(location, stamp)
            if row is None:
                row = _measure_file(read() if read else sources.read_bytes(root, location),
                                    location, self._manifest.range16)
                self._fresh[location] = stamp, row
            return row
        except UnreadableImage as error:  # not cached: a missing file may be there next time
            return unmeasured(error.reason)

    def keep(self) -> None:
        """Saves the measures for the next run."""
        if self._fresh:
            measures_cache.write(self._path, self._known.updated(self._fresh))


def collect(rows: Sequence[Row]) -> Measures:
    """The measures of pictures, one for one."""
    table = pd.DataFrame([row.numbers for row in rows], columns=list(NUMBERS))
    for column, name in enumerate(WORDS):
        table[name] = [row.words[column] for row in rows]
    return Measures(table, np.stack([row.hashes for row in rows]),
                    np.stack([row.thumb for row in rows]),
                    np.stack([row.tint for row in rows]))


def joined(first: Measures, second: Measures) -> Measures:
    """The measures of two sets of pictures, those of the first set before."""
    return Measures(pd.concat([first.table, second.table], ignore_index=True), *(
        np.concatenate([getattr(one, name) for one in (first, second)])
        for name in ('hashes', 'thumbs', 'tints')))


def _measure_file(data: bytes, location: str, range16: Range) -> Row:
    try:
        picture = decode(data, name=location, range16=range16)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # the header only
            mode, file_type = image.mode, image.format
    except UnreadableImage as error:
        return unmeasured(error.reason)
    return measure_picture(picture, mode=mode, file_type=file_type, data=data)
