"""Photographs among drawings, or drawings among photographs, by how pictures are made.

The directions in which the statistics of photographs differ from those of drawings are known, so
no example is needed; a few marked ones sharpen the answer. Clusters of features, or the objects
that a detector saw, are other ways.
"""

from collections.abc import Mapping

import numpy as np

from input_pipeline.csv_table import read_csv
from input_pipeline.curation import clusters
from input_pipeline.curation.decisions import Finding
from input_pipeline.curation.picture_statistics import NAMES
from input_pipeline.errors import DataError
from input_pipeline.sources import did_you_mean
from input_pipeline.sources.csv_file import column

WANTED = ('drawings', 'photographs')
METHODS = ('statistics', 'kmeans', 'dbscan', 'objects')
_MARKS = {'1': True, 'yes': True, 'true': True, 'photograph': True, 'photo': True,
          '0': False, 'no': False, 'false': False, 'drawing': False}

# What tells photographs from drawings most surely: the sign of a photograph, and a difference
# that means something, so that pictures that hardly differ are not spread out.
_SIGNS = {'sharpness_0': (-1, .3), 'sharpness_1': (-1, .3), 'sharpness_2': (-1, .3),
          'flat_0': (-1, .2), 'grey_entropy': (1, 1.), 'sharpness_spread_0': (1, .15),
          'top_colors': (-1, .25), 'texture25_0': (1, .7), 'gentle_0': (1, .2),
          'live30_0': (1, .15)}
