"""Sections of the config as frozen dataclasses, and tuples of numbers."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from input_pipeline.errors import did_you_mean
from train_lib.runtime.errors import ConfigError

T = TypeVar('T')


def read_section(kind: type[T], section: Mapping[str, Any], name: str) -> T:
    """A dataclass filled from a section of the config; values are not checked.

    Fields without a default must be in the section: the defaults of a config stand once, in
    configs/common.py.

    Args:
        kind: a dataclass whose fields are the keys of the section.
        section: as a dict.
        name: of the section, such as 'optimizer', for errors.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    # `kind` is a dataclass, which its annotation cannot say.
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in section:
        if key not in fields:
            raise ConfigError(f'config.{name}.{key} is unknown: {did_you_mean(key, fields)}')
    for key, field in fields.items():
        if key not in section and field.default is dataclasses.MISSING:
            raise ConfigError(f'config.{name}.{key} is missing: start from the section {name} of '
                              f'configs/common.py, which has every key.')
    return kind(**section)


def read_numbers(values: Iterable[Any], key: str) -> tuple[float, ...]:
    """Numbers of a tuple in the config whose default is (): `0.1,0.01` on the command line, which
    cannot know what such a tuple holds, comes as texts.

    Args:
        values: of the config.
        key: where they stand, for errors.

    Raises:
        ConfigError: one of them is not a finite number of 0 or more.
    """
    given, found = list(values), []
    for value in given:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number >= 0):
            raise ConfigError(f'config.{key} = {tuple(given)!r}: {value!r} is not a number of 0 or '
                              f'more; write numbers with commas between, such as 0.1,0.01.')
        found.append(number)
    return tuple(found)
