"""Changes of the config in short words, and the names of folders that are made from them."""

import re
import zlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from input_pipeline.durations import is_duration

_RESERVED = ('logs',)  # folders of a study that belong to no arm


def folder_name(name: str) -> str:
    """The folder of an arm: safe as a file name, and different for different names."""
    safe = re.sub(r'[^\w.,=+-]+', '_', name, flags=re.ASCII)[:80].strip('._') or 'arm'
    return safe if safe == name and name not in _RESERVED else \
        f'{safe}-{zlib.crc32(name.encode()):08x}'


def describe_changes(changes: Mapping, most: int = 40) -> str:
    """Changes in one line, such as 'batch_size=64, duration=5 epochs'.

    Args:
        changes: {dotted.path: value}.
        most: characters of one value; longer ones are cut.
    """
    return ', '.join(f'{path}={short(value, most)}' for path, value in changes.items())


def short(value, most: int = 40) -> str:
    """A value of the config as text of at most so many characters, cut off with '…'."""
    text = _text(value.to_dict() if isinstance(value, ConfigDict) else value)
    return text if len(text) <= most else f'{text[:most - 1]}…'


def _text(value) -> str:
    """5 epochs; [hflip, rotate(degrees=10)]"""
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, (tuple, list)):
        return f'[{", ".join(map(_text, value))}]'
    if isinstance(value, Mapping):
        if is_duration(value):
            (unit, number), = value.items()
            return f'{_text(number)} {unit}'
        rest = ', '.join(f'{key}={_text(item)}' for key, item in value.items() if key != 'kind')
        return f'{value["kind"]}({rest})' if 'kind' in value else f'({rest})'
    return str(value)
