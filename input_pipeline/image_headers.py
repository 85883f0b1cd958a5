"""What the first bytes of an image file say: its kind, its size, and whether it can be whole."""

import re
import struct
from typing import NamedTuple

# Pillow's own limit for refusing a picture as a decompression bomb.
MAX_PIXELS = 178_956_970
# Pillow's names of the formats that are read; a PPM is one of ours.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'PPM')

# A PPM as `encode` writes it: width, height, and three bytes per pixel.
_PPM = re.compile(rb'P6\n(\d{1,9}) (\d{1,9})\n255\n')
_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'
# Where Pillow finds an orientation, and OpenCV does not.
_XMP = b'http://ns.adobe.com/xap/1.0/\0'
_XMP_OF_PNG, _RAW_PROFILE = b'XML:com.adobe.xmp', b'Raw profile type exif'
_TURNED = re.compile(rb'tiff:Orientation(="|>)[2-8]')
# Other kinds of files that are often found under an image's name, by their first bytes.
_DISGUISES = (
    (b'%PDF', 'is a PDF, not an image'),
    (b'PK\x03\x04', 'is a ZIP archive, not an image'),
    (b'\x1f\x8b', 'is a gzip archive, not an image'),
    (b'II*\x00', 'is a TIFF, which is not supported; convert it to PNG'),
    (b'MM\x00*', 'is a TIFF, which is not supported; convert it to PNG'),
    (b'8BPS', 'is a Photoshop file; convert it to PNG'),
    (b'version https://git-lfs', 'is a Git LFS pointer; fetch the file with `git lfs pull`'),
)


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        fast: OpenCV decodes the file correctly.
        reason: what is wrong with the file, such as 'is truncated'; '' if nothing is known.
        size: (h, w) in pixels after EXIF orientation; (0, 0) if not known.
        deep: the picture has 16 bits per value.
    """

    fast: bool
    reason: str
    size: tuple[int, int] = (0, 0)
    deep: bool = False


def probe(data: bytes) -> Header:
    """Reads the header of an image file, and looks for its end marker; no pixel is decoded."""
    if not data:
        return Header(False, 'is empty (0 bytes)')
    try:
        if data.startswith(b'\xff\xd8\xff'):
            width, height, fast, whole = _probe_jpeg(data)
        elif data.startswith(_PNG):
            width, height, fast, whole = _probe_png(data)
        elif data.startswith(b'RIFF') and data[8:12] == b'WEBP':
            width, height, fast, whole = _probe_webp(data)
        elif (match := _PPM.match(data)) is not None:
            width, height = int(match[1]), int(match[2])
            fast, whole = True, len(data) == match.end() + 3 * width * height > match.end()
        elif data.startswith((b'GIF87a', b'GIF89a', b'BM')):
            return Header(False, '')
        else:
            return Header(False, _disguise(data))
    except (IndexError, struct.error):
        return Header(False, 'is truncated')
    if not whole:
        return Header(False, 'is truncated')
    if width * height > MAX_PIXELS:
        return Header(False, f'has {width} x {height} pixels, more than {MAX_PIXELS:,} '
                             f'(a decompression bomb?)')
    deep = data.startswith(_PNG) and data[24] == 16
    return Header(fast, '', (height, width), deep)


def _probe_jpeg(data: bytes) -> tuple[int, int, bool, bool]:
    width = height = components = 0
    orientation, hidden = None, False
    position = 2
    while True:  # ends by IndexError or struct.error if no scan starts
        if data[position] != 0xFF:
            # A marker must be here: the file is damaged, and Pillow words that better.
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
            found = _orientation(data[position + 10:position + 2 + length])
            orientation = found if orientation is None else orientation
        elif marker == 0xE1 and data.startswith(_XMP, position + 4):
            hidden = hidden or _is_turned(data[position + 4:position + 2 + length])
        position += 2 + length
        if marker == 0xDA:
            break
    if (orientation or 1) in range(5, 9):
        width, height = height, width
    # The end marker is searched from the first scan on, because a thumbnail in the header has its
    # own. OpenCV converts CMYK to RGB unlike other programs, so Pillow decodes it.
    fast = components in (1, 3) and not (hidden and orientation is None)
    return width, height, fast, data.rfind(b'\xff\xd9', position) >= 0


def _is_turned(xmp: bytes) -> bool:
    """Whether XMP, as plain text, asks for an orientation: Pillow obeys that, OpenCV does not."""
    return _TURNED.search(xmp) is not None


def _orientation(exif: bytes) -> int | None:
    """The EXIF orientation, 1 to 8; 5 and more swap the sides. None if there is none."""
    order = '<' if exif.startswith(b'II') else '>'
    try:
        start, = struct.unpack_from(f'{order}I', exif, 4)
        count, = struct.unpack_from(f'{order}H', exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f'{order}HH', exif, entry)
            if tag == 0x0112 and kind in (3, 4):
                return struct.unpack_from(f'{order}{"HI"[kind - 3]}', exif, entry + 8)[0]
    except struct.error:  # damaged: OpenCV leaves the picture as it is
        pass
    return None


def _probe_png(data: bytes) -> tuple[int, int, bool, bool]:
    width, height, _, color = struct.unpack_from('>IIBB', data, 16)
    fast, known, hidden, pixels = color in (0, 2, 3), False, False, False
    position = 8
    while True:
        try:
            length, kind = struct.unpack_from('>I4s', data, position)
        except struct.error:
            if not pixels:
                raise
            break  # cut off behind the first pixels, or without an end
        if kind in (b'tRNS', b'acTL'):  # transparency, animation
            fast = False
        elif kind == b'eXIf':
            exif = data[position + 8:position + 8 + length]
            known = known or _orientation(exif) is not None
            hidden = hidden or exif.startswith(b'Exif\0\0')
        elif kind in (b'tEXt', b'zTXt', b'iTXt'):
            hidden = hidden or _hides_orientation(data[position + 8:position + 8 + length], kind)
        pixels = pixels or kind == b'IDAT'
        position += length + 12
        if kind == b'IEND' or (pixels and not kind.isalpha()):
            break
    return width, height, fast and (known or not hidden), data.rfind(_PNG_END) >= 0


def _hides_orientation(text: bytes, kind: bytes) -> bool:
    """Whether a text of a PNG may hold an orientation, which only Pillow looks for there."""
    keyword = text[:text.find(b'\0')]
    if keyword != _XMP_OF_PNG:
        return keyword == _RAW_PROFILE
    compressed = kind == b'zTXt' or (kind == b'iTXt' and text[len(keyword) + 1:][:1] == b'\1')
    return compressed or _is_turned(text)


def _probe_webp(data: bytes) -> tuple[int, int, bool, bool]:
    size, = struct.unpack_from('<I', data, 4)
    kind, fast = data[12:16], True
    if kind == b'VP8X':
        # Transparency, animation, an orientation that OpenCV does not see.
        fast = not data[20] & 0x12 and not _webp_hides_orientation(data)
        width = int.from_bytes(data[24:27], 'little') + 1
        height = int.from_bytes(data[27:30], 'little') + 1
    elif kind == b'VP8L':
        bits, = struct.unpack_from('<I', data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        fast = not bits >> 28 & 1  # transparency
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from('<HH', data, 26))
    return width, height, fast, len(data) >= size + 8


def _webp_hides_orientation(data: bytes) -> bool:
    """Whether XMP turns a WebP and EXIF does not say how."""
    if not data[20] & 0x04:  # no XMP
        return False
    position, known, hidden = 12, False, False
    while position + 8 <= len(data):
        kind, length = struct.unpack_from('<4sI', data, position)
        content = data[position + 8:position + 8 + length] if kind in (b'EXIF', b'XMP ') else b''
        known = known or (kind == b'EXIF' and
                          _orientation(content.removeprefix(b'Exif\0\0')) is not None)
        hidden = hidden or (kind == b'XMP ' and _is_turned(content))
        position += 8 + length + length % 2
    return hidden and not known


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
    return 'is not an image of a known format (JPEG, PNG, WebP, BMP, GIF)'
