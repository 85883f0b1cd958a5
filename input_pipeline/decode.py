"""From the bytes of a file to pixels, from pixels to a wanted size, and back to bytes.

OpenCV decodes what it does right and fast (JPEG, PNG and WebP without transparency; it
obeys EXIF orientation). Pillow decodes the rest: GIF, BMP, CMYK, anything transparent
(laid over white) or animated (first frame).
"""

import io
import math
import struct

import cv2
import numpy as np
from PIL import Image, ImageOps

from input_pipeline.errors import DataError

# Pillow's own limit for refusing a picture as a decompression bomb.
MAX_PIXELS = 178_956_970
MAX_BYTES = 2**28  # of one picture's file: nothing larger is read into memory
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
MODES = ('squash', 'pad', 'crop')
INTERPOLATIONS = ('area', 'bilinear', 'bicubic')

_PILLOW = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
# JPEGs decode at 1/2 or 1/4 in about half the time, from this multiple of the wanted size on:
# nearer to it, halving and then averaging areas blurs (1.7 grey levels at twice the size).
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_4), (3, cv2.IMREAD_REDUCED_COLOR_2))
# The same for who looks up pixels, and would halve the picture to do so.
_TIGHTLY = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4),
            (2, cv2.IMREAD_REDUCED_COLOR_2))

_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'
# What is often found under an image's name, by its first bytes.
_DISGUISES = (
    (b'%PDF', 'is a PDF, not an image'),
    (b'PK\x03\x04', 'is a ZIP archive, not an image'),
    (b'\x1f\x8b', 'is a gzip archive, not an image'),
    (b'II*\x00', 'is a TIFF, which is not supported; convert it to PNG'),
    (b'MM\x00*', 'is a TIFF, which is not supported; convert it to PNG'),
    (b'8BPS', 'is a Photoshop file; convert it to PNG'),
    (b'version https://git-lfs', 'is a Git LFS pointer; fetch the file with `git lfs pull`'),
)


class UnreadableImage(DataError):
    """One picture cannot be read; `reason` says why, such as 'is truncated'."""

    reason = ''

    @classmethod
    def of(cls, name: str, reason: str) -> 'UnreadableImage':
        error = cls(f'Image {name!r} {reason}: restore the file, or go on without it by '
                    f'--config.data.unreadable=drop.')
        error.reason = reason  # an attribute, so that the error can be pickled
        return error


def decode(data: bytes, *, name: str, min_size: tuple[int, int] | None = None,
           tight: bool = False) -> np.ndarray:
    """Decodes the bytes of an image file to RGB uint8 [H, W, 3].

    EXIF orientation is obeyed, transparency is laid over white, 16 bits keep their upper
    8, colour profiles are ignored, and of an animation the first frame is taken.

    Args:
        data: the file.
        name: of the file, for errors.
        min_size: (h, w) in pixels; a large JPEG may then come at a half or a quarter of its
            size, but no smaller than this.
        tight: come as near to `min_size` as halving allows. Otherwise a reduced picture is 1.5
            times as large at least, so that averaging its areas shows nothing of it.

    Raises:
        UnreadableImage: names the file and says what is wrong with it.
    """
    fast, reason, size = _probe(data)
    if fast:
        image = _opencv(data, _reduction(data, size, min_size, tight))
        if image is not None:
            return image
    if not reason:
        image, reason = _pillow(data)
        if not reason:
            return image
    raise UnreadableImage.of(name, reason)


def size_of(data: bytes) -> tuple[int, int] | None:
    """(h, w) of a sound JPEG as `decode` gives it in full, from its header; None: decode it."""
    fast, _, size = _probe(data)
    return size if fast and data.startswith(b'\xff\xd8') else None


def problem(data: bytes) -> str:
    """What is wrong with the bytes of an image file, or '' if it can be decoded whole.

    Stricter and slower than `decode`: every pixel is decoded by Pillow, which reports
    missing data, and the checksums of a PNG are verified.
    """
    _, reason, _ = _probe(data)
    if reason:
        return reason
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format == 'PNG':
                image.verify()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise nearly every type on damaged data
        return _reason(error)
    return ''


