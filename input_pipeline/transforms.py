"""The transforms that a curriculum stage may name, their parameters, and how they are applied.

    dict(kind='rotate', degrees=15, p=0.5)

Each transform belongs to a group. The groups are always applied in this order:

1. geometry (`geometry.py`): one warp,
2. color (`color.py`): neighbouring tone curves in one table,
3. filter (`filters.py`): blur, noise, morphology,
4. erasing (`erasing.py`).

Within a group the order of the stage is kept. `rand_augment` and `trivial_augment`
(`auto_augment.py`) add to the groups where they stand.

Random numbers are drawn in the order of the stage. Each transform draws one uniform number for
its `p` if that is below 1, and then, if it is applied, its own parameters. So a picture is a pure
function of the generator, the stage and the sizes.

To add a transform, write a function draw(rng, size, **parameters) that returns a pull map, a
tone curve or a function from picture to picture, and its line in the KINDS of its file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from input_pipeline import auto_augment, color, erasing, filters, geometry, pull_maps, warp
from input_pipeline.errors import DataError, did_you_mean
from input_pipeline.mirrored_labels import MIRRORS, Swap, read_swap
from input_pipeline.pull_maps import Size


class Kind(NamedTuple):
    """How to draw one kind of transform.

    Attributes:
        draw: (rng, size, **parameters) -> the step; in the group 'auto' a list of (group, step).
        defaults: of the parameters and of `p`.
        ranges: the allowed range or words of each parameter.
        group: a key of GROUPS.
    """

    draw: Callable
    defaults: dict
    ranges: dict
    group: str


GROUPS = {'geometry': geometry.KINDS, 'color': color.KINDS, 'filter': filters.KINDS,
          'erasing': erasing.KINDS, 'auto': auto_augment.KINDS}
TRANSFORMS: dict[str, Kind] = {
    name: Kind(*kind, group) for group, kinds in GROUPS.items() for name, kind in kinds.items()}
# Kinds that also need the source picture's (height, width).
_NEED_SOURCE = {'random_resized_crop'}
# Kinds whose parameters must fit each other: parameters -> what is wrong, '' for nothing.
_CHECKS: dict[str, Callable[[Mapping], str]] = {'elastic': geometry.wrong_elastic}


@dataclasses.dataclass(frozen=True)
class Transform:
    """One transform with all of its parameters; it is applied with the probability `p`.

    `swap` is of labels and changes no pixel, so features that were cached by the text of their
    transforms stay valid.
    """

    kind: str
    p: float
    params: Mapping[str, float | tuple | str]
    swap: Swap = dataclasses.field(default=(), repr=False)

    def facts(self) -> dict:
        """All of it, as JSON is written; `swap` only where there is one."""
        found = dict(kind=self.kind, p=self.p, params=dict(self.params))
        return found | dict(swap=self.swap) if self.swap else found


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to one picture: the steps drawn for each group, and the swaps of labels that
    belong to them."""

    geometry: list = dataclasses.field(default_factory=list)
    color: list = dataclasses.field(default_factory=list)
    filter: list = dataclasses.field(default_factory=list)
    erasing: list = dataclasses.field(default_factory=list)
    swaps: list[Swap] = dataclasses.field(default_factory=list)


def make_transform(spec: str | Mapping, where: str) -> Transform:
    """Checks one entry of a stage's `transforms` and fills in its defaults.

    Args:
        spec: the kind alone, or a mapping with `kind` and parameters. A parameter whose default
            is a pair takes a pair (least, most), or one number that stands for both. Kinds that
            mirror take `swap` as well (mirrored_labels.py).
        where: the config key, for errors.

    Raises:
        DataError: an unknown kind or parameter, or a value outside its range.
    """
    if not isinstance(spec, (str, Mapping)):
        raise DataError(f"{where} = {spec!r} is not a valid transform: give its kind, such as "
                        f"'hflip', or dict(kind='hflip', p=0.5).")
    spec = {'kind': spec} if isinstance(spec, str) else dict(spec)
    kind = spec.pop('kind', None)
    if not isinstance(kind, str) or kind not in TRANSFORMS:
        raise DataError(f'{where}: there is no transform {kind!r}; '
                        f'{did_you_mean(kind, TRANSFORMS, show=str)}')
    _, defaults, ranges, _ = TRANSFORMS[kind]
    ranges = {'p': (0, 1), **ranges}
    params = dict(defaults)
    swap = read_swap(spec.pop('swap', None), f'{where}: {kind} with ') if kind in MIRRORS else ()
    for key, value in spec.items():
        if key not in defaults:
            raise DataError(f'{where}: {kind} has no parameter {key!r}; '
                            f'{did_you_mean(key, defaults, show=str)}')
        params[key] = _checked(value, defaults[key], ranges[key], f'{where}: {kind} with {key}=')
    p = params.pop('p')
    wrong = _CHECKS[kind](params) if kind in _CHECKS else ''
    if wrong:
        raise DataError(f'{where}: {kind} with {wrong}')
    return Transform(kind, p, params, swap)


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
        source: (height, width) of the picture that `apply` will get, or of the file from which
            that picture was reduced; None: the same as `size`.
    """
    plan = Plan()
    for item in transforms:
        if item.p < 1 and rng.random() >= item.p:
            continue
        if item.swap:
            plan.swaps.append(item.swap)
        function, _, _, group = TRANSFORMS[item.kind]
        extra = {'source': source or size} if item.kind in _NEED_SOURCE else {}
        step = function(rng, size, **item.params, **extra)
        for name, one in step if group == 'auto' else [(group, step)]:
            getattr(plan, name).append(one)
    return plan


def apply(plan: Plan, picture: np.ndarray, size: Size, border: str = 'edge',
          part: pull_maps.Part = (1, 1), out: np.ndarray | None = None) -> np.ndarray:
    """Applies a plan; the picture is not written to.

    Args:
        plan: drawn by `draw` for the same `size`.
        picture: RGB uint8 [h, w, 3], RGBA [h, w, 4] or grey [h, w], of any size; the maps see all
            of it, squashed to `size`. Colours and filters leave transparency as it is. For a crop
            without loss it should be at least as large as `source_size(plan, size)`.
        size: (height, width) of the result.
        border: what a warp sees outside the picture, a key of `pull_maps.BORDERS`.
        part: the part of the picture that is not padding, as in `warp.warp`.
        out: contiguous uint8 of the result's shape that may take it, which saves a copy.

    Returns:
        uint8 [height, width, 3], [height, width, 4] or [height, width]; `out` if that took it.
    """
    picture = warp.warp(picture, plan.geometry, border, size, part, out)
    if not (plan.color or plan.filter or plan.erasing):
        return picture
    if picture.ndim == 3 and picture.shape[2] == 4:
        rgb = np.ascontiguousarray(picture[..., :3])
        picture = np.dstack([_filtered(plan, rgb), picture[..., 3]])
    else:
        picture = _filtered(plan, picture)
    for step in plan.erasing:
        picture = step(picture)
    return picture


def _filtered(plan: Plan, picture: np.ndarray) -> np.ndarray:
    picture = color.apply(picture, plan.color)
    for step in plan.filter:
        picture = step(picture)
    return picture


def source_size(plan: Plan, size: Size) -> Size:
    """(height, width) of a source picture large enough that the plan enlarges no pixel of it."""
    spans = pull_maps.detail(plan.geometry, size)
    return tuple(max(1, round(side / max(span, 1e-6))) for side, span in zip(size, spans))
