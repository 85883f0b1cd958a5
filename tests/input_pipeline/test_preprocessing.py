import concurrent.futures
import os
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from input_pipeline import packing
from input_pipeline.encode import encode
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.packing import PackSpec
from input_pipeline.preprocessing import (
    PREPROCESSORS,
    apply,
    background,
    describe,
    faces,
    fallback_by_class,
    make_steps,
)
from input_pipeline.sixteen_bits import FULL
from input_pipeline.sources import array_records, read_image


def texture(rng, height, width, color, spread=12):
    coarse = rng.normal(color, spread, (height // 4 + 2, width // 4 + 2, 3)).clip(0, 255)
    return cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def blob(seed, height=300, width=420, front=(190, 90, 60), behind=(80, 120, 150)):
    """A bumpy disc of one texture on another, and its mask."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    radius = 80 + 15 * np.sin(3 * angle + rng.uniform(0, 6)) + 8 * np.sin(7 * angle)
    center = rng.uniform((180, 130), (240, 170))
    points = center + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    mask = cv2.fillPoly(np.zeros((height, width), np.uint8), [points.round().astype(np.int32)], 1)
    picture = np.where(mask[..., None], texture(rng, height, width, front),
                       texture(rng, height, width, behind))
    return picture.astype(np.uint8), mask.astype(bool)


def draw_face(picture, x, y, size):
    """A drawing that cascades take for a face; `size` is about half of the side of its box."""
    def ellipse(dx, dy, across, down, color):
        cv2.ellipse(picture, (round(x + dx * size), round(y + dy * size)),
                    (round(across * size), round(down * size)), 0, 0, 360, color, -1, cv2.LINE_AA)
    ellipse(0, -.15, .62, .75, (50, 35, 30))
    ellipse(0, .05, .5, .65, (222, 180, 150))
    for side in (-.22, .22):
        ellipse(side, -.16, .15, .045, (70, 45, 35))
        ellipse(side, -.03, .12, .06, (150, 110, 95))
        ellipse(side, -.03, .06, .05, (25, 20, 20))
    ellipse(0, .2, .06, .16, (235, 198, 170))
    ellipse(0, .3, .11, .035, (160, 110, 95))
    ellipse(0, .46, .2, .055, (150, 60, 60))
    return picture


def meadow(height=400, width=500):
    return texture(np.random.default_rng(0), height, width, (90, 130, 90), 25)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def run(picture, *specs):
    return apply(make_steps(specs), picture)


def test_grabcut_finds_a_blob_and_fills_the_rest():
    for seed in range(3):
        picture, mask = blob(seed)
        copy = picture.copy()
        white, record = run(picture, 'background')
        np.testing.assert_array_equal(picture, copy)
        kept, filled = (white == picture).all(2), (white == 255).all(2)
        assert overlap(kept, mask) > .95 and overlap(filled, ~mask) > .95
        assert record['background/foreground'] == pytest.approx(mask.mean(), abs=.01)
        assert record['background/fallback'] == ''
    black, _ = run(picture, {'kind': 'background', 'fill': 'black'})
    assert overlap((black == 0).all(2), ~mask) > .95


def test_a_blurred_background_has_no_halo_of_the_front():
    picture, mask = blob(0, front=(250, 0, 0), behind=(40, 80, 160))
    blurred, _ = run(picture, {'kind': 'background', 'fill': 'blur'})
    beside = cv2.dilate(mask.astype(np.uint8), np.ones((31, 31))).astype(bool)
    beside &= ~cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
    np.testing.assert_allclose(blurred[beside].mean(0), (40, 80, 160), atol=6)
    assert blurred[beside].std(0).max() < picture[beside].std(0).max() / 2


def test_specks_and_small_holes_are_mistakes_and_large_ones_are_not():
    front = np.zeros((60, 60), bool)
    front[10:50, 10:50] = True
    front[20:25, 20:25] = False
    front[30:45, 25:45] = False
    front[1:4, 1:4] = True
    clean = background._without_specks(front)
    assert clean[20:25, 20:25].all() and not clean[30:45, 25:45].any()
    assert not clean[:10].any() and clean.sum() == 40 * 40 - 15 * 20


def test_a_background_that_covers_everything_is_refused():
    # With one colour, everything looks like the border.
    picture = np.full((80, 80, 3), 128, np.uint8)
    kept, record = run(picture, {'kind': 'background', 'core': 0, 'least': .2})
    assert kept is picture and record['background/fallback'] == 'keep'


def test_a_face_is_found_and_cropped():
    picture = draw_face(draw_face(meadow(), 110, 280, 60), 320, 160, 110)
    crop, record = run(picture, {'kind': 'face', 'margin': .2})
    assert record['face/found'] and record['face/faces'] >= 2 and record['face/fallback'] == ''
    assert record['face/left'] + record['face/width'] / 2 == pytest.approx(320, abs=12)
    assert record['face/top'] + record['face/height'] / 2 == pytest.approx(175, abs=15)
    assert 120 < record['face/width'] < 200
    left, top, width, height = (record[f'face/crop_{side}']
                                for side in ('left', 'top', 'width', 'height'))
    np.testing.assert_array_equal(crop, picture[top:top + height, left:left + width])
    assert width == height == pytest.approx(1.4 * record['face/width'], abs=2)
    # In the corner the square moves inside; if it is larger than the picture, it shrinks.
    corner, _ = run(draw_face(meadow(), 60, 330, 80), {'kind': 'face', 'margin': .5})
    assert corner.shape[0] == corner.shape[1] > 180
    assert run(picture, {'kind': 'face', 'margin': 3})[0].shape == (400, 400, 3)
    assert run(picture, {'kind': 'face', 'margin': 3, 'square': False})[0].shape == (400, 500, 3)


def test_a_face_that_fills_the_picture_is_found():
    close = draw_face(meadow(200, 170), 85, 95, 160)
    assert len(faces.find_faces(close, 'haar')[0]) == 1


def test_without_a_face():
    picture = meadow(100, 140)
    kept, record = run(picture, 'face', {'kind': 'background', 'start': 'face'})
    assert kept is picture
    assert record['face/fallback'] == record['background/fallback'] == 'keep'
    centered, record = run(picture, {'kind': 'face', 'fallback': 'center'})
    np.testing.assert_array_equal(centered, picture[:, 20:120])
    assert not record['face/found'] and record['face/fallback'] == 'center'


def test_the_background_starts_from_the_face_of_the_crop(monkeypatch):
    picture = draw_face(meadow(), 250, 180, 90)
    looked = []
    find = faces.find_faces
    monkeypatch.setattr(faces, 'find_faces', lambda *a: looked.append(a) or find(*a))
    step = {'kind': 'background', 'start': 'face', 'size': 200}
    alone, _ = run(picture, step)
    assert len(looked) == 1
    both, record = run(picture, {'kind': 'face', 'margin': .4}, step)
    assert len(looked) == 2
    left, top = record['face/crop_left'], record['face/crop_top']
    cut = np.s_[top:top + both.shape[0], left:left + both.shape[1]]
    drawn = draw_face(np.full((400, 500, 3), 255, np.uint8), 250, 180, 90)
    head = (drawn != 255).any(2)
    assert overlap((alone != 255).any(2), head) > .9
    assert overlap((both != 255).any(2), head[cut]) > .9


def test_denoise():
    picture = np.full((40, 40, 3), 100, np.uint8)
    picture[10, 10], picture[20, 20] = 255, 0
    for method, bright, dark in (('median', 100, 100), ('open', 100, 0), ('close', 255, 100)):
        smooth, record = run(picture, {'kind': 'denoise', 'method': method, 'size': 4})
        assert smooth[10, 10, 0] == bright and smooth[20, 20, 0] == dark
        assert record['denoise/change'] > 0
    assert 100 < run(picture, {'kind': 'denoise', 'method': 'gaussian'})[0][10, 11, 0] < 130


@pytest.mark.parametrize('shape', [(1, 1), (1, 50), (3, 2), (9, 400), (5000, 3)])
def test_odd_sizes(shape):
    picture = texture(np.random.default_rng(1), *shape, (120, 120, 120), 60)
    for start in ('border', 'face'):
        for fill in background.FILLS:
            out, record = run(picture, {'kind': 'face', 'fallback': 'center'},
                              {'kind': 'background', 'start': start, 'fill': fill, 'size': 64},
                              'denoise', 'denoise')
            assert out.dtype == np.uint8 and min(out.shape) >= 1
            assert {'denoise/change', 'denoise_2/change'} < set(record)


class FakeYuNet:
    """Finds a face where the picture is brightest."""

    def setInputSize(self, size):
        self.size = size

    def setScoreThreshold(self, score):
        self.score = score

    def detect(self, image):
        assert image.shape[1::-1] == self.size and image[..., 0].max() > 200  # blue first
        y, x = np.nonzero(image[..., 0] > 200)
        found = np.zeros((2, 15), np.float32)
        found[:, :4] = x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1
        found[:, -1] = .9
        found[1, 2:4] = 2  # too small
        return 1, found if self.score <= .9 else None


def test_yunet_boxes_are_in_pixels_of_the_picture(monkeypatch, tmp_path):
    path = tmp_path / 'face.onnx'
    path.write_bytes(b'weights')
    monkeypatch.setattr(faces, '_local', types.SimpleNamespace())
    monkeypatch.setattr(cv2, 'FaceDetectorYN', types.SimpleNamespace(
        create=lambda file, config, size: FakeYuNet() if file == str(path) else None))
    picture = np.zeros((900, 1200, 3), np.uint8)
    picture[300:700, 500:800, 2] = 255
    boxes, scores = faces.find_faces(picture, str(path))
    np.testing.assert_allclose(boxes, [[500, 300, 300, 400]], atol=4)
    assert scores == pytest.approx([.9])
    assert not len(faces.find_faces(picture, str(path), least=.95)[0])


def test_rembg_is_asked_for_its_mask(monkeypatch):
    def remove(image, *, session, only_mask):
        assert session == 'session of isnet' and only_mask
        return np.where(image[..., 0] > 128, 255, 0).astype(np.uint8)
    monkeypatch.setitem(sys.modules, 'rembg', types.SimpleNamespace(
        remove=remove, new_session=lambda name: f'session of {name}'))
    background._load_rembg.cache_clear()
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[5:15, 5:20] = (200, 100, 50)
    step = {'kind': 'background', 'backend': 'rembg', 'model': 'isnet'}
    out, record = run(picture, step)
    np.testing.assert_array_equal((out == 255).all(2), picture[..., 0] == 0)
    assert record['background/foreground'] == .25
    monkeypatch.setitem(sys.modules, 'rembg', None)
    background._load_rembg.cache_clear()
    with pytest.raises(DataError, match=r'rembg.*not installed'):
        describe(make_steps([step]))


def test_mistakes_are_one_sentence(tmp_path, monkeypatch):
    for spec, words in (
            ('faces', r"pack.preprocess\[0\].*'faces'.*'face'"), ({'size': 3}, 'None'),
            ({'kind': 'face', 'margins': 1}, "did you mean 'margin'"),
            ({'kind': 'face', 'margin': -1}, 'margin=-1.*from 0 to 10'),
            ({'kind': 'face', 'square': 1}, 'True or False'),
            ({'kind': 'face', 'detector': 3}, 'detector=3: give a text'),
            ({'kind': 'background', 'fill': 'red'}, "fill='red': use one of white"),
            ({'kind': 'background', 'size': 99.5}, 'whole number')):
        with pytest.raises(DataError, match=words):
            make_steps([spec])
    (tmp_path / 'a.xml').write_text('<opencv_storage><cascade/></opencv_storage>')
    (tmp_path / 'b.xml').write_text('no cascade')
    (tmp_path / 'c.onnx').write_bytes(b'no network')
    (tmp_path / 'd.xml').write_bytes(b'\xff\xfe')
    monkeypatch.setitem(sys.modules, 'skimage.data', None)
    for detector, words in (
            ('yunet', "'yunet' is unknown.*onnx"), ('x.xml', "'x.xml' is not a file"),
            ('lbp', 'scikit-image'), *((str(tmp_path / name), f'{name}.*cannot be loaded')
                                       for name in ('a.xml', 'b.xml', 'c.onnx', 'd.xml'))):
        with pytest.raises(DataError, match=words) as caught:
            describe(make_steps([{'kind': 'face', 'detector': detector}]))
        assert '\n' not in str(caught.value)


def test_a_description_differs_where_the_pictures_could(tmp_path):
    path = tmp_path / 'a.xml'
    text = Path(faces.detector_file('haar')).read_text(encoding='utf-8')
    seen = []
    for step in ({}, {'margin': .4}, {'detector': str(path)}, {'detector': str(path)}):
        path.write_text(text + '\n' * len(seen))
        seen.append(describe(make_steps([{'kind': 'face'} | step])))
    assert all(a != b for k, a in enumerate(seen) for b in seen[:k])
    assert describe(make_steps(['face'])) == seen[0]
    assert set(seen[0][0]) > set(PREPROCESSORS['face'].defaults)


def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    pictures = [draw_face(texture(rng, 120, 150, (120, 120, 120), 60), 75, 60, 40 + k)
                for k in range(6)]
    steps = make_steps([{'kind': 'background', 'iterations': 1}, 'face'])
    alone = [apply(steps, picture) for picture in pictures]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: apply(steps, picture), pictures * 2))
    for (a, record), (b, other) in zip(alone * 2, together):
        np.testing.assert_array_equal(a, b)
        assert record == other


@pytest.fixture
def portraits():
    """(manifest of eleven pictures, how to read them); those of the class 'yes' have a face."""
    pictures = {}
    for k in range(11):
        picture = texture(np.random.default_rng(k), 100, 120, (90, 130, 90), 20)
        pictures[f'{k:02d}.png'] = encode(
            draw_face(picture, 60, 50, 36 + k) if k % 3 else picture, 'lossless')
    manifest = make_manifest(
        {'id': [f'p{k}' for k in range(11)], 'location': list(pictures),
         'label/face': [int(k % 3 > 0) for k in range(11)]}, {'face': ('no', 'yes')}, 'nowhere')
    return manifest, lambda root, location: pictures[location]


STEPS = ({'kind': 'face', 'margin': .1}, 'denoise')


def test_packed_pictures_and_their_records(portraits, tmp_path):
    manifest, read = portraits
    options = dict(quality='lossless', preprocess=STEPS, shard_records=4)
    told = []
    packed = packing.pack(manifest, read, str(tmp_path / 'p'), PackSpec(**options),
                          progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (11, 11) and told == sorted(told)
    assert sorted(os.listdir(packed.root)) == [
        *(f'images-{k:05d}.array_record' for k in range(3)),
        'index.json', 'manifest.parquet', 'preprocessing.csv']
    records = array_records.load_records(packed.root)
    assert records['id'].tolist() == manifest.table['id'].tolist()
    assert records['face/found'].tolist() == [k % 3 > 0 for k in range(11)]
    image = read_image(packed.root, packed.table['location'][7])
    full = cv2.imdecode(np.frombuffer(read('', '07.png'), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(image, run(full, *STEPS)[0])
    shares = fallback_by_class(packed, records, 'face')
    assert shares['face'].to_dict() == {'no': 1, 'yes': 0} and list(shares) == ['face']

    spec = PackSpec(size=100, side='shortest', quality='lossless', preprocess=['face'])
    small = packing.pack(manifest, read, str(tmp_path / 's'), spec)
    steps = make_steps(['face'])
    same = [packing._repack(read('', name), name, spec, steps, FULL)[0] == read('', name)
            for name in manifest.table['location']]
    assert same == [k % 3 == 0 for k in range(11)]  # without a face the file is unchanged
    assert len(small) == 11


def test_packing_continues_only_with_the_same_steps(portraits, tmp_path):
    manifest, read = portraits
    options = dict(quality='lossless', shard_records=4)
    whole = packing.pack(manifest, read, str(tmp_path / 'w'), PackSpec(preprocess=STEPS, **options))

    def broken(root, location):
        if location == '09.png':
            raise KeyboardInterrupt
        return read(root, location)
    folder = tmp_path / 'p'
    with pytest.raises(KeyboardInterrupt):
        packing.pack(manifest, broken, str(folder), PackSpec(preprocess=STEPS, **options))
    with pytest.raises(DataError, match='another preprocess'):
        packing.pack(manifest, read, str(folder), PackSpec(preprocess=['face'], **options))
    asked = []

    def noted(root, location):
        asked.append(location)
        return read(root, location)

    def content():
        return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}
    packing.pack(manifest, noted, str(folder), PackSpec(preprocess=STEPS, **options))
    assert sorted(asked) == ['08.png', '09.png', '10.png']
    first = content()
    assert first['preprocessing.csv'] == (tmp_path / 'w/preprocessing.csv').read_bytes()
    assert list(first) == sorted(os.listdir(whole.root))

    asked.clear()
    (folder / 'images-00001.array_record').unlink()
    packing.pack(manifest, noted, str(folder), PackSpec(preprocess=STEPS, **options))
    assert len(asked) == 4 and content() == first
    (folder / 'preprocessing.csv').write_text('id\n')
    with pytest.raises(DataError, match=r'preprocessing\.csv'):
        array_records.verify(str(folder))
    with pytest.raises(DataError, match=r'preprocessing\.csv'):
        array_records.load_records(str(folder))
    packing.pack(manifest, read, str(folder), PackSpec(preprocess=STEPS, **options))
    array_records.verify(str(folder))
    assert content() == first
    with pytest.raises(DataError, match=r'pack\.quality'):
        packing.pack(manifest, read, str(tmp_path / 'n'), PackSpec(preprocess=STEPS))
