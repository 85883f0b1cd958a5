"""Filters and noise against scipy and Pillow."""

from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage
from sklearn.datasets import load_sample_image

from input_pipeline import filters, sources

PHOTO = load_sample_image('china.jpg')[::4, ::4]
DOODLE = sources.read_image('', 'doodles:seed=0,size=64,class=cat,writer=7,drawing=1,tool=pen')


def drawn(kind, seed=0, size=(64, 64), **params):
    return filters.KINDS[kind][0](np.random.default_rng(seed), size, **params)


@pytest.mark.parametrize('sigma', [0.5, 1.3, 4.0])
def test_gaussian_blur_is_that_of_scipy(sigma):
    expected = ndimage.gaussian_filter(PHOTO.astype(float), (sigma, sigma, 0), mode='mirror')
    ours = drawn('gaussian_blur', sigma=(sigma, sigma))(PHOTO)
    assert np.abs(ours - expected).max() < 3
    np.testing.assert_array_equal(drawn('gaussian_blur', sigma=(0, 0))(PHOTO), PHOTO)


@pytest.mark.parametrize('factor', [0.0, 0.5, 1.9])
def test_sharpness_is_that_of_pillow(factor):
    expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(PHOTO)).enhance(factor))
    difference = np.abs(filters.sharpness(factor)(PHOTO).astype(int) - expected)
    assert difference.max() <= 2


@pytest.mark.parametrize('length', [2, 3, 4])
def test_morphology_is_that_of_scipy(length):
    plain = {'erode': ndimage.grey_erosion, 'dilate': ndimage.grey_dilation}
    size = (length, length, 1)
    for kind, function in plain.items():
        ours, expected = drawn(kind, length=(length, length))(DOODLE), function(DOODLE, size=size)
        shift = 0 if length % 2 or kind == 'erode' else 1  # scipy mirrors the square for dilation
        inner = slice(4, -4), slice(4, -4)
        np.testing.assert_array_equal(ours[inner], np.roll(expected, (shift, shift), (0, 1))[inner])
    opened, closed = (drawn(kind, length=(length, length))(DOODLE) for kind in ('open', 'close'))
    assert (opened <= DOODLE).all() and (closed >= DOODLE).all()


def test_noise_has_its_standard_deviation_and_no_mean():
    image = np.full((200, 200, 3), 128, np.uint8)
    noise = drawn('gaussian_noise', std=(0.04, 0.04))(image) - 128.0
    assert noise.std() == pytest.approx(0.04 * 255, rel=0.02)
    assert abs(noise.mean()) < 0.15
    step = drawn('gaussian_noise', seed=1, std=(0.04, 0.04))
    np.testing.assert_array_equal(step(image), step(image))
    assert (step(image) - 128.0 != noise).mean() > 0.9


def test_motion_blur_is_a_mean_along_its_direction():
    dot = np.zeros((21, 21, 3), np.uint8)
    dot[10, 10] = 255
    spread = {}
    for degrees in (0, 90, 45):
        after = partial(filters._motion_blurred, length=8, degrees=degrees)(dot)[..., 0].astype(
            float)
        assert after.sum() == pytest.approx(255, rel=0.05)
        y, x = np.indices(after.shape) - 10
        weight = after / after.sum()
        spread[degrees] = (weight * x * x).sum(), (weight * y * y).sum(), (weight * x * y).sum()
    assert spread[0][0] == pytest.approx(8**2 / 12, rel=0.1) and spread[0][1] < 0.1
    assert spread[90][1] == pytest.approx(8**2 / 12, rel=0.1) and spread[90][0] < 0.1
    assert spread[45][0] == pytest.approx(spread[45][1], rel=0.1)
    assert abs(spread[45][2]) > 0.8 * spread[45][0] * 0.9


def test_jpeg_loses_more_at_a_lower_quality_and_keeps_the_colours():
    losses = [np.abs(drawn('jpeg', quality=(q, q))(PHOTO).astype(int) - PHOTO).mean()
              for q in (95, 50, 10)]
    assert 0 < losses[0] < losses[1] < losses[2] < 20
    red = np.zeros((16, 16, 3), np.uint8) + np.uint8([200, 20, 20])
    assert np.abs(drawn('jpeg', quality=(90, 90))(red).astype(int) - red).max() < 8


@pytest.mark.parametrize('shape', [(1, 1), (2, 7), (40, 30)])
def test_every_filter_keeps_shape_type_and_the_picture(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = image.copy()
    for kind, (_, defaults, _) in filters.KINDS.items():
        params = {key: value for key, value in defaults.items() if key != 'p'}
        after = drawn(kind, size=shape, **params)(image)
        assert after.shape == image.shape and after.dtype == np.uint8, kind
    np.testing.assert_array_equal(image, before)
