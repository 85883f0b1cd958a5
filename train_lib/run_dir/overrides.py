"""Sets `--config.a.b=value` in a ConfigDict: names are checked, the default gives the type."""

import ast
import contextlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.durations import UNITS, is_duration
from input_pipeline.errors import nearest
from train_lib.run_dir.dotted_keys import by_dotted_key
from train_lib.runtime.errors import ConfigError

# Sections whose keys are the keyword arguments of a function, which checks them itself.
OPEN_SECTIONS = ('model',)
# Lists that may also be given by head, {head: list}.
BY_HEAD = ('data.classes',)


def apply_overrides(config: ConfigDict, overrides: list[tuple[str, str]]) -> ConfigDict:
    """Sets each `(dotted.path, text)`; the config is changed in place and returned.

    Raises:
        ConfigError: an unknown key (with the nearest one), a value of another type, or one
            key given twice with different values.
    """
    seen: dict[str, str] = {}
    for path, text in overrides:
        if len(path) > 200 or not path.isprintable():
            raise ConfigError(f'--config.{shown(path)} is not a valid key: '
                              f'write it like --config.schedule.lr=0.001.')
        if seen.get(path, text) != text:
            raise ConfigError(f'--config.{path} is given twice, as {shown(seen[path])!r} and as '
                              f'{shown(text)!r}: keep one of them.')
        for other in seen:
            if other.startswith(path + '.') or path.startswith(other + '.'):
                raise ConfigError(f'--config.{path} and --config.{other} overlap: '
                                  f'keep one of them.')
        seen[path] = text
        _set(config, path, text, _typed)
    return config


def apply_values(config: ConfigDict, values: Mapping[str, object]) -> ConfigDict:
    """Sets each `{dotted.path: value}`; the config is changed in place and returned. A section
    keeps what its mapping does not name; a duration and the sections of functions are replaced.

    Raises:
        ConfigError: an unknown key (with the nearest one), or a value of another type.
    """
    for path, value in values.items():
        _set(config, path, value, _checked)
    return config


def overlay(config: ConfigDict, saved: Mapping, *, strict: bool = False,
            within: str = '') -> ConfigDict:
    """Sets everything that a saved config holds; keys that it lacks stay. The config is changed
    in place and returned.

    Args:
        config: is changed.
        saved: the config of a run.
        strict: every value must have the type of its key. Not for a config whose references were
            resolved: it has lost the types.
        within: for the recursion: the path of `config`, with a dot behind it.

    Raises:
        ConfigError: a value has another type, or is given for a section.
    """
    with config.unlocked(), config.ignore_type():
        for key, value in saved.items():
            old, path = config.get(key), within + key
            is_section = (isinstance(old, ConfigDict) and path not in OPEN_SECTIONS
                          and not is_duration(old))
            typed = old is not None and config.get_type(key) is not object
            if typed and (strict or is_section):
                _checked(old, value, path)
            if is_section and isinstance(value, Mapping):
                overlay(old, value, strict=strict, within=f'{path}.')
            else:
                _put(config, key, ConfigDict(value) if isinstance(value, Mapping) else value, path)
    return config


def _put(node: Any, key: str | int, value: Any, path: str) -> None:
    try:
        node[key] = value
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # a name that it refuses
        raise ConfigError(f'--config.{path}: {" ".join(str(error).split())}; choose another key.'
                          ) from None


