"""The transforms that a curriculum stage may name, their parameters, and how they are applied.

    dict(kind='rotate', degrees=15, p=0.5)

A transform belongs to a group, and the groups are applied in this order, whatever the stage's:

1. geometry (`geometry.py`): one warp,
2. color (`color.py`): neighbouring tone curves in one table,
3. filter (`filters.py`): blur, noise, morphology,
4. erasing (`erasing.py`).

Within a group the order of the stage is kept. `rand_augment` and `trivial_augment`
(`auto_augment.py`) add to the groups where they stand.

Numbers are drawn in the order of the stage: for each transform one uniform number for its `p`
if that is below 1, then, if it is used, its own parameters. So a picture is a pure function of
the generator, the stage and the sizes.

To add a transform, write a function draw(rng, size, **parameters) that returns a pull map, a
tone curve or a function from picture to picture, and its line in the KINDS of its file.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from input_pipeline import auto_augment, color, erasing, filters, geometry, warp
from input_pipeline.errors import DataError
from input_pipeline.warp import Size


class Kind(NamedTuple):
    """How to draw one kind of transform, the defaults of its parameters, what they may be.

    The draws of the group 'auto' return a list of (group, step).
    """

    draw: Callable
    defaults: dict
    ranges: dict
    group: str


GROUPS = {'geometry': geometry.KINDS, 'color': color.KINDS, 'filter': filters.KINDS,
          'erasing': erasing.KINDS, 'auto': auto_augment.KINDS}
TRANSFORMS: dict[str, Kind] = {
    name: Kind(*kind, group) for group, kinds in GROUPS.items() for name, kind in kinds.items()}
# Kinds that also want the source picture's (height, width).
_NEED_SOURCE = {'random_resized_crop'}


@dataclasses.dataclass(frozen=True)
class Transform:
    """One transform with all of its parameters; `p` is the probability of its use."""

    kind: str
    p: float
    params: Mapping[str, float | tuple | str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to one picture: the drawn steps of each group."""

    geometry: list = dataclasses.field(default_factory=list)
    color: list = dataclasses.field(default_factory=list)
    filter: list = dataclasses.field(default_factory=list)
    erasing: list = dataclasses.field(default_factory=list)


def make_transform(spec: str | Mapping, where: str) -> Transform:
    """Checks one entry of a stage's `transforms` and fills in its defaults.

    Args:
        spec: the kind alone, or a mapping with `kind` and parameters. A parameter whose default
            is a pair takes a pair (least, most), or one number for both.
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
    _, defaults, ranges, _ = TRANSFORMS[kind]
    ranges = {'p': (0, 1), **ranges}
    params = dict(defaults)
    for key, value in spec.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1) or list(defaults)
            raise DataError(f'{where}: {kind} has no parameter {key!r}; '
                            f'did you mean {" or ".join(near)}?')
        params[key] = _checked(value, defaults[key], ranges[key], f'{where}: {kind} with {key}=')
    p = params.pop('p')
    return Transform(kind, p, params)


def _checked(value, default, allowed: tuple, name: str):
    if isinstance(default, str):
        if value not in allowed:
            raise DataError(f'{name}{value!r}: use one of {", ".join(allowed)}.')
        return value
    pair = isinstance(default, tuple)
    values = tuple(value) if pair and isinstance(value, (tuple, list)) else (value,)
    whole = isinstance(default[0] if pair else default, int)
    low, high = allowed
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not low <= one <= high or (
                whole and one != int(one)):
            raise DataError(f'{name}{value!r}: give a {"whole " * whole}number '
                            f'from {low} to {high}{" or a pair of them" * pair}.')
    if whole:
        values = tuple(int(one) for one in values)
    if not pair:
        return values[0]
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or values[0] > values[1]:
        raise DataError(f'{name}{value!r}: give one number or a pair (least, most).')
    return values


def draw(transforms: tuple[Transform, ...], rng: np.random.Generator, size: Size,
         source: Size | None = None) -> Plan:
    """Draws what happens to one example, in the order of the transforms.

    Args:
        transforms: of the stage.
        rng: the example's generator.
        size: (height, width) of the model's input.
        source: that of the picture that `apply` will be given, or of the file it was shrunk
            from; None: as `size`.
    """
    plan = Plan()
    for item in transforms:
        if item.p < 1 and rng.random() >= item.p:
            continue
        function, _, _, group = TRANSFORMS[item.kind]
        extra = {'source': source or size} if item.kind in _NEED_SOURCE else {}
        step = function(rng, size, **item.params, **extra)
        for name, one in step if group == 'auto' else [(group, step)]:
            getattr(plan, name).append(one)
    return plan


def apply(plan: Plan, picture: np.ndarray, size: Size, border: str = 'edge',
          part: warp.Part = (1, 1)) -> np.ndarray:
    """Applies a plan; the picture is not written to.

    Args:
        plan: of `draw`, for the same `size`.
        picture: RGB uint8 [h, w, 3] of any size: the whole of it is what the maps see, squashed
            to `size`. To lose nothing in a crop it should be at least as large as
            `source_size(plan, size)`.
        size: (height, width) of the result.
        border: what a warp sees outside, a key of `warp.BORDERS`.
        part: of the picture that is no padding, as in `warp.warp`.

    Returns:
        RGB uint8 [height, width, 3].
    """
    picture = warp.warp(picture, plan.geometry, border, size, part)
    picture = color.apply(picture, plan.color)
    for step in (*plan.filter, *plan.erasing):
        picture = step(picture)
    return picture


def source_size(plan: Plan, size: Size) -> Size:
    """The (height, width) of a picture of which one pixel makes at most one of the result."""
    spans = warp.detail(plan.geometry, size)
    return tuple(max(1, round(side / max(span, 1e-6))) for side, span in zip(size, spans))
