"""Durations in any unit: dict(epochs=|steps=|examples=|percent=)."""

import math
from collections.abc import Mapping

from input_pipeline.errors import DataError

UNITS = ('epochs', 'steps', 'examples', 'percent')


def to_steps(duration: Mapping, *, key: str, examples_per_epoch: int, batch_size: int,
             total_steps: int | None = None) -> int:
    """A duration as a number of steps, rounded up to a whole one.

    Args:
        duration: a mapping with exactly one of the units.
        key: the config key it stands under, for the error.
        examples_per_epoch: length of one epoch.
        batch_size: examples a step.
        total_steps: length of the whole run, that `percent` refers to; None for the run itself.

    Raises:
        DataError: no unit, two units, an unknown one, or a negative number.
    """
    items = dict(duration)
    unit = next(iter(items), None)
    if len(items) != 1 or unit not in UNITS:
        raise DataError(f'config.{key} = {items} is no duration: give exactly one of '
                        f'{", ".join(UNITS)}, e.g. dict(epochs=5).')
    value = items[unit]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise DataError(f'config.{key}.{unit} = {value!r}: give a number that is not negative.')
    if unit == 'steps':
        return math.ceil(value)
    if unit == 'examples':
        return math.ceil(value / batch_size)
    if unit == 'epochs':
        # The tolerance keeps 0.1 * 30 epochs from becoming one step more than 3 epochs.
        return math.ceil(value * examples_per_epoch / batch_size - 1e-9)
    if total_steps is None:
        raise DataError(f'config.{key} cannot be a percentage of itself: '
                        f'give epochs, steps or examples.')
    return math.ceil(value / 100 * total_steps - 1e-9)
