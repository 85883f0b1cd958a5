"""Which rows the ancestors of a run trained on: the run that it started from, and theirs.

    ancestors.json   the ancestors, their digests, what is not known of them, what was accepted
    ancestors.csv    id and group of every row that one of them trained on

Both are written when the training starts, so an interrupted run has them too, and they outlive the
ancestors. A run without ancestors has neither. For an older run they are derived from its
config.json and from the folders that it names, as far as those are still there.

Rows are known by id and by group, not by content: pictures under other ids are other pictures.
"""

import csv
import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.atomic_files import atomic_open, write_json
from input_pipeline.csv_table import read_csv
from input_pipeline.errors import DataError
from input_pipeline.kept_splits import split_digest
from train_lib.run_dir import workdirs
from train_lib.run_dir.json_files import json_digest, read_json
from train_lib.runtime.errors import ConfigError

NAME, ROWS = 'ancestors.json', 'ancestors.csv'
UNLABELLED = 'unlabelled.csv'  # id and group of pictures that a run learned without labels
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Ancestry:
    """What a run has from the runs before it.

    Attributes:
        runs: the ancestors, the nearest first: dict(workdir, data_digest, split_digest,
            checkpoint, rows), each digest '' where it is not known; rows: how many it trained on.
        rows: {id: group, '' for none} of all rows that one of them trained on.
        unknown: what is not known, one clause each.
        accepted: config.init.seen was 'accept'.
    """

    runs: tuple[Mapping[str, Any], ...] = ()
    rows: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    accepted: bool = False

    @property
    def groups(self) -> dict[str, str]:
        """{id: group} of the rows that have one."""
        return {name: group for name, group in self.rows.items() if group}


NO_ANCESTRY = Ancestry()


def source_of(config: Mapping) -> Path | None:
    """The run whose weights config.init.from means: of a k-fold workdir, the fold that has the
    number of the fold that trains here. None without config.init.from.

    Raises:
        ConfigError: a k-fold workdir, and this run is not one of the same number of folds.
    """
    return _run_of(config, 'init.from')


def teacher_of(config: Mapping) -> Path | None:
    """The run that config.teacher.workdir means, likewise.

    Raises:
        ConfigError: as `source_of`.
    """
    return _run_of(config, 'teacher.workdir')


def _run_of(config: Mapping, name: str) -> Path | None:
    section, key = name.split('.')
    given, split = config.get(section, {}).get(key, ''), config['split']
    if not given:
        return None
    source = Path(given)
    if not is_kfold(source):
        return source
    if split['kind'] != 'kfold' or not isinstance(split['fold'], int):
        raise ConfigError(f'config.{name} = {given!r} is a k-fold run, and this run does not '
                          f'train one fold at a time: give one of its folds, as in '
                          f'{source / "fold_0"}.')
    theirs = read_split(source).get('folds')
    if theirs not in (None, split['folds']):
        raise ConfigError(f'config.{name} = {given!r} has {theirs} folds and this run '
                          f'{split["folds"]}, so that no fold has its own there: set '
                          f'config.split.folds={theirs}, or give one fold, as in '
                          f'{source / "fold_0"}.')
    return source / f'fold_{split["fold"]}'


def is_kfold(workdir: Path) -> bool:
    """Whether a folder holds the folds of a run, and no checkpoints of its own."""
    return not (workdir / 'checkpoints').exists() and any(workdir.glob('fold_*/config.json'))


def read_split(workdir: Path) -> dict:
    """config.split of a run, {} where it is not known."""
    found = _config(workdir).get('split', {})
    return found if isinstance(found, dict) else {}


def of_start(config: Mapping, best_checkpoint: Callable[[Path], str]) -> Ancestry:
    """The ancestry of a run that starts now, by config.init.

    Args:
        config: of the run; config.split.fold is a number in a k-fold run.
        best_checkpoint: workdir -> digest of the checkpoint whose weights are taken.

    Raises:
        ConfigError: see `source_of`; or the record of an ancestor is damaged.
    """
    source = source_of(config)
    found = _below(None, config['init']['pretrained']) if source is None else \
        _of_source(source, best_checkpoint)
    teacher = teacher_of(config)
    if teacher is not None:
        found = _together([found, _of_source(teacher, best_checkpoint)])
    return dataclasses.replace(found, accepted=config['init']['seen'] == 'accept')


def _of_source(source: Path, best_checkpoint: Callable[[Path], str]) -> Ancestry:
    found = _below(source, '')
    if found.runs:
        nearest = dict(found.runs[0], checkpoint=best_checkpoint(source))
        found = dataclasses.replace(found, runs=(nearest, *found.runs[1:]))
    return found


