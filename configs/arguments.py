"""Reads what follows the colon of `--config=FILE:key=value,key=value`, for the configs."""

import difflib
import re
from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

# Each data source, and the arguments that belong to it.
SOURCES = {'doodles': (), 'digits': (), 'folder': ('folder',), 'csv': ('csv', 'images'),
           'tfds': ('tfds',), 'packed': ('packed',)}
DATA = {'data': '', 'folder': '', 'csv': '', 'images': '', 'tfds': '', 'packed': ''}


def read(arg: str | None, known: Mapping[str, str]) -> dict[str, str]:
    """The value of every known key.

    Args:
        arg: the text after the colon, or None. A comma belongs to a value unless `key=` follows.
        known: the keys of this config, with their defaults.

    Raises:
        ValueError: an unknown key, or a word without `=`.
    """
    values = dict(known)
    for part in _parts(arg):
        key, equals, value = part.partition('=')
        if not equals or key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (f'did you mean {near[0]}=...?' if near else
                    f'the known ones are {", ".join(known)}.')
            raise ValueError(f'The config argument {part!r} is not known: {hint}')
        values[key] = value
    return values


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
    """`read` with the data keys (data=, folder=, csv=, images=, ...), which every experiment
    knows, besides `defaults`.

    Raises:
        ValueError: see `read`.
    """
    return read(arg, {**DATA, **defaults})


def split_arg(arg: str | None, *keys: str) -> tuple[dict[str, str], str]:
    """The values given for these keys, and the rest of the text, which a study passes on to the
    config that it starts from."""
    found, rest = {}, []
    for part in _parts(arg):
        key, _, value = part.partition('=')
        if key in keys:
            found[key] = value
        else:
            rest.append(part)
    return found, ','.join(rest)


def choose(key: str, value: str, allowed: Collection[str]) -> str:
    """The value of a config argument, if it is one of those allowed.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1) or list(allowed)
        raise ValueError(f'{key}={value} is not known: did you mean {" or ".join(near)}?')
    return value


def choose_data(config: ConfigDict, args: Mapping[str, str]) -> ConfigDict:
    """Puts the data keys of `parse_arg` into the config, which is changed in place and returned.

    Raises:
        ValueError: a source that does not exist, or two sources at once.
    """
    given = [key for key in ('folder', 'csv', 'tfds', 'packed') if args[key]]
    if len(given) > 1:
        raise ValueError(f'The config arguments {given[0]}= and {given[1]}= exclude each other: '
                         f'give one source.')
    source = args['data'] or (given[0] if given else config.data.source)
    choose('data', source, SOURCES)
    if given and given[0] != source:
        raise ValueError(f'data={source} and {given[0]}= exclude each other: give one source.')
    config.data.source = source
    for key in SOURCES[source]:
        config.data[key] = args[key]
    if args['images'] and source != 'csv':
        raise ValueError('images= belongs to csv=: give csv=PATH,images=PATH.')
    return config


def _parts(arg: str | None) -> list[str]:
    return re.split(r',(?=[A-Za-z_]+=)', arg) if arg else []
