"""The folder of a run: its name, and whose it is."""

import importlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from input_pipeline.csv_table import read_csv
from input_pipeline.durations import UNITS
from input_pipeline.kept_splits import split_digest
from input_pipeline.manifest import Manifest
from input_pipeline.splits import save_splits
from train_lib.run_dir.code_digest import code_digest
from train_lib.run_dir.metrics_log import read_json, seal, write_json
from train_lib.run_dir.overrides import OPEN_SECTIONS
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

# Keys that may change between two starts of one run; every other one makes it another run.
CHANGEABLE = ('duration', 'log', 'eval', 'checkpoint', 'loader', 'mesh', 'image.cache_mb',
              'data.unreadable', 'data.changed', 'accumulate', 'early_stopping.patience',
              'early_stopping.min_delta', 'init.resume_from', 'lr_find', 'profile',
              'compile_cache', 'sharding', 'distributed', 'plan_only', 'plan_memory_gb',
              'predict', 'curate', 'pack', 'study', 'report')
# What config.json holds besides the config: the version of its format, digests of data and code at
# the start, the classes of each head, the digest of the split, the defaults of the keys that were
# changed, {'schedule.lr': 0.001}, and a digest of all this, so that a damaged value is not taken
# for a setting.
RECORDS = ('format', 'data_digest', 'code_digest', 'classes', 'split_digest', 'defaults',
           'sha256')
FORMAT = 2  # 1: without digests of itself and of the split, and without classes
SPLIT, BEFORE = 'split.csv', 'split-before.csv'


def cache_folder() -> str:
    """Where answers about files are remembered between runs (XDG_CACHE_HOME is obeyed)."""
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return os.path.join(base, 'atelier')


def new(config_file: str, verb: str = '') -> Path:
    """A folder that does not exist yet: runs/<config>-<time>, or runs/<config>-<verb>-<time>."""
    stem = Path(config_file.partition(':')[0]).stem + (f'-{verb}' if verb else '')
    base = Path('runs') / f'{stem}-{time.strftime("%Y%m%d-%H%M%S")}'
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f'{base.name}-{number}'), number + 1
    return path


def choose(given: Path | None, config_file: str, verb: str = '') -> Path:
    """The folder of this run: the one given, or a new one, the same on every process."""
    return given or Path(distributed.on_first(lambda: str(new(config_file, verb))))


def claim(workdir: Path, config: ConfigDict, data_digest: str, split: Manifest | None = None
          ) -> None:
    """Makes the folder and writes config.json; on a later start, compares with the one there.

    Of several processes the first does so for all, and all must have the same data. `split`: the
    rows as they were split; None if that is decided later, for each fold.

    Raises:
        ConfigError: the folder belongs to a run with other settings or other data, or cannot be
            written to.
    """
    distributed.check_same(data_digest, 'The data (digest of ids and labels)')
    today = split and split_digest(split.table['id'], split.table['split'])
    distributed.check_same(str(today), 'The split')
    shared = {key: value for key, value in json.loads(config.to_json()).items()
              if key != 'distributed'}
    distributed.check_same(json.dumps(shared), 'The config')
    distributed.on_first(lambda: _claim(workdir, config, data_digest, split, today))


def _claim(workdir: Path, config: ConfigDict, data_digest: str, split: Manifest | None,
           today: str | None) -> None:
    try:
        (workdir / 'predictions').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be made ({error.strerror}): '
                          f'give another --workdir.') from None
    path = workdir / 'config.json'
    if path.exists():
        check_same(workdir, config, data_digest, classes=split and split.classes)
    settings = json.loads(config.to_json())
    content = settings | dict(format=FORMAT, data_digest=data_digest, code_digest=code_digest(),
                              defaults=_changed(settings))
    if split:
        content |= dict(classes=_listed(split.classes),
                        split_digest=_save_split(workdir, split, today))
    # The seal comes first, so that deleting its line leaves JSON.
    write_json(path, dict(sha256=seal(content)) | content)
    (workdir / BEFORE).unlink(missing_ok=True)


