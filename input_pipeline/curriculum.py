"""The curriculum: which transforms, and which share of the learning rate, apply at which step.

A stage is looked up from a step, and a step from an example's position in the endless order. So
stages change without rebuilding the pipeline, and a resumed run is always in the right stage.
"""

import bisect
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from input_pipeline.auto_augment import KINDS as POLICIES
from input_pipeline.color import IN_COLOR
from input_pipeline.errors import DataError
from input_pipeline.transforms import Transform, make_transform

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage; it lasts until the next stage starts.

    Attributes:
        start: the first step of the stage.
        transforms: how training pictures are augmented.
        lr_scale: factor of the learning rate, 0 or more.
    """

    start: int
    transforms: tuple[Transform, ...]
    lr_scale: float = 1.0


def make_stages(curriculum: Sequence[Mapping], to_steps: Callable[[Mapping, str], int],
                channels: int = 3) -> tuple[Stage, ...]:
    """Checks `config.curriculum` and turns its durations into steps.

    Args:
        curriculum: stages `dict(until=<duration>, transforms=[...], lr_scale=1.0)`; the last one
            lasts to the end, whatever its `until`. Empty: one stage without transforms.
        to_steps: (duration, config key) -> steps from the start of the run.
        channels: of the pictures, 3, 4 or 1 (grey).

    Raises:
        DataError: an unknown key, a stage that ends before it starts, an invalid transform, or one
            of colours where pictures are grey.
    """
    if isinstance(curriculum, str) or not all(isinstance(entry, Mapping) for entry in curriculum):
        raise DataError(f'config.curriculum = {curriculum!r}: give a list of stages, such as '
                        f"[dict(until=dict(epochs=5), transforms=[dict(kind='hflip')])].")
    stages, start = [], 0
    for number, entry in enumerate(curriculum):
        where = f'config.curriculum[{number}]'
        entry = dict(entry)
        unknown = set(entry) - {'until', 'transforms', 'lr_scale'}
        if unknown:
            raise DataError(f'{where} has no key {sorted(unknown)[0]!r}: '
                            f'a stage has until, transforms and lr_scale.')
        scale = entry.get('lr_scale', 1.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale < 0:
            raise DataError(f'{where}.lr_scale = {scale!r}: give a number that is not negative.')
        transforms = make_list(entry.get('transforms', ()), f'{where}.transforms', channels)
        stages.append(Stage(start, transforms, float(scale)))
        last = number == len(curriculum) - 1
        if 'until' not in entry:
            if not last:
                raise DataError(f'{where} has no until: only the last stage may leave it out.')
            continue
        end = to_steps(entry['until'], f'curriculum[{number}].until')
        if end <= start and not last:
            raise DataError(f'{where} ends at step {end}, and starts at step {start}: '
                            f'give each stage a later `until` than the stage before it.')
        start = end
    return tuple(stages) or (Stage(0, ()),)


def make_list(given, where: str, channels: int = 3) -> tuple[Transform, ...]:
    """Checks a list of transforms.

    Args:
        given: of names, or of dicts with `kind`.
        where: the config key of the list, for errors.
        channels: as in `make_stages`.

    Raises:
        DataError: an invalid transform, or one of colours where pictures are grey.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise DataError(f"{where} = {given!r} is not a list: write ['hflip'] or "
                        f"[dict(kind='hflip', p=0.5)].")
    transforms = tuple(make_transform(spec, f'{where}[{i}]') for i, spec in enumerate(given))
    if channels == 1:
        _check_grey(transforms, where)
    return transforms


def _check_grey(transforms: Sequence[Transform], where: str) -> None:
    for i, item in enumerate(transforms):
        if item.kind in IN_COLOR:
            raise DataError(f'{where}[{i}]: {item.kind} works on colours, and pictures '
                            f'are grey with config.model.in_channels=1: take it out.')
        if item.kind in POLICIES:
            _log.info('stages   %s: saturation does nothing to grey pictures', item.kind)


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """The number of the stage to which a step belongs."""
    return bisect.bisect_right(stages, step, key=lambda stage: stage.start) - 1
