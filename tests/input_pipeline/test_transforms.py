"""Checking, drawing and applying a stage's transforms."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from input_pipeline import contact_sheet, transforms
from input_pipeline.curriculum import Stage
from input_pipeline.errors import DataError
from input_pipeline.loader import example_rng

PHOTO = load_sample_image('china.jpg')
SIZE = (48, 64)


def made(*specs):
    return tuple(transforms.make_transform(spec, 'stage') for spec in specs)


def shown(stage, seed=0, picture=PHOTO):
    plan = transforms.draw(stage, np.random.default_rng(seed), SIZE, picture.shape[:2])
    return transforms.apply(plan, picture, SIZE)


@pytest.mark.parametrize('kind', transforms.TRANSFORMS)
def test_every_kind_is_a_pure_function_of_the_generator(kind):
    stage = made({'kind': kind, 'p': 1})
    before = PHOTO.copy()
    pictures = [shown(stage, seed) for seed in (0, 0, 1, 2, 3)]
    assert pictures[0].shape == (*SIZE, 3) and pictures[0].dtype == np.uint8
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(PHOTO, before)
    plain = shown(())
    assert any((picture != plain).any() for picture in pictures)


@pytest.mark.parametrize('kind', ['rotate', 'brightness', 'jpeg', 'cutout', 'rand_augment'])
def test_p_is_the_probability(kind):
    stage = made({'kind': kind, 'p': 0.3})
    used = 0
    for seed in range(1000):
        plan = transforms.draw(stage, np.random.default_rng(seed), SIZE)
        used += bool(plan.geometry or plan.color or plan.filter or plan.erasing)
    assert used / 1000 == pytest.approx(0.3 * (1 - (kind == 'rand_augment') / 14**2), abs=0.05)


def test_groups_are_applied_in_order_and_keep_the_order_within():
    plan = transforms.draw(made(
        {'kind': 'cutout', 'p': 1, 'fill': 'black'}, {'kind': 'open', 'p': 1},
        {'kind': 'invert', 'p': 1}, {'kind': 'gaussian_blur', 'p': 1, 'sigma': 2},
        {'kind': 'posterize', 'p': 1}, 'rotate', 'elastic'), np.random.default_rng(0), SIZE)
    assert [type(item).__name__ for item in plan.geometry] == ['Projective', 'Elastic']
    assert plan.color[0][0, 0] == 255 and plan.color[1][0, 255] == 240
    assert 'morphed' in str(plan.filter[0]) and 'blur' in str(plan.filter[1])
    # The hole is neither inverted nor blurred.
    erased = transforms.apply(plan, np.full((*SIZE, 3), 200, np.uint8), SIZE)
    assert set(np.unique(erased)) == {0, 48}


def test_one_transform_more_leaves_the_draws_before_it_alone():
    first = made({'kind': 'rotate', 'p': 0.5}, {'kind': 'shift', 'p': 1})
    more = (*first, *made('gaussian_noise', 'elastic', 'random_erasing'))
    for seed in range(10):
        few, many = (transforms.draw(stage, example_rng(0, 0, seed), SIZE)
                     for stage in (first, more))
        for a, b in zip(few.geometry, many.geometry):
            np.testing.assert_array_equal(a.matrix, b.matrix)


def test_source_size_is_what_a_crop_needs():
    crop = made({'kind': 'center_crop', 'share': 0.25})
    plan = transforms.draw(crop, np.random.default_rng(0), SIZE)
    assert transforms.source_size(plan, SIZE) == (192, 256)
    assert transforms.source_size(transforms.Plan(), SIZE) == SIZE


@pytest.mark.parametrize('spec, words', [
    ({'kind': 'rotat'}, ['rotat', 'rotate']),
    ({'kind': 'gaussian_blurr'}, ['gaussian_blur']),
    ({'kind': 'random_resized_crop', 'scales': 1}, ['scales', 'scale']),
    ({'kind': 'random_resized_crop', 'scale': (0.9, 0.2)}, ['(0.9, 0.2)', 'least, most']),
    ({'kind': 'random_resized_crop', 'scale': (0.1, 2)}, ['(0.1, 2)', '0.001 to 1']),
    ({'kind': 'random_resized_crop', 'scale': (0.1, 0.2, 0.3)}, ['pair']),
    ({'kind': 'rotate', 'degrees': (1, 2)}, ['(1, 2)', '0 to 180']),
    ({'kind': 'rotate', 'degrees': True}, ['True']),
    ({'kind': 'grid_distortion', 'steps': 2.5}, ['2.5', 'whole']),
    ({'kind': 'jpeg', 'quality': '70'}, ["'70'", '1 to 100']),
    ({'kind': 'cutout', 'fill': 'green'}, ['green', 'noise', 'white']),
    ({'kind': 'cutout', 'fill': 3}, ['3', 'black']),
    ({'kind': 'elastic', 'unit': 'share'}, ['alpha=30.0', '0 to 0.2']),
    ({'kind': 'elastic', 'unit': 'share', 'alpha': 0.01}, ['sigma=4.0', '0 to 0.5']),
    ({'kind': 'elastic', 'sigma': 0.02}, ['sigma=0.02', "unit='share'"]),
    ({'kind': 'elastic', 'unit': 'mm'}, ['mm', 'pixels, share']),
])
def test_a_bad_transform_is_reported(spec, words):
    with pytest.raises(DataError) as error:
        transforms.make_transform(spec, 'config.curriculum[0].transforms[1]')
    for word in ['config.curriculum[0].transforms[1]', spec['kind'], *words]:
        assert word in str(error.value)


@pytest.mark.parametrize('spec', [('hflip',), 5, None, [('kind', 'hflip')]])
def test_what_is_not_a_transform_is_named(spec):
    with pytest.raises(DataError, match=r'transforms\[1\] = .* is not a valid transform'):
        transforms.make_transform(spec, 'config.curriculum[0].transforms[1]')


@pytest.mark.parametrize('kind', [['hflip'], 3, {}])
def test_a_kind_that_is_not_a_word_is_named(kind):
    with pytest.raises(DataError, match='there is no transform'):
        transforms.make_transform({'kind': kind}, 'config.curriculum[0].transforms[1]')


def test_one_number_stands_for_a_pair_and_lists_for_tuples():
    assert made({'kind': 'jpeg', 'quality': 70})[0].params == {'quality': (70, 70)}
    assert made({'kind': 'zoom', 'factor': [1, 1.5]})[0].params == {'factor': (1, 1.5)}


def test_a_contact_sheet_shows_every_stage():
    stages = (Stage(0, ()), Stage(9, made({'kind': 'invert', 'p': 1})))
    sheet = contact_sheet.contact_sheet([PHOTO, PHOTO[:, ::-1]],
                                        contact_sheet.stage_rows(stages), SIZE)
    top = [sheet[20 + i * 68:68 + i * 68, 4:68] for i in (0, 1)]
    np.testing.assert_array_equal(top[0], shown(()))
    np.testing.assert_array_equal(top[1], 255 - shown(()))
