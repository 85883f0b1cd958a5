"""What a step sees: the pictures of a manifest, resized or as a curriculum stage shows them.

Evaluation, and a stage without transforms, see the picture resized to the model's input.
Transforms work on the file itself, with resizing and all geometry in one look-up, so a JPEG
often need not be decoded in full:

- In a stage without crops, a half or a quarter of the file's size is enough if it has 7/8 of the
  input's sides. The result is as near to the file as after resizing, is sharper, and takes less
  time. Smaller files are enlarged first. If image.resize is not squash, image.interpolation is not
  area, or image.crop_pct is below 1, the picture is resized first.
- A crop enlarges a part of the picture, so nothing of that part may be lost. If image.resize is
  not squash, its frame is the padded or centre-cropped picture. The exception is
  `random_resized_crop`, whose frame is the whole picture, as in timm's training.

Pictures are kept in memory in the form that a stage needs, as long as there is room: resized,
decoded for a stage without crops (both only if all resized pictures would fit), or whole, if the
file has at most twice the input's sides. Pictures of an earlier stage are removed to make room.
"""

import dataclasses
import functools
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline import decode, sources, transforms, warp
from input_pipeline.curriculum import Stage
from input_pipeline.image_headers import Header, probe
from input_pipeline.manifest import Manifest
from input_pipeline.mirrored_labels import Swap
from input_pipeline.pull_maps import Part, Size
from input_pipeline.resize import resize, resize_target

_CROPS = ('random_resized_crop', 'random_crop', 'center_crop', 'crop')
# The least share of the input's sides that a picture decoded at a reduced scale may have.
_ENOUGH = 7 / 8

cv2.setNumThreads(0)  # Grain's threads work in parallel; OpenCV's would compete with them.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """How a picture becomes the model's input (config.image).

    The device applies mean and std; everything else happens here.

    Attributes:
        size: of the model's input in pixels: the side of a square, or (height, width).
        resize: a mode of `resize.resize`: 'squash', 'pad' or 'crop'.
        border: what a warp sees outside the picture, a key of `pull_maps.BORDERS`.
        interpolation: as in `resize.resize`: 'area', 'bilinear' or 'bicubic'.
        crop_pct: the share of the resized picture that is kept, above 0 to 1.
        reduced_decode: whether large JPEGs may be decoded at a half, a quarter or an eighth of
            their size.
        mean, std: of (x / 255 - mean) / std, one number per channel: red, green and blue; with
            transparency (0 to 255) as a fourth; or one for pictures that become grey.
    """

    size: int | Size
    resize: str = 'squash'
    border: str = 'edge'
    interpolation: str = 'area'
    crop_pct: float = 1.0
    reduced_decode: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def frame(self) -> Size:
        """(height, width) of the model's input, pixels."""
        if isinstance(self.size, int):
            return self.size, self.size
        height, width = self.size
        return height, width

    @property
    def channels(self) -> int:
        """3 for RGB, 4 for RGB and transparency, 1 for grey."""
        return len(self.mean)


class _Cache:
    """Pictures by purpose and row, up to `limit` bytes. Thread-safe; a copy in another process
    starts empty."""

    def __init__(self, limit: float):
        self._limit = limit
        self._kept: dict[str, dict[int, np.ndarray]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, purpose: str, row: int) -> np.ndarray | None:
        return self._kept.get(purpose, {}).get(row)

    def keep(self, purpose: str, row: int, picture: np.ndarray) -> None:
        """Keeps a picture if there is room; pictures of other purposes are removed for it."""
        if picture.nbytes > self._limit:
            return
        with self._lock:
            kept = self._kept.get(purpose, {})
            if row in kept:
                return
            if self._bytes + picture.nbytes > self._limit and len(self._kept) > (1 if kept else 0):
                self._kept = {purpose: kept} if kept else {}
                self._bytes = sum(one.nbytes for one in kept.values())
            if self._bytes + picture.nbytes <= self._limit:
                # A view would keep the whole array that it is cut from.
                picture = picture if picture.base is None else picture.copy()
                self._kept.setdefault(purpose, {})[row] = picture
                self._bytes += picture.nbytes

    def __reduce__(self):
        return _Cache, (self._limit,)


class View(NamedTuple):
    """How one example is shown.

    Attributes:
        row: of the manifest.
        plan: the drawn transforms; None shows the picture as evaluation sees it.
        crop: for crops, (the bytes of the file, their header, the whole picture if it is already
            decoded, whether the crop works on the padded or centre-cropped picture).
    """

    row: int
    plan: transforms.Plan | None = None
    crop: tuple[bytes, Header | None, np.ndarray | None, bool] | None = None

    @property
    def swaps(self) -> Sequence[Swap]:
        """The swaps of labels that belong to the flips that were drawn."""
        return self.plan.swaps if self.plan else ()


