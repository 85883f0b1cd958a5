"""The composed warp against its separate parts, and against plain references."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from input_pipeline import warp
from input_pipeline.transforms import TRANSFORMS, draw_maps, make_transform

SIZE = (61, 83)


def picture(size=SIZE):
    noise = np.random.default_rng(0).uniform(0, 255, (*size, 3)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 3) * 4 - 380, 0, 255).astype(np.uint8)


def test_flips_are_exact_and_their_own_inverse():
    image = picture()
    rng = np.random.default_rng(0)
    horizontal = draw_maps((make_transform({'kind': 'hflip', 'p': 1}, ''),), rng, SIZE)
    vertical = draw_maps((make_transform({'kind': 'vflip', 'p': 1}, ''),), rng, SIZE)
    np.testing.assert_array_equal(warp.warp(image, horizontal), image[:, ::-1])
    np.testing.assert_array_equal(warp.warp(image, vertical), image[::-1])
    np.testing.assert_array_equal(warp.warp(image, horizontal * 2), image)


def test_rotation_is_that_of_opencv():
    image = picture((64, 64))
    maps = [warp.about_centre(np.array([[np.cos(0.3), np.sin(0.3)],
                                        [-np.sin(0.3), np.cos(0.3)]]), (64, 64))]
    matrix = cv2.getRotationMatrix2D((31.5, 31.5), np.degrees(0.3), 1)
    expected = cv2.warpAffine(image, matrix, (64, 64), borderMode=cv2.BORDER_REPLICATE)
    difference = np.abs(warp.warp(image, maps).astype(int) - expected)
    assert difference.max() <= 3  # OpenCV's own fixed-point inverse


@pytest.mark.parametrize('seed', range(5))
def test_the_composed_map_lands_where_the_separate_ones_do(seed):
    rng = np.random.default_rng(seed)
    names = ['hflip', 'rotate', 'scale', 'shear', 'shift', 'elastic', 'grid_distortion']
    rng.shuffle(names)
    size = (224, 224)
    specs = {'hflip': {'p': 1}, 'elastic': {'alpha': 60, 'sigma': 12}}
    maps = draw_maps(tuple(make_transform({'kind': name, **specs.get(name, {})}, '')
                           for name in names), rng, size)
    points = rng.uniform(20, 200, (200, 2)).round()
    x, y = points.T
    for item in reversed(maps):
        x, y = item.pull(x, y)
    rows, columns = points[:, 1].astype(int), points[:, 0].astype(int)
    dense = warp.dense_map(warp.compose(maps), size)[rows, columns]
    error = np.hypot(dense[:, 0] - x, dense[:, 1] - y)
    # The grid's kinks fall between the nodes of the lattice: a cell is stretched by 20 % at most.
    assert np.median(error) < 0.1
    assert error.max() < 1.0


def test_elastic_has_the_strength_of_blurred_noise():
    alpha, sigma, size = 30, 4, (128, 128)
    noise = np.random.default_rng(1).uniform(-1, 1, (20, *size))
    plain = alpha * ndimage.gaussian_filter(noise, (0, sigma, sigma), mode='wrap')
    draw = TRANSFORMS['elastic'][0]
    y, x = np.mgrid[:128, :128].astype(float)
    ours = []
    for seed in range(10):
        field = draw(np.random.default_rng(seed), size, alpha=alpha, sigma=sigma)
        moved = field.pull(x.ravel(), y.ravel())
        ours.append([moved[0] - x.ravel(), moved[1] - y.ravel()])
    assert np.std(ours) == pytest.approx(np.std(plain), rel=0.05)


def test_straight_lines_stay_sharp():
    image = np.full((64, 64, 3), 255, np.uint8)
    cv2.line(image, (10, 10), (50, 40), (0, 0, 0), 1)
    rng = np.random.default_rng(3)
    maps = draw_maps(tuple(make_transform(kind, '') for kind in
                           ('rotate', 'elastic', 'grid_distortion')), rng, (64, 64))
    once = warp.warp(image, maps)
    thrice = image
    for item in maps:
        thrice = warp.warp(thrice, [item])
    sharpness = [cv2.Laplacian(picture, cv2.CV_64F).var() for picture in (once, thrice)]
    assert sharpness[0] > 1.2 * sharpness[1]


@pytest.mark.parametrize('border, value', [('white', 255), ('black', 0), ('edge', 90)])
def test_borders(border, value):
    image = np.full((32, 32, 3), 90, np.uint8)
    shifted = warp.warp(image, [warp.about_centre(np.eye(2), (32, 32), (10, 0))], border)
    assert (shifted[:, :8] == value).all()
    assert (shifted[:, 12:] == 90).all()
