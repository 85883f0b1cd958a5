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
        ValueError: an unknown key, a word without `=`, a key that is given twice, or nothing behind
            a key that has no value by default.
    """
    values = dict(known)
    for part in parts(arg):
        key, equals, value = part.partition('=')
        if not equals and key in known:
            raise ValueError(f'The config argument {key} has no value: write {key}=...')
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = '' if equals else _key_of(part)
            hint = (f'did you mean {meant}={part}?' if meant in known else
                    f'did you mean {near[0]}={value or "..."}?' if near else
                    f'the known ones are {", ".join(known)}.')
            raise ValueError(f'The config argument {part!r} is not known: {hint}')
        if not value and not known[key]:  # as of a variable of the shell that is not set
            raise ValueError(f'The config argument {key}= is empty: give {key}=..., or leave it '
                             f'out.')
        values[key] = value
    return values


def _key_of(word: str) -> str:
    """The data key that a word alone was likely meant for, '' for none."""
    if word in SOURCES:
        return 'data'
    ending = word.rpartition('.')[2].lower()
    return 'csv' if ending in ('csv', 'parquet') else 'folder' if '/' in word else ''


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
    """`read` with the data keys (data=, folder=, csv=, images=, ...), which every experiment
    knows, besides `defaults`.

    Raises:
        ValueError: see `read`.
    """
    return read(arg, {**DATA, **defaults})


def split_arg(arg: str | None, *keys: str) -> tuple[dict[str, str], str]:
    """The values given for these keys, and the rest of the text, which a study passes on to the
    config that it starts from.

    Raises:
        ValueError: a key that is nearly one of these, is given twice, or has no value.
    """
    found, rest = {}, []
    for part in parts(arg):
        key, _, value = part.partition('=')
        if key in keys:
            found[key] = read(part, {key: ''})[key]
            continue
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
        if near:  # the other config would not know it either, nor name this one
            raise ValueError(f'The config argument {part!r} is not known: did you mean '
                             f'{near[0]}={value or "..."}?')
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


def number(key: str, value: str, kind: type = int, otherwise: str = '') -> float:
    """The value of a config argument that is a number, as an int or, with kind=float, a float.

    Args:
        key, value: as in `key=value`.
        kind: int or float.
        otherwise: a word that the argument takes as well, for the error.

    Raises:
        ValueError: it is not a number.
    """
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f'{key}={value} is not a {"whole " if kind is int else ""}number: give '
                         f'{key}=NUMBER{f" or {key}={otherwise}" if otherwise else ""}.') from None


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


def parts(arg: str | None) -> list[str]:
    """`key=value` of each argument.

    Raises:
        ValueError: a key is given twice.
    """
    found = re.split(r',(?=[A-Za-z_]+=)', arg) if arg else []
    keys = [part.partition('=')[0] for part in found]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ValueError(f'The config argument {twice[0]}= is given twice: leave one of them out.')
    return found
