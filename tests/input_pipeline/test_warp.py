"""The composed warp against its separate parts, and against plain references."""

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_sample_image

from input_pipeline import geometry, pull_maps, warp
from input_pipeline.transforms import TRANSFORMS, draw, make_transform

SIZE = (61, 83)
SMOOTH = ['hflip', 'rotate', 'scale', 'shear', 'shift', 'elastic', 'perspective', 'rotate90',
          'optical_distortion', 'random_resized_crop', 'random_crop', 'transpose']


def photo(height, width):
    return cv2.resize(load_sample_image('china.jpg'), (width, height),
                      interpolation=cv2.INTER_AREA)


def drawn(names, seed, size, **params):
    specs = [{'kind': name, 'p': 1, **params.get(name, {})} for name in names]
    return draw(tuple(make_transform(spec, '') for spec in specs),
                np.random.default_rng(seed), size).geometry


def test_flips_are_exact_and_their_own_inverse():
    image = photo(*SIZE)
    horizontal, vertical = drawn(['hflip'], 0, SIZE), drawn(['vflip'], 0, SIZE)
    np.testing.assert_array_equal(warp.warp(image, horizontal), image[:, ::-1])
    np.testing.assert_array_equal(warp.warp(image, vertical), image[::-1])
    np.testing.assert_array_equal(warp.warp(image, horizontal * 2), image)
    np.testing.assert_array_equal(warp.warp(image, [*vertical, *horizontal]), image[::-1, ::-1])


def test_quarter_turns_and_transposition_are_exact():
    image = photo(64, 64)
    transposed = warp.warp(image, drawn(['transpose'], 0, (64, 64)))
    np.testing.assert_array_equal(transposed, image.transpose(1, 0, 2))
    turned = {warp.warp(image, drawn(['rotate90'], seed, (64, 64))).tobytes()
              for seed in range(20)}
    assert turned == {np.rot90(image, k).tobytes() for k in range(4)}


def test_rotation_is_that_of_opencv():
    image = photo(64, 64)
    matrix = cv2.getRotationMatrix2D((31.5, 31.5), 17, 1)
    expected = cv2.warpAffine(image, matrix, (64, 64), borderMode=cv2.BORDER_REPLICATE)
    ours = warp.warp(image, [geometry.rotation(17, (64, 64))])
    # OpenCV computes its inverse in fixed point.
    assert np.abs(ours.astype(int) - expected).mean() < 0.5


def test_perspective_is_that_of_opencv():
    image = photo(64, 96)
    points = np.float32([[5, 3], [90, 8], [80, 60], [2, 50]])
    corners = np.float32([[0, 0], [95, 0], [95, 63], [0, 63]])
    expected = cv2.warpPerspective(image, cv2.getPerspectiveTransform(corners, points), (96, 64),
                                   borderMode=cv2.BORDER_REPLICATE)
    ours = warp.warp(image, [geometry.homography(points, corners)])
    assert np.abs(ours.astype(int) - expected).mean() < 0.5


@pytest.mark.parametrize('size', [(224, 224), (160, 211)])
@pytest.mark.parametrize('seed, names', [
    (0, ['hflip', 'vflip', 'rotate', 'elastic', 'grid_distortion']),
    (1, ['rotate', 'elastic', 'grid_distortion', 'zoom', 'shift']),  # the last ones see the outside
    *((seed, []) for seed in range(2, 9))])
def test_every_pixel_of_the_composed_map_lands_where_the_separate_maps_put_it(seed, names, size):
    if not names:
        rng = np.random.default_rng(seed)
        names = [*rng.choice(SMOOTH, 5, replace=False), 'elastic', 'grid_distortion']
        rng.shuffle(names)
    maps = drawn(names, seed, size, perspective={'distortion': 0.3}, zoom={'factor': 0.6})
    y, x = np.mgrid[:size[0], :size[1]].astype(float)
    x, y = pull_maps.pull(maps, x.ravel(), y.ravel())
    dense_x, dense_y = (plane.ravel() for plane in pull_maps.dense_map(maps, size))
    assert np.hypot(dense_x - x, dense_y - y).max() < 0.1


