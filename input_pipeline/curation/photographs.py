"""Photographs among drawings, or drawings among photographs, by how pictures are made.

The directions in which the statistics of photographs differ from those of drawings are known, so
no example is needed; a few marked ones sharpen the answer. `clusters.py` has the other way, by
clusters of any features.
"""

import csv
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.curation.picture_statistics import NAMES
from input_pipeline.errors import DataError

WANTED = ('drawings', 'photographs')

# What tells photographs from drawings most surely: the sign of a photograph, and a difference
# that means something, so that pictures that hardly differ are not spread out.
_SIGNS = {'sharpness_0': (-1, .3), 'sharpness_1': (-1, .3), 'sharpness_2': (-1, .3),
          'flat_0': (-1, .2), 'grey_entropy': (1, 1.), 'sharpness_spread_0': (1, .15),
          'top_colors': (-1, .25), 'texture25_0': (1, .7), 'gentle_0': (1, .2)}
_SURE = 0.9  # of the index: what drawings among drawings do not reach
_CLEAR = 2.0  # times that: the odd ones are so far out on average that the index is enough
_LEAST = 0.6  # times that: below it nothing is of the odd kind unless marked so
_INDEX = 0.5  # what the index counts beside the regression
_ROUNDS = 5
_COMPONENTS = 64  # of the features
_FEW = 5  # examples of the odd kind from which a classifier can learn
_MARK = 5.0  # weight of a marked row


def index(values: np.ndarray) -> np.ndarray:
    """How photographic each row is against the middle of all: float [N], 0 the middle.

    The mean of the most telling statistics in units of their spread. Photographs among drawings
    have 1 to 3.
    """
    used = values[:, [NAMES.index(name) for name in _SIGNS]].astype(np.float64)
    signs, units = np.array(list(_SIGNS.values())).T
    away = used - np.median(used, axis=0)
    scale = np.maximum(2.44 * np.median(np.abs(away), axis=0), units)  # nine tenths of a normal
    return np.clip(away / scale * signs, -5, 5).mean(axis=1)


def photographs(values: np.ndarray, *, features: np.ndarray | None = None,
                marks: Mapping[int, bool] | None = None, wanted: str = 'drawings',
                seed: int = 0) -> np.ndarray:
    """Probability that a row is of the unwanted kind, float [N].

    Rows far out on the index are of that kind. Where that is not clear, or rows are marked, a
    logistic regression learns the difference from them, judges every row by models that have not
    seen it, and a mixture of two normals over its judgement and the index divides the rows
    anew, until nothing changes. A marked row keeps its mark.

    Args:
        values: of `picture_statistics.measure`, [N, K].
        features: descriptors of the pictures, [N, D], for the regression.
        marks: row -> whether it is a photograph, as the user says.
        wanted: what most rows are, 'drawings' or 'photographs'.

    Raises:
        DataError: another `wanted`.
    """
    if wanted not in WANTED:
        raise DataError(f'curate.photographs.wanted={wanted!r} is unknown: '
                        f'use {" or ".join(WANTED)}.')
    sign = 1 if wanted == 'drawings' else -1
    rows = np.fromiter(marks or (), int)
    known = np.array([bool(marks[row]) == (sign > 0) for row in rows], bool)
    away = sign * index(values)
    # The wanted kind's own spread shows on the side where the other kind is not.
    bound = max(_SURE, 3 * float(np.median(away) - np.quantile(away, .16)))
    odd = 1 / (1 + np.exp(-np.clip(8 * (away - bound), -50, 50)))
    odd[rows] = known
    labels = odd > .5
    if not len(rows) and labels.any() and away[labels].mean() > _CLEAR * bound:
        return odd
    inputs, weights = _inputs(values, features, seed), np.ones(len(labels))
    weights[rows] = _MARK
    for turn in range(_ROUNDS):
        if not _FEW <= labels.sum() <= len(labels) - _FEW:
            break
        judged = _out_of_fold(inputs, labels, weights, seed + turn)
        judged = judged / judged.std() + _INDEX * away / away.std()
        odd = _upper_share(judged, labels) * (away > _LEAST * bound)
        odd[rows] = known
        before, labels = labels, odd > .5
        if (labels == before).all():
            break
    return odd


def _upper_share(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of the upper of two normals, fitted from these labels; it never falls."""
    from sklearn.mixture import GaussianMixture
    parts = scores[~labels], scores[labels]
    normals = GaussianMixture(
        2, means_init=[[part.mean()] for part in parts],
        weights_init=[len(part) / len(scores) for part in parts],
        precisions_init=[[[1 / (part.var() + 1e-2)]] for part in parts], reg_covar=1e-2)
    share = normals.fit(scores[:, None]).predict_proba(scores[:, None])
    upper = int(np.argmax(normals.means_))
    found = share[:, upper].copy()
    found[scores >= normals.means_[upper]] = 1  # a wide lower one would take the far end
    found[scores <= normals.means_[1 - upper]] = 0
    return found


def _inputs(values: np.ndarray, features: np.ndarray | None, seed: int) -> np.ndarray:
    """Standardised statistics, and the first components of the features."""
    parts = [values]
    if features is not None:
        from sklearn.decomposition import PCA
        count = min(_COMPONENTS, *features.shape)
        parts.append(PCA(count, random_state=seed).fit_transform(features))
    together = np.concatenate(parts, axis=1).astype(np.float64)
    spread = np.maximum(together.std(axis=0), 1e-6)
    return np.clip((together - together.mean(axis=0)) / spread, -5, 5)


def _out_of_fold(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, seed: int
                 ) -> np.ndarray:
    """Log odds of the label, of each row by a model of other rows, float [N]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    found = np.empty(len(labels))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    for train, test in folds.split(inputs, labels):
        model = LogisticRegression(max_iter=300)
        model.fit(inputs[train], labels[train], sample_weight=weights[train])
        found[test] = model.decision_function(inputs[test])
    return found
