"""Which images train, which validate and which test: the column `split` of the Manifest.

Splits are stratified by one head (by all labels of a multi-label one) and grouped (a person, a
drawer or a set of near duplicates is never on two sides), or they are given. They depend on the
seed and on the ids, not on the order of the rows. Rows without a label of the stratified head
cannot be scored, so they train, unless their group or a given split says otherwise.
"""

import csv
import logging
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.atomic_files import atomic_open
from input_pipeline.class_names import place_of
from input_pipeline.csv_table import read_csv
from input_pipeline.errors import DataError, listed, nearest
from input_pipeline.kept_splits import keep_sides
from input_pipeline.manifest import SPLITS, Manifest, class_counts
from input_pipeline.sections import checked_section
from input_pipeline.sources.csv_file import column, split_name
from input_pipeline.stratify import Pool, count_images, draw_folds, draw_share, make_pool

KINDS = ('holdout', 'kfold', 'given')
KEYS = ('kind', 'val', 'test', 'folds', 'fold', 'grouped', 'head', 'file', 'val_groups',
        'test_groups', 'seed', 'tolerance')

_log = logging.getLogger(__name__)


def assign_splits(manifest: Manifest, split: Mapping, *, seed: int,
                  known: Mapping[str, str] | None = None) -> Manifest:
    """The manifest with the column `split` ('train', 'val' or 'test') in every row.

    Args:
        manifest: a row whose group is '' is a group of its own.
        split: `config.split`, with all of the keys in `KEYS`:
            kind: 'holdout' takes the shares `test` and `val`; 'kfold' takes the test
                side, and fold number `fold` of `folds` of the rest is 'val'; 'given'
                takes the manifest's own column or `file`, a CSV with `id` and `split`.
                A source that has splits keeps them under 'holdout' too, and its test
                side under 'kfold'.
            val, test: shares of the rows that no list, file or column has placed. If
                given splits have no 'val', it is taken from 'train'.
            folds, fold: whole numbers; `fold` counts from 0.
            grouped: False allows a group on two sides.
            head: the head to stratify by; '' for the first.
            val_groups, test_groups: groups (a sequence, or text with commas) that make up
                these sides, whatever the kind; no share is taken for such a side. '8'
                finds the group '08' if no other group is the number 8.
            seed: replaces the argument; None keeps it.
            tolerance: of the class shares, see `stratify.draw_share`.
        seed: seed of the draw, a whole number of 0 or more.
        known: {id: side} of a resumed run: nothing is drawn, see `keep_sides`.

    Raises:
        DataError: a wrong value, or a split that cannot be made; see also `assert_disjoint`.
    """
    options = _checked_options(split)
    seed = seed if options['seed'] is None else options['seed']
    if not isinstance(seed, int) or seed < 0:
        raise DataError(f'split.seed={seed!r} is not a valid seed: use a whole number of 0 or '
                        f'more.')
    head = options['head'] or manifest.heads[0]
    if head not in manifest.classes:
        raise DataError(f'split.head={head!r} is not a head: use one of '
                        f'{listed(manifest.heads)}.')
    order = np.argsort(manifest.table['id'].to_numpy(str), kind='stable')
    ordered = manifest.select(order)
    pool = make_pool(ordered, head, grouped=options['grouped'])

    side, given = _given_sides(ordered, options)  # '' is free: it may be drawn, else it trains
    for name, rows in _listed_rows(ordered, options).items():
        side[side == name] = ''
        side[rows] = name
    if options['kind'] == 'kfold':
        side[side == 'val'] = ''
    if known is not None:
        side = keep_sides(ordered, side, known, grouped=options['grouped'])
    elif options['kind'] == 'kfold':
        _fill(side, 'test', pool, options, (seed, 1))
        fold = draw_folds(pool, side == '', options['folds'], (seed, 3), options['tolerance'])
        side[fold == options['fold']] = 'val'
    else:
        def free():
            return ((side == '') & (pool.labels >= 0)).sum()
        before = free()
        if not given:
            _fill(side, 'test', pool, options, (seed, 1))
        elif not (side == 'val').any() and options['val']:
            _log.info('The given splits have no val: it takes the share split.val=%g of train.',
                      options['val'])
        # Both are shares of the same rows, and test has already been taken from them.
        share = options['val'] * before / max(1, free())
        _fill(side, 'val', pool, options | dict(val=share), (seed, 2))
    side[side == ''] = 'train'

    result = np.empty(len(side), object)
    result[order] = side
    manifest = manifest.with_column('split', result.tolist())
    assert_disjoint(manifest, grouped=options['grouped'])
    return manifest