def test_the_picture_is_that_of_scipy_at_the_separate_points():
    image = photo(*SIZE)
    maps = drawn(['rotate', 'elastic', 'grid_distortion'], 1, SIZE)
    y, x = np.mgrid[:SIZE[0], :SIZE[1]].astype(float)
    x, y = pull_maps.pull(maps, x.ravel(), y.ravel())
    expected = np.stack([ndimage.map_coordinates(image[..., channel].astype(float), [y, x],
                                                 order=1, mode='nearest')
                         for channel in range(3)], -1).reshape(image.shape)
    difference = np.abs(warp.warp(image, maps) - expected)
    assert difference.mean() < 0.6 and difference.max() < 8  # steps of 1/32 px


def test_elastic_has_the_strength_of_blurred_noise():
    alpha, sigma, size = 30, 4, (128, 128)
    noise = np.random.default_rng(1).uniform(-1, 1, (20, *size))
    plain = alpha * ndimage.gaussian_filter(noise, (0, sigma, sigma), mode='wrap')
    draw = TRANSFORMS['elastic'].draw
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
    maps = drawn(['rotate', 'elastic', 'grid_distortion'], 3, (64, 64))
    once = warp.warp(image, maps)
    thrice = image
    for item in maps:
        thrice = warp.warp(thrice, [item])
    sharpness = [cv2.Laplacian(picture, cv2.CV_64F).var() for picture in (once, thrice)]
    assert sharpness[0] > 1.2 * sharpness[1]


@pytest.mark.parametrize('border, value', [('white', 255), ('black', 0), ('edge', 90)])
def test_borders(border, value):
    image = np.full((32, 32, 3), 90, np.uint8)
    shifted = warp.warp(image, [geometry.translation(10, 0, (32, 32))], border)
    assert (shifted[:, :8] == value).all()
    assert (shifted[:, 12:] == 90).all()


@pytest.mark.parametrize('names', [[], ['hflip'], ['rotate'], ['rotate', 'elastic'],
                                   ['perspective', 'grid_distortion']])
@pytest.mark.parametrize('source', [(427, 640), (301, 333), (61, 640)])
def test_a_larger_picture_is_laid_over_the_same_frame(names, source):
    image = cv2.GaussianBlur(photo(*source), (0, 0), 20)  # looks alike at any resolution
    maps = drawn(names, 5, SIZE)
    small = cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(warp.warp(image, maps, 'edge', SIZE).astype(int)
                        - warp.warp(small, maps))
    assert difference.mean() < 0.5 and np.percentile(difference, 99) <= 4


@pytest.mark.parametrize('names', [['hflip'], ['rotate'], ['elastic']])
def test_shrinking_averages_instead_of_picking_pixels(names):
    image = np.zeros((512, 768, 3), np.uint8)
    image[::2, ::2] = image[1::2, 1::2] = 255  # a fine chequerboard averages to grey
    shrunk = warp.warp(image, drawn(names, 0, (64, 64)), 'edge', (64, 64))
    assert np.abs(shrunk[4:-4, 4:-4].astype(int) - 127.5).max() < 3


def test_a_resized_crop_is_cut_out_at_whole_pixels():
    image = photo(200, 300)
    size = (100, 100)
    maps = [pull_maps.box(60 / 300, 40 / 200, 150 / 300, 120 / 200, size)]
    expected = cv2.resize(image[40:160, 60:210], size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(warp.warp(image, maps, size=size), expected)
    mirrored = warp.warp(image, [*maps, *drawn(['hflip'], 0, size)], size=size)
    np.testing.assert_array_equal(mirrored, expected[:, ::-1])
    np.testing.assert_allclose(pull_maps.detail(maps, size), (0.6, 0.5))


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (4000, 4)])
def test_odd_pictures_and_frames_work(shape):
    image = np.full((*shape, 3), 7, np.uint8)
    for names in (['hflip'], ['rotate'], ['elastic', 'grid_distortion'],
                  ['grid_distortion', 'optical_distortion', 'rotate']):
        maps = drawn(names, 0, (16, 16))
        assert (warp.warp(image, maps, 'edge', (16, 16)) == 7).all()
        assert (warp.warp(image, drawn(names, 0, shape)) == 7).all()
