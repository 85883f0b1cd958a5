"""Manifests as files: Parquet, or a CSV with a JSON file beside it."""

import json
import os
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from input_pipeline.atomic_files import atomic_open
from input_pipeline.class_names import nfc, number_labels
from input_pipeline.csv_table import quoting_for, read_csv
from input_pipeline.errors import DataError, in_one_line
from input_pipeline.label_sets import LabelSets
from input_pipeline.manifest import SPLITS, Manifest, make_manifest

_COLUMNS = ('id', 'location')


def save(manifest: Manifest, path: str) -> None:
    """Writes a manifest to `path`, a .parquet or .csv file, for `load` and `data.csv`.

    Parquet keeps everything. A CSV is for reading and editing: it holds the names of the
    classes instead of their numbers, and `<path>.json` beside it keeps the order of the
    classes and the folder of the pictures. If that folder lies below the file's own folder,
    its path is written as a relative one, so that both may move together.

    Raises:
        DataError: another file extension, or class names that a CSV cannot tell apart.
    """
    kind, path = _kind(path), os.path.abspath(path)
    table = manifest.table.copy()
    for name in {'group', 'split'} & set(table):
        table[name] = table[name].astype(str)
    if 'weight' in table:
        table['weight'] = table['weight'].astype(np.float64)  # which text represents exactly
    root = manifest.root and os.path.relpath(manifest.root, os.path.dirname(path))
    about = {'classes': {head: list(names) for head, names in manifest.classes.items()},
             'root': os.path.abspath(manifest.root) if root.startswith(os.pardir) else root}
    if manifest.label_sets:
        about['label_sets'] = {head: {'separator': sets.separator,
                                      'sets': [np.flatnonzero(row).tolist() for row in sets.table]}
                               for head, sets in manifest.label_sets.items()}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == '.parquet':
        import pyarrow as pa  # takes half a second, and only Parquet needs it
        import pyarrow.parquet
        rows = pa.Table.from_pandas(table, preserve_index=False)
        rows = rows.replace_schema_metadata(
            {**(rows.schema.metadata or {}), b'manifest': json.dumps(about).encode()})
        with atomic_open(path, 'wb', shared=True) as file:
            pa.parquet.write_table(rows, file)
        return
    for head, names in manifest.classes.items():
        if len({*names, ''}) <= len(names) or any(name != name.strip() for name in names):
            raise DataError(f'The classes of the head {head!r} cannot be told apart in the CSV '
                            f'{path!r} (one occurs twice, is empty, or starts or ends with a '
                            f'space): save the manifest as .parquet.')
        table[f'label/{head}'] = manifest.texts(head)
    with atomic_open(f'{path}.json', shared=True) as file:
        json.dump(about, file, indent=1)
    with atomic_open(path, shared=True) as file:
        table.to_csv(file, index=False, lineterminator='\n', quoting=quoting_for(table))


def load(path: str) -> Manifest:
    """Reads a manifest that `save` wrote, or a table with the columns `id`, `location`, `label/*`.

    Without the class names (a CSV without its .json), the classes are those that occur,
    sorted, and the pictures lie in the file's own folder.

    Raises:
        DataError: the file is missing or damaged or lacks a column, or a label is not a class.
    """
    kind, folder = _kind(path), os.path.dirname(os.path.abspath(path))
    try:
        table, about = (_read_parquet if kind == '.parquet' else _read_csv)(path)
        classes, root = _checked(about)
        several = _label_sets(about, classes)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises nearly every type on damaged files
        detail = in_one_line(error)[:300]
        raise DataError(f'The manifest {path!r} cannot be read ({detail}): '
                        f'restore it or write it again.') from None
    heads = [name.removeprefix('label/') for name in table if name.startswith('label/')]
    for name in (*_COLUMNS, *(f'label/{head}' for head in classes)):
        if name not in table:
            raise DataError(f'The manifest {path!r} has no column {name!r}: restore it.')
    for name in (*_COLUMNS, 'group', 'split'):
        if name in table:
            table[name] = _text(path, name, table[name])
    classes = {head: tuple(classes.get(head) or _occurring(table[f'label/{head}']))
               for head in [*classes, *(head for head in heads if head not in classes)]}
    if not classes:
        raise DataError(f'The manifest {path!r} has no column label/<head>: add one.')
    for head, names in classes.items():
        column = table[f'label/{head}']
        if head in several:
            table[f'label/{head}'] = _set_numbers(path, head, column, several[head], names)
        else:
            table[f'label/{head}'] = _numbers(path, head, column, names)
    if 'weight' in table:
        table['weight'] = _weights(path, table['weight'])
    wrong = sorted(set(table.get('split', ())) - {*SPLITS, ''})
    if wrong:
        raise DataError(f'The manifest {path!r} has the split {wrong[0]!r}: '
                        f'use {", ".join(SPLITS)}, or leave it empty.')
    return make_manifest(table, classes, root and os.path.normpath(os.path.join(folder, root)),
                         several)


