import dataclasses
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline import sources
from input_pipeline.curation import measures, measures_cache
from input_pipeline.curation.measures import measure
from input_pipeline.curation.picture_measures import NUMBERS, measure_picture
from input_pipeline.sources import folder


@pytest.fixture
def data(tmp_path):
    root = tmp_path / 'data'
    (root / 'cat').mkdir(parents=True)
    rng = np.random.default_rng(0)
    color = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (160, 120))
    Image.fromarray(color).save(root / 'cat/color.png')
    grey = Image.fromarray(color).convert('L')
    grey.save(root / 'cat/grey.png')
    grey.convert('RGB').save(root / 'cat/grey_as_rgb.jpg', quality=70)
    Image.fromarray(color).quantize(16).save(root / 'cat/palette.gif')
    return root


def row(found, name):
    return found.table.iloc[['color.png', 'grey.png', 'grey_as_rgb.jpg', 'palette.gif'].index(name)]


def test_stored_kind_and_chroma(data):
    found = measure(folder.load(str(data)))
    assert list(found.table['mode']) == ['RGB', 'L', 'RGB', 'P']
    assert list(found.table['file_type']) == ['PNG', 'PNG', 'JPEG', 'GIF']
    assert (found.table['width'] == 160).all() and (found.table['aspect'] == 4 / 3).all()
    assert row(found, 'color.png')['bytes'] == (data / 'cat/color.png').stat().st_size
    # Black and white depends on the pixels, not on how they are stored.
    assert row(found, 'grey_as_rgb.jpg')['chroma'] < 3 and row(found, 'grey.png')['chroma'] < 1
    assert row(found, 'color.png')['chroma'] > 20 and row(found, 'palette.gif')['chroma'] > 20
    assert row(found, 'color.png')['colourfulness'] > 30 > 3 > row(found, 'grey.png')[
        'colourfulness']


def values(picture):
    return dict(zip(NUMBERS, measure_picture(picture).numbers))


def test_numbers_of_known_pictures():
    half = np.zeros((100, 200, 3), np.uint8)
    half[:, 100:] = 255
    found = values(half)
    assert found['brightness'] == pytest.approx(0.5) and found['contrast'] == pytest.approx(0.5)
    assert (found['darkest'], found['brightest'], found['aspect']) == (0, 1, 2)
    assert found['entropy'] == pytest.approx(1) and found['white'] == 0.5
    assert found['flat'] == pytest.approx(0.99) and 0 < found['edges'] < 0.02
    plain = values(np.full((50, 50, 3), 255, np.uint8))
    assert plain['contrast'] == plain['entropy'] == plain['sharpness'] == plain['edges'] == 0
    assert plain['flat'] == plain['white'] == plain['darkest'] == 1
    red = values(np.full((50, 50, 3), (255, 0, 0), np.uint8))
    assert red['colourfulness'] == pytest.approx(0.3 * np.hypot(255, 127.5))  # by their formula
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    speckled = 128 + np.random.default_rng(0).normal(0, 8, (256, 256, 3))
    assert values(speckled.astype(np.uint8))['chroma'] < 6  # noise is not colour
    assert values(cv2.GaussianBlur(noise, (0, 0), 3))['sharpness'] < values(noise)['sharpness'] / 50


def test_sharpness_does_not_depend_on_the_resolution():
    drawing = sources.read_image('', 'doodles:seed=0,size=1024,class=house,writer=7,drawing=1,'
                                     'tool=pen')
    small = cv2.resize(drawing, (512, 512), interpolation=cv2.INTER_AREA)
    assert values(small)['sharpness'] == pytest.approx(values(drawing)['sharpness'], rel=0.02)


def test_a_missing_or_broken_file_is_a_row(data):
    manifest = folder.load(str(data))
    (data / 'cat/color.png').unlink()
    (data / 'cat/grey.png').write_bytes(b'%PDF')
    found = measure(manifest)
    assert list(found.table['problem'])[:2] == ['is missing', 'is a PDF, not an image']
    assert found.table['width'].isna().tolist() == [True, True, False, False]
    assert not found.hashes[:2].any() and found.hashes[2:].any()


def test_measures_are_kept_until_a_file_changes(data, tmp_path, monkeypatch):
    manifest, cache = folder.load(str(data)), str(tmp_path / 'cache')
    asked = []
    once = measures.measure_picture
    monkeypatch.setattr(measures, 'measure_picture',
                        lambda *args, **more: asked.append(0) or once(*args, **more))
    steps = []
    first = measure(manifest, cache_dir=cache, progress=lambda *step: steps.append(step))
    assert len(asked) == 4 and steps[-1] == (4, 4)
    again = measure(manifest, cache_dir=cache)
    assert len(asked) == 4
    for name in ('hashes', 'thumbs'):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.table.equals(first.table)
    os.utime(data / 'cat/grey.png', ns=(1, 1))
    picture = cv2.imread(str(data / 'cat/color.png'))
    cv2.imwrite(str(data / 'cat/color.png'), picture[::-1])
    changed = measure(manifest, cache_dir=cache)
    assert len(asked) == 6
    assert (changed.table['pixels'] != first.table['pixels']).tolist() == [True] + [False] * 3
    assert (changed.thumbs[0] != first.thumbs[0]).any()
    measure(manifest.select([0, 3]), cache_dir=cache)  # of the same folder
    measure(manifest, cache_dir=cache)
    assert len(asked) == 6


    monkeypatch.setattr(measures_cache, '_VERSION', measures_cache._VERSION + 1)
    measure(manifest, cache_dir=cache)
    assert len(asked) == 10


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:len(data) // 2],
                                    lambda data: data[:100] + b'\0' * 200 + data[300:]])
def test_a_damaged_cache_is_ignored(data, tmp_path, damage):
    manifest, cache = folder.load(str(data)), tmp_path / 'cache'
    first = measure(manifest, cache_dir=str(cache))
    file, = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert measure(manifest, cache_dir=str(cache)).table.equals(first.table)
    assert len(list(cache.iterdir())) == 1


def test_drawn_pictures_need_no_file():
    manifest = sources.load_source({'source': 'doodles', 'doodles': dict(classes=1, per_class=3)})
    found = measure(manifest).select([2, 0])
    assert len(found) == 2 and (found.table['file_type'] == 'drawn').all()
    picture = sources.read_image('', manifest.table['location'][2])
    assert dataclasses.astuple(measure_picture(picture))[1] == (
        '', 'RGB', 'drawn', '', found.table['pixels'][0])
