"""From the bytes of an image file to pixels.

The pixels of a PPM, which packed folders may hold, are taken as they are. OpenCV decodes what it
decodes correctly and fast: JPEG, PNG and WebP without transparency; it obeys EXIF orientation.
Pillow decodes the rest: GIF, BMP, CMYK, everything transparent (laid over white, unless
transparency is wanted) or animated (first frame), and pictures whose orientation is only in XMP or
in the raw profile of a PNG.
"""

import io
import math

import cv2
import numpy as np
from PIL import Image, ImageOps

from input_pipeline import sixteen_bits
from input_pipeline.diagnosis import reason_of
from input_pipeline.errors import DataError
from input_pipeline.image_headers import FORMATS, Header, probe
from input_pipeline.sixteen_bits import FULL, Range

MAX_BYTES = 2**28  # of one picture's file: nothing larger is read into memory

# JPEGs decode at 1/2 or 1/4 in about half the time, from this multiple of the wanted size on.
# Nearer to the wanted size, halving and then averaging areas blurs (1.7 grey levels at twice
# the size).
_HALF, _QUARTER, _EIGHTH = (scale | cv2.IMREAD_COLOR_RGB for scale in (
    cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_GRAYSCALE_4,
    cv2.IMREAD_REDUCED_GRAYSCALE_8))  # the scale alone: IMREAD_REDUCED_COLOR_2 adds BGR
_REDUCED = ((8, _QUARTER), (3, _HALF))
# The same for callers that look up single pixels, and would halve the picture to do so.
_TIGHTLY = ((8, _EIGHTH), (4, _QUARTER), (2, _HALF))


class UnreadableImage(DataError):
    """One picture cannot be read; `reason` says why, such as 'is truncated'."""

    reason = ''

    @classmethod
    def of(cls, name: str, reason: str) -> 'UnreadableImage':
        """The error for the picture `name`."""
        error = cls(f'Image {name!r} {reason}: restore the file, or continue without it with '
                    f'--config.data.unreadable=drop.')
        error.reason = reason  # an attribute, so that the error can be pickled
        return error


class NoTransparency(DataError):
    """A picture lacks the transparency that the model takes as its fourth channel."""

    @classmethod
    def of(cls, name: str) -> 'NoTransparency':
        """The error for the picture `name`."""
        return cls(f'Image {name!r} has no transparency, which config.model.in_channels=4 takes as '
                   f'the fourth channel: leave it out, or give 3 or 1 channels.')


def decode(data: bytes, *, name: str, min_size: tuple[int, int] | None = None,
           tight: bool = False, range16: Range = FULL, alpha: bool = False,
           header: Header | None = None) -> np.ndarray:
    """Decodes the bytes of an image file to RGB uint8 [H, W, 3], or [H, W, 4] with `alpha`.

    The pixels of a PPM are those in `data`, and must not be written to.
    The orientation (EXIF, else XMP) is obeyed, transparency is laid over white, colour profiles
    are ignored, and the first frame of an animation is taken.

    Args:
        data: the content of the file.
        name: of the file, for errors.
        min_size: (h, w) in pixels; a large JPEG may then be decoded at a half, a quarter or an
            eighth of its size, but not below this.
        tight: decode as near to `min_size` as halving allows. Otherwise a reduced picture is at
            least 1.5 times as large, so that the reduction does not show after averaging areas.
        range16: the 16-bit values that become black and white; of `FULL`, the upper 8 bits stay.
        alpha: keep the transparency as a fourth channel, 255 where the picture is opaque, and the
            colours under it as they are in the file.
        header: what `probe` says of `data`, if the caller knows it already.

    Raises:
        UnreadableImage: names the file and says what is wrong with it.
        NoTransparency: the file has none, with `alpha`.
    """
    header = header or probe(data)
    limits = range16 if header.deep else FULL
    if header.fast and data.startswith(b'P6'):
        if alpha:
            raise NoTransparency.of(name)
        pixels = np.frombuffer(data, np.uint8, offset=len(data) - 3 * math.prod(header.size))
        return pixels.reshape(*header.size, 3)
    if header.fast and limits == FULL and not alpha:
        image = _opencv(data, _reduction(data, header.size, min_size, tight))
        if image is not None:
            return image
    reason = header.reason
    if not reason:
        image, reason = _pillow(data, limits, alpha)
        if not reason and alpha and image.shape[2] == 3:
            raise NoTransparency.of(name)
        if not reason:
            return image
    raise UnreadableImage.of(name, reason)


def size_of(data: bytes, header: Header | None = None) -> tuple[int, int] | None:
    """(h, w) of an undamaged JPEG as `decode` gives it in full, from its header; None if the size
    is known only after decoding."""
    header = header or probe(data)
    return header.size if header.fast and data.startswith(b'\xff\xd8') else None


def _reduction(data: bytes, size: tuple[int, int], min_size: tuple[int, int] | None,
               tight: bool) -> int:
    """OpenCV's flag for decoding at a reduced scale or in full."""
    if min_size and data.startswith(b'\xff\xd8'):
        ratio = (min(size[0] / min_size[0], size[1] / min_size[1]) if tight else
                 min(size) / max(min_size))
        for least, flag in _TIGHTLY if tight else _REDUCED:
            if ratio >= least:
                return flag
    return cv2.IMREAD_COLOR_RGB


def _opencv(data: bytes, flag: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None


def _pillow(data: bytes, limits: Range, alpha: bool) -> tuple[np.ndarray | None, str]:
    """(RGB, or with `alpha` RGBA of a transparent picture; '' or why there is none)"""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            if limits != FULL:
                values = Image.fromarray(sixteen_bits.as_eight_bits(data, limits))
                image = upright(values, image.getexif())
            elif image.mode.startswith('I'):  # 16-bit grey; convert('RGB') would clip it
                upper = (np.asarray(image) >> 8).astype(np.uint8)
                image = upright(Image.fromarray(upper), image.getexif())
            else:
                image = upright(image, image.getexif())
            return flattened(image, alpha), ''
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise nearly every type on damaged data
        return None, reason_of(error)


def flattened(image: Image.Image, alpha: bool = False) -> np.ndarray:
    """The pixels of an 8-bit picture, RGB uint8 [H, W, 3]: transparency is laid over white, or with
    `alpha` kept as a fourth channel if the picture has it."""
    if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        if alpha:
            return np.array(image)
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
    return np.array(image.convert('RGB'))


def upright(image: Image.Image, exif: Image.Exif) -> Image.Image:
    if exif.get(0x0112, 1) in (None, 1):
        return image
    image.getexif().update(exif)
    return ImageOps.exif_transpose(image)
