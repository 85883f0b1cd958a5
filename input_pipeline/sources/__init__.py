"""Where pictures come from: one module per kind of source, and `read_image` for their pixels.

A source is a module with `load(**kwargs) -> Manifest`. If its pictures are not files, their
locations look like `scheme:rest`, and the module has either `read(location) -> uint8 [H, W, 3]`
for drawn pictures, or `read_bytes(root, location)` and `stamp(root, location)` for encoded ones.
To add a source, write the module and add lines to `SOURCES`, `DRAWN` and `ENCODED`.
"""

import functools
import importlib
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from input_pipeline import class_names
from input_pipeline.decode import MAX_BYTES, NoTransparency, UnreadableImage, decode
from input_pipeline.encode import encode
from input_pipeline.errors import DataError, nearest, perhaps
from input_pipeline.manifest import Manifest
from input_pipeline.sixteen_bits import FULL, Range

# kind -> (module, keyword arguments of its `load` from `config.data` and the seed)
SOURCES: dict[str, tuple[str, Callable[[Mapping, int], dict]]] = {
    'doodles': ('doodles', lambda data, seed: _without_none(
        {'seed': seed} | _without_none(data.get('doodles') or {}))),
    'digits': ('digits', lambda data, seed: {}),
    'folder': ('folder', lambda data, seed: _pick(
        data, 'group_regex', 'extensions', 'labelled', 'allow_outside', 'class_depth',
        'zip_encoding', 'rules', path=data.get('folder', ''))),
    'csv': ('csv_file', lambda data, seed: _pick(
        data, 'columns', 'classes', 'group_regex', 'labelled', 'rules', path=data.get('csv', ''),
        several=_module('label_cells').SetSpec(
            _names(data.get('multi_label')), data.get('label_separator') or '|'),
        images=_module('csv_file').Images(**_pick(data, 'allow_outside', 'zip_encoding',
                                                  path=data.get('images') or '')))),
    'tfds': ('tfds', lambda data, seed: _pick(
        data, 'columns', name=data.get('tfds', ''), data_dir=data.get('tfds_dir') or '',
        splits=data.get('tfds_splits') or ())),
    'packed': ('array_records', lambda data, seed: {'path': data.get('packed', '')}),
}
# scheme -> module
DRAWN = {'doodles': 'doodles', 'digits': 'digits'}
ENCODED = {'zip': 'zip_archive', 'tfds': 'tfds', 'packed': 'array_records'}
# O_NONBLOCK: opening a named pipe would wait for a writer. O_BINARY: of Windows.
_READING = os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)


def load_source(data: Mapping, *, seed: int = 0) -> Manifest:
    """Builds the Manifest that `config.data` asks for.

    Args:
        data: `source` (a key of `SOURCES`), the keys of that source, and for every source
            `classes` and `rules` (see `class_names`). Other keys, and keys that are None, are
            ignored.
        seed: for drawn sources that have no seed of their own.

    Raises:
        DataError: the source is unknown, finds something wrong with the data, or has a class that
            `classes` does not name.
    """
    rules = data.get('rules')
    rules = class_names.checked_rules(class_names.RULES[-1] if rules is None else rules)
    kind = data.get('source', '')
    if kind not in SOURCES:
        raise DataError(f'data.source={kind!r} is not a valid source{perhaps(kind, SOURCES)}: '
                        f'use one of {listed(SOURCES)}.')
    if kind != 'csv' and _names(data.get('multi_label')):
        raise DataError(f'data.multi_label={data["multi_label"]!r} needs data.source=csv, and '
                        f'data.source={kind} has one label per picture: unset it, or write a '
                        f'table.')
    module, arguments = SOURCES[kind]
    manifest = _module(module).load(**arguments(data, seed))
    return class_names.obeyed(manifest, data.get('classes') or (), rules)


def scheme_of(location: str) -> str:
    """The scheme of a location such as `digits:17`, or '' if the picture is a file."""
    head, colon, _ = location.partition(':')
    return head if colon and (head in DRAWN or head in ENCODED) else ''


def read_image(manifest_root: str, location: str,
               min_size: tuple[int, int] | None = None, *, range16: Range = FULL,
               alpha: bool = False) -> np.ndarray:
    """Pixels of one row of a Manifest, RGB uint8 [H, W, 3], or RGBA [H, W, 4] with `alpha`.

    Args:
        manifest_root: the manifest's `root`.
        location: the row's location.
        min_size, range16, alpha: as in `decode`.

    Raises:
        UnreadableImage: the file is missing or is not a readable image.
        NoTransparency: it has none, with `alpha`; drawn pictures never have.
    """
    scheme = scheme_of(location)
    if scheme in DRAWN:
        if alpha:
            raise NoTransparency.of(location)
        return _module(DRAWN[scheme]).read(location)
    return decode(read_bytes(manifest_root, location), name=location, min_size=min_size,
                  range16=range16, alpha=alpha)


