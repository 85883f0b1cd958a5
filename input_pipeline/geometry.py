"""Geometric transforms: each draws one pull map (pull_maps.py).

Lengths are shares of the side, or pixels of the model's input; angles are degrees.
"""

import functools
import itertools
import math
from collections.abc import Mapping

import numpy as np

from input_pipeline import pull_maps
from input_pipeline.pull_maps import Projective, Size


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """`rng.uniform(low, high)`, the same number in a third of the time."""
    return low + (high - low) * rng.random()


def rotation(degrees: float, size: Size) -> Projective:
    """Turns the picture about its centre, counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return pull_maps.about_centre([[cos, sin], [-sin, cos]], size)


def translation(x: float, y: float, size: Size) -> Projective:
    """Moves the picture by (x, y) pixels."""
    return pull_maps.about_centre([[1.0, 0.0], [0.0, 1.0]], size, (x, y))


def shearing(x: float, y: float, size: Size) -> Projective:
    """Shears the picture by the factors (tangents of the angles) x, then y."""
    return pull_maps.about_centre([[1 + x * y, x], [y, 1.0]], size)


@functools.lru_cache(maxsize=16)
def _mirror(x: float, y: float, size: Size) -> Projective:
    return pull_maps.about_centre([[x, 0.0], [0.0, y]], size)


def _hflip(rng, size):
    return _mirror(-1.0, 1.0, size)


def _vflip(rng, size):
    return _mirror(1.0, -1.0, size)


def _transpose(rng, size):
    ratio = size[1] / size[0]
    return pull_maps.about_centre([[0.0, ratio], [1 / ratio, 0.0]], size)


def _rotate90(rng, size):
    quarter, ratio = rng.integers(4), size[1] / size[0]
    return pull_maps.about_centre([
        [[1.0, 0.0], [0.0, 1.0]], [[0.0, ratio], [-1 / ratio, 0.0]],
        [[-1.0, 0.0], [0.0, -1.0]], [[0.0, -ratio], [1 / ratio, 0.0]]][quarter], size)


def _rotate(rng, size, degrees):
    return rotation(between(rng, -degrees, degrees), size)


def _scale(rng, size, factor, aspect):
    zoom = math.exp(between(rng, -1.0, 1.0) * math.log(factor))
    stretch = math.exp(between(rng, -0.5, 0.5) * math.log(aspect))
    return pull_maps.about_centre([[zoom * stretch, 0.0], [0.0, zoom / stretch]], size)


def _zoom(rng, size, factor):
    zoom = math.exp(rng.uniform(*np.log(factor)))
    return pull_maps.about_centre([[zoom, 0.0], [0.0, zoom]], size)


def _shear(rng, size, degrees):
    x, y = np.tan(np.radians(rng.uniform(-degrees, degrees, 2)))
    return shearing(x, y, size)


def _shift(rng, size, share):
    dx, dy = rng.uniform(-share, share, 2) * (size[1], size[0])
    return translation(dx, dy, size)


def _perspective(rng, size, distortion):
    """Every corner moves inwards by at most distortion / 2 of each side, as in torchvision."""
    height, width = size
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (width - 1, height - 1)
    inwards = rng.uniform(0, distortion / 2, (4, 2)) * (width, height)
    return homography(corners + inwards * [[1, 1], [-1, 1], [-1, -1], [1, -1]], corners)


def homography(points: np.ndarray, sources: np.ndarray) -> Projective:
    """The pull map that takes four output points [4, 2] from the input points `sources` [4, 2]."""
    rows, right = [], []
    for (x, y), (u, v) in zip(points, sources):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return Projective(np.append(np.linalg.solve(rows, right), 1).reshape(3, 3))


def _optical_distortion(rng, size, k):
    return pull_maps.Radial(rng.uniform(-k, k), size)


def _crop(rng, size, share, x, y):
    """A window of `share` of the sides, at x (0 left, 1 right) and y (0 top, 1 bottom)."""
    return pull_maps.box((1 - share) * x, (1 - share) * y, share, share, size)


def _center_crop(rng, size, share):
    return pull_maps.box((1 - share) / 2, (1 - share) / 2, share, share, size)


def _random_crop(rng, size, share, padding):
    """A window of `share` of the sides, anywhere in the frame with `padding` px around it."""
    pad_y, pad_x = padding / size[0], padding / size[1]
    left, top = rng.uniform(0, 1, 2)
    return pull_maps.box(left * (1 + 2 * pad_x - share) - pad_x,
                    top * (1 + 2 * pad_y - share) - pad_y, share, share, size)


def _random_resized_crop(rng, size, scale, ratio, source):
    """Szegedy et al. 2015, as in torchvision: ten tries, then the largest window in the centre.

    `scale` is the window's share of the area and `ratio` its width / height, both in pixels of
    the source picture, whose (height, width) is `source`.
    """
    rows, columns = source
    for _ in range(10):
        area = between(rng, *scale) * rows * columns
        shape = math.exp(between(rng, math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < width <= columns and 0 < height <= rows:
            top = math.floor(rng.random() * (rows - height + 1))
            left = math.floor(rng.random() * (columns - width + 1))
            break
    else:
        width = max(1, min(columns, round(rows * ratio[1])))
        height = max(1, min(rows, round(columns / ratio[0])))
        top, left = (rows - height) // 2, (columns - width) // 2
    return pull_maps.box(left / columns, top / rows, width / columns, height / rows, size)


def elastic_deviation(alpha: float, sigma: float) -> float:
    """Standard deviation, in pixels, of uniform noise from -1 to 1 per pixel that was blurred by a
    Gaussian of `sigma` pixels and multiplied by `alpha`; at any size of the picture."""
    return alpha / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma)


def _elastic(rng, size, alpha, sigma, unit='pixels'):
    """Simard et al. 2003: uniform noise, blurred by a Gaussian of `sigma`, times `alpha`.

    It is drawn as a cubic B-spline with the variance of that Gaussian (spacing sigma * sqrt(3)),
    scaled to the standard deviation of the blurred noise. With unit='share' the standard deviation
    is `alpha` itself, and both are shares of the shorter side, so that a picture is bent alike at
    any size; a `sigma` below half a pixel counts as half a pixel.
    """
    if unit == 'share':
        deviation, sigma = alpha * min(size), max(sigma * min(size), 0.5)
    else:
        deviation = elastic_deviation(alpha, sigma)
    spacing = sigma * math.sqrt(3)
    spline_gain = 151 / 315  # mean of the summed squares of the cubic B-spline's weights, 2-D
    noise = rng.random([2, *(math.ceil(side / spacing) + 5 for side in size)], np.float32)
    noise -= 0.5
    noise *= math.sqrt(12) * deviation / spline_gain
    return pull_maps.Elastic(noise, spacing, size)


def wrong_elastic(params: Mapping) -> str:
    """What is wrong with parameters that do not fit their unit; '' for nothing."""
    highest = dict(alpha=0.2, sigma=0.5)
    if params['unit'] == 'share':
        for key, most in highest.items():
            if params[key] > most:
                return (f"{key}={params[key]!r} with unit='share': give a share of the shorter "
                        f'side from 0 to {most}, or unit=\'pixels\'.')
    elif params['sigma'] < 0.5:
        return (f"sigma={params['sigma']!r}: give pixels from 0.5 on, or unit='share' for a share "
                f'of the shorter side.')
    return ''


def _grid_distortion(rng, size, steps, limit):
    low, width = 1 - limit, (1 + limit) - (1 - limit)
    numbers = [low + width * share for share in rng.random(2 * steps).tolist()]
    y, x = ([0.0, *itertools.accumulate(part)] for part in (numbers[:steps], numbers[steps:]))
    return pull_maps.Grid(np.array(x) * ((size[1] - 1) / x[-1]),
                          np.array(y) * ((size[0] - 1) / y[-1]))


# kind: (draw, defaults, allowed range of each parameter)
KINDS = {
    'hflip': (_hflip, dict(p=0.5), {}),
    'vflip': (_vflip, dict(p=0.5), {}),
    'transpose': (_transpose, dict(p=0.5), {}),
    'rotate90': (_rotate90, dict(p=1.0), {}),
    'rotate': (_rotate, dict(p=1.0, degrees=10.0), dict(degrees=(0, 180))),
    'scale': (_scale, dict(p=1.0, factor=1.2, aspect=1.0), dict(factor=(1, 10), aspect=(1, 10))),
    'zoom': (_zoom, dict(p=1.0, factor=(0.8, 1.2)), dict(factor=(0.1, 10))),
    'shear': (_shear, dict(p=1.0, degrees=10.0), dict(degrees=(0, 60))),
    'shift': (_shift, dict(p=1.0, share=0.1), dict(share=(0, 1))),
    # Above 0.6 the horizon of the picture may lie inside the frame.
    'perspective': (_perspective, dict(p=0.5, distortion=0.5), dict(distortion=(0, 0.6))),
    'optical_distortion': (_optical_distortion, dict(p=1.0, k=0.2), dict(k=(0, 0.3))),
    'crop': (_crop, dict(p=1.0, share=0.875, x=0.5, y=0.5),
             dict(share=(0.01, 1), x=(0, 1), y=(0, 1))),
    'center_crop': (_center_crop, dict(p=1.0, share=0.875), dict(share=(0.01, 1))),
    'random_crop': (_random_crop, dict(p=1.0, share=0.875, padding=0),
                    dict(share=(0.01, 1), padding=(0, 1000))),
    'random_resized_crop': (
        _random_resized_crop, dict(p=1.0, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
        dict(scale=(0.001, 1), ratio=(0.01, 100))),
    'elastic': (_elastic, dict(p=1.0, alpha=30.0, sigma=4.0, unit='pixels'),
                dict(alpha=(0, 10_000), sigma=(0, 1000), unit=('pixels', 'share'))),
    'grid_distortion': (_grid_distortion, dict(p=1.0, steps=4, limit=0.2),
                        dict(steps=(1, 64), limit=(0, 0.9))),
}
