"""Several labels per picture in a table: as a list in a cell, as columns of 0 and 1, or as several
rows of one picture."""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.class_names import as_read, check_cells, in_order, number_labels
from input_pipeline.errors import DataError, counted, did_you_mean, perhaps
from input_pipeline.label_sets import LabelSets, numbered
from input_pipeline.sources import listed
from input_pipeline.table_file import Table

_YES, _NO = {'1', '1.0', 'true', 'yes'}, {'0', '0.0', 'false', 'no'}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SetSpec:
    """How a table says that pictures have several labels.

    Attributes:
        heads: names of the heads (config.data.multi_label).
        separator: between labels in a cell.
    """

    heads: tuple[str, ...] = ()
    separator: str = '|'


@dataclasses.dataclass(frozen=True)
class SetHead:
    """One multi-label head of N rows: their labels by name, None for an unlabelled row; and the
    class names where columns say them, else ()."""

    rows: list[tuple[str, ...] | None]
    names: tuple[str, ...] = ()


def one_hot_columns(wanted: str, header: Sequence[str], path: str) -> dict[str, dict[str, str]]:
    """The heads that data.columns.labels writes as name=column+column or name=prefix*.

    Args:
        wanted: data.columns.labels.
        header: of the table.
        path: of the file, for errors.

    Returns:
        {head: {class: column}}; a prefix is left out of the names of the classes.

    Raises:
        DataError: a column is absent or named twice, or a prefix finds none.
    """
    found: dict[str, dict[str, str]] = {}
    for part in (part.strip() for part in wanted.split(',')):
        head, equals, columns = part.partition('=')
        if not equals:
            continue
        of_head: dict[str, str] = {}
        for name in (name.strip() for name in columns.split('+')):
            prefix = name.removesuffix('*') if name.endswith('*') else None
            names = [name] if prefix is None else [one for one in header if one.startswith(prefix)
                                                   and one != prefix]
            missing = [one for one in names if one not in header]
            if missing or not names:
                raise DataError(f'The file {path!r} has no column {name!r} (data.columns.labels)'
                                f'{perhaps(name, header)}: it has {listed(header)}.')
            for one in names:
                if one in of_head.values() or one.removeprefix(prefix or '') in of_head:
                    raise DataError(f'data.columns.labels={wanted!r} names a class twice '
                                    f'({one!r}): name each column once.')
                of_head[one.removeprefix(prefix or '')] = one
        if not head.strip() or head.strip() in found:
            raise DataError(f'data.columns.labels={wanted!r}: give each head a name of its own '
                            f'before =.')
        found[head.strip()] = of_head
    return found


def read_one_hot(table: Table, columns: Mapping[str, str], head: str) -> SetHead:
    """The labels of columns that hold 1 where a class applies and 0 where not. A row whose columns
    are all empty is unlabelled.

    Raises:
        DataError: another value, or a row of which some columns are empty.
    """
    values = {name: table.values(table.header.index(title)) for name, title in columns.items()}
    rows: list[tuple[str, ...] | None] = []
    for number, place in enumerate(table.places):
        cells = {name: of_class[number].strip().lower() for name, of_class in values.items()}
        empty = [name for name, cell in cells.items() if not cell]
        if len(empty) == len(cells):
            rows.append(None)
            continue
        wrong = [name for name, cell in cells.items() if cell not in _YES | _NO]
        if wrong:
            what = repr(cells[wrong[0]]) if cells[wrong[0]] else 'empty'
            raise DataError(f'{table.path!r}, {place}: the column {columns[wrong[0]]!r} of the '
                            f'head {head!r} is {what}: write 1 where the class applies and 0 '
                            f'where not, or leave all columns of an unlabelled picture empty.')
        rows.append(tuple(name for name, cell in cells.items() if cell in _YES))
    return SetHead(rows, tuple(columns))


def read_lists(table: Table, place: int, head: str, separator: str) -> SetHead:
    """The labels of a column whose cells list them, or of a Parquet column of lists. An empty cell
    is unlabelled; the separator alone is a picture to which no class applies.

    Raises:
        DataError: an empty label, one that occurs twice in a cell, or a cell that looks like a list
            of a program.
    """
    rows: list[tuple[str, ...] | None] = []
    lists = table.lists.get(place)
    cells = table.values(place) if lists is None else lists
    for cell, where in zip(cells, table.places):
        if cell is None or cell == '':
            rows.append(None)
            continue
        items = list(cell) if lists is not None else _items(cell, separator)
        written = f'{table.path!r}, {where}: the cell {cell!r} of the head {head!r}'
        if isinstance(cell, str) and cell.strip()[:1] == '[' and cell.strip()[-1:] == ']':
            raise DataError(f'{written} looks like a list of a program: write the labels with '
                            f'{separator!r} between them (data.label_separator).')
        if any(not item for item in items):
            raise DataError(f'{written} has an empty label: delete a separator; a picture to which '
                            f'no class applies has {separator!r} alone, and one without a label '
                            f'nothing.')
        double = [item for item, times in collections.Counter(items).items() if times > 1]
        if double:
            raise DataError(f'{written} has the label {double[0]!r} twice: delete one.')
        rows.append(tuple(items))
    return SetHead(rows)


