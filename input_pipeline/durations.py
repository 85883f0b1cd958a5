"""Durations in any unit: dict(epochs=|steps=|examples=|percent=)."""

import math
from collections.abc import Mapping

from input_pipeline.errors import DataError

UNITS = ('epochs', 'steps', 'examples', 'percent')


def is_duration(value: object) -> bool:
    """Whether a value of a config is a duration: a mapping whose only key is one of the units."""
    keys = set(value) if hasattr(value, 'keys') else set()  # a ConfigDict is not a Mapping
    return len(keys) == 1 and keys <= set(UNITS)


def to_steps(duration: Mapping, *, key: str, examples_per_epoch: int, batch_size: int,
             total_steps: int | None = None) -> int:
    """A duration as a number of steps, rounded up to a whole step.

    Args:
        duration: a mapping with exactly one of the units as its key.
        key: the config key of the duration, for errors.
        examples_per_epoch: length of one epoch.
        batch_size: examples per step.
        total_steps: length of the whole run, to which `percent` refers; None if the duration is
            that of the run itself.

    Raises:
        DataError: there is no unit, more than one, an unknown one, or a negative number.
    """
    items = dict(duration)
    unit = next(iter(items), None)
    if len(items) != 1 or unit not in UNITS:
        raise DataError(f'config.{key} = {items} is not a valid duration: give exactly one of '
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
