"""What evaluation and the stages of training see, and what is kept in memory."""

import pickle

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from input_pipeline import loader, pictures, pull_maps, transforms, warp
from input_pipeline.curriculum import Stage, make_stages
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec

PHOTO = np.ascontiguousarray(load_sample_image('china.jpg')[:399, :501])
TURN = [{'kind': 'rotate', 'degrees': 15}]
BEND = [*TURN, 'elastic', 'grid_distortion']
SIZE = (224, 224)  # the file's sides are 2.24 and 1.78 times as long


@pytest.fixture(scope='module', params=['.jpg', '.png'])
def photo(request, tmp_path_factory):
    return manifest_of(tmp_path_factory.mktemp('photo'), PHOTO, request.param)


def manifest_of(folder, image, ending, count=1):
    names = [f'{number}{ending}' for number in range(count)]
    for name in names:
        cv2.imwrite(str(folder / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    return make_manifest({'id': names, 'location': names, 'label/class': [0] * count},
                         {'class': ('x',)}, str(folder))


def stage_of(specs) -> Stage:
    return make_stages([{'transforms': specs}], None)[0]


def rng(row=0):
    return loader.example_rng(0, 0, row)


def averaged(stage: Stage, parts: int = 4) -> np.ndarray:
    """What a stage shows, with each pixel the mean of many samples of the whole picture."""
    at = (np.arange(224 * parts) + 0.5) / parts - 0.5
    x, y = (grid.ravel() for grid in np.meshgrid(at, at))
    x, y = pull_maps.pull(transforms.draw(stage.transforms, rng(), SIZE).geometry, x, y)
    x, y = (((at + 0.5) * side / 224 - 0.5).reshape(224 * parts, -1).astype(np.float32)
            for at, side in ((x, PHOTO.shape[1]), (y, PHOTO.shape[0])))
    many = cv2.remap(PHOTO, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return many.reshape(224, parts, 224, parts, 3).mean((1, 3))


@pytest.mark.parametrize('specs', [TURN, BEND])
def test_one_interpolation_is_as_near_to_the_file_as_two_and_sharper(photo, specs):
    stage = stage_of(specs)
    want = averaged(stage)
    reduced, full = (pictures.Pictures(photo, PreprocessSpec(size=224, reduced_decode=flag))
                     for flag in (True, False))
    twice = reduced.augmented(0, stage, rng(), exact=True)
    for once in (found.augmented(0, stage, rng()) for found in (reduced, full)):
        assert np.abs(once - want).mean() < 1.03 * np.abs(twice - want).mean()
        assert cv2.Laplacian(once, cv2.CV_64F).var() > 1.3 * cv2.Laplacian(twice, cv2.CV_64F).var()


@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize('specs, taken', [
    ([{'kind': 'vflip', 'p': 1}], True), (TURN, True), (BEND, True),
    (['random_resized_crop'], True), ([*TURN, {'kind': 'invert', 'p': 1}], False), ([], False)])
def test_a_picture_is_the_same_in_a_place_of_the_callers(photo, specs, taken, channels):
    spec = PreprocessSpec(size=224, mean=(0.5,) * channels, std=(0.5,) * channels)
    found, batch = pictures.Pictures(photo, spec), np.zeros((2, 224, 224, channels), np.uint8)
    view, place = found.draw(0, stage_of(specs), rng()), batch[1]
    shown = found.show(view, place)
    assert (shown is place) == taken and not batch[0].any()
    np.testing.assert_array_equal(shown, found.show(view))


def test_views_of_an_evaluation_are_of_its_own_pixels(photo):
    found, mirror = pictures.Pictures(photo, PreprocessSpec(size=224)), stage_of(
        [{'kind': 'hflip', 'p': 1}])
    np.testing.assert_array_equal(found.augmented(0, mirror, rng(), exact=True),
                                  found[0][:, ::-1])
    batch, = loader.eval_dataset(photo, PreprocessSpec(size=224), batch_size=1, view=mirror)()
    np.testing.assert_array_equal(batch['image'][0], found[0][:, ::-1])


@pytest.mark.parametrize('spec', [
    PreprocessSpec(size=512), PreprocessSpec(size=64, resize='pad'),
    PreprocessSpec(size=64, resize='crop'), PreprocessSpec(size=64, interpolation='bicubic'),
    PreprocessSpec(size=64, crop_pct=0.9)])
def test_what_is_enlarged_or_framed_is_resized_first(photo, spec):
    found = pictures.Pictures(photo, spec)
    np.testing.assert_array_equal(
        found.augmented(0, stage_of([{'kind': 'vflip', 'p': 1}]), rng()), found[0][::-1])


def test_caches_change_no_pixel_and_keep_their_limit(tmp_path):
    manifest = manifest_of(tmp_path, PHOTO, '.jpg', count=4)
    spec = PreprocessSpec(size=224)
    stages = [stage_of([]), stage_of(BEND), stage_of(['random_resized_crop']), stage_of(BEND)]
    plain, *cached = (pictures.Pictures(manifest, spec, mb) for mb in (0, 0.5, 1, 100))
    for stage in stages * 2:
        want = [plain.augmented(row, stage, rng(row)) for row in range(4)]
        for found in cached:
            np.testing.assert_array_equal(
                want, [found.augmented(row, stage, rng(row)) for row in range(4)])
    for found, mb in zip(cached, (0.5, 1, 100)):
        kept = [one for rows in found._cache._kept.values() for one in rows.values()]
        assert sum(one.nbytes for one in kept) == found._cache._bytes <= mb * 2**20
    # Not all four fit: nothing is kept. They fit, but not together with those of the last stage.
    assert [sorted(found._cache._kept) for found in cached] == [
        [], ['unresized'], ['resized', 'unresized', 'whole'][:2]]
    assert len(cached[1]._cache._kept['unresized']) == 4
    assert pickle.loads(pickle.dumps(cached[2]))._cache._bytes == 0


@pytest.mark.parametrize('shape, halves', [((447, 449), (447, 225)), ((2001, 460), (251, 230)),
                                           ((100, 100), (100, 100))])
def test_halving_stops_before_the_wanted_size(shape, halves):
    ramp = np.repeat(np.linspace(0, 255, shape[1])[None, :, None], shape[0], 0)
    image = np.repeat(np.rint(ramp).astype(np.uint8), 3, 2)
    halved, part = warp.halved(image, SIZE)
    assert halved.shape[:2] == halves
    scale = [round(side / half) for side, half in zip(shape, halves)]
    np.testing.assert_allclose(part, [side / (half * n) for side, half, n in zip(
        shape, halves, scale)])
    means = image[:shape[0] // scale[0] * scale[0], :shape[1] // scale[1] * scale[1]].reshape(
        shape[0] // scale[0], scale[0], -1, scale[1], 3).mean((1, 3))
    assert np.abs(halved[:means.shape[0], :means.shape[1]] - means).max() <= 1
