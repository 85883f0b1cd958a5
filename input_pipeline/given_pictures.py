"""Pictures that a program hands over: paths, the bytes of files, Pillow's pictures, arrays.

They are read as those of a manifest are: a file by the same decoder, and pixels as if they had been
drawn. So orientation, transparency, 16-bit values and resizing are those of the training.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from input_pipeline import decode, sources
from input_pipeline.decode import NoTransparency, UnreadableImage
from input_pipeline.encode import encode
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.pictures import Pictures, PreprocessSpec
from input_pipeline.pull_maps import Size
from input_pipeline.sixteen_bits import FULL, Range

_SINGLE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)
_KINDS = 'a path, the bytes of a file, a Pillow picture or a uint8 array [H, W, 3]'
# Pillow reads the file of a picture when it is first used, which two threads must not do at once.
_LOADING = [threading.Lock() for _ in range(64)]


class Given(NamedTuple):
    """One picture.

    Attributes:
        id: its path as it was given, or its number among all pictures.
        name: for errors.
        content: the path, the bytes of a file, a Pillow picture, or uint8 [H, W, 1, 3 or 4].
    """

    id: str | int
    name: str
    content: str | bytes | Image.Image | np.ndarray


def each_given(images: Any) -> Iterator[Given]:
    """The pictures of a list, an array [N, H, W, 3] or a generator, or a single one, in order.

    Raises:
        DataError: something is not a picture; the sentence says which and why.
    """
    if isinstance(images, (Mapping, pd.DataFrame)):
        raise DataError(f'images is {_kind(images)}: give a list whose items are each {_KINDS}; '
                        f'of a table, the column with the paths.')
    if hasattr(images, 'read'):  # it would be iterated line by line
        raise DataError(f'images is {_kind(images)}: give its bytes, as in images.read().')
    single = isinstance(images, _SINGLE) or (isinstance(images, np.ndarray)
                                             and images.dtype.kind in 'uifb' and images.ndim < 4)
    if not single and not isinstance(images, Iterable):
        raise DataError(f'images is {_kind(images)}: give {_KINDS}, or a list of these.')
    for number, image in enumerate([images] if single else images):
        yield _given(number, image, 'images' if single else f'images[{number}]')


def _given(number: int, image: Any, name: str) -> Given:
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        if isinstance(path, str):
            return Given(path, path, path)
        raise DataError(f'{name} is a path of bytes: give it as text.')
    if isinstance(image, (bytes, bytearray, memoryview)):
        return Given(number, name, bytes(image))
    if isinstance(image, Image.Image):
        return Given(number, name, image)
    if isinstance(image, np.ndarray):
        return Given(number, name, _checked(image, name))
    raise DataError(f'{name} is {_kind(image)}: give {_KINDS}.')


def _checked(image: np.ndarray, name: str) -> np.ndarray:
    """A copy of an array, because a program may use its own for the next picture."""
    if image.dtype != np.uint8:
        scaled = ', such as (255 * x).round().astype("uint8") of values from 0 to 1'
        raise DataError(f'{name} is an array of {image.dtype}: give uint8, 0 to 255'
                        f'{scaled if image.dtype.kind == "f" else ""}.')
    shape = image.shape
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise DataError(f'{name} is an array of the shape {shape}: give [H, W, 3] (or [H, W] in '
                        f'grey, or [H, W, 4] with transparency), with the channels last and at '
                        f'least one pixel.')
    return np.array(image)


def _kind(thing: object) -> str:
    if thing is None:
        return 'None'
    name = type(thing).__name__
    return f'{"an" if name[0] in "aeiouAEIOU" else "a"} {name}'


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a training knew about its pictures besides how they become the model's input.

    Attributes:
        range16: which values of 16-bit pictures become black and white.
        repack: (bytes of a file, name) -> the bytes that it was packed as, see
            `packing.repack_like`; None if the training read the files themselves.
    """

    range16: Range = FULL
    repack: Callable[[bytes, str], bytes] | None = None