def several_folds(split: Mapping) -> tuple[int, ...] | None:
    """The folds that a run trains one after another, in order; None if it trains on one split.

    Args:
        split: `config.split`; its `fold` is 'all' or several numbers, such as (0, 3, 6).

    Raises:
        DataError: they are not different numbers of the folds.
    """
    fold = split['fold']
    if split['kind'] != 'kfold' or isinstance(fold, int):
        return None
    if str(fold) == 'all':
        return tuple(range(_checked_count(split['folds'])))
    if not isinstance(fold, (list, tuple)):
        return None  # `assign_splits` refuses it
    for number in fold:
        _check_fold(number, split['folds'])
    if not fold or len(set(fold)) < len(fold):
        raise DataError(f'split.fold={tuple(fold)!r} is not valid: name different folds, such as '
                        f"(0, 2), one of them, or 'all'.")
    return tuple(sorted(fold))


def _fill(side: np.ndarray, name: str, pool: Pool, options: Mapping, seed: tuple[int, ...]
          ) -> None:
    """Draws a side, of the share in the options, from the free rows, unless it already has rows or
    is not wanted."""
    free = side == ''
    if options[name] and free.any() and not (side == name).any():
        side[draw_share(pool, free, options[name], seed, options['tolerance'])] = name


def assert_disjoint(manifest: Manifest, *, grouped: bool = True) -> None:
    """Checks the column `split`.

    Raises:
        DataError: a row without a split; no rows to train on; a group on two sides
            (unless grouped is False); a class that has images, but none to train on.
    """
    side = manifest.table['split'].to_numpy(object)
    wrong = [row for row, name in enumerate(side) if name not in SPLITS]
    if wrong:
        raise DataError(f'Image {manifest.table["id"][wrong[0]]!r} has the split '
                        f'{side[wrong[0]]!r}: use {", ".join(SPLITS)}.')
    if not (side == 'train').any():
        raise DataError('The train split is empty: lower split.val and split.test, or check '
                        'the splits that come with the data.')
    if grouped and 'group' in manifest.table:
        pairs = manifest.table.loc[manifest.table['group'] != '', ['group', 'split']]
        pairs = pairs.drop_duplicates()
        torn = pairs.loc[pairs['group'].duplicated(), 'group']
        if len(torn):
            sides = sorted(pairs.loc[pairs['group'] == torn.iloc[0], 'split'], key=SPLITS.index)
            raise DataError(
                f'The group {torn.iloc[0]!r} is in {" and ".join(sides)} '
                f'({torn.nunique()} such groups in total): correct the given splits, or allow it '
                f'by split.grouped=False.')
    for head, names in manifest.classes.items():
        seen = class_counts(manifest.select(side == 'train'), head)
        every = class_counts(manifest, head)
        gone = np.flatnonzero((every > 0) & (seen == 0))
        if len(gone):
            raise DataError(
                f'Class {names[gone[0]]!r} of the head {head!r} has '
                f'{count_images(every[gone[0]])}, but none of them in the train split: add '
                f'images, move one to train, or leave the class out.')


def parts_of(manifest: Manifest, split: Mapping) -> dict[str, Manifest]:
    """{'train', 'val', 'test': rows}. Val or test may be empty if config.split sets its share to 0.

    Raises:
        DataError: any other split has no rows.
    """
    return {name: split_of(manifest, name, may_be_empty=name != 'train' and not split[name])
            for name in SPLITS}


def split_of(manifest: Manifest, name: str, *, may_be_empty: bool = False) -> Manifest:
    """The rows of one split, in their order.

    Raises:
        DataError: the split is unknown, or has no rows and must not be empty.
    """
    if name not in SPLITS:
        raise DataError(f'The split {name!r} is unknown: use {", ".join(SPLITS)}.')
    rows = (manifest.table['split'] == name).to_numpy()
    if not rows.any() and not may_be_empty:
        raise DataError(f'The split {name!r} has no images: give it some with split.{name}, '
                        f'split.{name}_groups or the splits of the data.')
    return manifest.select(rows)


def save_splits(manifest: Manifest, path: str | os.PathLike,
                gone: Sequence[Mapping[str, str]] = ()) -> None:
    """Writes a CSV with id, split, group and the class names, which `split.file` reads back.

    Args:
        manifest: has the column `split`.
        path: the file; it appears whole or not at all.
        gone: rows of an earlier such file, {column: text}, that are no longer in the manifest.
            They are written after the others.
    """
    table = manifest.table
    columns = {'id': table['id'], 'split': table['split']}
    if 'group' in table:
        columns['group'] = table['group']
    for head in manifest.heads:
        columns[f'label/{head}'] = manifest.texts(head)
    with atomic_open(path, shared=True, durable=True) as file:
        # Everything is quoted, because a file name may contain a bare carriage return.
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator='\n')
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
        writer.writerows([row.get(name, '') for name in columns] for row in gone)