def encode(image: np.ndarray, quality: int | str) -> bytes:
    """The file of a picture uint8 [H, W, 3]: JPEG of a quality of 1 to 100, or 'lossless' PNG."""
    kind, options = (('.png', []) if quality == 'lossless' else
                     ('.jpg', [cv2.IMWRITE_JPEG_QUALITY, int(quality)]))
    return cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def resize(image: np.ndarray, size: tuple[int, int], mode: str = 'squash', *,
           interpolation: str = 'area', crop_pct: float = 1.0) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to uint8 [h, w, 3].

    With mode='crop', 'bicubic' and the crop_pct of a timm model this is timm's evaluation
    transform, before normalisation.

    Args:
        image: the picture.
        size: (h, w), pixels.
        mode: 'squash' changes the aspect; 'pad' keeps it and fills up, evenly on both
            sides, with the median colour of the picture's border; 'crop' keeps it, covers
            `size` and cuts the centre out.
        interpolation: 'area' averages areas to shrink and is cubic to enlarge; 'bilinear' and
            'bicubic' are Pillow's, whose filters widen to shrink.
        crop_pct: above 0 to 1; the picture is resized to floor(size / crop_pct), of which the
            centre is cut out.

    Raises:
        DataError: an unknown mode or interpolation, or crop_pct out of its range.
    """
    if mode not in MODES:
        raise DataError(f'The resize mode {mode!r} is unknown: use one of {", ".join(MODES)}.')
    if interpolation not in INTERPOLATIONS:
        raise DataError(f'The interpolation {interpolation!r} is unknown: '
                        f'use one of {", ".join(INTERPOLATIONS)}.')
    target = resize_target(size, crop_pct)
    if mode == 'squash':
        return _center(_scale(image, *target, interpolation), size)
    if mode == 'crop':
        image = _shorten(image, target)
        return _center(_scale(image, *_cover(image.shape, target), interpolation), size)
    ratio = min(target[0] / image.shape[0], target[1] / image.shape[1])
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    canvas = np.empty((*target, 3), np.uint8)
    canvas[:] = border_color(image)
    canvas[top:top + height, left:left + width] = _scale(image, height, width, interpolation)
    return _center(canvas, size)


def resize_target(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """(h, w) that a picture is resized to before the centre `size` is cut out."""
    if not 0 < crop_pct <= 1:
        raise DataError(f'crop_pct={crop_pct} is out of range: use more than 0 and at most 1.')
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


def border_color(image: np.ndarray) -> np.ndarray:
    """Median colour of the outermost pixels of uint8 [H, W, 3], uint8 [3]."""
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.round(np.median(edge, axis=0)).astype(np.uint8)


def _scale(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    if interpolation != 'area':
        return np.asarray(Image.fromarray(image).resize((width, height), _PILLOW[interpolation]))
    # Axis by axis, because area averaging only serves an axis that shrinks.
    least = min(height, image.shape[0]), min(width, image.shape[1])
    if least != image.shape[:2]:
        if all(out < side <= 4 * out for side, out in zip(image.shape, least)):
            # The mean of two points an axis, each between its pixels: within .4 grey levels of
            # the area's on photographs, and cv2.INTER_AREA takes 1.5 to 4 times as long.
            image = cv2.resize(image, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
        image = cv2.resize(image, (least[1], least[0]), interpolation=cv2.INTER_AREA)
    if least != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def _cover(shape: tuple[int, ...], target: tuple[int, int]) -> tuple[int, int]:
    """The least (h, w) of this shape's aspect that covers `target`; rounded down, as timm does."""
    if target[0] * shape[1] >= target[1] * shape[0]:
        return target[0], int(target[0] * shape[1] / shape[0])
    return int(target[1] * shape[0] / shape[1]), target[1]


