"""The transforms that a curriculum stage may name, their parameters and units.

    dict(kind='rotate', degrees=15, p=0.5)

One entry of TRANSFORMS is one transform: its defaults, and a function that draws one pull
map of `input_pipeline.warp` from a random generator. To add a transform, write such a
function and its line in the table.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping

import numpy as np

from input_pipeline import warp
from input_pipeline.errors import DataError

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Transform:
    """One transform with all of its parameters; `p` is the probability of its use."""

    kind: str
    p: float
    params: Mapping[str, float]


def _hflip(rng, size):
    return warp.about_centre(np.diag([-1.0, 1.0]), size)


def _vflip(rng, size):
    return warp.about_centre(np.diag([1.0, -1.0]), size)


def _rotate(rng, size, degrees):
    angle = math.radians(rng.uniform(-degrees, degrees))
    cos, sin = math.cos(angle), math.sin(angle)
    return warp.about_centre(np.array([[cos, sin], [-sin, cos]]), size)


def _scale(rng, size, factor, aspect):
    zoom = math.exp(rng.uniform(-1, 1) * math.log(factor))
    stretch = math.exp(rng.uniform(-0.5, 0.5) * math.log(aspect))
    return warp.about_centre(np.diag([zoom * stretch, zoom / stretch]), size)


def _shear(rng, size, degrees):
    x, y = np.tan(np.radians(rng.uniform(-degrees, degrees, 2)))
    return warp.about_centre(np.array([[1.0, x], [0.0, 1.0]]) @ [[1.0, 0.0], [y, 1.0]], size)


def _shift(rng, size, share):
    dx, dy = rng.uniform(-share, share, 2) * (size[1], size[0])
    return warp.about_centre(np.eye(2), size, (dx, dy))


def _elastic(rng, size, alpha, sigma):
    """Simard et al. 2003: uniform noise, blurred by a Gaussian of `sigma`, times `alpha`.

    Drawn as a cubic B-spline with the variance of that Gaussian (spacing sigma * sqrt(3)),
    scaled to the standard deviation that the blurred noise has.
    """
    spacing = sigma * math.sqrt(3)
    deviation = alpha / math.sqrt(3) / (2 * math.sqrt(math.pi) * sigma)
    spline_gain = 151 / 315  # mean of the summed squares of the cubic B-spline's weights, 2-D
    shape = [2, *(math.ceil(side / spacing) + 5 for side in size)]
    noise = rng.uniform(-math.sqrt(3), math.sqrt(3), shape)
    return warp.Elastic(noise * (deviation / spline_gain), spacing)


def _grid_distortion(rng, size, steps, limit):
    steps = int(steps)

    def axis(length):
        knots = np.linspace(0, length - 1, steps + 1)
        widths = rng.uniform(1 - limit, 1 + limit, steps)
        moved = np.concatenate([[0], np.cumsum(widths)])
        return knots, moved / moved[-1] * (length - 1)

    y_out, y_in = axis(size[0])
    x_out, x_in = axis(size[1])
    # Straight on outside the picture, so that a shift after this one finds its border.
    pad = np.array([-1000.0, 1000.0])

    def extend(knots):
        return np.concatenate([[knots[0] + pad[0]], knots, [knots[-1] + pad[1]]])

    return warp.Grid(extend(x_out), extend(x_in), extend(y_out), extend(y_in))


# kind: (draw, defaults, allowed range of each parameter). Pixels are those of the model's input.
TRANSFORMS: dict[str, tuple[Callable, dict, dict]] = {
    'hflip': (_hflip, dict(p=0.5), {}),
    'vflip': (_vflip, dict(p=0.5), {}),
    'rotate': (_rotate, dict(p=1.0, degrees=10.0), dict(degrees=(0, 180))),
    'scale': (_scale, dict(p=1.0, factor=1.2, aspect=1.0), dict(factor=(1, 10), aspect=(1, 10))),
    'shear': (_shear, dict(p=1.0, degrees=10.0), dict(degrees=(0, 60))),
    'shift': (_shift, dict(p=1.0, share=0.1), dict(share=(0, 1))),
    'elastic': (_elastic, dict(p=1.0, alpha=30.0, sigma=4.0),
                dict(alpha=(0, 10_000), sigma=(0.5, 1000))),
    'grid_distortion': (_grid_distortion, dict(p=1.0, steps=4, limit=0.2),
                        dict(steps=(1, 64), limit=(0, 0.9))),
}


def make_transform(spec: str | Mapping, where: str) -> Transform:
    """Checks one entry of a stage's `transforms` and fills in its defaults.

    Args:
        spec: the kind alone, or a mapping with `kind` and parameters.
        where: the config path, for errors.

    Raises:
        DataError: an unknown kind or parameter, or a value outside its range.
    """
    spec = {'kind': spec} if isinstance(spec, str) else dict(spec)
    kind = spec.pop('kind', None)
    if kind not in TRANSFORMS:
        near = difflib.get_close_matches(str(kind), TRANSFORMS, n=1) or list(TRANSFORMS)
        raise DataError(f'{where}: there is no transform {kind!r}; '
                        f'did you mean {" or ".join(near)}?')
    _, defaults, ranges = TRANSFORMS[kind]
    ranges = {'p': (0, 1), **ranges}
    for key, value in spec.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1) or list(defaults)
            raise DataError(f'{where}: {kind} has no parameter {key!r}; '
                            f'did you mean {" or ".join(near)}?')
        low, high = ranges[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
                low <= value <= high):
            raise DataError(f'{where}: {kind} with {key}={value!r}: '
                            f'give a number from {low} to {high}.')
    params = {**defaults, **spec}
    p = params.pop('p')
    return Transform(kind, p, params)


def draw_maps(transforms: tuple[Transform, ...], rng: np.random.Generator, size: Size) -> list:
    """Draws the pull maps of one example, in the order of the transforms."""
    maps = []
    for item in transforms:
        if item.p >= 1 or rng.random() < item.p:
            maps.append(TRANSFORMS[item.kind][0](rng, size, **item.params))
    return maps
