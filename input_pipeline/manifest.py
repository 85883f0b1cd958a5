"""The Manifest: one row an image, and everything to the left of the loader is a
pure function from Manifest to Manifest.

Columns of `Manifest.table` (a pandas DataFrame with a plain 0..n-1 index):

    id            str, unique and stable: the name by which rows are joined
    location      str, where the picture is: a path relative to `root`, an
                  absolute path, or `<scheme>:<rest>` for sources without files
    label/<head>  int, index into `classes[head]`; -1 means unlabelled
    group         str, optional: person, drawer, duplicate group ('' is its own group)
    weight        float, optional: weight of the example in the loss
    split         str, optional: 'train', 'val' or 'test'
    truth/<what>  optional: what was planted there on purpose, for scoring detectors
"""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping

import numpy as np
import pandas as pd

from input_pipeline.csv_table import quoting_for, read_csv
from input_pipeline.errors import DataError

SPLITS = ('train', 'val', 'test')
_COLUMNS = ('id', 'location')


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A table of pictures, the class names of each head, and where the files are."""

    table: pd.DataFrame
    classes: Mapping[str, tuple[str, ...]]
    root: str = ''

    def __len__(self) -> int:
        return len(self.table)

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.classes)

    def labels(self, head: str) -> np.ndarray:
        """Labels of one head, int32 [N]."""
        return self.table[f'label/{head}'].to_numpy(np.int32)

    def select(self, rows) -> 'Manifest':
        """The manifest of some rows (a boolean mask or positions), in that order."""
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        return dataclasses.replace(
            self, table=self.table.iloc[rows].reset_index(drop=True))

    def with_column(self, name: str, values) -> 'Manifest':
        """The manifest with one column added or replaced."""
        return dataclasses.replace(self, table=self.table.assign(**{name: values}))


def make_manifest(columns: Mapping[str, object], classes: Mapping[str, tuple[str, ...]],
                  root: str = '') -> Manifest:
    """Checks the columns and builds a Manifest.

    Raises:
        DataError: no rows, two rows with one id, a label outside its classes, or two classes
            that look alike.
    """
    table = pd.DataFrame(dict(columns)).reset_index(drop=True)
    if not len(table):
        raise DataError(f'No images were found in {root or "the source"!r}: check the path.')
    table['id'] = table['id'].astype(str)
    doubled = table['id'][table['id'].duplicated(keep=False)]
    if len(doubled):
        first = doubled.iloc[0]
        places = table['location'][table['id'] == first].tolist()
        raise DataError(
            f'Two images have the id {first!r} ({places[0]} and {places[1]}): '
            f'give every image an id of its own.')
    classes = {head: tuple(str(name) for name in names) for head, names in classes.items()}
    for head, names in classes.items():
        _refuse_lookalikes(head, names)
        column = f'label/{head}'
        labels = table[column].to_numpy(np.int64)
        wrong = np.flatnonzero((labels < -1) | (labels >= len(names)))
        if len(wrong):
            row = wrong[0]
            raise DataError(
                f'Image {table["id"][row]!r} has label {labels[row]} for head {head!r}, '
                f'which has {len(names)} classes: use 0 to {len(names) - 1}, or -1 for none.')
        table[column] = labels.astype(np.int32)
    return Manifest(table=table, classes=classes, root=root)


def _refuse_lookalikes(head: str, names: tuple[str, ...]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize('NFC', name), name)
        if other != name:
            raise DataError(f'The classes {other!a} and {name!a} of the head {head!r} '
                            f'look alike ({name}), for their accents are composed in two ways '
                            f'(Unicode NFC and NFD): write both in one way.')


def digest(manifest: Manifest) -> str:
    """SHA-256 over what the data mean: ids, labels, groups, weights, class names.

    Rows are taken in the order of their ids and locations are left out, so a copied
    or packed data set keeps its digest.
    """
    table = manifest.table.sort_values('id', kind='stable')
    hasher = hashlib.sha256()

    def feed(*parts: str) -> None:
        for part in parts:
            data = part.encode('utf-8', 'surrogateescape')
            hasher.update(len(data).to_bytes(8, 'little'))
            hasher.update(data)

    feed('id', *table['id'])
    for head in sorted(manifest.classes):
        feed('classes', head, *manifest.classes[head])
        hasher.update(table[f'label/{head}'].to_numpy('<i4').tobytes())
    if 'group' in table:
        feed('group', *table['group'].astype(str))
    if 'weight' in table:
        hasher.update(table['weight'].to_numpy('<f8').tobytes())
    return hasher.hexdigest()


def class_counts(manifest: Manifest, head: str) -> np.ndarray:
    """Number of images of each class, int64 [C]; unlabelled rows are not counted."""
    labels = manifest.labels(head)
    return np.bincount(labels[labels >= 0], minlength=len(manifest.classes[head]))


def save(manifest: Manifest, path: str) -> None:
    """Writes a manifest to `path`, a .parquet or .csv file, for `load` and `data.csv`.

    Parquet keeps everything. A CSV is for reading and editing: it has the names of the
    classes in place of their numbers, and `<path>.json` beside it keeps the order of the
    classes and the folder of the pictures. That folder is written relative to the file's
    own if it lies below it, so both may move together.

    Raises:
        DataError: another ending, or class names that a CSV cannot tell apart.
    """
    kind, path = _kind(path), os.path.abspath(path)
    table = manifest.table.copy()
    for name in {'group', 'split'} & set(table):
        table[name] = table[name].astype(str)
    if 'weight' in table:
        table['weight'] = table['weight'].astype(np.float64)  # which text gives back exactly
    root = manifest.root and os.path.relpath(manifest.root, os.path.dirname(path))
    about = {'classes': {head: list(names) for head, names in manifest.classes.items()},
             'root': os.path.abspath(manifest.root) if root.startswith(os.pardir) else root}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == '.parquet':
        import pyarrow as pa  # half a second that no other run needs
        import pyarrow.parquet
        rows = pa.Table.from_pandas(table, preserve_index=False)
        rows = rows.replace_schema_metadata(
            {**(rows.schema.metadata or {}), b'manifest': json.dumps(about).encode()})
        _replace(path, lambda file: pa.parquet.write_table(rows, file))
        return
    for head, names in manifest.classes.items():
        if len({*names, ''}) <= len(names) or any(name != name.strip() for name in names):
            raise DataError(f'The classes of the head {head!r} cannot be told apart in the CSV '
                            f'{path!r} (one is doubled, empty or starts or ends with a space): '
                            f'save the manifest as .parquet.')
        table[f'label/{head}'] = np.array([*names, ''], object)[manifest.labels(head)]
    _replace(f'{path}.json', lambda file: file.write(json.dumps(about, indent=1).encode()))
    _replace(path, lambda file: table.to_csv(file, index=False, lineterminator='\n',
                                             quoting=quoting_for(table)))


def load(path: str) -> Manifest:
    """Reads a manifest that `save` wrote, or a table with its columns `id`, `location`, `label/*`.

    Without the class names (a CSV without its .json), the classes are those that occur,
    sorted, and the pictures lie in the file's own folder.

    Raises:
        DataError: the file is missing or damaged or lacks a column; a label is no class.
    """
    kind, folder = _kind(path), os.path.dirname(os.path.abspath(path))
    try:
        table, about = (_read_parquet if kind == '.parquet' else _read_csv)(path)
        classes, root = _checked(about)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises nearly every type on damaged files
        detail = ' '.join(str(error).split())[:300]
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
        table[f'label/{head}'] = _numbers(path, head, table[f'label/{head}'], names)
    if 'weight' in table:
        table['weight'] = _weights(path, table['weight'])
    wrong = sorted(set(table.get('split', ())) - {*SPLITS, ''})
    if wrong:
        raise DataError(f'The manifest {path!r} has the split {wrong[0]!r}: '
                        f'use {", ".join(SPLITS)} or nothing.')
    return make_manifest(table, classes, root and os.path.normpath(os.path.join(folder, root)))


def is_manifest(path: str, header=()) -> bool:
    """Whether a table with these columns is for `load`; a Parquet file always is."""
    return path.lower().endswith('.parquet') or (
        set(_COLUMNS) <= set(header) and any(name.startswith('label/') for name in header))


def _kind(path: str) -> str:
    kind = os.path.splitext(path)[1].lower()
    if kind not in ('.parquet', '.csv'):
        raise DataError(f'The manifest {path!r} ends with {kind!r}: use .parquet or .csv.')
    return kind


def _replace(path: str, write) -> None:
    temporary = f'{path}.{os.getpid()}.tmp'
    try:
        with open(temporary, 'wb') as file:
            write(file)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _read_parquet(path: str) -> tuple[pd.DataFrame, dict]:
    import pyarrow.parquet
    rows = pyarrow.parquet.read_table(path)
    rows.validate(full=True)  # texts that are no UTF-8 would fail when they are looked at
    if len(set(rows.column_names)) < len(rows.column_names):
        raise ValueError('it has a column twice')
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
    """Classes by head and root of what `save` kept beside the table."""
    classes, root = about.get('classes', {}), about.get('root', '.')
    if not isinstance(root, str) or '\0' in root or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in classes.values()):
        raise ValueError('its root is no text, or its classes are no lists of names')
    return classes, root


def _text(path: str, name: str, values: pd.Series) -> pd.Series:
    missing = values.isna()
    if name in _COLUMNS and missing.any():
        raise DataError(f'The manifest {path!r} has no {name} in row '
                        f'{int(np.flatnonzero(missing)[0]) + 1}: fill it in.')
    return _as_text(values, missing)


def _as_text(values: pd.Series, missing: pd.Series) -> pd.Series:
    # One by one: pandas would decode bytes, and fail.
    return pd.Series(['' if gone else str(value) for value, gone in zip(values, missing)],
                     values.index, dtype=str)


def _occurring(labels: pd.Series) -> list[str]:
    names = {name.strip() for name in _label_text(labels).unique()} - {'', '-1'}
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


def _numbers(path: str, head: str, labels: pd.Series, names: tuple[str, ...]) -> np.ndarray:
    """Class numbers, int32 [N], from themselves or from class names."""
    if labels.dtype.kind in 'iu' and len(names) > labels.max():
        return labels.to_numpy(np.int32)
    number = {'': -1, '-1': -1} | {name: index for index, name in enumerate(names)}
    numbers = _label_text(labels).str.strip().map(number)
    if numbers.isna().any():
        row = int(np.flatnonzero(numbers.isna())[0])
        raise DataError(f'The manifest {path!r} labels row {row + 1} {labels[row]!r}, which is no '
                        f'class of the head {head!r}: correct it.')
    return numbers.to_numpy(np.int32)


def _label_text(labels: pd.Series) -> pd.Series:
    """Labels as text, '' for a missing one; whole numbers that pandas made floats stay whole."""
    missing = labels.isna()
    if labels.dtype.kind == 'f' and (labels[~missing] % 1 == 0).all():
        labels = labels.where(~missing, 0).map(int)
    return _as_text(labels, missing)


def _weights(path: str, values: pd.Series) -> np.ndarray:
    try:
        weights = np.array([float(value) for value in values])
    except (ValueError, TypeError) as error:
        raise DataError(f'The manifest {path!r} has a weight that is no number ({error}): '
                        f'correct it.') from None
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise DataError(f'The manifest {path!r} has a weight below 0 or not finite: correct it.')
    return weights