def _shorten(image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    # Of a ribbon only the middle is resized: 20,000 x 20 covers 224 x 224 with 50 million pixels.
    height, width = image.shape[:2]
    keep = (max(1, math.ceil(8 * width * target[0] / target[1])),
            max(1, math.ceil(8 * height * target[1] / target[0])))
    if height <= keep[0] and width <= keep[1]:
        return image
    return _center(image, (min(height, keep[0]), min(width, keep[1])))


def _center(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (round((image.shape[axis] - size[axis]) / 2) for axis in (0, 1))
    return np.ascontiguousarray(image[top:top + size[0], left:left + size[1]])


def _reduction(data: bytes, size: tuple[int, int], min_size: tuple[int, int] | None,
               tight: bool) -> int:
    """OpenCV's flag for decoding at a reduced scale, or for the full one."""
    if min_size and data.startswith(b'\xff\xd8'):
        ratio = (min(size[0] / min_size[0], size[1] / min_size[1]) if tight else
                 min(size) / max(min_size))
        for least, flag in _TIGHTLY if tight else _REDUCED:
            if ratio >= least:
                return flag
    return cv2.IMREAD_COLOR_RGB


def _opencv(data: bytes, flag: int) -> np.ndarray | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None
    if image is None or flag == cv2.IMREAD_COLOR_RGB:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # the reduced flags know no RGB


def _probe(data: bytes) -> tuple[bool, str, tuple[int, int]]:
    """Reads the header only: (OpenCV decodes it right, what is wrong, (h, w) if known)."""
    if not data:
        return False, 'is empty (0 bytes)', (0, 0)
    try:
        if data.startswith(b'\xff\xd8\xff'):
            width, height, fast, whole = _probe_jpeg(data)
        elif data.startswith(_PNG):
            width, height, fast, whole = _probe_png(data)
        elif data.startswith(b'RIFF') and data[8:12] == b'WEBP':
            width, height, fast, whole = _probe_webp(data)
        elif data.startswith((b'GIF87a', b'GIF89a', b'BM')):
            return False, '', (0, 0)
        else:
            return False, _disguise(data), (0, 0)
    except (IndexError, struct.error):
        return False, 'is truncated', (0, 0)
    if not whole:
        return False, 'is truncated', (0, 0)
    if width * height > MAX_PIXELS:
        return False, (f'has {width} x {height} pixels, more than {MAX_PIXELS:,} '
                       f'(a decompression bomb?)'), (0, 0)
    return fast, '', (height, width)


def _probe_jpeg(data: bytes) -> tuple[int, int, bool, bool]:
    width = height = components = 0
    turned = False
    position = 2
    while True:  # ends by IndexError or struct.error if no scan starts
        if data[position] != 0xFF:
            # No marker where one is due: damaged, and Pillow words that better.
            return width, height, False, True
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xD9:
            return width, height, False, True
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from('>HHB', data, position + 5)
        length, = struct.unpack_from('>H', data, position + 2)
        if marker == 0xE1 and data.startswith(b'Exif\0\0', position + 4):
            turned = _orientation(data[position + 10:position + 2 + length]) >= 5
        position += 2 + length
        if marker == 0xDA:
            break
    if turned:
        width, height = height, width
    # From the first scan on: a thumbnail in the header has an end marker of its own.
    # OpenCV turns CMYK to RGB in its own way, Pillow as others do.
    return width, height, components in (1, 3), data.rfind(b'\xff\xd9', position) >= 0


def _orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 5 and more swap the sides. 1 if there is none."""
    order = '<' if exif.startswith(b'II') else '>'
    try:
        start, = struct.unpack_from(f'{order}I', exif, 4)
        count, = struct.unpack_from(f'{order}H', exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f'{order}HH', exif, entry)
            if tag == 0x0112 and kind == 3:
                return struct.unpack_from(f'{order}H', exif, entry + 8)[0]
    except struct.error:  # damaged: OpenCV leaves the picture as it is
        pass
    return 1


def _probe_png(data: bytes) -> tuple[int, int, bool, bool]:
    width, height, _, color = struct.unpack_from('>IIBB', data, 16)
    fast = color in (0, 2, 3)
    position = 8
    while True:
        length, kind = struct.unpack_from('>I4s', data, position)
        if kind == b'IDAT':
            break
        if kind in (b'tRNS', b'acTL'):  # transparency, animation
            fast = False
        position += length + 12
    return width, height, fast, data.rfind(_PNG_END) >= 0


def _probe_webp(data: bytes) -> tuple[int, int, bool, bool]:
    size, = struct.unpack_from('<I', data, 4)
    kind, fast = data[12:16], True
    if kind == b'VP8X':
        fast = not data[20] & 0x12  # transparency, animation
        width = int.from_bytes(data[24:27], 'little') + 1
        height = int.from_bytes(data[27:30], 'little') + 1
    elif kind == b'VP8L':
        bits, = struct.unpack_from('<I', data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        fast = not bits >> 28 & 1  # transparency
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from('<HH', data, 26))
    return width, height, fast, len(data) >= size + 8


def _disguise(data: bytes) -> str:
    start = data[:512].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if b'<svg' in start:
        return 'is an SVG drawing; convert it to PNG'
    if start.startswith((b'<!doctype', b'<html', b'<head', b'<?xml', b'<body', b'<!--')):
        return 'is a web page (HTML or XML), not an image'
    if data[4:8] == b'ftyp':
        return 'is an AVIF or HEIC image or a video; convert it to JPEG or PNG'
    for magic, reason in _DISGUISES:
        if data.startswith(magic):
            return reason
    if not data.strip(b'\0'):
        return 'holds nothing but zeros'
    return 'is no image of a known format (JPEG, PNG, WebP, BMP, GIF)'


def _pillow(data: bytes) -> tuple[np.ndarray | None, str]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            if image.mode.startswith('I'):  # 16-bit grey; convert('RGB') would clip it
                upper = (np.asarray(image) >> 8).astype(np.uint8)
                image = _upright(Image.fromarray(upper), image.getexif())
            else:
                image = _upright(image, image.getexif())
            if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
                image = image.convert('RGBA')
                white = Image.new('RGBA', image.size, 'white')
                image = Image.alpha_composite(white, image)
            return np.array(image.convert('RGB')), ''
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise nearly every type on damaged data
        return None, _reason(error)


def _upright(image: Image.Image, exif: Image.Exif) -> Image.Image:
    if exif.get(0x0112, 1) in (None, 1):
        return image
    image.getexif().update(exif)
    return ImageOps.exif_transpose(image)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f'has more than {MAX_PIXELS:,} pixels (a decompression bomb?)'
    text = ' '.join(str(error).split())
    if 'truncated' in text:
        return 'is truncated'
    if isinstance(error, Image.UnidentifiedImageError):
        return 'is damaged (its header cannot be read)'
    return f'is damaged ({text})' if text else f'is damaged ({type(error).__name__})'
