"""Nested settings by dotted keys such as schedule.lr."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict


def by_dotted_key(settings: Mapping | ConfigDict, separator: str = '.',
                  is_leaf: Callable[[Any], bool] = lambda value: False) -> dict[str, Any]:
    """{'schedule.lr': 0.001} of every value below nested dicts. Lists and empty dicts are values.

    Args:
        settings: nested dicts or ConfigDicts.
        separator: between the keys of a path.
        is_leaf: whether a dict is kept as one value, e.g. `is_duration`.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, (dict, ConfigDict)) and len(value) and not is_leaf(value):
            for path, leaf in by_dotted_key(value, separator, is_leaf).items():
                found[f'{key}{separator}{path}'] = leaf
        else:
            found[str(key)] = value
    return found


def parent_of(settings: Any, name: str) -> tuple[Any, str]:
    """(the section of a dotted key, the key's last word): 'schedule.lr' is in settings['schedule'].

    Raises:
        KeyError: there is no such section.
    """
    *sections, key = name.split('.')
    for section in sections:
        settings = settings[section]
    return settings, key
