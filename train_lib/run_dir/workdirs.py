"""The folder of a run: its name, and which run it belongs to."""

import importlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.atomic_files import write_json
from input_pipeline.csv_table import read_csv
from input_pipeline.durations import UNITS
from input_pipeline.kept_splits import split_digest
from input_pipeline.manifest import Manifest
from input_pipeline.sixteen_bits import FULL, Range
from input_pipeline.sixteen_bits import check as check_range16
from input_pipeline.splits import save_splits
from train_lib.run_dir import moved_data
from train_lib.run_dir.before import BEFORE
from train_lib.run_dir.code_digest import code_digest
from train_lib.run_dir.dotted_keys import by_dotted_key, parent_of
from train_lib.run_dir.json_files import json_digest, read_json
from train_lib.run_dir.overrides import OPEN_SECTIONS
from train_lib.run_dir.unknown_workdir import neighbours
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

# Keys that may change between two starts of one run; a change of any other key makes another run.
CHANGEABLE = ('duration', 'log', 'eval', 'checkpoint', 'loader', 'mesh', 'image.cache_mb',
              'data.unreadable', 'data.changed', 'accumulate', 'early_stopping.patience',
              'early_stopping.min_delta', 'init.resume_from', 'init.seen', 'init.folder', 'lr_find',
              'profile', 'compile_cache', 'saved_activations', 'sharding', 'distributed', 'plan',
              'plan_only', 'plan_memory_gb', 'predict', 'curate', 'pack', 'study', 'report')
# Facts about the start of the run that config.json holds besides the config: the version of its
# format, digests of data and code, the classes of each head, the digest of the split, the values
# that 16-bit pictures show black and white, how pictures are prepared (mean, std, resize,
# interpolation, crop_pct), the published weights it goes back to (starting_weights.py), the
# defaults of the keys that were changed, {'schedule.lr': 0.001}, sizes and digests of the pictures
# (moved_data.py), a digest of the unlabelled pictures, what it learns from other runs
# (teaching.py), and a digest of the whole file, so that a damaged value is not taken for a setting.
START_FACTS = ('format', 'data_digest', 'code_digest', 'classes', 'split_digest', 'range16',
               'input', 'pretrained', 'defaults', 'pictures', 'unlabelled_digest', 'taught',
               'sha256')
FORMAT = 2  # format 1 has no digests of itself and of the split, and no classes
SPLIT, SPLIT_BEFORE = 'split.csv', 'split-before.csv'


def new(config_file: str, verb: str = '') -> Path:
    """The name of a folder that does not exist yet: runs/<config>-<time>, with a verb
    runs/<config>-<verb>-<time>."""
    stem = Path(config_file.partition(':')[0]).stem + (f'-{verb}' if verb else '')
    base = Path('runs') / f'{stem}-{time.strftime("%Y%m%d-%H%M%S")}'
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f'{base.name}-{number}'), number + 1
    return path


def choose(given: Path | None, config_file: str, verb: str = '') -> Path:
    """The folder of this run: the given one, or a new one, the same on every process."""
    return given or Path(distributed.on_first(lambda: str(new(config_file, verb))))


def claim(workdir: Path, config: ConfigDict, data_digest: str, split: Manifest | None = None, *,
          range16: Range = FULL, rows: Manifest | None = None, compared: bool = False,
          facts: Mapping[str, Any] | None = None) -> None:
    """Makes the folder and writes config.json; on a later start, compares with the one there.

    With several processes the first one does so, and all must have the same config and data.
    Whatever may refuse a start comes before, so that a refused start changes nothing.

    Args:
        workdir: of the run.
        config: of this start.
        data_digest: of the manifest.
        split: the rows with their splits; None if that is decided later, for each fold.
        range16: by which the run reads 16-bit pictures.
        rows: the rows where there is no `split`.
        compared: `compare` was called with the same before.
        facts: further START_FACTS, such as `input`: how it prepares pictures, which later starts
            take over.

    Raises:
        ConfigError: the folder belongs to a run with other settings or other data, or cannot be
            written to.
    """
    if not compared:
        compare(workdir, config, data_digest, split, range16=range16, rows=rows)
    facts = dict(range16=list(range16)) | dict(facts or {})
    distributed.on_first(lambda: _claim(workdir, config, data_digest, split,
                                        split if rows is None else rows, facts))


def compare(workdir: Path, config: ConfigDict, data_digest: str, split: Manifest | None = None, *,
            range16: Range = FULL, rows: Manifest | None = None) -> None:
    """Refuses what `claim` would refuse, and writes nothing. Arguments and errors as there."""
    distributed.check_same(data_digest, 'The data (digest of ids and labels)')
    today = None if split is None else split_digest(split.table['id'], split.table['split'])
    distributed.check_same(str(today), 'The split')
    shared = {key: value for key, value in json.loads(config.to_json()).items()
              if key != 'distributed'}
    distributed.check_same(json.dumps(shared), 'The config')
    distributed.check_same(str(range16), 'The range of 16-bit pictures')
    if (workdir / 'config.json').exists():
        distributed.on_first(lambda: check_same(
            workdir, config, data_digest, classes=None if split is None else split.classes,
            rows=split if rows is None else rows))


