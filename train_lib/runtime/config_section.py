"""Sections of the config as frozen dataclasses."""

import dataclasses
from collections.abc import Mapping
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