def of_run(config: Mapping, run: Path, best_checkpoint: Callable[[Path], str]) -> Ancestry:
    """The ancestry of a run that starts or goes on.

    Args:
        config: of this start.
        run: its workdir, or the one that it is copied from; it need not hold a run yet.
        best_checkpoint: as in `of_start`.

    Raises:
        ConfigError, DataError: as `of_start` and `ancestry_of`.
    """
    if not (run / 'config.json').exists():
        return of_start(config, best_checkpoint)
    found = ancestry_of(run)
    return dataclasses.replace(
        found, accepted=found.accepted or config['init']['seen'] == 'accept')


def ancestry_of(workdir: Path, known: Collection[Path] = ()) -> Ancestry:
    """The ancestry of a run, from its record, else from its config.json.

    Args:
        workdir: of the run or of one fold; of a fold of a probing run that of the run counts.
        known: runs that are being looked at, which are not looked at again.

    Raises:
        ConfigError: the record or config.json is damaged. DataError: ancestors.csv is.
    """
    if (workdir / NAME).exists():
        return _read(workdir)
    if probing := probing_run_of(workdir):
        return ancestry_of(probing, known)
    config = _config(workdir)
    given, split = config.get('init', {}), config.get('split', {})
    if not isinstance(given, dict) or not isinstance(split, dict):
        return Ancestry()
    teacher = config.get('teacher', {})
    known = {*known, workdir.resolve()}
    found = _below(_derived(given.get('from'), split), given.get('pretrained') or '', known)
    if not isinstance(teacher, dict) or not teacher.get('workdir'):
        return found
    return _together([found, _below(_derived(teacher['workdir'], split), '', known)])


def _derived(name: str | None, split: Mapping) -> Path | None:
    """The run that an older config.json names, or its fold."""
    source = Path(name) if name else None
    if source is not None and is_kfold(source) and isinstance(split.get('fold'), int):
        source = source / f'fold_{split["fold"]}'
    return source


def _below(source: Path | None, pretrained: str, known: Collection[Path] = ()) -> Ancestry:
    """The ancestry of a run that started from `source`, or from a file of weights."""
    if source is None:
        return _of_file(pretrained, known)
    if source.resolve() in known:
        return Ancestry()
    if not (source / 'config.json').exists() and not (source / workdirs.SPLIT).exists():
        return Ancestry(unknown=(f'what {source} trained on (the folder is not there)',))
    above = ancestry_of(source, known)
    rows = dict(above.rows)
    unknown = list(above.unknown)
    trained = read_table(source)
    if trained is None:
        unknown.insert(0, f'what {source} trained on (it has no {workdirs.SPLIT})')
        trained = Table([], [], {})
    own = {name: trained.groups.get(name, '') for name, side in zip(trained.ids, trained.sides)
           if side == 'train'} | trained_by_folds(source) | _unlabelled_of(source)
    facts = workdirs.start_facts(source)
    run = dict(workdir=os.path.abspath(source), data_digest=facts.get('data_digest', ''),
               split_digest=facts.get('split_digest') or (
                   split_digest(trained.ids, trained.sides) if trained.ids else ''),
               checkpoint='', rows=len(own))
    return Ancestry((run, *above.runs), {**rows, **own}, tuple(dict.fromkeys(unknown)))


def _unlabelled_of(workdir: Path) -> dict[str, str]:
    """{id: group, '' for none} of the pictures that a run learned without labels."""
    path = workdir / UNLABELLED
    if not path.exists():
        return {}
    header, rows, _ = read_csv(str(path))
    if header != ['id', 'group']:
        raise ConfigError(f'{path} has no columns id and group: restore it.')
    return {str(name): str(group) for name, group in rows}


def _together(parts: Sequence[Ancestry]) -> Ancestry:
    """Several ancestries as one; nothing is accepted by it."""
    runs = {(run['workdir'], run['checkpoint']): run for part in parts for run in part.runs}
    rows = {name: group for part in parts for name, group in part.rows.items()}
    return Ancestry(tuple(runs.values()), rows,
                    tuple(dict.fromkeys(clause for part in parts for clause in part.unknown)))


