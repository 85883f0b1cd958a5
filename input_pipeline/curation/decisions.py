"""Decisions about pictures: a CSV with one line per image, which a person may correct.

    id               the id in the manifest
    action           'keep', 'drop' or 'review' ('review' keeps the image)
    reason           in words
    duplicate_group  images with the same name here are copies; '' for none
    twin             the id of the copy that is kept
    given_label      the label in the data
    suggested_label  the label that a detector suggests
    label            a new label that the user typed; '' keeps the given one
    weight           factor of the example's weight in the loss; '' means 1
    score/<detector> higher is more suspicious; '' if the image was not scored

Only id and action are required; given_label, suggested_label, reason, twin and the scores are
for information. Labels of heads other than the first are corrected in columns label/<head>.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from input_pipeline.atomic_files import atomic_open
from input_pipeline.csv_table import quoting_for, read_rows
from input_pipeline.errors import DataError, perhaps
from input_pipeline.manifest import Manifest

ACTIONS = ('keep', 'review', 'drop')  # from the weakest to the strongest
_COLUMNS = ('id', 'action')
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one detector says about N rows.

    Attributes:
        detector: its name.
        score: float [N], higher is more suspicious; NaN for a row that was not scored.
        action: str [N], of ACTIONS.
        reason: str [N], in words; '' where there is nothing to say.
        group: str [N], name of the duplicate group, '' for none; None if the detector finds none.
        twin: int [N], row of the copy that is kept, -1 for none; goes with `group`.
        label: str [N], name of the suggested class, '' for none; None if it suggests none.
        weight: float [N], factor of the weight, NaN for none; None if it gives no weights.
    """

    detector: str
    score: np.ndarray
    action: np.ndarray
    reason: np.ndarray
    group: np.ndarray | None = None
    twin: np.ndarray | None = None
    label: np.ndarray | None = None
    weight: np.ndarray | None = None


def decide(manifest: Manifest, findings: Sequence[Finding], *, head: str = '') -> pd.DataFrame:
    """One row per image with the columns above: the strongest action and every reason.

    Args:
        manifest: N rows.
        findings: of the detectors, N rows each.
        head: the head whose labels are suggested; '' for the first.
    """
    count, head = len(manifest), head or manifest.heads[0]
    typed = 'label' if head == manifest.heads[0] else f'label/{head}'
    names = np.array([*manifest.classes[head], ''], object)
    empty = np.full(count, '', object)
    strength = np.zeros(count, int)
    reasons = [[] for _ in range(count)]
    table = dict(id=manifest.table['id'].to_numpy(object), action=None, reason=None,
                 duplicate_group=empty, twin=empty, given_label=names[manifest.labels(head)],
                 suggested_label=empty) | {typed: empty}
    weight = np.full(count, np.nan)
    for found in findings:
        strength = np.maximum(strength, [ACTIONS.index(action) for action in found.action])
        for row in np.flatnonzero(found.reason != ''):
            reasons[row].append(found.reason[row])
        if found.group is not None:
            table['duplicate_group'] = found.group
            table['twin'] = np.append(table['id'], '')[found.twin]
        if found.label is not None:
            table['suggested_label'] = found.label
        if found.weight is not None:
            weight = np.where(np.isnan(found.weight), weight,
                              np.nan_to_num(weight, nan=1.0) * found.weight)
    table['action'] = np.array(ACTIONS, object)[strength]
    table['reason'] = ['; '.join(parts) for parts in reasons]
    table['weight'] = weight
    table |= {f'score/{found.detector}': found.score for found in findings}
    return pd.DataFrame(table)


def save_decisions(table: pd.DataFrame, path: str) -> None:
    """Writes the table of `decide` as CSV, whole or not at all."""
    with atomic_open(path, shared=True, errors='surrogateescape') as file:
        table.to_csv(file, index=False, lineterminator='\n', float_format='%.4g',
                     quoting=quoting_for(table))


def read_decisions(path: str) -> pd.DataFrame:
    """Reads a decisions CSV, also one that a spreadsheet program saved, as text columns.

    It may be UTF-8 with or without a byte order mark, with any line ends and with commas,
    semicolons or tabs. Empty lines, and empty or missing cells at the end of a line, do not matter.

    Raises:
        DataError: the file cannot be read, lacks a column, or has an unknown action, an id
            twice, or a weight that is not a number of 0 or more.
    """
    rows = [row for row in read_rows(path, 'The decisions file')
            if any(cell.strip() for cell in row[1])]
    if not rows:
        raise DataError(f'The decisions file {path!r} is empty: name the columns in its first '
                        f'line.')
    header = [name.strip() for name in rows[0][1]]
    for name in _COLUMNS:
        if name not in header:
            raise DataError(f'The decisions {path!r} have no column {name!r}'
                            f'{perhaps(name, header)}: add it.')
    places = {name: place for place, name in enumerate(header) if name}
    lines = [line for line, _ in rows[1:]]
    table = pd.DataFrame({name: [row[place] if place < len(row) else '' for _, row in rows[1:]]
                          for name, place in places.items()}, dtype=object)
    seen = {}
    for line, name in zip(lines, table['id']):
        if name in seen:
            raise DataError(f'The decisions {path!r} have the id {name!r} in line {seen[name]} and '
                            f'in line {line}: delete one.')
        seen[name] = line
    table['action'] = table['action'].str.strip().str.lower()
    for line, action in zip(lines, table['action']):
        if action not in ACTIONS:
            raise DataError(f'The decisions {path!r} have the action {action!r} in line {line}'
                            f'{perhaps(action, ACTIONS)}: use {", ".join(ACTIONS)}.')
    for column in table.columns.difference(['id']):
        table[column] = table[column].str.strip()
    if 'weight' in table:
        table['weight'] = [_weight(value, path, line)
                           for line, value in zip(lines, table['weight'])]
    return table


