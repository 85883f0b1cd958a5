"""Pictures of a rectangular input, (height, width): what evaluation, stages and packs give."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from input_pipeline import loader, packing, pictures, pull_maps, sources, transforms
from input_pipeline.curriculum import make_stages
from input_pipeline.decode import decode
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import INTERPOLATIONS, MODES, resize

PHOTO = np.ascontiguousarray(load_sample_image('china.jpg')[:400, :500])
SIZE = (48, 80)
CROPS = ('crop', 'center_crop', 'random_crop', 'random_resized_crop')


@pytest.fixture(scope='module', params=['.jpg', '.png'])
def photo(request, tmp_path_factory):
    return manifest_of(tmp_path_factory.mktemp('photo'), request.param)


def manifest_of(folder, ending, count=1):
    names = [f'{number}{ending}' for number in range(count)]
    for name in names:
        cv2.imwrite(str(folder / name), PHOTO[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    return make_manifest({'id': names, 'location': names, 'label/class': [0] * count},
                         {'class': ('x',)}, str(folder))


def stage_of(*specs):
    return make_stages([{'transforms': specs}], None)[0]


def apart(a, b) -> float:
    """Mean difference in grey levels."""
    return np.abs(a.astype(int) - b.astype(int)).mean()


def test_a_side_is_a_square_and_stays_a_number():
    assert PreprocessSpec(size=64).frame == (64, 64) and PreprocessSpec(size=SIZE).frame == SIZE
    assert PreprocessSpec(size=[48, 80]).frame == SIZE  # as JSON has it
    assert dataclasses.asdict(PreprocessSpec(size=64))['size'] == 64


@pytest.mark.parametrize('crop_pct', [1.0, 0.9])
@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
@pytest.mark.parametrize('mode', MODES)
def test_evaluation_sees_the_picture_resized_to_the_rectangle(photo, mode, interpolation, crop_pct):
    spec = PreprocessSpec(size=SIZE, resize=mode, interpolation=interpolation, crop_pct=crop_pct)
    batch, = loader.eval_dataset(photo, spec, batch_size=2)()
    assert batch['image'].shape == (2, *SIZE, 3)
    whole = decode(sources.read_bytes(photo.root, photo.table['location'][0]), name='')
    want = resize(whole, SIZE, mode, interpolation=interpolation, crop_pct=crop_pct)
    # JPEGs are decoded at a half.
    assert apart(batch['image'][0], want) <= (2 if interpolation == 'area' else 0)


@pytest.mark.parametrize('shape', [(400, 500), (500, 400), (60, 300)])
def test_what_is_kept_of_the_aspect_ratio(shape):
    """A frame drawn 10 % from the border of the picture, and where it ends up."""
    high, wide = shape
    picture = np.zeros((*shape, 3), np.uint8)
    picture[high // 10:high - high // 10, wide // 10:wide - wide // 10] = 255
    for mode in MODES:
        light = resize(picture, SIZE, mode)[..., 0] > 127
        rows, columns = (np.flatnonzero(light.any(axis)) for axis in (1, 0))
        found = len(rows), len(columns)
        if mode == 'squash':
            want = 0.8 * SIZE[0], 0.8 * SIZE[1]
        else:
            scale = (min if mode == 'pad' else max)(SIZE[0] / high, SIZE[1] / wide)
            want = min(0.8 * high * scale, SIZE[0]), min(0.8 * wide * scale, SIZE[1])
        assert found == pytest.approx(want, abs=2), mode


@pytest.mark.parametrize('resize_mode', MODES)
@pytest.mark.parametrize('side', [SIZE, (80, 48), (16, 160)])
def test_a_crop_is_cut_from_the_file_and_not_from_the_small_picture(photo, resize_mode, side):
    """The middle of a picture at twice the size, in each mode."""
    spec = PreprocessSpec(size=side, resize=resize_mode)
    found = pictures.Pictures(photo, spec).augmented(
        0, stage_of({'kind': 'center_crop', 'share': 0.5}), np.random.default_rng(0))
    twice = resize(PHOTO, (2 * side[0], 2 * side[1]), resize_mode)
    top, left = side[0] // 2, side[1] // 2
    want = twice[top:top + side[0], left:left + side[1]]
    blurred = cv2.resize(resize(PHOTO, side, resize_mode)[
        side[0] // 4:side[0] // 4 + side[0] // 2, side[1] // 4:side[1] // 4 + side[1] // 2],
        side[::-1])
    assert found.shape == (*side, 3)
    assert apart(found, want) < min(6, 0.6 * apart(blurred, want))


@pytest.mark.parametrize('kind', sorted(transforms.TRANSFORMS))
def test_every_transform_works_in_the_rectangle(photo, kind):
    stage = stage_of({'kind': kind, 'p': 1})
    found = pictures.Pictures(photo, PreprocessSpec(size=SIZE))
    for seed in range(2):
        shown = [found.augmented(0, stage, np.random.default_rng(seed), exact)
                 for exact in (False, True)]
        assert {picture.shape for picture in shown} == {(*SIZE, 3)}
        # The same draw twice; the file has more detail than the resized picture.
        if kind not in ('gaussian_noise', *CROPS):
            assert apart(*shown) < 12


def test_units_are_those_of_the_manual():
    """Shares of each side, pixels and angles of the input; squares of the shorter side."""
    height, width = SIZE
    rng = np.random.default_rng(0)

    def draw(kind, **options):
        return transforms.TRANSFORMS[kind].draw(rng, SIZE, **options)

    moved = np.array([draw('shift', share=0.1).pull(np.zeros(1), np.zeros(1))
                      for _ in range(300)])[..., 0]
    assert np.abs(moved).max(0) == pytest.approx((0.1 * width, 0.1 * height), rel=0.05)
    # A right angle of two legs of 10 px stays one.
    x, y = draw('rotate', degrees=60).pull(np.array([0.0, 10.0, 0.0]), np.array([0.0, 0.0, 10.0]))
    assert np.hypot(x[1:] - x[0], y[1:] - y[0]) == pytest.approx(10)
    assert (x[1] - x[0]) * (x[2] - x[0]) == pytest.approx(-(y[1] - y[0]) * (y[2] - y[0]))
    bends = np.stack([np.subtract(pull_maps.dense_map([draw('elastic', alpha=30, sigma=4)], SIZE),
                                  np.meshgrid(np.arange(width), np.arange(height)))
                      for _ in range(30)])
    assert bends.std((0, 2, 3)) == pytest.approx(
        30 / math.sqrt(3) / (2 * math.sqrt(math.pi) * 4), rel=0.1)  # pixels, along x and y
    boxes = [draw('cutout', share=0.25, fill='white').keywords['boxes'][0] for _ in range(50)]
    assert max(bottom - top for top, bottom, _, _ in boxes) == 12  # of the shorter side
    assert max(right - left for _, _, left, right in boxes) == 12
    # The corners of the picture stay corners: a quarter turn stretches it to the frame.
    corners = {(x, y) for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)}
    for kind in ('transpose', *['rotate90'] * 4):
        pulled = draw(kind).pull(*np.transpose(sorted(corners)))
        assert {tuple(one) for one in np.transpose(pulled).round(9).tolist()} == corners


@pytest.mark.parametrize('specs', [(), ('rotate',), ({'kind': 'center_crop', 'share': 0.6},)])
def test_kept_pictures_change_no_pixel(photo, specs):
    spec, stage = PreprocessSpec(size=SIZE), stage_of(*specs)
    plain, *kept = (pictures.Pictures(photo, spec, mb) for mb in (0, 0.02, 10))
    for found in kept:
        for _ in range(2):
            np.testing.assert_array_equal(
                found.augmented(0, stage, np.random.default_rng(1)),
                plain.augmented(0, stage, np.random.default_rng(1)))


def test_the_memory_of_a_rectangle_is_counted(photo):
    fits = [pictures.Pictures(photo, PreprocessSpec(size=size), 48 * 80 * 3 / 2**20)
            for size in (SIZE, (49, 80), (80, 48))]
    for found in fits:
        found[0]
    assert [found[0] is found[0] for found in fits] == [True, False, True]


def test_training_batches_and_packs(tmp_path):
    source = manifest_of(tmp_path, '.png', 4)
    packed = packing.pack(source, sources.read_bytes, str(tmp_path / 'packed'),
                          packing.PackSpec(size=200, quality='lossless'))
    spec = PreprocessSpec(size=SIZE, resize='crop')
    course = loader.Course(stages=[stage_of('rotate', 'elastic')], steps=2, seed=0)
    for manifest in (source, packed):
        iterator = loader.train_iterator(manifest, spec, course, batch_size=3)
        assert [batch['image'].shape for batch in iterator] == [(3, *SIZE, 3)] * 2
        iterator.close()
    batch, = loader.eval_dataset(packed, spec, batch_size=4)()
    assert apart(batch['image'][0], resize(PHOTO, SIZE, 'crop')) < 4