def _save_split(workdir: Path, split: Manifest, digest: str) -> str:
    """Writes split.csv, in which the rows stay that are gone since, and returns its digest. Until
    config.json has that, an older split.csv is kept beside it."""
    path = workdir / SPLIT
    if records(workdir).get('split_digest') == digest:
        save_splits(split, str(path))
        return digest
    rows, today = _split_of_run(workdir), set(split.table['id'])
    gone = [row for name, row in rows.items() if name not in today]
    if rows and not (workdir / BEFORE).exists():
        shutil.copyfile(path, workdir / BEFORE)
    save_splits(split, str(path), gone)
    return split_digest([*split.table['id'], *(row['id'] for row in gone)],
                        [*split.table['split'], *(row['split'] for row in gone)])


def _defaults() -> dict:
    return json.loads(importlib.import_module('configs.common').get_config().to_json())


def _changed(settings: dict) -> dict:
    """{dotted key: its default} of the settings that aren't as in configs/common.py; None where
    there is no such key."""
    default = _flat(_defaults())
    return {key: default.get(key) for key, value in _flat(settings).items()
            if key not in default or default[key] != value}


def check_same(workdir: Path, config: ConfigDict, data_digest: str, ignore: Sequence[str] = (),
               remedy: str = 'give a new --workdir', classes: Mapping | None = None) -> None:
    """Compares a run with the config and the data of this start; nothing is written.

    Args:
        workdir: of a run.
        config: of this start.
        data_digest: of its data.
        ignore: keys that may differ, besides those that always may.
        remedy: what to do if they differ, besides putting them back.
        classes: {head: names} of its data, where others may be accepted (config.data.changed).

    Raises:
        ConfigError: the run has other settings or other data.
    """
    before = read_config(workdir)
    _compare(workdir, _settings(workdir, before), json.loads(config.to_json()), ignore, remedy)
    if before.get('data_digest', data_digest) == data_digest:
        return
    if config.data.changed != 'accept' or classes is None:
        can = classes is not None and 'classes' in before
        hint = ', or go on with these by --config.data.changed=accept' if can else ''
        raise ConfigError(f'The data have changed since {workdir} was started (ids, labels, '
                          f'groups or classes differ): put them back{hint}, or {remedy}.')
    if before.get('classes') != _listed(classes):
        raise ConfigError(f'The classes have changed since {workdir} was started, or it does not '
                          f'say what they were: put them back, or {remedy}.')
    log.info('changed  the data (config.data.changed=accept)')


