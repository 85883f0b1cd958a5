"""Decisions about pictures: a CSV with one line per image, which a person may correct.

    id               the id in the manifest
    action           'keep', 'drop' or 'review' ('review' keeps the image); '' decides nothing
    reason           in words
    duplicate_group  images with the same name here are copies; '' for none
    twin             the id of the copy that is kept
    given_label      the label in the data
    suggested_label  the label that a detector suggests
    suggested_action the action of the detectors: where `action` differs, a person typed it
    label            a new label that the user typed; '' keeps the given one
    weight           factor of the example's weight in the loss; '' means 1
    score/<detector> higher is more suspicious; '' if the image was not scored

Only id and action are required; given_label, suggested_label, reason, twin and the scores are
for information. Labels of heads other than the first are corrected in columns label/<head>.

Several files are merged so that their order does not matter, and none erases what another says: a
typed action goes before those of detectors, of which the strongest counts; groups are joined; of
weights the least counts. What two people typed must agree. A file in which no detector has a
column was typed altogether.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from input_pipeline.atomic_files import atomic_open
from input_pipeline.class_names import nfc, places_of
from input_pipeline.csv_table import quoting_for, read_rows
from input_pipeline.errors import DataError, listed, perhaps
from input_pipeline.groups import join_groups
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
        beside: int [N], row of the picture to compare it with, -1 for none; None for no such rows.
        chips: N tuples of words, such as ('mirrored',); None for none.
        note: what to know of all of this, one sentence or ''.
    """

    detector: str
    score: np.ndarray
    action: np.ndarray
    reason: np.ndarray
    group: np.ndarray | None = None
    twin: np.ndarray | None = None
    label: np.ndarray | None = None
    weight: np.ndarray | None = None
    beside: np.ndarray | None = None
    chips: Sequence[tuple[str, ...]] | None = None
    note: str = ''


def moderated(found: Finding, most: float) -> Finding:
    """The finding; if it flags more than this share of the pictures, it drops none and says why."""
    flagged, dropped = found.action != 'keep', found.action == 'drop'
    if flagged.mean() <= most:
        return found
    note = (f'{flagged.sum():,} of {len(flagged):,} pictures are flagged, which describes the '
            f'data: they are for review')
    return dataclasses.replace(found, action=np.where(dropped, 'review', found.action),
                               note='; '.join(filter(None, (found.note, note))))


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
                 suggested_label=empty, suggested_action=None) | {typed: empty}
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
    table['action'] = table['suggested_action'] = np.array(ACTIONS, object)[strength]
    table['reason'] = ['; '.join(parts) for parts in reasons]
    table['weight'] = weight
    table |= {f'score/{found.detector}': found.score for found in findings}
    return pd.DataFrame(table)


def save_decisions(table: pd.DataFrame, path: str) -> None:
    """Writes the table of `decide` as CSV, whole or not at all, with a byte order mark, by which
    spreadsheet programs know UTF-8."""
    with atomic_open(path, shared=True, errors='surrogateescape') as file:
        file.write('\ufeff')
        table.to_csv(file, index=False, lineterminator='\n', float_format='%.4g',
                     quoting=quoting_for(table))


