"""Pictures of one channel: what becomes grey, and what transforms do to it."""

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from input_pipeline import contact_sheet, curriculum, loader, pictures, transforms
from input_pipeline.color import IN_COLOR
from input_pipeline.curriculum import make_stages
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import INTERPOLATIONS, MODES, resize
from input_pipeline.sources import digits

PHOTO = np.ascontiguousarray(load_sample_image('china.jpg')[:300, :420])
GREY = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY)
SIZE = (40, 56)
SPEC = dict(size=SIZE, mean=(0.5,), std=(0.5,))


@pytest.fixture(scope='module', params=['.png', '.jpg'])
def photo(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('photo')
    cv2.imwrite(str(folder / f'a{request.param}'), PHOTO[..., ::-1])
    return make_manifest({'id': ['a'], 'location': [f'a{request.param}'], 'label/class': [0]},
                         {'class': ('x',)}, str(folder))


def stages_of(*specs, channels=1):
    return make_stages([{'transforms': specs}], None, channels)


def test_grey_is_the_luma():
    assert (pictures.grey(PHOTO) == GREY).all()
    assert np.abs(np.asarray(Image.fromarray(PHOTO).convert('L')).astype(int) - GREY).max() <= 1
    levels = np.arange(256, dtype=np.uint8)
    assert (pictures.grey(np.repeat(levels[None, :, None], 3, 2)) == levels).all()


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
@pytest.mark.parametrize('mode', MODES)
def test_evaluation_sees_one_channel(photo, mode, interpolation):
    spec = PreprocessSpec(**SPEC, resize=mode, interpolation=interpolation)
    assert spec.channels == 1
    batch, = loader.eval_dataset(photo, spec, batch_size=1)()
    assert batch['image'].shape == (1, *SIZE, 1) and batch['image'].dtype == np.uint8
    want = resize(GREY, SIZE, mode, interpolation=interpolation)
    assert np.abs(batch['image'][0, ..., 0].astype(int) - want).mean() < 4  # JPEG


@pytest.mark.parametrize('cache_mb', [0, 1])
@pytest.mark.parametrize('specs', [
    (), ('rotate', 'contrast'), ({'kind': 'center_crop', 'share': 0.5}, 'equalize')])
def test_a_stage_shows_the_luma_of_what_it_would_show_in_colour(photo, cache_mb, specs):
    stage, = stages_of(*specs)
    one, three = (pictures.Pictures(photo, PreprocessSpec(**options), cache_mb)
                  for options in (SPEC, dict(size=SIZE)))
    for exact in (False, True, False):
        shown, colour = (found.augmented(0, stage, np.random.default_rng(3), exact)
                         for found in (one, three))
        assert shown.shape == (*SIZE, 1) and colour.shape == (*SIZE, 3)
        if 'equalize' not in specs:  # it works on each colour
            assert np.abs(shown[..., 0].astype(int) - pictures.grey(colour)).max() <= 3
    assert one.blank().shape == (*SIZE, 1)


@pytest.mark.parametrize('kind', sorted(set(transforms.TRANSFORMS) - set(IN_COLOR)))
def test_a_transform_does_to_grey_what_it_does_to_three_equal_channels(kind):
    stage, = stages_of({'kind': kind, 'p': 1})
    for seed in range(12 if 'augment' in kind else 3):
        one, three = (transforms.apply(transforms.draw(stage.transforms, np.random.default_rng(
            seed), SIZE, picture.shape[:2]), picture, SIZE)
            for picture in (GREY, np.repeat(GREY[..., None], 3, 2)))
        assert one.shape == SIZE and one.dtype == np.uint8
        if kind in ('gaussian_noise', 'random_erasing'):  # other random numbers
            assert abs(one.mean() - three.mean()) < 5
        else:  # CLAHE works on L of Lab, and JPEG has its own luma
            assert np.abs(one.astype(int) - three[..., 0]).max() <= (
                {'clahe': 40, 'jpeg': 8}.get(kind, 1))


@pytest.mark.parametrize('kind', IN_COLOR)
def test_transforms_of_colours_are_refused(kind):
    with pytest.raises(DataError, match=rf'curriculum\[0\]\.transforms\[1\]: {kind} works on col'):
        stages_of('rotate', kind)
    assert stages_of('rotate', kind, channels=3)


def test_the_saturation_of_policies_is_said(caplog):
    with caplog.at_level('INFO', logger=curriculum._log.name):
        stages_of('rand_augment')
    assert 'rand_augment: saturation does nothing' in caplog.text
    assert max(map(len, caplog.messages)) <= 80


def test_training_batches_and_the_sheet_of_stages():
    stages = stages_of('rotate', 'brightness', 'random_erasing')
    manifest, spec = digits.load().select(np.arange(20)), PreprocessSpec(**SPEC)
    batches = []
    for threads, cache_mb in ((1, 0), (2, 1)):
        iterator = loader.train_iterator(
            manifest, spec, loader.Course(stages=stages, steps=2, seed=0), batch_size=4,
            loading=loader.LoaderSpec(threads=threads, cache_mb=cache_mb))
        batches.append(np.stack([batch['image'] for batch in iterator]))
        iterator.close()
    assert batches[0].shape == (2, 4, *SIZE, 1)
    np.testing.assert_array_equal(*batches)
    sheet = contact_sheet.contact_sheet([GREY, GREY], contact_sheet.stage_rows(stages), SIZE)
    assert sheet.ndim == 3 and len(np.unique(sheet)) > 50