_SURE = 0.9  # of the index: what drawings among drawings do not reach
_CLEAR = 2.0  # times that: the odd ones are so far out on average that the index is enough
_LEAST = 0.6  # times that: below it nothing is of the odd kind, as long as nothing is marked
_INDEX = 0.5  # what the index counts beside the regression, as long as nothing is marked
_ROUNDS = 5
_FEW = 5  # examples of the odd kind from which a classifier can learn
_MARK = 20.0  # weight of a marked row


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

    Rows far out on the index are of that kind. Where that is not clear, a logistic regression
    learns the difference from them, judges every row by models that have not seen it, and a
    mixture of two normals over its judgement and the index divides the rows anew, until nothing
    changes. With marks it goes on from there, without the index. A marked row keeps its mark.

    Args:
        values: of `picture_statistics.measure`, [N, K].
        features: descriptors of the pictures, [N, D], for the regression.
        marks: row -> whether it is a photograph, as the user says.
        wanted: what most rows are, 'drawings' or 'photographs'.

    Raises:
        DataError: another `wanted`.
    """
    away, bound = _away(values, wanted)
    rows = np.fromiter(marks or (), int)
    known = np.array([marks[row] == (wanted == 'drawings') for row in rows], bool)
    odd = 1 / (1 + np.exp(-np.clip(8 * (away - bound), -50, 50)))
    if (odd > .5).any() and away[odd > .5].mean() > _CLEAR * bound:
        odd[rows] = known
        return odd
    inputs = inputs_of(values, features, seed)
    none = np.empty(0, int)
    alone = _divided(inputs, away, bound, odd, none, known[:0], seed)
    return _divided(inputs, away, bound, alone, rows, known, seed) if len(rows) else alone


def _divided(inputs: np.ndarray, away: np.ndarray, bound: float, odd: np.ndarray, rows: np.ndarray,
             known: np.ndarray, seed: int) -> np.ndarray:
    """The rows divided anew until nothing changes, from odd on; some rows are known."""
    odd, weights = odd.copy(), np.ones(len(odd))
    odd[rows], weights[rows] = known, _MARK
    labels = odd > .5
    for turn in range(_ROUNDS):
        if not _FEW <= labels.sum() <= len(labels) - _FEW:
            break
        judged = _out_of_fold(inputs, labels, weights, seed + turn)
        if not len(rows):
            judged = judged / judged.std() + _INDEX * away / away.std()
        odd = _upper_share(judged, labels)
        if not len(rows):
            odd[away < _LEAST * bound] = 0
        odd[rows] = known
        before, labels = labels, odd > .5
        if (labels == before).all():
            break
    return odd


def of_clusters(values: np.ndarray, cluster: np.ndarray, *, wanted: str = 'drawings'
                ) -> np.ndarray:
    """1 for rows of clusters that lie as far out on the index as the unwanted kind, else 0.

    Args:
        values: of `picture_statistics.measure`, [N, K].
        cluster: int [N] of any features; rows of -1 stand for themselves.
        wanted: as for `photographs`.
    """
    away, bound = _away(values, wanted)
    found = (away > bound).astype(float)
    for one in np.unique(cluster[cluster >= 0]):
        found[cluster == one] = away[cluster == one].mean() > bound
    return found


def to_finding(odd: np.ndarray, *, wanted: str, drop: float, review: float,
               words: str = '') -> Finding:
    """Decisions by the probability of being of the unwanted kind.

    Args:
        odd: float [N].
        wanted: as for `photographs`.
        drop, review: from these probabilities on.
        words: the reason, instead of one from the probability.
    """
    action = np.where(odd >= drop, 'drop', np.where(odd >= review, 'review', 'keep')).astype(object)
    kind = 'a photograph' if wanted == 'drawings' else 'a drawing'
    reason = np.where(action == 'drop', words or f'{kind} among {wanted}',
                      np.where(action == 'review', f'perhaps {kind}', '')).astype(object)
    return Finding('photographs', odd, action, reason)


def read_marks(path: str, ids: np.ndarray) -> dict[int, bool]:
    """Row -> whether it is a photograph, from a CSV with the columns id and photograph (yes or
    no), or from a list of the ids of photographs with the heading id.

    Raises:
        DataError: the file cannot be read, or names an id or mark that does not exist.
    """
    header, lines, numbers = read_csv(path)
    place = column(path, header, 'id')
    mark = header.index('photograph') if 'photograph' in header else None
    row_of = {name: row for row, name in enumerate(ids)}
    found = {}
    for line, number in zip(lines, numbers):
        where = f'The marks {path!r}, line {number},'
        if line[place] not in row_of:
            raise DataError(f'{where} name the id {line[place]!r}, which the data do not have'
                            f'{did_you_mean(line[place], row_of)}: correct it.')
        word = 'yes' if mark is None else line[mark].strip().lower()
        if word and word not in _MARKS:
            raise DataError(f'{where} have photograph={word!r}: use yes or no.')
        if word:
            found[row_of[line[place]]] = _MARKS[word]
    return found


def read_objects(path: str, ids: np.ndarray) -> np.ndarray:
    """Objects that a detector saw in each picture, float [N], 0 where the CSV (id, objects) has
    no line.

    Raises:
        DataError: the file cannot be read, or a count is no number of 0 or more.
    """
    header, lines, numbers = read_csv(path)
    place, count = column(path, header, 'id'), column(path, header, 'objects')
    seen = {}
    for line, number in zip(lines, numbers):
        try:
            seen[line[place]] = float(line[count])
        except ValueError:
            raise DataError(f'The file {path!r} has objects={line[count]!r} in line {number}: '
                            f'use a number.') from None
    return np.array([seen.get(name, 0.0) for name in ids])


def _away(values: np.ndarray, wanted: str) -> tuple[np.ndarray, float]:
    """(how far towards the unwanted kind each row lies, what the wanted kind does not reach)"""
    if wanted not in WANTED:
        raise DataError(f'curate.photographs.wanted={wanted!r} is unknown: '
                        f'use {" or ".join(WANTED)}.')
    away = index(values) if wanted == 'drawings' else -index(values)
    # The wanted kind's own spread shows on the side where the other kind is not.
    return away, max(_SURE, 3 * float(np.median(away) - np.quantile(away, .16)))


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


def inputs_of(values: np.ndarray, features: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Standardised statistics, and the first components of the features."""
    parts = [values] if features is None else [values, clusters.reduce(features, seed)]
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
