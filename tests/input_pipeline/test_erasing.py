"""What is erased: how much, where, and with what."""

import numpy as np
import pytest

from input_pipeline import erasing

SIZE = (60, 90)
IMAGE = np.full((*SIZE, 3), 77, np.uint8)


def covered(kind, seed, **params):
    step = erasing.KINDS[kind][0](np.random.default_rng(seed), SIZE, fill='black', **params)
    after = step(IMAGE)
    assert (IMAGE == 77).all()
    return (after == 0).all(-1)


def test_random_erasing_covers_one_box_of_the_wanted_area_and_shape():
    areas = []
    for seed in range(200):
        mask = covered('random_erasing', seed, scale=(0.05, 0.2), ratio=(0.5, 2))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.ix_(rows, columns)
        assert mask[box].all() and mask.sum() == mask[box].size
        assert 0.45 < len(rows) / len(columns) < 2.2
        areas.append(mask.mean())
    assert 0.045 < min(areas) < 0.07 and 0.18 < max(areas) < 0.21


def test_cutout_is_a_square_whose_centre_lies_in_the_picture():
    sizes = {covered('cutout', seed, share=0.5).sum() for seed in range(100)}
    assert max(sizes) == 30 * 30 and 15 * 15 <= min(sizes) < 20 * 20


def test_coarse_dropout_covers_several_boxes():
    masks = [covered('coarse_dropout', seed, count=(3, 6), share=(0.1, 0.1))
             for seed in range(50)]
    assert max(mask.sum() for mask in masks) <= 6 * 6 * 9
    assert min(mask.sum() for mask in masks) > 6 * 9


@pytest.mark.parametrize('keep', [0.3, 0.5, 0.8])
def test_grid_mask_repeats_and_keeps_its_share(keep):
    masks = [covered('grid_mask', seed, period=(0.25, 0.25), keep=keep) for seed in range(30)]
    assert np.mean(masks) == pytest.approx((1 - keep) ** 2, rel=0.2)
    for mask in masks:
        np.testing.assert_array_equal(mask[:-15], mask[15:])
        np.testing.assert_array_equal(mask[:, :-15], mask[:, 15:])


def test_fills():
    image = IMAGE.copy()
    image[:, :45] = 11
    values = {}
    for fill in erasing.FILLS:
        step = erasing.KINDS['cutout'][0](np.random.default_rng(0), SIZE, share=0.3, fill=fill)
        after = step(image)
        np.testing.assert_array_equal(after, step(image))
        values[fill] = after[(after != image).any(-1)]
    assert (values['white'] == 255).all() and (values['grey'] == 128).all()
    assert (values['mean'] == 44).all()
    assert values['noise'].std() > 60
