"""Which keys of a config are read, and how: by their own name, or with their whole section."""

import contextlib
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from input_pipeline.durations import UNITS
from train_lib.run_dir import dotted_keys, overrides

# They go through whole configs, to set, copy or print them: no verb decides anything by that.
_BULK = {overrides.__file__, dotted_keys.__file__, sys.modules[ConfigDict.__module__].__file__}


def sections(config: ConfigDict, path: str = '') -> Iterator[tuple[str, ConfigDict]]:
    """('', the config), ('schedule', its section), ...; durations and config.model are values."""
    yield path, config
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict) and key != 'model' and not set(value) <= set(UNITS):
            yield from sections(value, f'{path}.{key}' if path else key)


def leaves(config: ConfigDict) -> set[str]:
    """The dotted path of every key that is not a section."""
    paths = dict(sections(config))
    return {name for path, section in paths.items() for key in section
            if (name := f'{path}.{key}' if path else key) not in paths}


class Reads:
    """What was read of the sections of a config, which are told by their keys, copies too.

    Attributes:
        by_key: dotted paths read by their name, as in `config.seed` or `options['bits']`.
        in_bulk: those passed on with all others of their section, as in `Spec(**section)`.
    """

    def __init__(self, config: ConfigDict):
        self.by_key: set[str] = set()
        self.in_bulk: set[str] = set()
        self._paths = {frozenset(section): path for path, section in sections(config)}
        assert len(self._paths) == sum(1 for _ in sections(config)), 'two sections have equal keys'
        self._walked: set[tuple] = set()  # (code object, section) whose keys were listed

    def path_of(self, keys) -> str | None:
        """The section that has these keys, None for other dicts."""
        return self._paths.get(frozenset(keys))

    def note(self, path: str | None, key, frame) -> None:
        """A key was read in a frame; it counts in bulk if the frame lists all keys as well."""
        if path is None or frame.f_code.co_filename in _BULK:
            return
        name = f'{path}.{key}' if path else str(key)
        bulk = (frame.f_code, path) in self._walked
        (self.in_bulk if bulk else self.by_key).add(name)

    def note_walk(self, path: str | None, frame) -> None:
        """All keys of a section are listed in a frame."""
        self._walked.add((frame.f_code, path))


class _Section(dict):
    """A section as `ConfigDict.to_dict` gives it, which notes what is read of it."""

    def __init__(self, reads: Reads, path: str | None, values: dict):
        super().__init__({key: _watched(reads, value) for key, value in values.items()})
        self._reads, self._path = reads, path

    def __getitem__(self, key):
        self._reads.note(self._path, key, sys._getframe(1))
        return super().__getitem__(key)

    def get(self, key, default=None):
        self._reads.note(self._path, key, sys._getframe(1))
        return super().get(key, default)

    def pop(self, key, *default):
        self._reads.note(self._path, key, sys._getframe(1))
        return super().pop(key, *default)

    def __iter__(self):
        self._reads.note_walk(self._path, sys._getframe(1))
        return super().__iter__()

    def keys(self):
        self._reads.note_walk(self._path, sys._getframe(1))
        return super().keys()

    def items(self):
        self._all(sys._getframe(1))
        return super().items()

    def values(self):
        self._all(sys._getframe(1))
        return super().values()

    def _all(self, frame) -> None:
        self._reads.note_walk(self._path, frame)
        for key in dict.keys(self):
            self._reads.note(self._path, key, frame)

    def copy(self):
        return _Section(self._reads, self._path, dict(super().items()))

    def __or__(self, other):
        return _Section(self._reads, self._path, dict(super().items()) | other)


def _watched(reads: Reads, value):
    if not isinstance(value, dict) or isinstance(value, _Section):
        return value
    return _Section(reads, reads.path_of(value), value)


@contextlib.contextmanager
def recorded(config: ConfigDict) -> Iterator[Reads]:
    """In the block, every read of a ConfigDict with the sections of this one is noted."""
    reads, original = Reads(config), {name: getattr(ConfigDict, name) for name in (
        '__getattr__', '__getitem__', 'get', 'items', 'values', 'keys', '__iter__', 'to_dict')}

    def of_key(name):
        def read(self, key, *default):
            value = original[name](self, key, *default)
            reads.note(reads.path_of(self._fields), key, sys._getframe(1))
            return value
        return read

    def of_all(name):
        def read(self, *args, **settings):
            frame, path = sys._getframe(1), reads.path_of(self._fields)
            reads.note_walk(path, frame)
            if name in ('items', 'values'):
                for key in self._fields:
                    reads.note(path, key, frame)
            return original[name](self, *args, **settings)
        return read

    def to_dict(self, *args, **settings):
        found = original['to_dict'](self, *args, **settings)
        inside = sys._getframe(1).f_code.co_filename in _BULK
        return found if inside else _watched(reads, found)

    made = {name: of_key(name) for name in ('__getattr__', '__getitem__', 'get')}
    made |= {name: of_all(name) for name in ('items', 'values', 'keys', '__iter__')}
    for name, function in (made | dict(to_dict=to_dict)).items():
        setattr(ConfigDict, name, function)
    try:
        yield reads
    finally:
        for name, function in original.items():
            setattr(ConfigDict, name, function)