def _given_sides(manifest: Manifest, options: dict) -> tuple[np.ndarray, bool]:
    """(side of each row, '' for none or train; whether the user or the data give sides)."""
    if options['file']:
        side = _sides_of_file(manifest, options['file'])
    elif 'split' in manifest.table:
        side = manifest.table['split'].to_numpy(object).copy()
        if options['kind'] == 'holdout':
            _log.info('The data come with their own splits, which are used.')
    elif options['kind'] != 'given':
        return np.full(len(manifest), '', object), False
    elif options['val_groups'] or options['test_groups']:
        side = np.full(len(manifest), '', object)
    else:
        raise DataError('split.kind=given, but the data have no splits: name a CSV with id and '
                        'split in split.file, or groups in split.test_groups.')
    side[side == 'train'] = ''
    return side, True


def _sides_of_file(manifest: Manifest, path: str) -> np.ndarray:
    header, rows, lines = read_csv(os.path.expanduser(path))
    id_column, split_column = (column(path, header, name) for name in ('id', 'split'))
    sides: dict[str, str] = {}
    for row, line in zip(rows, lines):
        if row[id_column] in sides:
            raise DataError(f'The file {path!r} has the id {row[id_column]!r} again in line '
                            f'{line}: delete one of the two.')
        sides[row[id_column]] = split_name(row[split_column], path, f'line {line}')
    ids = manifest.table['id'].tolist()
    known = set(ids)
    for names, what in (([name for name in sides if name not in known], 'are not in the data'),
                        ([name for name in ids if name not in sides], 'are not in the file')):
        if names:
            raise DataError(f'{len(names)} ids of {path!r} or of the data {what} '
                            f'({", ".join(map(repr, names[:5]))}): both must have the same ids.')
    return np.array([sides[name] for name in ids], object)


def _listed_rows(manifest: Manifest, options: dict) -> dict[str, np.ndarray]:
    """{side: mask of the rows of its listed groups}, for each side that lists groups."""
    keys = {name: f'split.{name}_groups' for name in ('val', 'test')
            if options[f'{name}_groups']}
    if not keys:
        return {}
    if 'group' not in manifest.table:
        raise DataError(f'{keys.popitem()[1]} needs groups, but the data have none: set '
                        f'data.group_regex or data.columns.group.')
    column = manifest.table['group'].astype(str)
    known = sorted(set(column) - {''})
    groups = {name: [_find_group(known, group, key) for group in options[f'{name}_groups']]
              for name, key in keys.items()}
    both = set(groups.get('val', ())) & set(groups.get('test', ()))
    if both:
        raise DataError(f'The group {min(both)!r} is in split.val_groups and in '
                        f'split.test_groups: remove it from one of them.')
    return {name: column.isin(listed).to_numpy() for name, listed in groups.items()}


def _find_group(known: list[str], name: str, key: str) -> str:
    place = place_of(name, known)
    if place is not None:
        return known[place]
    same = [g for g in known if g.isdecimal() and name.isdecimal() and int(g) == int(name)]
    if len(same) == 1:
        return same[0]
    near = same or nearest(name, known, n=5) or known[:5]
    verdict = 'could be several' if same else 'is not one'
    raise DataError(f'{key} names the group {name!r}, which {verdict} of the {len(known)} '
                    f'groups: choose from {", ".join(map(repr, near))}, ...')


def _checked_options(split: Mapping) -> dict:
    options = checked_section(split, KEYS, 'split')
    if options['kind'] not in KINDS:
        raise DataError(f'split.kind={options["kind"]!r} is unknown: use {", ".join(KINDS)}.')
    for key in ('val_groups', 'test_groups'):
        groups = options[key]
        groups = groups.split(',') if isinstance(groups, str) else groups
        groups = [groups] if isinstance(groups, int) else groups
        options[key] = tuple(str(g).strip() for g in groups if str(g).strip())
    for key in ('val', 'test'):
        if not 0 <= options[key] < 1:
            raise DataError(f'split.{key}={options[key]} is not a valid share: use a number from '
                            f'0 to below 1.')
    tolerance = options['tolerance']
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or \
            not 0 <= tolerance < math.inf:
        raise DataError(f'split.tolerance={tolerance!r} is not a valid tolerance: use 0 or a '
                        f'positive number, such as 0.3.')
    if options['kind'] == 'holdout' and options['val'] + options['test'] >= 1:
        raise DataError(f'split.val={options["val"]} and split.test={options["test"]} leave '
                        f'nothing to train on: lower one of them.')
    if options['kind'] == 'kfold':
        if options['val_groups']:
            raise DataError('split.val_groups has no meaning with split.kind=kfold, where each '
                            'fold validates in turn: remove one of the two.')
        _check_fold(options['fold'], options['folds'])
    return options


def _checked_count(folds: int) -> int:
    if not isinstance(folds, int) or folds < 2:
        raise DataError(f'split.folds={folds} is not valid: use a whole number of 2 or more.')
    return folds


def _check_fold(fold: int, folds: int) -> None:
    if not isinstance(fold, int) or not 0 <= fold < _checked_count(folds):
        raise DataError(f'split.fold={fold!r} is not one of the {folds} folds: '
                        f'use 0 to {folds - 1}.')