def _claim(workdir: Path, config: ConfigDict, data_digest: str, split: Manifest | None,
           rows: Manifest | None, facts: Mapping[str, Any]) -> None:
    today = None if split is None else split_digest(split.table['id'], split.table['split'])
    try:
        (workdir / 'predictions').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be made ({error.strerror}): '
                          f'give another --workdir.') from None
    path = workdir / 'config.json'
    known = start_facts(workdir)
    settings = json.loads(config.to_json())
    content = settings | dict(format=FORMAT, data_digest=data_digest, code_digest=code_digest(),
                              defaults=_changed(settings)) | facts
    same = known.get('data_digest') == data_digest and known.get('pictures')
    pictures = same or ({} if rows is None else moved_data.pictures_of(rows))
    content |= dict(pictures=pictures) if pictures else {}
    if split is not None:
        content |= dict(classes=_listed(split.classes),
                        split_digest=_save_split(workdir, split, today))
    # The digest comes first, so that the file without its line is still JSON.
    write_json(path, dict(sha256=json_digest(content)) | content)
    (workdir / SPLIT_BEFORE).unlink(missing_ok=True)


def _save_split(workdir: Path, split: Manifest, digest: str | None) -> str:
    """Writes split.csv and returns its digest. Rows of an earlier start that the data lack today
    stay in it. Until config.json has the new digest, the older split.csv is kept beside it."""
    path = workdir / SPLIT
    if digest is not None and start_facts(workdir).get('split_digest') == digest:
        save_splits(split, str(path))
        return digest
    rows, today = _split_of_run(workdir), set(split.table['id'])
    gone = [row for name, row in rows.items() if name not in today]
    if rows and not (workdir / SPLIT_BEFORE).exists():
        shutil.copyfile(path, workdir / SPLIT_BEFORE)
    save_splits(split, str(path), gone)
    return split_digest([*split.table['id'], *(row['id'] for row in gone)],
                        [*split.table['split'], *(row['split'] for row in gone)])


def _defaults() -> dict:
    return json.loads(importlib.import_module('configs.common').get_config().to_json())


def _changed(settings: dict) -> dict:
    """{dotted key: its default} of the settings that differ from configs/common.py; the default is
    None for a key that is not there."""
    default = by_dotted_key(_defaults())
    return {key: default.get(key) for key, value in by_dotted_key(settings).items()
            if key not in default or default[key] != value}


def check_same(workdir: Path, config: ConfigDict, data_digest: str, ignore: Sequence[str] = (),
               remedy: str = 'give a new --workdir', classes: Mapping | None = None,
               rows: Manifest | None = None) -> None:
    """Compares a run with the config and the data of this start; nothing is written.

    Args:
        workdir: of a run.
        config: of this start.
        data_digest: of the data of this start.
        ignore: sections whose keys may differ, besides `CHANGEABLE`.
        remedy: what to do if a setting differs, besides restoring it.
        classes: {head: names} of the data of this start, if other data may be accepted
            (config.data.changed); None if not.
        rows: of this start: the data may lie at another path than before, and their files are
            compared. Without them another path is refused.

    Raises:
        ConfigError: the run has other settings or other data.
    """
    before = read_config(workdir)
    moved = _compare(workdir, _settings(workdir, before), json.loads(config.to_json()),
                     (*ignore, *(moved_data.PLACES if rows is not None else ())), remedy)
    if before.get('data_digest', data_digest) == data_digest:
        if moved and rows is not None:
            moved_data.compare(before.get('pictures', {}), rows, str(workdir), moved)
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


def start_facts(workdir: Path) -> dict[str, Any]:
    """START_FACTS of a run, as far as its config.json has them; {} if there is no run.

    Raises:
        ConfigError: config.json is damaged.
    """
    if not (workdir / 'config.json').exists():
        return {}
    content = read_config(workdir)
    return {key: content[key] for key in START_FACTS if key in content}


def range16_of(workdir: Path) -> Range | None:
    """The values of 16-bit pictures that are black and white to a run; None if there is no run.

    Raises:
        ConfigError: config.json is damaged. DataError: image.range16 is not valid.
    """
    if not (workdir / 'config.json').exists():
        return None
    content = read_config(workdir)
    image = content.get('image', {})
    wanted = content.get('range16') or image.get('range16', BEFORE['image.range16'])
    limits = check_range16(wanted)
    return None if isinstance(limits, str) else limits