def _set(config: ConfigDict, path: str, given: Any, typed: Callable) -> None:
    *parents, last = _split(path)
    node: Any = config
    for name in parents:
        node = _child(config, node, name, path)
    if node is None and last in UNITS:  # a duration that is None so far
        return _set(config, path.rpartition('.')[0], {last: _number(given, path)}, _checked)
    is_section, is_list = isinstance(node, (ConfigDict, dict)), isinstance(node, list)
    if not is_section and not is_list:
        raise ConfigError(f'--config.{path}: {".".join(map(str, parents))} holds a value, '
                          f'not a section, so it has no key {last!r}.')
    if is_duration(node) and last in UNITS:
        _set_unit(node, str(last), _number(given, path))
        return
    is_open = len(parents) == 1 and parents[0] in OPEN_SECTIONS
    if is_section and last not in node and not is_open:
        raise ConfigError(_unknown(config, path, last, node))
    if is_list and not (isinstance(last, int) and last < len(node)):
        raise ConfigError(f'--config.{path}: the list has {len(node)} entries, '
                          f'so there is no [{last}].')
    old = node[last] if not is_open or last in node else None
    anything = isinstance(node, ConfigDict) and last in node and node.get_type(last) is object
    if (isinstance(given, Mapping) and isinstance(old, ConfigDict) and not anything
            and not is_duration(old) and path not in OPEN_SECTIONS):
        for key, part in given.items():
            _set(config, f'{path}.{key}', part, typed)
        return
    value = typed(None if anything else old, given, path)
    if isinstance(node, ConfigDict):
        with node.unlocked(), node.ignore_type():
            _put(node, last, value, path)
    else:
        _put(node, last, value, path)


def _set_unit(duration: ConfigDict | dict, unit: str, value: int | float) -> None:
    """Replaces the unit and the number of a duration."""
    with duration.unlocked() if isinstance(duration, ConfigDict) else contextlib.nullcontext():
        for old in list(duration):
            del duration[old]
        duration[unit] = value


def _split(path: str) -> list[str | int]:
    """'curriculum[0].until.epochs' -> ['curriculum', 0, 'until', 'epochs']."""
    parts: list[str | int] = []
    for word in path.split('.'):
        match = re.fullmatch(r'([^\[\]]+)((?:\[\d{1,9}\])*)', word)
        if not match:
            raise ConfigError(f'--config.{path} is not a valid key: '
                              f'write it like --config.schedule.lr=0.001.')
        parts.append(match[1])
        parts.extend(int(number) for number in re.findall(r'\d+', match[2]))
    return parts


def _child(config: ConfigDict, node: Any, name: str | int, path: str) -> Any:
    if isinstance(name, int):
        if isinstance(node, (list, tuple)) and name < len(node):
            return node[name]
        raise ConfigError(f'--config.{path}: there is no entry [{name}] there.')
    if not isinstance(node, (ConfigDict, dict)) or name not in node:
        raise ConfigError(_unknown(config, path, name, node))
    return node[name]


def _unknown(config: ConfigDict, path: str, name: str | int, node: Any) -> str:
    """One sentence with the nearest key: in the same section, or of the same name anywhere."""
    leaves = list(by_dotted_key(config))
    here = list(node) if isinstance(node, (ConfigDict, dict)) else []
    near = [re.sub(rf'(^|\.){re.escape(str(name))}(?=$|\.|\[)', rf'\1{key}', path, count=1)
            for key in nearest(name, here)]
    if not near:
        same_name = [leaf for leaf in leaves if leaf.rpartition('.')[2] == path.rpartition('.')[2]]
        near = same_name[:2] or nearest(path, leaves, cutoff=0.5)
    hint = (f'did you mean {" or ".join("--config." + key for key in near)}?' if near
            else f'known here: {", ".join(map(str, here))}.')
    return f'--config.{path}: the config has no key {name!r}; {hint}'