def _items(cell: str, separator: str) -> list[str]:
    if not separator.strip():  # blanks
        return cell.split()
    if cell.strip() == separator.strip():
        return []
    return [item.strip() for item in cell.split(separator)]


def checked(spec: SetSpec, heads: Sequence[str], path: str) -> None:
    """Refuses a separator that cannot be one, and a name of data.multi_label that is not a head.

    Raises:
        DataError: so.
    """
    if not isinstance(spec.separator, str) or not spec.separator or '\n' in spec.separator:
        raise DataError(f'data.label_separator={spec.separator!r} is not valid: give the text '
                        f"between two labels of a cell, such as '|'.")
    for name in spec.heads:
        if name not in heads:
            raise DataError(f'data.multi_label names the head {name!r}, and {path!r} has '
                            f'{listed(heads) or "none"}: {did_you_mean(name, heads)}')


def number_sets(found: SetHead, given: Sequence[str], head: str, table: Table, spec: SetSpec,
                rules: int) -> tuple[tuple[str, ...], np.ndarray, LabelSets]:
    """(class names, the number of each row's set, the sets) of one head.

    Args:
        found: of this table.
        given: data.classes of this head, () for those that occur.
        head: its name.
        table: for errors.
        spec: with the separator.
        rules: see `class_names`.

    Raises:
        DataError: a label is not a class, there is none, or a name contains the separator.
    """
    path = table.path
    occurring = {label for row in found.rows for label in row or ()} | set(found.names)
    if not given and not found.names:
        check_cells(occurring, head, path, rules)
    names = tuple(given) or (tuple(as_read(found.names, rules, path)) if found.names else
                             in_order(as_read(sorted(occurring), rules, path), rules))
    if not names:
        raise DataError(f'The file {path!r} has no label at all for the head {head!r}: fill the '
                        f'column in, or name the classes in data.classes.')
    unsafe = [name for name in names if spec.separator in name or not name.strip()]
    if unsafe:
        raise DataError(f'The class {unsafe[0]!r} of the head {head!r} is empty or contains '
                        f'data.label_separator={spec.separator!r}: choose another separator.')
    number = dict(zip(occurring, number_labels(list(occurring), names)))
    rows: list[list[int] | None] = []
    for labels, where in zip(found.rows, table.places):
        places = None if labels is None else [number[label] for label in labels]
        if places is not None and None in places:
            wrong = labels[places.index(None)]
            raise DataError(f'{path!r}, {where}: the label {wrong!r} is not a class of the head '
                            f'{head!r}{perhaps(wrong, names)}: correct it or add it to '
                            f'data.classes.')
        rows.append(places)
    numbers, sets = numbered(rows, len(names), spec.separator)
    labels = sum(len(row or ()) for row in rows)
    _log.info('labels   %s: %d on %s, %d without any, %d unlabelled', head, labels,
              counted(sum(bool(row) for row in rows), 'picture'),
              sum(row is not None and not row for row in rows), sum(row is None for row in rows))
    return names, numbers, sets


def join_rows(columns: dict[str, Any], sets: Mapping[str, SetHead], path: str,
              places: Sequence[str]) -> tuple[dict[str, Any], dict[str, SetHead], Sequence[str]]:
    """One row per id: (columns, sets, places), with the labels of its rows together.

    Args:
        columns: of the manifest and of the heads with one label, N values each, or one for all.
        sets: the multi-label heads.
        path: of the file, for errors.
        places: where each row is, for errors.

    Raises:
        DataError: rows of one id differ in a column, or one of them has no label.
    """
    columns = {name: [values] * len(places) if isinstance(values, str) else values
               for name, values in columns.items()}
    sets = {head: SetHead(list(found.rows), found.names) for head, found in sets.items()}
    first: dict[str, int] = {}
    again = 0
    for row, name in enumerate(columns['id']):
        known = first.setdefault(name, row)
        if known == row:
            continue
        both = f'The file {path!r} has the id {name!r} in {places[known]} and in {places[row]}'
        for what, values in columns.items():
            if values[known] != values[row]:
                raise DataError(f'{both} with two values of {what!r} ({values[known]!r} and '
                                f'{values[row]!r}): rows of one picture may differ in the labels '
                                f'of data.multi_label only.')
        for head, found in sets.items():
            here, there = found.rows[known], found.rows[row]
            if here is None or there is None:
                if here is not there:
                    raise DataError(f'{both}, and only one of them has labels of the head '
                                    f'{head!r}: delete the other.')
                continue
            again += len(set(here) & set(there))
            found.rows[known] = tuple(dict.fromkeys((*here, *there)))
    kept = list(first.values())
    if len(kept) < len(places):
        _log.info('labels   %s of %s: their labels are joined', counted(len(places), 'row'),
                  counted(len(kept), 'picture'))
    if again:
        _log.warning('labels   %s again in another row of the picture: counted once',
                     counted(again, 'label comes', 'labels come'))
    return ({name: [values[row] for row in kept] for name, values in columns.items()},
            {head: SetHead([found.rows[row] for row in kept], found.names)
             for head, found in sets.items()}, [places[row] for row in kept])