def read_decisions(path: str) -> pd.DataFrame:
    """Reads a decisions CSV, also one that a spreadsheet program saved, as text columns.

    It may be UTF-8 with or without a byte order mark, or CP949, with any line ends and with
    commas, semicolons or tabs. Empty lines, and empty or missing cells at the end of a line, do
    not matter.

    Raises:
        DataError: the file cannot be read, lacks a column, or has an unknown action, an id
            twice, or a weight that is not a number of 0 or more.
    """
    rows = [row for row in read_rows(path, 'The decisions file', edited=True)
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
        if action and action not in ACTIONS:
            raise DataError(f'The decisions {path!r} have the action {action!r} in line {line}'
                            f'{perhaps(action, ACTIONS)}: use {", ".join(ACTIONS)}.')
    for column in table.columns.difference(['id']):
        table[column] = table[column].str.strip()
    if 'weight' in table:
        table['weight'] = [_weight(value, path, line)
                           for line, value in zip(lines, table['weight'])]
    return table


def apply_decisions(manifest: Manifest, paths: Sequence[str], rules: int = 2) -> Manifest:
    """The manifest without the dropped rows, with the labels, weights and groups decided on.

    A duplicate group joins the groups (persons, drawers) of its kept pictures into one. Several
    files are merged as described above.

    Args:
        manifest: the rows to decide on.
        paths: decisions CSVs.
        rules: `config.data.rules`; by rules 1 the last file counts, column by column.

    Raises:
        DataError: as `read_decisions`, an id or label does not exist, two typed files contradict
            each other, or no row is left.
    """
    tables = {path: _placed(read_decisions(path), manifest, path) for path in paths}
    if not tables:
        return manifest
    if rules > 1:
        _check_typed(tables, manifest)
    for path, table in tables.items():
        manifest = _relabelled(manifest, table, path)
    merge = _merged if rules > 1 else _last
    dropped, weight, groups = merge(list(tables.values()), len(manifest))
    kept = np.flatnonzero(~dropped)
    if not len(kept):
        raise DataError(f'The decisions {", ".join(map(repr, paths))} drop every image: '
                        f'keep some images.')
    _log.info('decided  %s of %s images dropped', f'{len(manifest) - len(kept):,}',
              f'{len(manifest):,}')
    manifest, weight = manifest.select(kept), weight[kept]
    if np.isfinite(weight).any():
        factor = np.nan_to_num(weight, nan=1.0)
        manifest = manifest.with_column('weight', factor * manifest.table.get('weight', 1.0))
    groups = [names[kept] for names in groups if (names[kept] != '').any()]
    if groups:
        manifest = manifest.with_column('group', join_groups(manifest, _united(groups)))
    return manifest


def _placed(table: pd.DataFrame, manifest: Manifest, path: str) -> pd.DataFrame:
    """The table, whose index are the rows of the manifest."""
    row_of = {name: row for row, name in enumerate(manifest.table['id'])}
    for name in table['id']:
        if name not in row_of:
            raise DataError(f'The decisions {path!r} have the id {name!r}, which the data do '
                            f'not have{perhaps(name, row_of)}: delete the line, or '
                            f'write the decisions for these data again.')
    return table.set_index(pd.Index([row_of[name] for name in table['id']], dtype=int))


def _typed(table: pd.DataFrame) -> pd.Series:
    """Which actions a person typed, bool."""
    given = table['action'] != ''
    if 'suggested_action' in table:
        return given & (table['action'] != table['suggested_action'].str.lower())
    if not any(name.startswith('score/') for name in table):
        return given
    # Written by an older version: detectors give a reason for everything but a plain keep.
    reason = table.get('reason', pd.Series('', table.index))
    weighted = table.get('weight', pd.Series(np.nan, table.index)).notna()
    return given & ((table['action'] == 'keep') & (reason != '') & ~weighted
                    | (table['action'] != 'keep') & (reason == ''))


def _check_typed(tables: Mapping[str, pd.DataFrame], manifest: Manifest) -> None:
    """Refuses two files that a person typed and that contradict each other."""
    ids = manifest.table['id'].to_numpy(object)
    seen: dict[tuple[str, int], tuple[str, str]] = {}
    for path, table in tables.items():
        said = {'action': table['action'][_typed(table)].replace('review', 'keep')}
        for column in table:
            if column == 'label' or column.startswith('label/'):
                head = column.removeprefix('label/') if column != 'label' else manifest.heads[0]
                said[f'label/{head}'] = table[column][table[column] != ''].map(nfc)
        for column, values in said.items():
            for row, value in values.items():
                before, where = seen.setdefault((column, row), (value, path))
                if before != value:
                    raise DataError(
                        f'The decisions {where!r} and {path!r} contradict each other about '
                        f'{ids[row]!r} ({column.split("/")[0]} {before!r} and {value!r}, both '
                        f'typed): correct one.')


def _merged(tables: Sequence[pd.DataFrame], count: int
            ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Which of the rows are dropped, bool [N]; their weights, float [N], NaN for none; and the
    groups of each file, str [N]. The order of the tables does not matter."""
    dropped = np.zeros(count, bool)
    weight, groups = np.full(count, np.nan), []
    for table in tables:
        dropped[table.index[table['action'] == 'drop']] = True
        if 'weight' in table:
            weight[table.index] = np.fmin(weight[table.index], table['weight'])
        if 'duplicate_group' in table:
            names = np.full(count, '', object)
            names[table.index] = table['duplicate_group']
            groups.append(names)
    for table in tables:  # after all of them: what is typed goes before what is detected
        mine = table.index[_typed(table)]
        dropped[mine] = table['action'][mine] == 'drop'
    return dropped, weight, groups


def _last(tables: Sequence[pd.DataFrame], count: int
          ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """As `_merged`, by rules 1: the last table that has a row counts, column by column."""
    dropped, weight = np.zeros(count, bool), np.full(count, np.nan)
    group = np.full(count, '', object)
    for number, table in enumerate(tables):
        dropped[table.index] = table['action'] == 'drop'
        if 'weight' in table:
            weight[table.index] = table['weight']
        if 'duplicate_group' in table:  # each file numbers its groups on its own
            names = table['duplicate_group']
            group[table.index] = (f'{number}/' + names).where(names != '', '')
    return dropped, weight, [group]


def _united(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Names, str [N], of the groups that are left once those of all files are joined."""
    count, first, second = len(groups[0]), [], []
    for names in groups:
        codes = pd.factorize(names)[0]
        starts, rows = np.unique(codes, return_index=True)[1], np.flatnonzero(names != '')
        first.append(rows)
        second.append(starts[codes[rows]])
    first, second = np.concatenate(first), np.concatenate(second)
    links = coo_matrix((np.ones(len(first)), (first, second)), (count, count))
    part = connected_components(links, directed=False)[1].astype(str).astype(object)
    grouped = np.any([names != '' for names in groups], axis=0)
    return np.where(grouped, part, '')


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
                            f'are {listed(manifest.heads)}: rename it.')
        given = table[column][table[column] != '']
        number = places_of(manifest.classes[head])
        for name, image in zip(given, table['id'][given.index]):
            if nfc(name) not in number:
                raise DataError(f'The decisions {path!r} label {image!r} as {name!r}, which is not '
                                f'a class of the head {head!r}{perhaps(name, number)}: '
                                f'correct it.')
        labels = manifest.labels(head).copy()
        labels[given.index] = [number[nfc(name)] for name in given]
        manifest = manifest.with_column(f'label/{head}', labels)
    return manifest
