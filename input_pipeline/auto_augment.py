"""RandAugment and TrivialAugment: transforms drawn from a list, with given strengths.

An operation of the list is a function (strength, sign, size) -> (group, step), with strength in
[0, 1] and sign 1 or -1. The ranges are those of the papers, as in torchvision; they differ between
the two methods. The drawn steps join the groups of `input_pipeline.transforms`: geometric steps
still make one warp, and tone curves one table.
"""

from input_pipeline import color, filters, geometry


def _shear(axis, most):
    return lambda strength, sign, size: ('geometry', geometry.shearing(
        *((strength * most * sign, 0) if axis == 0 else (0, strength * most * sign)), size))


def _translate(axis, share=None, pixels=None):
    def draw(strength, sign, size):
        by = strength * sign * (pixels if share is None else share * size[1 - axis])
        return 'geometry', geometry.translation(*((by, 0) if axis == 0 else (0, by)), size)
    return draw


def _rotate(most):
    return lambda strength, sign, size: (
        'geometry', geometry.rotation(strength * most * sign, size))


def _blend(group, make, most):
    return lambda strength, sign, size: (group, make(1 + strength * most * sign))


def _posterize(lost):
    return lambda strength, sign, size: ('color', color.posterize(8 - round(strength * lost)))


def _operations(shear: float, translate: dict, rotate: float, blend: float, posterize: int
                ) -> tuple:
    """The fourteen operations; the first does nothing."""
    return (
        None,
        _shear(0, shear), _shear(1, shear),
        _translate(0, **translate), _translate(1, **translate),
        _rotate(rotate),
        _blend('color', color.brightness, blend), _blend('color', color.saturation, blend),
        _blend('color', color.contrast, blend), _blend('filter', filters.sharpness, blend),
        _posterize(posterize),
        lambda strength, sign, size: ('color', color.solarize(256 - 256 * strength)),
        lambda strength, sign, size: ('color', color.autocontrast()),
        lambda strength, sign, size: ('color', color.equalize()),
    )


_RAND = _operations(0.3, dict(share=150 / 331), 30, 0.9, 4)
_TRIVIAL = _operations(0.99, dict(pixels=32), 135, 0.99, 6)


def _draw(rng, size, operations, strength):
    number, sign = rng.integers(len(operations)), 1 - 2 * int(rng.integers(2))
    return [operations[number](strength, sign, size)] if number else []


def _rand_augment(rng, size, num_ops, magnitude, bins):
    """Cubuk et al. 2020: `num_ops` operations with the same strength, magnitude / (bins - 1)."""
    strength = min(magnitude / (bins - 1), 1)
    return [step for _ in range(num_ops) for step in _draw(rng, size, _RAND, strength)]


def _trivial_augment(rng, size, bins):
    """Müller and Hutter 2021 ("wide"): one operation with a random strength."""
    return _draw(rng, size, _TRIVIAL, rng.integers(bins) / (bins - 1))


# kind: (draw, defaults, allowed range of each parameter)
KINDS = {
    'rand_augment': (_rand_augment, dict(p=1.0, num_ops=2, magnitude=9, bins=31),
                     dict(num_ops=(0, 20), magnitude=(0, 100), bins=(2, 1000))),
    'trivial_augment': (_trivial_augment, dict(p=1.0, bins=31), dict(bins=(2, 1000))),
}