def is_manifest(header: Iterable[str]) -> bool:
    """Whether a table with these columns is a saved manifest."""
    header = set(header)
    return set(_COLUMNS) <= header and any(name.startswith('label/') for name in header)


def _kind(path: str) -> str:
    kind = os.path.splitext(path)[1].lower()
    if kind not in ('.parquet', '.csv'):
        raise DataError(f'The manifest {path!r} ends with {kind!r}: use .parquet or .csv.')
    return kind


def _read_parquet(path: str) -> tuple[pd.DataFrame, dict]:
    import pyarrow.parquet
    rows = pyarrow.parquet.read_table(path)
    rows.validate(full=True)  # texts that are not UTF-8 would fail only when they are read
    if len(set(rows.column_names)) < len(rows.column_names):
        raise ValueError('a column occurs twice')
    return rows.to_pandas(), json.loads((rows.schema.metadata or {}).get(b'manifest', '{}'))


def _read_csv(path: str) -> tuple[pd.DataFrame, dict]:
    header, rows, _ = read_csv(path)
    table = pd.DataFrame(rows, columns=header, dtype=str)
    try:
        with open(f'{path}.json', encoding='utf-8') as file:
            return table, json.load(file)
    except FileNotFoundError:
        return table, {}


def _checked(about) -> tuple[dict[str, list[str]], str]:
    """The classes by head and the root, as `save` kept them beside the table."""
    classes, root = about.get('classes', {}), about.get('root', '.')
    if not isinstance(root, str) or '\0' in root or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in classes.values()):
        raise ValueError('its root is not a text, or its classes are not lists of names')
    return classes, root


def _label_sets(about: dict, classes: dict[str, list[str]]) -> dict[str, LabelSets]:
    found = {}
    for head, kept in about.get('label_sets', {}).items():
        table = np.zeros((len(kept['sets']), len(classes[head])), bool)
        for row, labels in zip(table, kept['sets']):
            row[labels] = True
        found[head] = LabelSets(table, str(kept['separator']))
    return found


def _set_numbers(path: str, head: str, column: pd.Series, sets: LabelSets, names: Sequence[str]
                 ) -> np.ndarray:
    """Numbers of sets, int32 [N], from numbers or from the texts of the sets."""
    if column.dtype.kind in 'iu':
        return column.to_numpy(np.int32)
    number = {text: place for place, text in enumerate(
        sets.texts(np.arange(len(sets.table)), names))} | {'': -1}
    texts = _label_text(column)
    wrong = [row for row, text in enumerate(texts) if text not in number]
    if wrong:
        raise DataError(f'The manifest {path!r} labels row {wrong[0] + 1} {texts[wrong[0]]!r}, '
                        f'which is none of the sets of labels of the head {head!r} that the file '
                        f'beside it lists: correct it, or make the manifest anew.')
    return np.array([number[text] for text in texts], np.int32)


def _text(path: str, name: str, values: pd.Series) -> pd.Series:
    missing = values.isna()
    if name in _COLUMNS and missing.any():
        raise DataError(f'The manifest {path!r} has no {name} in row '
                        f'{int(np.flatnonzero(missing)[0]) + 1}: fill it in.')
    return _as_text(values, missing)


def _as_text(values: pd.Series, missing: pd.Series) -> pd.Series:
    # One by one: pandas would try to decode bytes and fail.
    return pd.Series(['' if gone else str(value)
                      for value, gone in zip(values.tolist(), missing.tolist())],
                     values.index, dtype=str)


def _occurring(labels: pd.Series) -> list[str]:
    written = sorted({name.strip() for name in _label_text(labels).unique()} - {'', '-1'})
    names = {nfc(name): name for name in reversed(written)}.values()  # one of those alike
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


def _numbers(path: str, head: str, labels: pd.Series, names: tuple[str, ...]) -> np.ndarray:
    """Class numbers, int32 [N], from numbers or from class names."""
    if labels.dtype.kind in 'iu' and len(names) > labels.max():
        return labels.to_numpy(np.int32)
    texts = _label_text(labels).str.strip()
    numbers = [-1 if number is None and text == '-1' else number
               for text, number in zip(texts, number_labels(texts, names))]
    if None in numbers:
        row = numbers.index(None)
        raise DataError(f'The manifest {path!r} labels row {row + 1} {labels[row]!r}, which is '
                        f'not a class of the head {head!r}: correct it.')
    return np.array(numbers, np.int32)


def _label_text(labels: pd.Series) -> pd.Series:
    """Labels as text, '' for a missing one; whole numbers that pandas turned into floats stay
    whole."""
    missing = labels.isna()
    if labels.dtype.kind == 'f' and (labels[~missing] % 1 == 0).all():
        labels = labels.where(~missing, 0).map(int)
    return _as_text(labels, missing)


def _weights(path: str, values: pd.Series) -> np.ndarray:
    try:
        weights = np.array([float(value) for value in values])
    except (ValueError, TypeError) as error:
        raise DataError(f'The manifest {path!r} has a weight that is not a number ({error}): '
                        f'correct it.') from None
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise DataError(f'The manifest {path!r} has a weight that is negative or not finite: '
                        f'correct it.')
    return weights