def _listed(classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {head: list(names) for head, names in classes.items()}


def records(workdir: Path) -> dict:
    """RECORDS of a run, {} if there is none."""
    if not (workdir / 'config.json').exists():
        return {}
    content = read_config(workdir)
    return {key: content[key] for key in RECORDS if key in content}


def known_sides(workdir: Path) -> dict[str, str]:
    """{id: side} of all rows that a run ever had, from its split.csv; {} before it.

    Raises:
        ConfigError: it is not as it was written.
    """
    return {name: row['split'] for name, row in _split_of_run(workdir).items()}


def _split_of_run(workdir: Path) -> dict[str, dict[str, str]]:
    """{id: row of split.csv}, as config.json knows it; {} before that. A kill may have come
    between the two, so the one from before counts as well."""
    known = records(workdir)
    if not known:
        return {}
    for name in (SPLIT, BEFORE):
        if not (workdir / name).exists():
            continue
        header, rows, _ = read_csv(str(workdir / name))
        table = [dict(zip(header, row)) for row in rows] if {'id', 'split'} <= set(header) else []
        found = {row['id']: row for row in table}
        wanted = known.get('split_digest')  # an older run has none
        if wanted in (None, split_digest(found, (row['split'] for row in found.values()))):
            return found
    if 'split_digest' not in known and not (workdir / SPLIT).exists():
        return {}
    raise ConfigError(f'{workdir / SPLIT} is not as it was written: restore it, or give a new '
                      f'--workdir.')


def ids(workdir: Path) -> set[str]:
    """The ids of the pictures that a run was started with, from its split.csv; {} before it."""
    found = set()
    for path in (workdir / 'split.csv', *workdir.glob('fold_*/split.csv')):
        if path.exists():
            header, rows, _ = read_csv(str(path))
            if 'id' not in header:
                raise ConfigError(f'{path} has no column id: restore it, or give a new --workdir.')
            found |= {row[header.index('id')] for row in rows}
    return found


def saved_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with. What it lacks, because it is older than the key, is
    as in configs/common.py.

    Raises:
        ConfigError: the folder holds no run, or one of a newer version of the code.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise ConfigError(f'{workdir} holds no run (config.json is missing): check --workdir.')
    config = _settings(workdir, read_config(workdir))
    try:
        return ConfigDict(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of names that it refuses
        raise ConfigError(f'{path} is no config ({" ".join(str(error).split())}): restore it, or '
                          f'give a new --workdir.') from None


def best_step(workdir: Path, newest: int) -> int | None:
    """The best step of a run that came to its end at its newest step, by its result.json; None
    before that, and when the run has gone on since.

    Raises:
        ConfigError: result.json is damaged.
    """
    path = workdir / 'result.json'
    result = _read(path) if path.exists() else {}
    best = result.get('best_step') if result.get('steps') == newest else None
    if best is not None and not isinstance(best, int):
        raise ConfigError(f'{path} has the best step {best!r}, which is no number: restore it or '
                          f'delete it.')
    return best


def data_digest(workdir: Path) -> str:
    """The digest of the data that a run was started with, '' if it is not known."""
    return read_config(workdir).get('data_digest', '')


def read_config(workdir: Path) -> dict:
    """The content of config.json.

    Raises:
        ConfigError: it is damaged.
    """
    path = workdir / 'config.json'
    content = _read(path)
    # An older run has no seal, a newer one another, and is refused by its format.
    known = content.get('sha256', '')
    if _can_read(content.get('format', 1)) and known not in ('', seal(content)):
        raise ConfigError(f'{path} is not as it was written: restore it, or if you changed it '
                          f'yourself, delete its line "sha256".')
    return content


def _read(path: Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path} cannot be read ({" ".join(str(error).split())}): restore it, or '
                          f'give a new --workdir.') from None


def _can_read(version) -> bool:
    return isinstance(version, int) and version <= FORMAT


def _settings(workdir: Path, content: Mapping) -> dict:
    """The config in a config.json as this version of the code would have written it."""
    version = content.get('format', 1)
    if not _can_read(version):
        raise ConfigError(f'{workdir}/config.json has format {version!r}, and this version of the '
                          f'code reads up to {FORMAT}: use the newer code.')
    return _completed({key: value for key, value in content.items() if key not in RECORDS},
                      _defaults(), f'{workdir}/config.json')


def _completed(saved: Mapping, defaults: Mapping, path: str, section: str = '') -> dict:
    """`saved` with the defaults that it lacks; no key may be unknown."""
    found = dict(defaults)
    for key, value in saved.items():
        name = f'{section}{key}'
        if key not in defaults:
            raise ConfigError(f'{path} has config.{name} = {value!r}, which this version of the '
                              f'code does not know: use the version that it was made with.')
        is_section = (isinstance(defaults[key], dict) and name not in OPEN_SECTIONS
                      and not set(defaults[key]) <= set(UNITS))
        found[key] = (_completed(value, defaults[key], path, f'{name}.')
                      if is_section and isinstance(value, Mapping) else value)
    return found


def _compare(workdir: Path, before: dict, now: dict, ignore: Sequence[str], remedy: str) -> None:
    old, new_ = _flat(before), _flat(now)
    for key in sorted(set(old) | set(new_)):
        if old.get(key) == new_.get(key) or any(key.startswith(name + '.') for name in ignore):
            continue
        if not any(key == name or key.startswith(name + '.') for name in CHANGEABLE):
            raise ConfigError(
                f'{workdir} was started with config.{key} = {old.get(key)!r}, and this start has '
                f'{new_.get(key)!r}: put it back, or {remedy}.')
        log.info('changed  config.%s: %r -> %r', key, old.get(key), new_.get(key))


def _flat(node, prefix: str = '') -> dict:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    found = {}
    for key, value in node.items():
        found |= _flat(value, f'{prefix}.{key}' if prefix else key)
    return found