def reader(manifest: Manifest, alpha: bool = False) -> Callable[..., np.ndarray]:
    """`read_image` for the pictures of a manifest: (location, min_size=None) -> pixels."""
    return functools.partial(read_image, manifest.root, range16=manifest.range16, alpha=alpha)


def read_bytes(manifest_root: str, location: str) -> bytes:
    """The encoded picture of one row of a Manifest; a drawn picture becomes a PNG.

    Raises:
        UnreadableImage: it is missing or cannot be opened.
    """
    scheme = scheme_of(location)
    if scheme in DRAWN:
        return encode(_module(DRAWN[scheme]).read(location), 'lossless')
    if scheme:
        return _module(ENCODED[scheme]).read_bytes(manifest_root, location)
    path = os.path.join(manifest_root, location)
    try:
        # os.open and os.read: a buffered file would take twice as long for a small picture.
        file = os.open(path, _READING)
        try:
            status = os.fstat(file)
            _check_kind(location, status)
            data = os.read(file, status.st_size)
            while len(data) < status.st_size and (more := os.read(file, status.st_size)):
                data += more
            return data
        finally:
            os.close(file)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unopened(path, location, error) from None


def stamp(manifest_root: str, location: str) -> tuple[int, int]:
    """Two numbers that change with an encoded picture: a file's size in bytes and mtime in ns.

    Raises:
        UnreadableImage: the file is missing.
    """
    scheme = scheme_of(location)
    if scheme:
        return _module(ENCODED[scheme]).stamp(manifest_root, location)
    path = os.path.join(manifest_root, location)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unopened(path, location, error) from None
    _check_kind(location, status)
    return status.st_size, status.st_mtime_ns


def _check_kind(location: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage.of(location, 'is a folder, a pipe or a device, not a file')
    if status.st_size > MAX_BYTES:
        raise UnreadableImage.of(location, f'has {status.st_size:,} bytes, more than '
                                           f'{MAX_BYTES:,}')


def _unopened(path: str, location: str, error: Exception) -> UnreadableImage:
    if isinstance(error, UnreadableImage):
        return error
    if not isinstance(error, FileNotFoundError):
        return UnreadableImage.of(
            location, f'cannot be opened ({getattr(error, "strerror", None) or error})')
    others = {unicodedata.normalize(form, path) for form in ('NFC', 'NFD')} - {path}
    return UnreadableImage.of(location, 'is missing' + (
        ' (there is a file whose name composes its accents differently: Unicode NFC and NFD)'
        if any(map(os.path.exists, others)) else ''))


def groups_from_paths(paths: Sequence[str], pattern: str) -> list[str]:
    """Group of each path: the first capture group of `pattern`, else its whole match.

    Raises:
        DataError: `pattern` is not a valid regular expression, or a path does not match.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise DataError(f'data.group_regex={pattern!r} is not a valid regular expression '
                        f'({error}): correct it.') from None
    groups, missed = [], []
    for path in paths:
        match = regex.search(path)
        group = match.group(1 if regex.groups else 0) if match else None
        if group is None:
            missed.append(path)
        groups.append(group)
    if missed:
        raise DataError(
            f'data.group_regex={pattern!r} does not match {len(missed)} of {len(paths)} paths '
            f'({_first(missed)}): change the pattern so that it finds the group in every path.')
    return groups


def is_below(folder: str, path: str) -> bool:
    """Whether a path lies in a folder or is that folder; both are absolute and without '..'."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def missing_path(path: str) -> str:
    """The end of a sentence about an absent path: how far it exists, and a similar name there."""
    parent, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    try:
        with os.scandir(parent) as entries:
            near = nearest(name, (entry.name for entry in entries))
    except OSError:
        near = []
    hint = f'; did you mean {os.path.join(parent, near[0])!r}?' if near else ''
    return f'does not exist ({parent!r} has no {name!r}{hint})'


def _first(names: Sequence[str], limit: int = 5) -> str:
    return ', '.join(repr(n) for n in names[:limit]) + (', ...' if len(names) > limit else '')


def listed(names) -> str:
    """Names in one line, at most 20 of them."""
    names = list(names)
    text = ', '.join(' '.join(name.split())[:60] for name in names[:20])
    return f'{text} and {len(names) - 20} more' if len(names) > 20 else text


def _without_none(mapping: Mapping) -> dict:
    return {key: value for key, value in mapping.items() if value is not None}


def _pick(data: Mapping, *keys: str, **more) -> dict:
    return more | _without_none({key: data.get(key) for key in keys})


def _names(value) -> tuple[str, ...]:
    """A list of names in the config, which may be text with commas."""
    parts = value.split(',') if isinstance(value, str) else value or ()
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _module(name: str):
    # Imported on demand: a source that is not used must not cost start-up time.
    return importlib.import_module(f'input_pipeline.sources.{name}')
