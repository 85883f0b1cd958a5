"""What each picture adds to the metric of a finished run, from the files in its folder.

A study compares arms on pictures, and only the pictures say how much a difference would change
with others. They are read once for each state of a file.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from input_pipeline.csv_table import read_csv
from input_pipeline.errors import DataError
from input_pipeline.label_sets import joined
from train_lib.metrics.intervals import f1_rows
from train_lib.metrics.scores import per_row
from train_lib.metrics.set_scores import is_labelled, predicted_sets, sigmoid
from train_lib.metrics.structured import medians
from train_lib.run_dir.npz import read_npz

# Means over rows, or nearly so.
METRICS = ('accuracy', 'f1_macro', 'nll', 'brier', 'top5', 'mae', 'mae_median')


@dataclasses.dataclass(frozen=True, eq=False)
class CellRows:
    """The labelled rows that a run's metric was computed from, in the order of their ids.

    Attributes:
        ids: str [N].
        values: float [N], whose mean is the metric.
        groups: str [N], the group of each; None if no row shares its group.
        train: how many rows the run trained on; 0 if unknown.
        labels: str [N], the class of each by name; None if unknown.
    """

    ids: np.ndarray
    values: np.ndarray
    groups: np.ndarray | None
    train: int
    labels: np.ndarray | None = None


def read_cell_rows(folder: Path, metric: str) -> CellRows | None:
    """The rows behind a metric such as 'test.accuracy' or 'val.gender.nll'; None where the files
    do not say."""
    split, _, rest = metric.partition('.')
    head, _, name = rest.rpartition('.')
    path = folder / 'predictions' / f'{split}.npz'
    if name not in METRICS or not path.is_file():
        return None
    known = path.stat()
    return _read(folder, path, head, name, (known.st_mtime_ns, known.st_size))


@functools.lru_cache(maxsize=1024)
def _read(folder: Path, path: Path, head: str, name: str, _: tuple) -> CellRows | None:
    try:
        arrays = read_npz(path)
        tail = f'/{head}' if head else ''
        labels = arrays[f'labels{tail}']
        if labels.ndim == 2:
            return _of_sets(folder, arrays, tail, name)
        labels = labels.astype(np.int64)
        known = labels >= 0
        ids, labels = arrays['ids'].astype(str)[known], labels[known]
        logits = arrays[f'logits{tail}'][known]
        names = arrays[f'classes{tail}'].astype(str)[labels]
    except Exception:  # NumPy and zipfile raise nearly every type on damaged files
        return None
    if not len(ids) or not np.isfinite(logits).all():
        return None
    rows = per_row(logits, labels)
    values = {'accuracy': lambda: (rows['predicted'] == labels).astype(float),
              'top5': lambda: (rows['rank'] < 5).astype(float),
              'f1_macro': lambda: f1_rows(rows['predicted'], labels, logits.shape[1]),
              'mae': lambda: np.abs(rows['predicted'] - labels).astype(float),
              'mae_median': lambda: np.abs(medians(logits) - labels).astype(float),
              'nll': lambda: rows['nll'], 'brier': lambda: rows['brier']}[name]()
    order = np.argsort(ids)
    groups, train = _split_of(folder, ids[order])
    return CellRows(ids[order], values[order], groups, train, names[order])


def _of_sets(folder: Path, arrays: Mapping[str, np.ndarray], tail: str, name: str
             ) -> CellRows | None:
    """The rows of a multi-label head; None for a metric that is no mean over rows."""
    targets, logits = arrays[f'labels{tail}'], arrays[f'logits{tail}']
    known = is_labelled(targets)
    ids, truth, logits = arrays['ids'].astype(str)[known], targets[known] == 1, logits[known]
    if not len(ids) or not np.isfinite(logits).all():
        return None
    if name == 'accuracy':
        values = (predicted_sets(logits) == truth).all(1).astype(float)
    elif name == 'nll':
        values = (np.logaddexp(0.0, logits.astype(np.float64)) - truth * logits).sum(1)
    elif name == 'brier':
        values = ((sigmoid(logits) - truth) ** 2).sum(1)
    else:
        return None
    names = arrays[f'classes{tail}'].astype(str)
    order = np.argsort(ids)
    groups, train = _split_of(folder, ids[order])
    texts = np.array([joined(np.flatnonzero(row), names, '|') for row in truth[order]])
    return CellRows(ids[order], values[order], groups, train, texts)


def _split_of(folder: Path, ids: np.ndarray) -> tuple[np.ndarray | None, int]:
    """(the group of each id, or None; how many rows trained), from split.csv of the run, or of the
    first of its folds."""
    path = next((path for path in (folder / 'split.csv', *sorted(folder.glob('fold_*/split.csv')))
                 if path.is_file()), None)
    if path is None:
        return None, 0
    try:
        header, rows, _ = read_csv(str(path))
        table = {row[header.index('id')]: row for row in rows}
        train = sum(row[header.index('split')] == 'train' for row in rows)
    except (DataError, OSError, ValueError, IndexError):
        return None, 0
    if 'group' not in header:
        return None, train
    cells = [table[name][header.index('group')] if name in table else '' for name in ids.tolist()]
    groups = np.array([f'group {cell}' if cell else f'row {name}'
                       for cell, name in zip(cells, ids.tolist())])
    return (groups if len(np.unique(groups)) < len(groups) else None), train