class Pictures:
    """The pictures of a manifest by row.

    Thread-safe: two threads may decode the same row, and both get the same pixels. The pictures
    kept in memory (up to `cache_mb` MiB) do not change any pixel. Grey pictures are [h, w] in
    here, as OpenCV and Pillow want them; what is handed out always has the axis of the channels.
    """

    def __init__(self, manifest: Manifest, spec: PreprocessSpec, cache_mb: float = 0):
        self._locations = manifest.table['location'].to_numpy()
        self._root = manifest.root
        self._decode = functools.partial(decode.decode, range16=manifest.range16,
                                         alpha=spec.channels == 4)
        self._read = sources.reader(manifest, alpha=spec.channels == 4)
        self._spec = spec
        limit = cache_mb * 2**20
        self._cache = _Cache(limit)
        self._parts: dict[int, Part] = {}  # of kept pictures that are padded
        self._fits = len(manifest) * math.prod(self._size) * spec.channels <= limit

    def location(self, row: int) -> str:
        """The location of the row's picture."""
        return self._locations[row]

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 [height, width, channels]; the caller must not write to it."""
        return _with_channels(self._resized(row))

    def _resized(self, row: int) -> np.ndarray:
        kept = self._cache.get('resized', row)
        if kept is not None:
            return kept
        spec, size = self._spec, self._size
        # Pillow's filters are chosen for their exact pixels, which need the whole picture.
        reduced = spec.reduced_decode and spec.interpolation == 'area'
        picture = self._in_channels(self._pixels(
            row, resize_target(size, spec.crop_pct) if reduced else None))
        picture = resize(picture, size, spec.resize, interpolation=spec.interpolation,
                         crop_pct=spec.crop_pct)
        if self._fits:
            self._cache.keep('resized', row, picture)
        return picture

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every picture."""
        return *self._size, self._spec.channels

    def augmented(self, row: int, stage: Stage, rng: np.random.Generator, exact: bool = False
                  ) -> np.ndarray:
        """`show(draw(...))`; with `exact`, transforms without crops work on the picture that
        evaluation sees."""
        view = self.draw(row, stage, rng)
        if exact and view.plan and not view.crop:
            return _with_channels(transforms.apply(view.plan, self._resized(row), self._size,
                                                   self._spec.border))
        return self.show(view)

    def draw(self, row: int, stage: Stage, rng: np.random.Generator) -> View:
        """How a stage shows a row. The file is read here only for crops.

        Raises:
            UnreadableImage: the picture cannot be read.
        """
        if not stage.transforms:
            return View(row)
        crops = [item.kind for item in stage.transforms
                 if item.kind in _CROPS and item.params.get('share', 0) < 1]
        if not crops:
            return View(row, transforms.draw(stage.transforms, rng, self._size))
        data, header, whole, source = self._source(row)
        framed = ((self._spec.resize != 'squash' or self._spec.crop_pct < 1)
                  and 'random_resized_crop' not in crops)
        plan = transforms.draw(stage.transforms, rng, self._size, source)
        return View(row, plan, (data, header, whole, framed))

    def show(self, view: View, out: np.ndarray | None = None) -> np.ndarray:
        """The picture of a view, uint8 [height, width, channels]; the caller must not write to it.

        Args:
            view: from `draw`.
            out: contiguous uint8 of `shape` that may take the picture, which saves a copy; the
                result is `out` if it did.

        Raises:
            UnreadableImage: the picture cannot be read.
        """
        spec, size, plan = self._spec, self._size, view.plan
        target = out[..., 0] if out is not None and spec.channels == 1 else out
        if plan is None:
            return self[view.row]
        if view.crop is None:
            picture, part = self._unresized(view.row)
            shown = transforms.apply(plan, picture, size, spec.border, part, target)
            return out if shown is target else _with_channels(shown)
        data, header, whole, framed = view.crop
        # At least the input's size: a chain that shrinks the whole may enlarge parts of it.
        needed = tuple(map(max, transforms.source_size(plan, size), size))
        part = (1, 1)
        if whole is None:
            least = resize_target(needed, spec.crop_pct) if framed else needed
            whole, part = self._decoded(view.row, data, header, least, tight=not framed)
        if framed:
            part = (1, 1)
            # A larger frame of the same shape, but not larger than the file is in it.
            high, wide = (one[1] * size[0] / size[1] for one in (needed, whole.shape))
            limit = (max if spec.resize == 'pad' else min)(whole.shape[0], wide)
            height = max(math.floor(min(needed[0], high, limit * spec.crop_pct)), size[0])
            whole = resize(whole, (height, max(round(height * size[1] / size[0]), size[1])),
                           spec.resize, crop_pct=spec.crop_pct)
        shown = transforms.apply(plan, whole, size, spec.border, part, target)
        return out if shown is target else _with_channels(shown)

    @property
    def _size(self) -> Size:
        return self._spec.frame

    # Where a picture is from; `given_pictures` has those of a program as well.

    def _is_drawn(self, row: int) -> bool:
        """Whether the picture comes as pixels, without a file that could be decoded otherwise."""
        return sources.scheme_of(self._locations[row]) in sources.DRAWN

    def _pixels(self, row: int, min_size: Size | None = None) -> np.ndarray:
        """As it is read, see `sources.read_image`."""
        return self._read(self._locations[row], min_size)

    def _bytes(self, row: int) -> bytes:
        """The encoded picture of a row that is not drawn."""
        return sources.read_bytes(self._root, self._locations[row])

    def _in_channels(self, picture: np.ndarray) -> np.ndarray:
        """A picture as it was read with the channels of the model: itself, or [h, w] in grey."""
        return grey(picture) if self._spec.channels == 1 else picture

    def _decoded(self, row: int, data: bytes, header: Header, least: Size, tight: bool
                 ) -> tuple[np.ndarray, Part]:
        """(the picture, the part of it that is not padding)"""
        picture = self._in_channels(self._decode(
            data, name=self._locations[row], tight=tight, header=header,
            min_size=least if self._spec.reduced_decode else None))
        height, width = picture.shape[:2]
        full = decode.size_of(data, header)
        if full in (None, (height, width)):
            return picture, (1, 1)
        # A reduced JPEG is padded: its last pixels stand for as many pixels as the others do,
        # even where the file has fewer.
        scale = next(n for n in (2, 4, 8)
                     if (-(-full[0] // n), -(-full[1] // n)) == (height, width))
        return picture, (full[0] / (scale * height), full[1] / (scale * width))

    def _unresized(self, row: int) -> tuple[np.ndarray, Part]:
        """(the picture for a stage without crops, of any size; the part that is not padding)"""
        spec, size = self._spec, self._size
        if spec.resize != 'squash' or spec.crop_pct < 1 or spec.interpolation != 'area':
            return self._resized(row), (1, 1)
        kept = self._cache.get('unresized', row)
        if kept is not None:
            return kept, self._parts.get(row, (1, 1))
        least, part = (math.ceil(size[0] * _ENOUGH), math.ceil(size[1] * _ENOUGH)), (1, 1)
        if self._is_drawn(row):
            picture = self._in_channels(self._pixels(row))
        else:
            data = self._bytes(row)
            picture, part = self._decoded(row, data, probe(data), least, tight=True)
        if picture.shape[0] < least[0] or picture.shape[1] < least[1]:
            picture = resize(picture, size)
        picture, more = warp.halved(picture, size)
        part = part[0] * more[0], part[1] * more[1]
        if self._fits:
            if part != (1, 1):
                self._parts[row] = part
            self._cache.keep('unresized', row, picture)
        return picture, part

    def _source(self, row: int) -> tuple[bytes, Header | None, np.ndarray | None, Size]:
        """(the bytes of the file, their header, the whole picture, (h, w) of the picture).

        The picture is None where a reduced scale may be enough; the crop decides.
        """
        kept = self._cache.get('whole', row)
        if kept is not None:
            return b'', None, kept, kept.shape[:2]
        header = None
        if self._is_drawn(row):
            data, whole = b'', self._in_channels(self._pixels(row))
        else:
            data = self._bytes(row)
            header = probe(data)
            source = decode.size_of(data, header)
            if source and not self._is_small(source):
                return data, header, None, source
            whole = self._in_channels(self._decode(data, name=self._locations[row],
                                                   header=header))
        if self._is_small(whole.shape[:2]):
            self._cache.keep('whole', row, whole)
        return data, header, whole, whole.shape[:2]

    def _is_small(self, source: Size) -> bool:
        """Whether a picture has at most twice the input's sides."""
        return all(side <= 2 * ours for side, ours in zip(source, self._size))

    def blank(self) -> np.ndarray:
        """A black picture in place of one that cannot be read, uint8 [height, width, channels]."""
        return np.zeros(self.shape, np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    """The luma (ITU-R BT.601) of an RGB picture, uint8 [h, w, 3] -> [h, w], as Pillow's 'L'."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def as_rgb(picture: np.ndarray) -> np.ndarray:
    """A picture of 1, 3 or 4 channels, uint8 [h, w, C] or [h, w], to look at: uint8 [h, w, 3].
    Transparency is laid over white."""
    if picture.ndim == 2 or picture.shape[2] == 1:
        return np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2)
    if picture.shape[2] == 3:
        return picture
    opaque = picture[..., 3:] / np.float32(255)
    return np.rint(picture[..., :3] * opaque + 255 * (1 - opaque)).astype(np.uint8)


def _with_channels(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else picture[..., None]
