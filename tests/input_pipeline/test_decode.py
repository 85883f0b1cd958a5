"""Decoding of every format, and what is wrong with files that cannot be decoded."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import decode as decode_lib
from input_pipeline.decode import UnreadableImage, decode, size_of
from input_pipeline.diagnosis import problem
from input_pipeline.encode import encode as to_file
from input_pipeline.errors import DataError
from input_pipeline.resize import resize

PHOTOS = Path(__file__).parent / 'photos'
SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8),
                    (70, 50), interpolation=cv2.INTER_CUBIC)


def encode(image, fmt, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def near(a, b):
    # A palette loses some colours.
    return a.shape == b.shape and np.abs(a.astype(int) - b).mean() < 8


@pytest.mark.parametrize('fmt, options', [
    ('JPEG', {'quality': 95}), ('JPEG', {'quality': 95, 'progressive': True}), ('PNG', {}),
    ('WEBP', {'lossless': True}), ('WEBP', {'quality': 95}), ('BMP', {})])
def test_formats_give_rgb(fmt, options):
    data = encode(SMOOTH, fmt, **options)
    image = decode(data, name='a')
    assert image.dtype == np.uint8 and near(image, SMOOTH) and problem(data) == ''


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'CMYK'])
def test_other_modes(mode):
    picture = Image.fromarray(SMOOTH).convert('L' if mode == 'LA' else 'RGB').convert(mode)
    data = encode(picture, 'JPEG' if mode == 'CMYK' else 'PNG')
    assert near(decode(data, name='a'), np.asarray(picture.convert('RGB')))
    assert problem(data) == ''


@pytest.mark.parametrize('fmt', ['PNG', 'WEBP'])
def test_transparent_is_white(fmt):
    alpha = np.zeros(SMOOTH.shape[:2], np.uint8)
    alpha[:, 35:] = 255
    options = {'lossless': True, 'exact': True} if fmt == 'WEBP' else {}
    image = decode(encode(np.dstack([SMOOTH, alpha]), fmt, **options), name='a')
    assert (image[:, :35] == 255).all()
    np.testing.assert_array_equal(image[:, 35:], SMOOTH[:, 35:])


def test_transparent_palette_and_color_key_are_white():
    palette = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), 'P')
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    for fmt in ('PNG', 'GIF'):
        image = decode(encode(palette, fmt, transparency=1), name='a')
        assert image[0, 1].tolist() == [255, 255, 255]
        assert image[1, 0].tolist() == [70, 80, 90]
    black = decode(encode(np.zeros((2, 2, 3), np.uint8), 'PNG', transparency=(0, 0, 0)), name='a')
    assert (black == 255).all()


@pytest.mark.parametrize('channels', [1, 3])
def test_sixteen_bits_keep_the_upper_eight(channels):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = cv2.imencode('.png', np.dstack([values] * channels))[1].tobytes()
    np.testing.assert_array_equal(decode(data, name='a')[..., 0], values >> 8)


def test_sixteen_bits_with_a_transparent_color():
    values = np.full((2, 2), 0x8000, np.uint16)
    data = cv2.imencode('.png', values)[1].tobytes()
    body = b'tRNS' + struct.pack('>H', 1)
    data = data[:33] + struct.pack('>I', 2) + body + struct.pack('>I', zlib.crc32(body)) + data[33:]
    assert (decode(data, name='a') == 0x80).all()


@pytest.mark.parametrize('fmt', ['GIF', 'WEBP', 'PNG'])
def test_first_frame_of_an_animation(fmt):
    data = encode(SMOOTH, fmt, save_all=True, append_images=[Image.fromarray(255 - SMOOTH)])
    image = decode(data, name='a')
    assert near(image, SMOOTH) and not near(image, 255 - SMOOTH)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'CMYK', 'RGBA'])
def test_exif_orientation(fmt, orientation):
    upright = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1],
               4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
               7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(SMOOTH)
    if fmt in ('CMYK', 'RGBA'):
        picture = picture.convert(fmt)
    data = encode(picture, {'CMYK': 'JPEG', 'RGBA': 'PNG'}.get(fmt, fmt), exif=exif)
    assert near(decode(data, name='a'), upright(SMOOTH))


XMP = (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
       b'</rdf:RDF></x:xmpmeta>')


def tiff(orientation=6, kind=3):
    """EXIF with an orientation, a number of 2 bytes (kind 3) or 4."""
    value = struct.pack('<HH' if kind == 3 else '<I', *([orientation, 0][:2 if kind == 3 else 1]))
    return b'II*\0' + struct.pack('<IHHHI', 8, 1, 0x0112, kind, 1) + value + bytes(4)


def with_chunk(png, kind, content, *, at_end=False):
    place = len(png) - 12 if at_end else 33
    chunk = struct.pack('>I', len(content)) + kind + content
    return png[:place] + chunk + struct.pack('>I', zlib.crc32(kind + content)) + png[place:]


RAW = b'\nexif\n%8d\n' % (len(tiff()) + 6) + (b'Exif\0\0' + tiff()).hex().encode() + b'\n'
IN_PNG = {
    'XMP': (b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP),
    'XMP as an element': (b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + XMP.replace(
        b' tiff:Orientation="6"/>', b'><tiff:Orientation>6</tiff:Orientation></rdf:Description>')),
    'compressed XMP': (b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(XMP)),
    'XMP as plain text': (b'tEXt', b'XML:com.adobe.xmp\0' + XMP),
    'raw profile': (b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(RAW)),
    'raw profile as text': (b'tEXt', b'Raw profile type exif\0' + RAW),
    'EXIF with a prefix': (b'eXIf', b'Exif\0\0' + tiff()), 'EXIF': (b'eXIf', tiff())}


@pytest.mark.parametrize('at_end', [False, True])
@pytest.mark.parametrize('kind', IN_PNG)
def test_a_png_is_turned_alike_with_and_without_transparency(kind, at_end):
    for mode in ('RGB', 'RGBA', 'L', 'P'):
        data = encode(Image.fromarray(SMOOTH).convert(mode), 'PNG')
        plain = decode(data, name='a')
        data = with_chunk(data, *IN_PNG[kind], at_end=at_end)
        np.testing.assert_array_equal(decode(data, name='a'), np.rot90(plain, -1))
        assert problem(data) == ''


@pytest.mark.parametrize('fmt, mode', [('JPEG', 'RGB'), ('JPEG', 'CMYK'), ('JPEG', 'L'),
                                       ('WEBP', 'RGB'), ('WEBP', 'RGBA')])
def test_xmp_turns_every_kind_of_file(fmt, mode):
    options = {'lossless': True} if fmt == 'WEBP' else {'quality': 95}
    picture = Image.fromarray(SMOOTH).convert(mode)
    plain = decode(encode(picture, fmt, **options), name='a')
    data = encode(picture, fmt, xmp=XMP, **options)
    assert near(decode(data, name='a'), np.rot90(plain, -1))
    assert near(decode(data, name='a', min_size=(5, 5), tight=True), np.rot90(plain, -1))
    assert size_of(data) is None
    exif = encode(picture, fmt, xmp=XMP, exif=b'Exif\0\0' + tiff(1), **options)
    np.testing.assert_array_equal(decode(exif, name='a'), plain)  # EXIF comes first


def test_exif_before_xmp_in_a_png_and_numbers_of_four_bytes():
    data = with_chunk(encode(SMOOTH, 'PNG'), *IN_PNG['XMP'])
    np.testing.assert_array_equal(decode(with_chunk(data, b'eXIf', tiff(1)), name='a'), SMOOTH)
    data = encode(SMOOTH, 'JPEG', exif=b'Exif\0\0' + tiff(kind=4))
    assert size_of(data) == decode(data, name='a').shape[:2] == (70, 50)


def test_metadata_that_turn_nothing_leave_the_fast_path(monkeypatch):
    monkeypatch.setattr(decode_lib, '_pillow', None)
    upright = XMP.replace(b'"6"', b'"1"')
    for data in (encode(SMOOTH, 'JPEG', xmp=upright), encode(SMOOTH, 'WEBP', xmp=upright),
                 with_chunk(encode(SMOOTH, 'PNG'), b'iTXt',
                            b'XML:com.adobe.xmp\0\0\0\0\0' + upright),
                 with_chunk(encode(SMOOTH, 'PNG'), b'tEXt', b'Comment\0Orientation 6')):
        assert decode(data, name='a').shape == SMOOTH.shape


@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'BMP', 'GIF'])
@pytest.mark.parametrize('keep', [0.1, 0.5, 0.95])
def test_truncated(fmt, keep):
    data = encode(SMOOTH, fmt)
    cuts = [data[:int(len(data) * keep)]]
    if fmt not in ('BMP', 'WEBP'):  # there zeros may be pixels
        cuts.append(cuts[0].ljust(len(data), b'\0'))
    for cut in cuts:
        assert problem(cut)
        with pytest.raises(DataError, match=r"cats/x\.jpg.*unreadable=drop"):
            decode(cut, name='cats/x.jpg')


def test_truncated_jpeg_with_a_thumbnail():
    # The end marker of the thumbnail is not that of the picture.
    thumbnail = encode(SMOOTH[:8, :8], 'JPEG')
    data = encode(SMOOTH, 'JPEG')
    data = data[:2] + b'\xff\xe1' + struct.pack('>H', len(thumbnail) + 2) + thumbnail + data[2:]
    assert near(decode(data, name='a'), SMOOTH)
    assert problem(data[:-200]) == 'is truncated'


def test_bytes_after_the_end_are_harmless():
    for fmt in ('JPEG', 'PNG', 'WEBP'):
        data = encode(SMOOTH, fmt) + bytes(100)
        assert near(decode(data, name='a'), SMOOTH) and problem(data) == ''


@pytest.mark.parametrize('data, reason', [
    (b'', 'empty'), (b' \n<!DOCTYPE html><html>no</html>', 'web page'),
    (b'<?xml version="1.0"?><svg></svg>', 'SVG'), (b'%PDF-1.7', 'PDF'), (bytes(99), 'zeros'),
    (b'\0\0\0\x1cftypheic', 'HEIC'), (b'hello', 'not an image'), (b'\xff\xd8\xff', 'truncated'),
    (b'BM', 'damaged'), (b'GIF89a', 'damaged'), (b'version https://git-lfs.github', 'lfs')])
def test_no_images(data, reason):
    assert reason in problem(data)
    with pytest.raises(DataError, match=reason):
        decode(data, name='x.jpg')


def test_changed_bytes_in_a_png():
    data = bytearray(encode(SMOOTH, 'PNG'))
    data[len(data) // 2] ^= 0x10
    assert 'damaged' in problem(bytes(data))


def test_bomb_is_refused_by_its_header():
    header = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    body = b'IHDR' + header
    data = (b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + body
            + struct.pack('>I', zlib.crc32(body))
            + struct.pack('>I4sI', 0, b'IDAT', zlib.crc32(b'IDAT'))
            + struct.pack('>I4sI', 0, b'IEND', zlib.crc32(b'IEND')))
    assert '60000 x 60000' in problem(data)
    with pytest.raises(DataError, match='bomb'):
        decode(data, name='x.png')
    jpeg = bytearray(encode(SMOOTH, 'JPEG'))
    start = jpeg.index(b'\xff\xc0')
    jpeg[start + 5:start + 9] = struct.pack('>HH', 60_000, 60_000)
    assert 'bomb' in problem(bytes(jpeg))
    gif = bytearray(encode(SMOOTH, 'GIF'))
    gif[6:10] = struct.pack('<HH', 60_000, 60_000)
    assert 'bomb' in problem(bytes(gif))


def test_plain_files_take_the_fast_path(monkeypatch):
    monkeypatch.setattr(decode_lib, '_pillow', None)
    for data in (encode(SMOOTH, 'JPEG'), encode(SMOOTH, 'PNG'), encode(SMOOTH, 'WEBP'),
                 encode(SMOOTH[..., 0], 'JPEG'), encode(SMOOTH[..., 0], 'PNG')):
        assert decode(data, name='a').shape == SMOOTH.shape


@given(st.binary(max_size=200), st.sampled_from(
    [b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'RIFF\x90\0\0\0WEBPVP8X', b'GIF89a', b'BM']))
def test_garbage_gives_a_picture_or_a_data_error(tail, head):
    try:
        image = decode(head + tail, name='x')
    except DataError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3


@pytest.mark.parametrize('orientation', [1, 6])
def test_a_large_jpeg_decodes_at_a_reduced_scale(orientation):
    photo = Image.open(PHOTOS / '0.jpg').resize((1024, 768))
    exif = photo.getexif()
    exif[0x0112] = orientation
    data = encode(photo, 'JPEG', quality=90, exif=exif)
    full = decode(data, name='a')
    for size, factor in (((256, 256), 2), ((257, 257), 1), ((257, 100), 1), ((100, 97), 2),
                         ((96, 96), 4), ((9, 9), 4)):
        image = decode(data, name='a', min_size=size)
        assert [n * factor for n in image.shape[:2]] == list(full.shape[:2])
        want, got = (resize(picture, size).astype(int) for picture in (full, image))
        assert np.abs(want - got).mean() < 1
    png = encode(SMOOTH, 'PNG')
    np.testing.assert_array_equal(decode(png, name='a', min_size=(5, 5)), SMOOTH)


def test_an_encoded_picture_decodes():
    np.testing.assert_array_equal(
        decode(to_file(SMOOTH, 'lossless'), name='a'), SMOOTH)
    assert near(decode(to_file(SMOOTH, 95), name='a'), SMOOTH)


def test_an_error_survives_pickling():
    with pytest.raises(UnreadableImage) as caught:
        decode(b'', name='x.jpg')
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.reason == 'is empty (0 bytes)' and str(error) == str(caught.value)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_size_in_the_header_is_that_of_the_picture(orientation):
    photo = Image.open(PHOTOS / '0.jpg').resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, 'JPEG', exif=exif)
    assert size_of(data) == decode(data, name='a').shape[:2]
    assert size_of(encode(photo, 'PNG')) is None
    assert size_of(data[:len(data) // 2]) is None


def test_a_tight_decode_covers_the_wanted_size():
    photo = Image.open(PHOTOS / '0.jpg').resize((1024, 768))
    data = encode(photo, 'JPEG', quality=90)
    for size, factor in (((384, 512), 2), ((385, 100), 1), ((100, 513), 1), ((192, 256), 4),
                         ((90, 128), 8), ((1, 1), 8)):
        image = decode(data, name='a', min_size=size, tight=True)
        assert [n * factor for n in image.shape[:2]] == [768, 1024]