def known_sides(workdir: Path) -> dict[str, str]:
    """{id: split} of all rows that a run ever had, from its split.csv; {} if there is none yet.

    Raises:
        ConfigError: split.csv has changed since it was written.
    """
    return {name: row['split'] for name, row in _split_of_run(workdir).items()}


def _split_of_run(workdir: Path) -> dict[str, dict[str, str]]:
    """{id: row of split.csv}, checked against config.json; {} if there is none yet. A kill may have
    come between writing the two files, so the split.csv from before is accepted too."""
    known = start_facts(workdir)
    if not known:
        return {}
    for name in (SPLIT, SPLIT_BEFORE):
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
    raise ConfigError(f'{workdir / SPLIT} has changed since it was written: restore it, or give a '
                      f'new --workdir.')


def ids(workdir: Path) -> set[str]:
    """The ids of the pictures that a run was started with, from its split.csv and those of its
    folds; an empty set if there is none yet."""
    found = set()
    for path in (workdir / SPLIT, *workdir.glob(f'fold_*/{SPLIT}')):
        if path.exists():
            header, rows, _ = read_csv(str(path))
            if 'id' not in header:
                raise ConfigError(f'{path} has no column id: restore it, or give a new --workdir.')
            found |= {row[header.index('id')] for row in rows}
    return found


def saved_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with. A key that is newer than the run has its default.

    Raises:
        ConfigError: the folder holds no run, or one of a newer version of the code.
    """
    path = workdir / 'config.json'
    if not path.exists():
        raise ConfigError(f'{workdir} holds no run (config.json is missing): '
                          f'{neighbours(workdir, "check --workdir.")}')
    config = _settings(workdir, read_config(workdir))
    try:
        return ConfigDict(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of names that it refuses
        raise ConfigError(f'{path} is not a valid config ({" ".join(str(error).split())}): restore '
                          f'it, or give a new --workdir.') from None


def best_step(workdir: Path, newest: int) -> int | None:
    """The best step of a finished run, from its result.json.

    Args:
        workdir: of the run.
        newest: the step of its newest checkpoint.

    Returns:
        None if the run is not finished, or was continued since.

    Raises:
        ConfigError: result.json is damaged.
    """
    path = workdir / 'result.json'
    result = _read(path) if path.exists() else {}
    best = result.get('best_step') if result.get('steps') == newest else None
    if best is not None and not isinstance(best, int):
        raise ConfigError(f'{path} has the best step {best!r}, which is not a number: restore it '
                          f'or delete it.')
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
    # An older run has no digest; a newer one has another, and is refused by its format.
    known = content.get('sha256', '')
    if _can_read(content.get('format', 1)) and known not in ('', json_digest(content)):
        raise ConfigError(f'{path} has changed since it was written: restore it, or, if you '
                          f'edited it, delete its line "sha256".')
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
    """The config in a config.json, with the keys of this version of the code."""
    version = content.get('format', 1)
    if not _can_read(version):
        raise ConfigError(f'{workdir}/config.json has format {version!r}, and this version of the '
                          f'code reads up to {FORMAT}: use the newer code.')
    defaults = _defaults()
    for name, value in BEFORE.items():
        section, key = parent_of(defaults, name)
        section[key] = value
    return _completed({key: value for key, value in content.items() if key not in START_FACTS},
                      defaults, f'{workdir}/config.json')


def _completed(saved: Mapping, defaults: Mapping, path: str, section: str = '') -> dict:
    """`saved`, and the defaults of the keys that it lacks; an unknown key is refused."""
    found = dict(defaults)
    for key, value in saved.items():
        name = f'{section}{key}'
        if key not in defaults:
            raise ConfigError(f'{path} has config.{name} = {value!r}, which this version of the '
                              f'code does not know: use the version that wrote it.')
        is_section = (isinstance(defaults[key], dict) and name not in OPEN_SECTIONS
                      and not set(defaults[key]) <= set(UNITS))
        found[key] = (_completed(value, defaults[key], path, f'{name}.')
                      if is_section and isinstance(value, Mapping) else value)
    return found


def _compare(workdir: Path, before: dict, now: dict, ignore: Sequence[str], remedy: str
             ) -> list[str]:
    """The keys that name another place than before, of those in `ignore`."""
    old, new = by_dotted_key(before), by_dotted_key(now)
    moved = []
    for key in sorted(set(old) | set(new)):
        if old.get(key) == new.get(key) or any(key.startswith(name + '.') for name in ignore):
            continue
        if key in ignore and moved_data.may_differ(key, old.get(key), new.get(key)):
            moved.append(key)
        elif not any(key == name or key.startswith(name + '.') for name in CHANGEABLE):
            raise ConfigError(
                f'{workdir} was started with config.{key} = {old.get(key)!r}, and this start has '
                f'{new.get(key)!r}: put it back, or {remedy}.')
        log.info('changed  config.%s: %r -> %r', key, old.get(key), new.get(key))
    return moved
