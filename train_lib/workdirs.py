"""The folder of a run: its name, and whose it is."""

import csv
import json
import logging
import os
import time
from pathlib import Path

from ml_collections import ConfigDict

from train_lib.errors import ConfigError
from train_lib.records import write_json

log = logging.getLogger(__name__)

# Keys that may change between two starts of one run; every other one makes it another run.
CHANGEABLE = ('duration', 'log', 'eval', 'checkpoint', 'loader', 'mesh', 'image.cache_mb',
              'data.unreadable')


def cache_folder() -> str:
    """Where answers about files are remembered between runs (XDG_CACHE_HOME is obeyed)."""
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return os.path.join(base, 'atelier')


def new(config_file: str) -> Path:
    """A folder that does not exist yet: runs/<config>-<time>."""
    stem = Path(config_file.partition(':')[0]).stem
    base = Path('runs') / f'{stem}-{time.strftime("%Y%m%d-%H%M%S")}'
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f'{base.name}-{number}'), number + 1
    return path


def claim(workdir: Path, config: ConfigDict, data_digest: str) -> None:
    """Makes the folder and writes config.json; on a later start, compares with the one there.

    Raises:
        ConfigError: the folder belongs to a run with other settings or other data, or cannot be
            written to.
    """
    try:
        (workdir / 'predictions').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be made ({error.strerror}): '
                          f'give another --workdir.') from None
    path = workdir / 'config.json'
    now = json.loads(config.to_json())
    if path.exists():
        before = _read(path)
        _compare(workdir, before, now)
        if before.get('data_digest', data_digest) != data_digest:
            raise ConfigError(f'The data have changed since {workdir} was started (ids, labels, '
                              f'groups or classes differ): put them back, or give a new --workdir.')
    write_json(path, now | {'data_digest': data_digest})


def ids(workdir: Path) -> set[str]:
    """The ids of the pictures that a run was started with, from its split.csv; {} before it."""
    found = set()
    for path in (workdir / 'split.csv', *workdir.glob('fold_*/split.csv')):
        if path.exists():
            with open(path, encoding='utf-8', newline='') as file:
                found |= {row['id'] for row in csv.DictReader(file)}
    return found


def saved_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with.

    Raises:
        ConfigError: the folder holds no run.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise ConfigError(f'{workdir} holds no run (config.json is missing): check --workdir.')
    config = _read(path)
    config.pop('data_digest', None)
    return ConfigDict(config)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise ConfigError(f'{path} cannot be read as JSON: restore it, or give a new '
                          f'--workdir.') from None


def _compare(workdir: Path, before: dict, now: dict) -> None:
    old, new_ = _flat(before), _flat(now)
    old.pop('data_digest', None)
    for key in sorted(set(old) | set(new_)):
        if old.get(key) == new_.get(key):
            continue
        if not any(key == name or key.startswith(name + '.') for name in CHANGEABLE):
            raise ConfigError(
                f'{workdir} was started with config.{key} = {old.get(key)!r}, and this start has '
                f'{new_.get(key)!r}: put it back, or give a new --workdir.')
        log.info('changed  config.%s: %r -> %r', key, old.get(key), new_.get(key))


def _flat(node, prefix: str = '') -> dict:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    found = {}
    for key, value in node.items():
        found |= _flat(value, f'{prefix}.{key}' if prefix else key)
    return found