class GivenPictures(Pictures):
    """Pictures of a program by their place among the given ones; otherwise as `Pictures`.

    Args:
        given: the pictures.
        spec, cache_mb: as in `Pictures`.
        reading: what the training knew about its pictures.
    """

    def __init__(self, given: Sequence[Given], spec: PreprocessSpec, reading: Reading,
                 cache_mb: float = 0):
        names = pd.DataFrame({'location': pd.Series([one.name for one in given], dtype=object)})
        super().__init__(Manifest(names, {}, range16=reading.range16), spec, cache_mb)
        self._given = [one.content for one in given]
        self._contents: dict[int, str | bytes | np.ndarray] = {}
        self._repack = reading.repack
        self._alpha = spec.channels == 4

    def __len__(self) -> int:
        return len(self._given)

    def augmented(self, row: int, *args, **options) -> np.ndarray:
        """As in `Pictures`.

        Raises:
            DataError: the picture cannot be read.
        """
        try:
            return super().augmented(row, *args, **options)
        except UnreadableImage as error:
            name = self.location(row)
            content = self._given[row]
            if isinstance(content, str) and os.path.isdir(content):
                raise DataError(f'{name!r} is a folder: give its pictures, such as '
                                f'sorted(Path({name!r}).rglob("*.jpg")).') from None
            raise DataError(f'Image {name!r} {error.reason}: restore it or leave it '
                            f'out.') from None

    def _content(self, row: int) -> str | bytes | np.ndarray:
        """A picture as it is read; one that is used again is not made again."""
        found = self._contents.get(row)
        if found is None:
            given = self._given[row]
            found = self._from_pillow(row, given) if isinstance(given, Image.Image) else given
            if self._repack is not None:
                if isinstance(found, np.ndarray):
                    found = encode(self._in_colour(row, found), 'lossless')
                data = sources.read_bytes('', found) if isinstance(found, str) else found
                found = self._repack(data, self.location(row))
            self._contents[row] = found
        return found

    def _is_drawn(self, row: int) -> bool:
        content = self._content(row)
        return isinstance(content, np.ndarray) or (isinstance(content, str)
                                                   and super()._is_drawn(row))

    def _pixels(self, row: int, min_size: Size | None = None) -> np.ndarray:
        content = self._content(row)
        if isinstance(content, bytes):
            return self._decode(content, name=self.location(row), min_size=min_size)
        if isinstance(content, np.ndarray):
            return self._in_colour(row, content)
        return super()._pixels(row, min_size)

    def _bytes(self, row: int) -> bytes:
        content = self._content(row)
        return content if isinstance(content, bytes) else super()._bytes(row)

    def _in_colour(self, row: int, picture: np.ndarray) -> np.ndarray:
        """[H, W, 1, 3 or 4] -> what decoding gives: RGB, or RGBA for a model with transparency."""
        channels = picture.shape[2]
        if self._alpha and channels != 4:
            raise NoTransparency.of(self.location(row))
        if channels == 1:
            return np.repeat(picture, 3, axis=2)
        if channels == 4 and not self._alpha:
            return decode.flattened(Image.fromarray(picture))
        return picture

    def _from_pillow(self, row: int, image: Image.Image) -> np.ndarray | bytes:
        """Its pixels, upright; of a 16-bit picture the bytes of a file, whose range is that of the
        training."""
        name = self.location(row)
        try:
            with _LOADING[id(image) % len(_LOADING)]:
                image.load()
            if image.mode == 'F':
                raise UnreadableImage.of(name, 'has floating-point pixels, which are not colours')
            image = decode.upright(image, image.getexif())
            if not image.mode.startswith('I'):
                return decode.flattened(image, self._alpha)
            values = np.asarray(image)
        except DataError:
            raise
        except Exception as error:  # the decoders raise nearly every type on damaged data
            raise UnreadableImage.of(name, decode.reason_of(error)) from None
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage.of(name, 'has values outside of 0 to 65535')
        return cv2.imencode('.png', values.astype(np.uint16))[1].tobytes()