def _typed(old: Any, text: str, path: str) -> Any:
    """The text as a value of the type of the old one."""
    kind = type(old).__name__
    try:
        if isinstance(old, bool):
            return {'true': True, '1': True, 'yes': True,
                    'false': False, '0': False, 'no': False}[text.strip().lower()]
        if isinstance(old, int):
            number = float(text) if re.search(r'[.eE]', text) else int(text)
            if number != int(number):
                raise ValueError
            return int(number)
        if isinstance(old, float):
            number = float(text)
            if math.isnan(number):
                raise ValueError
            return number
        if isinstance(old, str):
            return text
        if path in BY_HEAD and re.match(r'\s*(\{|dict\()', text):
            return ConfigDict(dict(literal(text)))
        if isinstance(old, (tuple, list)):
            return _sequence(old, text)
        if isinstance(old, (ConfigDict, dict)):
            value = literal(text)
            if not isinstance(value, dict):
                raise ValueError
            return ConfigDict(value) if isinstance(old, ConfigDict) else value
    except (ValueError, KeyError, SyntaxError, OverflowError, TypeError, AttributeError):
        example = {'bool': 'True or False', 'int': 'a whole number', 'float': 'a number',
                   'tuple': 'values between commas', 'list': 'values between commas'}.get(
                       kind, 'something like dict(epochs=5)')
        raise ConfigError(f'--config.{path}={shown(text)}: {shown(text)!r} is not of type {kind}, '
                          f'which this key holds; give {example}.') from None
    try:
        return literal(text)
    except (ValueError, SyntaxError):
        return text


def shown(text: str, most: int = 100) -> str:
    """The text as one line of at most so many characters, for a message."""
    text = ' '.join(text.split())
    return text if len(text) <= most else f'{text[:most - 1]}…'


def _number(given: Any, path: str) -> int | float:
    """The number of a duration, given as text or as a number."""
    text = given if isinstance(given, str) else repr(given)
    return _typed(0.0 if '.' in text or 'e' in text.lower() else 0, text, path)


def _checked(old: Any, value: Any, path: str) -> Any:
    """The value, if it has the type of the old one; None as the old one allows any type."""
    kinds: dict[type, tuple[type, ...]] = {
        float: (int, float), tuple: (tuple, list), list: (tuple, list),
        ConfigDict: (ConfigDict, dict), dict: (ConfigDict, dict)}
    kind = type(old)
    if old is None:
        return value
    if path in BY_HEAD and isinstance(value, (ConfigDict, dict)):
        return ConfigDict(value)
    if not isinstance(value, kinds.get(kind, kind)) or isinstance(value, bool) > (kind is bool):
        text = shown(repr(value))
        raise ConfigError(f'--config.{path}={text}: {text} is not of type {kind.__name__}, '
                          f'which this key holds.')
    return kind(value)


def _sequence(old: tuple | list, text: str) -> tuple | list:
    stripped = text.strip()
    if stripped[:1] in ('(', '['):
        value = literal(stripped)
        if not isinstance(value, (tuple, list)):
            raise ValueError
        return type(old)(value)
    words = [word.strip() for word in stripped.split(',') if word.strip()]
    if old and isinstance(old[0], (int, float)):
        return type(old)(type(old[0])(word) for word in words)
    return type(old)(words)


def literal(text: str) -> Any:
    """The value of a Python literal that JSON can hold, also of `dict(key=value)`.

    Nothing is executed.

    Raises:
        ValueError or SyntaxError: the text is anything else.
    """
    try:
        return _literal(ast.parse(text.strip(), mode='eval').body)
    except (RecursionError, MemoryError):
        raise ValueError('it is nested too deeply') from None


def _literal(node: Any) -> Any:
    if isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Name) and node.func.id == 'dict') or node.args:
            raise ValueError('only dict(key=value) may be called')
        return _as_dict((word.arg, _literal(word.value)) for word in node.keywords)
    if isinstance(node, ast.Dict):
        return _as_dict((_literal(key), _literal(value))
                        for key, value in zip(node.keys, node.values))
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    value = ast.literal_eval(node)
    if not isinstance(value, (str, int, float, type(None))) or value != value:
        raise ValueError(f'{value!r} is neither text nor a number')
    return value


def _as_dict(pairs: Iterable[tuple[Any, Any]]) -> dict:
    found: dict = {}
    for key, value in pairs:
        if not isinstance(key, (str, int, float)) or key in found:
            raise ValueError(f'{key!r} is not a valid key, or is given twice')
        found[key] = value
    return found
