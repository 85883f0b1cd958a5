"""Pictures of 16 bits per value: the range of a data set, and the pixels that it gives."""

import logging
import os
import struct
import zlib

import cv2
import numpy as np
import pytest

from input_pipeline import sixteen_bits
from input_pipeline.curation.measures import measure
from input_pipeline.decode import decode
from input_pipeline.encode import encode
from input_pipeline.errors import DataError
from input_pipeline.image_headers import probe
from input_pipeline.packing import PackSpec, pack
from input_pipeline.pictures import Pictures, PreprocessSpec
from input_pipeline.readable import check_readable
from input_pipeline.sixteen_bits import FULL
from input_pipeline.sources import folder, load_source, read_bytes, reader

SIDE = 24


def chunk(kind: bytes, content: bytes) -> bytes:
    return (struct.pack('>I', len(content)) + kind + content
            + struct.pack('>I', zlib.crc32(kind + content)))


def png16(values: np.ndarray, *extra: bytes) -> bytes:
    """A PNG of 16-bit values [H, W, 1 to 4]: grey, grey and alpha, colour, colour and alpha."""
    height, width, channels = values.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    return (b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, color, 0, 0, 0))
            + b''.join(extra) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def smooth(rng, top: int, channels: int = 1) -> np.ndarray:
    """Values from 0 to `top`, both of which occur."""
    values = cv2.resize(rng.random((4, 4, channels)), (SIDE, SIDE)).reshape(SIDE, SIDE, channels)
    values = (values - values.min()) / (values.max() - values.min())
    return np.rint(values * top).astype(np.uint16)


