"""Honest scores of what is fitted on validation rows: fit on all folds but one, score that one.

Selection, weights, stacking and temperatures look better on the rows they were fitted on. The
nested score does not: no row is scored by a fit that saw it, or another row of its group.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from train_lib.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Nested:
    """Result of `nested`.

    Attributes:
        fitted: the fit on all rows that have a fold, which is the one to use.
        naive: its score on the same rows.
        nested: the score of all rows, each by a fit that did not see it.
        outputs: of the nested fits, [N, ...]; 0 for rows without a fold.
        folds: {fold: score of its rows by the fit without them}.
    """

    fitted: Any
    naive: float
    nested: float
    outputs: np.ndarray
    folds: dict[int, float]


def nested(fit: Callable, apply: Callable, score: Callable, folds: np.ndarray,
           groups: np.ndarray | None = None) -> Nested:
    """Naive and nested scores side by side.

    Args:
        fit: rows (int array) -> whatever was fitted on them.
        apply: (fitted, rows) -> outputs [len(rows), ...], such as predictions.
        score: (outputs, rows) -> float.
        folds: int [N], the fold of each row; -1: the row takes no part (it has no label).
        groups: [N]; a fit leaves out rows whose group is also in the fold to be scored.

    Raises:
        ConfigError: fewer than two folds, or a fold that shares a group with every other row.
    """
    folds = np.asarray(folds)
    rows = np.flatnonzero(folds >= 0)
    kinds = np.unique(folds[rows])
    if len(kinds) < 2:
        raise ConfigError('The nested score needs at least two folds of labelled rows: vote on '
                          'out_of_fold, or draw folds.')
    whole = fit(rows)
    naive = float(score(apply(whole, rows), rows))
    outputs, by_fold = None, {}
    for fold in kinds:
        inside = folds == fold
        others = rows[~inside[rows]]
        if groups is not None:
            others = others[~np.isin(groups[others], groups[inside])]
        if not len(others):
            raise ConfigError(f'All rows outside fold {fold} share a group with it, so nothing is '
                              f'left to fit: use folds that keep groups together.')
        left = np.flatnonzero(inside)
        found = np.asarray(apply(fit(others), left))
        if outputs is None:
            outputs = np.zeros((len(folds), *found.shape[1:]), found.dtype)
        outputs[left] = found
        by_fold[int(fold)] = float(score(found, left))
    return Nested(whole, naive, float(score(outputs[rows], rows)), outputs, by_fold)


def draw_folds(labels: np.ndarray, groups: np.ndarray | None = None, count: int = 5,
               seed: int = 0) -> np.ndarray:
    """Stratified folds for `nested`, if the rows have none; groups are kept together.

    Args:
        labels: int [N]; rows of -1 get fold -1.
        groups: [N] or None.
        count: of folds.
        seed: of the draw.

    Returns:
        int [N].

    Raises:
        ConfigError: fewer rows or groups than folds.
    """
    labels = np.asarray(labels)
    rows = np.flatnonzero(labels >= 0)
    units = len(rows) if groups is None else len(np.unique(np.asarray(groups)[rows]))
    if units < count:
        raise ConfigError(f'{units} labelled rows or groups cannot make {count} folds: use fewer.')
    folds = np.full(len(labels), -1)
    # Classes too small for every fold count as one class: scikit-learn refuses too many of them.
    sizes = np.bincount(labels[rows])
    strata = np.where(sizes[labels[rows]] < count, -1, labels[rows])
    if groups is None:
        splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(rows, strata)
    else:
        splits = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(
            rows, strata, np.asarray(groups)[rows])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='The least populated class', module='sklearn')
        for fold, (_, left) in enumerate(splits):
            folds[rows[left]] = fold
    return folds
