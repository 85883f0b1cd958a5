"""What the geometric transforms draw."""

import numpy as np
import pytest

from input_pipeline import geometry, pull_maps, transforms

SIZE = (64, 96)


def corners(item, size=SIZE):
    """Where the edges (not the centres) of the corner pixels lie: left, top, right, bottom."""
    x, y = item.pull(np.array([-0.5, size[1] - 0.5]), np.array([-0.5, size[0] - 0.5]))
    return x[0] + 0.5, y[0] + 0.5, x[1] + 0.5, y[1] + 0.5


def test_resized_crops_have_the_wanted_area_and_shape_in_pixels_of_the_source():
    source, rng = (300, 500), np.random.default_rng(0)
    draw = transforms.TRANSFORMS['random_resized_crop'].draw
    areas, shapes, tops = [], [], []
    for _ in range(500):
        left, top, right, bottom = corners(
            draw(rng, SIZE, scale=(0.2, 0.6), ratio=(0.5, 2), source=source))
        assert -1e-9 <= left < right <= SIZE[1] + 1e-9 and -1e-9 <= top < bottom <= SIZE[0] + 1e-9
        width, height = (right - left) * 500 / SIZE[1], (bottom - top) * 300 / SIZE[0]
        assert width == pytest.approx(round(width)) and height == pytest.approx(round(height))
        areas.append(width * height / 150_000)
        shapes.append(width / height)
        tops.append(top)
    assert 0.19 < min(areas) < 0.22 and 0.55 < max(areas) < 0.61
    assert 0.49 < min(shapes) < 0.6 and 1.8 < max(shapes) < 2.05
    assert min(tops) < 1 and np.median(np.log(shapes)) == pytest.approx(0, abs=0.15)


def test_a_crop_that_never_fits_is_the_largest_one_in_the_centre():
    draw = transforms.TRANSFORMS['random_resized_crop'].draw
    box = draw(np.random.default_rng(0), SIZE, scale=(1, 1), ratio=(1, 1), source=(100, 300))
    assert corners(box) == pytest.approx((SIZE[1] / 3, 0, SIZE[1] * 2 / 3, SIZE[0]))


def test_crops():
    rng = np.random.default_rng(0)
    kinds = transforms.TRANSFORMS
    assert corners(kinds['center_crop'].draw(rng, SIZE, share=0.5)) == pytest.approx(
        (24, 16, 72, 48))
    drawn = np.array([corners(kinds['random_crop'].draw(rng, SIZE, share=1, padding=4))
                      for _ in range(300)])
    np.testing.assert_allclose(drawn[:, 2:] - drawn[:, :2], np.tile((96, 64), (300, 1)))
    assert -4 <= drawn[:, :2].min() < -3.8 and 3.8 < drawn[:, :2].max() <= 4


def test_angles_and_lengths_have_their_units():
    x, y = geometry.rotation(90, (65, 65)).pull(np.array([32.0]), np.array([0.0]))
    assert (x[0], y[0]) == pytest.approx((64, 32))  # the right side moves to the top
    x, y = geometry.translation(3, -2, SIZE).pull(np.array([3.0]), np.array([-2.0]))
    assert (x[0], y[0]) == pytest.approx((0, 0))
    lens = pull_maps.Radial(0.2, SIZE)
    x, _ = lens.pull(np.array([95.0]), np.array([63.0]))
    assert x[0] == pytest.approx(47.5 + 47.5 * 1.2)


def test_perspective_moves_corners_inwards_by_at_most_half_the_distortion():
    rng = np.random.default_rng(0)
    moves = []
    for _ in range(200):
        item = transforms.TRANSFORMS['perspective'].draw(rng, SIZE, distortion=0.4)
        inverse = pull_maps.Projective(np.linalg.inv(item.matrix))
        x, y = inverse.pull(np.array([0.0, 95.0]), np.array([0.0, 63.0]))
        moves += [x[0] / 96, (95 - x[1]) / 96, y[0] / 64, (63 - y[1]) / 64]
    assert -1e-9 < min(moves) < 0.01 and 0.19 < max(moves) < 0.2 + 1e-9


def bend(size, seeds=6, **params):
    """Displacements of a side of `size` pixels, float [draws, 2, points]."""
    y, x = (axis.ravel() for axis in np.mgrid[:size, :size].astype(float))
    drawn = [transforms.TRANSFORMS['elastic'].draw(np.random.default_rng(seed), (size, size),
                                                   **params).pull(x, y) for seed in range(seeds)]
    return np.array([[one - x, two - y] for one, two in drawn])


def test_elastic_in_pixels_is_the_same_number_of_pixels_at_any_size():
    wanted = geometry.elastic_deviation(30, 4)
    assert wanted == pytest.approx(1.22, abs=0.002)
    for size in (112, 224):
        np.testing.assert_array_equal(bend(size, 1, alpha=30, sigma=4),
                                      bend(size, 1, alpha=30, sigma=4, unit='pixels'))
        assert bend(size, alpha=30, sigma=4, unit='pixels').std() == pytest.approx(wanted, rel=0.03)


def test_elastic_in_shares_bends_a_picture_alike_at_any_size():
    small, large = (bend(size, alpha=0.01, sigma=0.02, unit='share') for size in (112, 224))
    assert small.std() == pytest.approx(1.12, rel=0.05)
    # the same bend: each point of the small picture against that of the large one
    large = large.reshape(6, 2, 224, 224)[..., ::2, ::2].reshape(small.shape)
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.99
    assert large.std() == pytest.approx(2 * small.std(), rel=0.03)
    draw = transforms.TRANSFORMS['elastic'].draw
    wide = draw(np.random.default_rng(0), (64, 192), alpha=0.01, sigma=0.02, unit='share')
    assert wide.spacing == pytest.approx(0.02 * 64 * 3 ** 0.5)  # of the shorter side