def write_set(root, tops: dict[str, int], per_class: int = 4, channels: int = 1) -> None:
    """Pictures of 16 bits of which the first of each class holds every value up to its top."""
    rng = np.random.default_rng(0)
    for name, top in tops.items():
        os.makedirs(root / name)
        for k in range(per_class):
            values = smooth(rng, top if k == 0 else top * 3 // 4, channels)
            (root / name / f'{k}.png').write_bytes(png16(values))


def notes(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records
            if record.name == sixteen_bits.__name__]


@pytest.mark.parametrize('top', [200, 1000, 3712, 40_000])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_set_of_any_depth_is_seen_in_all_its_grey_levels(tmp_path, caplog, top, channels):
    write_set(tmp_path / 'data', {'a': top, 'b': top // 2}, channels=channels)
    with caplog.at_level(logging.WARNING):
        manifest = check_readable(folder.load(str(tmp_path / 'data')), range16='auto')
    bits = int(top).bit_length()
    assert manifest.range16 == (0, 2**bits - 1)
    assert notes(caplog) == ([] if bits == 16 else [
        f'8 pictures have 16 bits per value and use {bits} of them (up to {top:,}): 0 becomes '
        f'black and {2**bits - 1:,} white.'])
    seen = [Pictures(manifest, PreprocessSpec(size=SIDE))[row] for row in range(len(manifest))]
    brightest = seen[list(manifest.table['id']).index('a/0.png')]
    assert brightest.max() == top * 256 >> bits and len(np.unique(brightest)) > 100
    other = seen[list(manifest.table['id']).index('b/0.png')]
    assert abs(int(other.max()) * 2 - int(brightest.max())) <= 2  # one range for the whole set
    assert (measure(manifest).table['contrast'] > 0.02).all()  # none is empty


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_every_kind_of_16_bit_picture_gives_the_same_pixels(channels):
    values = smooth(np.random.default_rng(1), 4095, channels)
    if channels in (2, 4):
        values[..., -1] = 65535
    data = png16(values)
    image = decode(data, name='a', range16=(0, 4095))
    wanted = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(image, wanted >> 4)
    assert sixteen_bits.peak(data) == wanted.max()
    np.testing.assert_array_equal(decode(data, name='a'), wanted >> 8)  # as ever


def test_what_is_transparent_is_white_and_does_not_count():
    values = smooth(np.random.default_rng(1), 4095, 4)
    values[:, :SIDE // 2] = 65535
    values[..., 3] = 65535
    values[:, :SIDE // 2, 3] = 0
    data = png16(values)
    assert sixteen_bits.peak(data) == values[:, SIDE // 2:, :3].max()
    image = decode(data, name='a', range16=(0, 4095))
    assert (image[:, :SIDE // 2] == 255).all()
    np.testing.assert_array_equal(image[:, SIDE // 2:], values[:, SIDE // 2:, :3] >> 4)


def test_orientation_is_obeyed_at_16_bits():
    values = smooth(np.random.default_rng(2), 4095)[:10]
    exif = b'II*\0' + struct.pack('<IHHHIHHI', 8, 1, 0x0112, 3, 1, 6, 0, 0)
    image = decode(png16(values, chunk(b'eXIf', exif)), name='a', range16=(0, 4095))
    np.testing.assert_array_equal(image[..., 0], np.rot90(values[..., 0], -1) >> 4)


def test_the_full_range_is_the_upper_8_bits_and_limits_clip():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    data = png16(values)
    np.testing.assert_array_equal(decode(data, name='a', range16=FULL)[..., 0], values[..., 0] >> 8)
    image = decode(data, name='a', range16=(1000, 2023))[..., 0].ravel()
    assert (image[:1001] == 0).all() and (image[2023:] == 255).all()
    assert (np.diff(image[1000:2024].astype(int)) >= 0).all() and len(np.unique(image)) == 256
    assert decode(data, name='a', range16=(0, 1))[0, :3, 0].tolist() == [0, 255, 255]  # a mask
    assert probe(data).deep and not probe(encode(np.zeros((2, 2, 3), np.uint8), 'lossless')).deep


def test_pictures_of_8_bits_are_left_alone(tmp_path, caplog):
    write_set(tmp_path / 'data', {'a': 900})
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    (tmp_path / 'data/a/eight.png').write_bytes(encode(picture, 'lossless'))
    manifest = check_readable(folder.load(str(tmp_path / 'data')), range16='auto')
    assert manifest.range16 == (0, 1023)
    np.testing.assert_array_equal(reader(manifest)('a/eight.png'), picture)


@pytest.mark.parametrize('wanted, words', [
    ((0, 1023), 'have values above 1,023, which become white'),
    ('full', 'reach only the lowest sixteenth of 0 to 65,535'), ((0, 4095), '')])
def test_a_range_that_does_not_fit_is_said(tmp_path, caplog, wanted, words):
    write_set(tmp_path / 'data', {'a': 3000})
    with caplog.at_level(logging.WARNING):
        check_readable(folder.load(str(tmp_path / 'data')), range16=wanted)
    assert [words in note for note in notes(caplog)] == [True] * bool(words)


def test_one_bright_picture_does_not_hide_that_the_others_are_dark(tmp_path, caplog):
    write_set(tmp_path / 'data', {'a': 3000, 'b': 3000})
    (tmp_path / 'data/a/bright.png').write_bytes(png16(np.full((SIDE, SIDE, 1), 65535)))
    with caplog.at_level(logging.WARNING):
        assert check_readable(folder.load(str(tmp_path / 'data')), range16='auto').range16 == FULL
    assert '8 of them reach only the lowest sixteenth' in caplog.text


def test_black_pictures_are_said_to_be_black(tmp_path, caplog):
    write_set(tmp_path / 'data', {'a': 0})
    with caplog.at_level(logging.WARNING):
        assert check_readable(folder.load(str(tmp_path / 'data')), range16='auto').range16 == FULL
    assert 'all of them are 0: they are black' in caplog.text


@pytest.mark.parametrize('wanted', ['Auto', (5, 5), (0, 65536), (-1, 9), (0,), (0.0, 4095.0), 12,
                                    None, (True, 7), '(0, 1)x'])
def test_values_that_are_no_range_are_refused(tmp_path, wanted):
    write_set(tmp_path / 'data', {'a': 9}, per_class=1)
    with pytest.raises(DataError, match=r"image\.range16=.* is not a valid range: give 'auto'"):
        check_readable(folder.load(str(tmp_path / 'data')), range16=wanted)


def test_the_answer_is_kept_between_runs(tmp_path, monkeypatch):
    write_set(tmp_path / 'data', {'a': 3000})
    manifest = folder.load(str(tmp_path / 'data'))
    cache = str(tmp_path / 'cache')
    assert check_readable(manifest, range16='auto', cache_dir=cache).range16 == (0, 4095)
    monkeypatch.setattr('input_pipeline.readable.read_bytes', None)
    assert check_readable(manifest, range16='auto', cache_dir=cache).range16 == (0, 4095)


def test_measures_of_another_range_are_not_mixed_up(tmp_path):
    write_set(tmp_path / 'data', {'a': 3000})
    plain = folder.load(str(tmp_path / 'data'))
    right, cache = check_readable(plain, range16='auto'), str(tmp_path / 'cache')
    dark, bright = (measure(one, cache_dir=cache).table['brightness'] for one in (plain, right))
    assert (bright > 10 * dark).all()


@pytest.mark.parametrize('spec, deep', [(PackSpec(), True), (PackSpec(size=64, quality='lossless'),
                                                             False)])
def test_a_packed_set_shows_the_same_pictures(tmp_path, spec, deep):
    write_set(tmp_path / 'data', {'a': 3000, 'b': 1500})
    manifest = check_readable(folder.load(str(tmp_path / 'data')), range16='auto')
    pack(manifest, read_bytes, str(tmp_path / 'packed'), spec)
    packed = load_source(dict(source='packed', packed=str(tmp_path / 'packed')))
    packed = check_readable(packed, range16='auto')
    for one, other in zip(manifest.table['location'], packed.table['location']):
        np.testing.assert_array_equal(reader(packed)(other), reader(manifest)(one))
        assert probe(read_bytes(packed.root, other)).deep == deep