def _of_file(pretrained: str, known: Collection[Path]) -> Ancestry:
    """The ancestry of weights that a user gives as a file; published ones have none."""
    if not pretrained:
        return Ancestry()
    from models.weight_files import FILES  # loads JAX, which few votes need

    if not (pretrained.endswith(FILES) or os.path.exists(pretrained)):
        return Ancestry()
    folder = next((path for path in Path(os.path.abspath(pretrained)).parents
                   if (path / 'config.json').exists() and (path / workdirs.SPLIT).exists()), None)
    if folder is not None:  # a run exported them, or a probe wrote its head
        return _below(folder, '', known)
    return Ancestry(unknown=(f'what the weights in {pretrained} were trained on',))


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of a split.csv: ids and sides of N rows, and {id: group} of those that have one."""

    ids: Sequence[str]
    sides: Sequence[str]
    groups: Mapping[str, str]


def read_table(workdir: Path) -> Table | None:
    """split.csv of a run, None if it has none.

    Raises:
        ConfigError, DataError: it is damaged.
    """
    path = workdir / workdirs.SPLIT
    if not path.exists():
        return None
    header, rows, _ = read_csv(str(path))
    if not {'id', 'split'} <= set(header):
        raise ConfigError(f'{path} has no columns id and split: restore it.')
    columns = dict(zip(header, zip(*rows) if rows else [()] * len(header)))
    groups = {name: group for name, group in zip(columns['id'], columns.get('group', ()))
              if group}
    return Table(columns['id'], columns['split'], groups)


def probing_run_of(workdir: Path) -> Path | None:
    """The absolute workdir of the probing run that a folder is a fold of: it has a head and no
    config.json of its own. None for any other folder."""
    if (workdir / 'head.safetensors').exists() and not (workdir / 'config.json').exists():
        return Path(os.path.abspath(workdir)).parents[1]
    return None


def trained_by_folds(workdir: Path) -> dict[str, str]:
    """{id: group, '' for none} of the rows that some fold of a probing run trained on: its answers
    are those of all folds, and its split.csv is that of the first. {} for any other run.

    Raises:
        ConfigError, DataError: a file is damaged.
    """
    probe = _config(workdir).get('probe', {})
    if not isinstance(probe, dict) or not probe.get('heads'):
        return {}
    folds = sorted(workdir.glob(f'*/fold_*/{workdirs.SPLIT}'))
    found: dict[str, str] = {}
    for path in folds:
        if path.parents[1] != folds[0].parents[1]:
            break  # the heads of every setting have the same folds
        table = read_table(path.parent)
        assert table is not None
        found |= {name: table.groups.get(name, '') for name, side in zip(table.ids, table.sides)
                  if side == 'train'}
    return found


def _config(workdir: Path) -> dict:
    path = workdir / 'config.json'
    return workdirs.read_config(workdir) if path.exists() else {}


def _read(workdir: Path) -> Ancestry:
    path = workdir / NAME
    try:
        content = read_json(path)
        if content.get('sha256') != json_digest(content):
            raise ValueError('it has changed since it was written')
        if content['format'] > FORMAT:
            raise ValueError(f'it has format {content["format"]}, and this version of the code '
                             f'reads up to {FORMAT}')
        rows = {}
        if content['rows_digest']:
            _, lines, _ = read_csv(str(workdir / ROWS))
            rows = {str(name): str(group) for name, group in lines}
            if split_digest(rows.keys(), rows.values()) != content['rows_digest']:
                raise ValueError(f'{ROWS} has changed since it was written')
        return Ancestry(tuple(content['ancestors']), rows, tuple(content['unknown']),
                        bool(content['accepted']))
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        detail = ' '.join(str(error).split())
        raise ConfigError(f'{path} cannot be used ({detail}): restore {NAME} and {ROWS}, or '
                          f'delete both, and what can still be known is derived.') from None


def of_several(folders: Sequence[Path], best_checkpoint: Callable[[Path], str] = lambda path: ''
               ) -> Ancestry:
    """The ancestry of a run that is made of others, such as a soup: they and their ancestors.

    Args:
        folders: their workdirs.
        best_checkpoint: as in `of_start`.
    """
    found = joined(*(_of_source(folder, best_checkpoint) for folder in folders))
    return dataclasses.replace(found, accepted=any(ancestry_of(folder).accepted
                                                   for folder in folders))


def joined(*parts: Ancestry) -> Ancestry:
    """The ancestry of what goes back to all of these; accepted as the first."""
    runs = {(run['workdir'], run['checkpoint']): run for part in parts for run in part.runs}
    rows = {name: group for part in parts for name, group in part.rows.items()}
    return Ancestry(tuple(runs.values()), rows,
                    tuple(dict.fromkeys(clause for part in parts for clause in part.unknown)),
                    bool(parts) and parts[0].accepted)


def save(workdir: Path, ancestry: Ancestry) -> None:
    """Writes the record; nothing for a run that has no ancestors and nothing unknown."""
    if not ancestry.runs and not ancestry.unknown:
        return
    rows_digest = ''
    if ancestry.rows:
        rows_digest = split_digest(ancestry.rows.keys(), ancestry.rows.values())
        with atomic_open(workdir / ROWS, shared=True, durable=True) as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator='\n')
            writer.writerow(('id', 'group'))
            writer.writerows(ancestry.rows.items())
    content = dict(format=FORMAT, ancestors=list(ancestry.runs), unknown=list(ancestry.unknown),
                   accepted=ancestry.accepted, rows_digest=rows_digest)
    write_json(workdir / NAME, dict(sha256=json_digest(content)) | content)