def apply_decisions(manifest: Manifest, paths: Sequence[str]) -> Manifest:
    """The manifest without the dropped rows, with the labels, weights and groups decided on.

    A duplicate group joins the groups (persons, drawers) of its kept pictures into one. Where
    files disagree about a picture, the last file counts, column by column.

    Args:
        manifest: the rows to decide on.
        paths: decisions CSVs.

    Raises:
        DataError: as `read_decisions`, an id or label does not exist, or no row is left.
    """
    row_of = {name: row for row, name in enumerate(manifest.table['id'])}
    decided = pd.DataFrame(index=range(len(manifest)))
    for number, path in enumerate(paths):
        table = read_decisions(path)
        for name in table['id']:
            if name not in row_of:
                raise DataError(f'The decisions {path!r} have the id {name!r}, which the data do '
                                f'not have{perhaps(name, row_of)}: delete the line, or '
                                f'write the decisions for these data again.')
        table.index = [row_of[name] for name in table['id']]
        if 'duplicate_group' in table:  # each file numbers its groups on its own
            group = table['duplicate_group']
            table['duplicate_group'] = (f'{number}/' + group).where(group != '', '')
        for column in table:
            if column not in decided:
                decided[column] = pd.Series(np.nan if column == 'weight' else '', decided.index,
                                            dtype=float if column == 'weight' else object)
            decided.loc[table.index, column] = table[column]
        manifest = _relabelled(manifest, table, path)
    kept = np.flatnonzero(decided['action'] != 'drop') if len(paths) else range(len(manifest))
    if not len(kept):
        raise DataError(f'The decisions {", ".join(map(repr, paths))} drop every image: '
                        f'keep some images.')
    _log.info('decided  %s of %s images dropped', f'{len(manifest) - len(kept):,}',
              f'{len(manifest):,}')
    manifest = manifest.select(kept)
    decided = decided.iloc[kept].reset_index(drop=True)
    if 'weight' in decided and decided['weight'].notna().any():
        factor = decided['weight'].fillna(1).to_numpy(float)
        manifest = manifest.with_column('weight', factor * manifest.table.get('weight', 1.0))
    if 'duplicate_group' in decided and (decided['duplicate_group'] != '').any():
        manifest = manifest.with_column('group', _joined(manifest,
                                                         decided['duplicate_group'].to_numpy()))
    return manifest


def _weight(value: str, path: str, line: int) -> float:
    try:
        weight = float(value.replace(',', '.')) if value else np.nan
    except ValueError:
        weight = -1.0
    if not (np.isnan(weight) and not value) and not 0 <= weight < np.inf:
        raise DataError(f'The decisions {path!r} have the weight {value!r} in line {line}: '
                        f'use a number of 0 or more.')
    return weight


def _relabelled(manifest: Manifest, table: pd.DataFrame, path: str) -> Manifest:
    for column in table:
        head = manifest.heads[0] if column == 'label' else column.removeprefix('label/')
        if column != 'label' and not column.startswith('label/'):
            continue
        if head not in manifest.classes:
            raise DataError(f'The decisions {path!r} have the column {column!r}, but the heads '
                            f'are {", ".join(manifest.heads)}: rename it.')
        given = table[column][table[column] != '']
        number = {name: index for index, name in enumerate(manifest.classes[head])}
        for name, image in zip(given, table['id'][given.index]):
            if name not in number:
                raise DataError(f'The decisions {path!r} label {image!r} as {name!r}, which is not '
                                f'a class of the head {head!r}{perhaps(name, number)}: '
                                f'correct it.')
        labels = manifest.labels(head).copy()
        labels[given.index] = [number[name] for name in given]
        manifest = manifest.with_column(f'label/{head}', labels)
    return manifest


def _joined(manifest: Manifest, duplicates: np.ndarray) -> list[str]:
    """The group of each row, after groups that share a duplicate group are joined."""
    count, ids = len(manifest), manifest.table['id'].to_numpy()
    given = manifest.table.get('group', pd.Series('', manifest.table.index)).astype(str).to_numpy()
    first, second = [], []
    for names in (given, duplicates):
        codes, _ = pd.factorize(names)
        starts = np.unique(codes, return_index=True)[1]
        rows = np.flatnonzero(names != '')
        first.append(rows)
        second.append(starts[codes[rows]])
    first, second = np.concatenate(first), np.concatenate(second)
    links = coo_matrix((np.ones(len(first)), (first, second)), (count, count))
    component = connected_components(links, directed=False)[1]
    shared = np.bincount(component)[component] > 1
    named = given != ''
    names = pd.Series(given[named]).groupby(component[named]).min().to_dict()
    alone = pd.Series(ids[shared]).groupby(component[shared]).min().to_dict()
    before, after = len(set(given[named])), len(names)
    if after < before:
        _log.info('groups   %s became %s, because they share copies', f'{before:,}', f'{after:,}')
    return [names.get(c) or (f'copies of {alone[c]}' if c in alone else '') for c in component]
