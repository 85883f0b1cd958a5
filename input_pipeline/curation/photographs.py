"""Photographs among drawings, or drawings among photographs, found by how pictures are made.

It is known in which directions the statistics of photographs differ from those of drawings, so
no examples are needed; a few marked examples improve the result. Clusters of features, or the
objects that a detector found, are other methods.
"""

from collections.abc import Mapping

import numpy as np

from input_pipeline.csv_table import read_csv
from input_pipeline.curation import clusters
from input_pipeline.curation.decisions import Finding
from input_pipeline.curation.picture_statistics import NAMES
from input_pipeline.curation.quiet import without_sklearn_warnings
from input_pipeline.errors import DataError, perhaps
from input_pipeline.sources.csv_file import column

WANTED = ('drawings', 'photographs')
METHODS = ('statistics', 'kmeans', 'dbscan', 'objects')
_MARKS = {'1': True, 'yes': True, 'true': True, 'photograph': True, 'photo': True,
          '0': False, 'no': False, 'false': False, 'drawing': False}

# The statistics that separate photographs from drawings best: the sign of a photograph, and the
# least difference that matters, so that pictures that hardly differ are not spread apart.
_SIGNS = {'sharpness_0': (-1, .3), 'sharpness_1': (-1, .3), 'sharpness_2': (-1, .3),
          'flat_0': (-1, .2), 'grey_entropy': (1, 1.), 'sharpness_spread_0': (1, .15),
          'top_colors': (-1, .25), 'texture25_0': (1, .7), 'gentle_0': (1, .2),
          'live30_0': (1, .15)}
_SURE = 0.9  # an index that drawings among drawings do not reach
_CLEAR = 2.0  # times that: if the odd rows are on average so far out, the index is enough
_LEAST = 0.6  # times that: below it no row is of the odd kind, unless rows are marked
_INDEX = 0.5  # weight of the index beside the regression, unless rows are marked
_ROUNDS = 5
_FEW = 5  # a classifier can learn from so many examples of the odd kind
_MARK = 20.0  # weight of a marked row
_CORRECTED = 0.1  # share of the rows found by a clear index that the regression may change
_CERTAIN = 0.01  # probabilities nearer to 0 or 1 only say which rows come first


def index(values: np.ndarray) -> np.ndarray:
    """How photographic each row is, float [N]; the median of all rows has 0.

    It is the mean of the statistics that separate best, in units of their spread. Photographs
    among drawings have 1 to 3.
    """
    used = values[:, [NAMES.index(name) for name in _SIGNS]].astype(np.float64)
    signs, units = np.array(list(_SIGNS.values())).T
    away = used - np.median(used, axis=0)
    # 2.44 median deviations contain nine tenths of a normal distribution.
    scale = np.maximum(2.44 * np.median(np.abs(away), axis=0), units)
    return np.clip(away / scale * signs, -5, 5).mean(axis=1)


@without_sklearn_warnings()
def photographs(values: np.ndarray, *, features: np.ndarray | None = None,
                marks: Mapping[int, bool] | None = None, wanted: str = 'drawings',
                seed: int = 0) -> np.ndarray:
    """Probability that a row is of the unwanted kind, float [N].

    Rows far out on the index are of that kind. Logistic regressions learn the difference from
    these rows and score every row by a model that has not seen it. A mixture of two normals over
    this score and the index then divides the rows again, until nothing changes; a clear index is
    only corrected by this, not overturned. With marks, it continues from there without the index.
    Rows that are practically certain differ by their order, see `ranked`; a marked row has
    exactly 0 or 1.

    Args:
        values: from `picture_statistics.measure`, [N, K].
        features: descriptors of the pictures, [N, D], for the regression.
        marks: {row: whether it is a photograph}, as the user says.
        wanted: what most rows are, 'drawings' or 'photographs'.
        seed: of the folds of the regressions.

    Raises:
        DataError: `wanted` is neither of the two.
    """
    away, bound = _away(values, wanted)
    rows = np.fromiter(marks or (), int)
    known = np.array([marks[row] == (wanted == 'drawings') for row in rows], bool)
    odd = 1 / (1 + np.exp(-np.clip(8 * (away - bound), -50, 50)))
    clear = (odd > .5).any() and away[odd > .5].mean() > _CLEAR * bound
    inputs = inputs_of(values, features, seed)
    none = np.empty(0, int)
    found, by = _divided(inputs, away, bound, odd, (none, known[:0]), seed)
    if clear and _overturned(found, odd):
        found, by = odd, away
    if len(rows):
        taught, by_taught = _divided(inputs, away, bound, found, (rows, known), seed)
        if not clear or not _overturned(np.delete(taught, rows), np.delete(odd, rows)):
            found, by = taught, by_taught
    found = ranked(found, by)
    found[rows] = known
    return found


def check_wanted(wanted: str) -> None:
    """Raises a DataError if it is not one of WANTED."""
    if wanted not in WANTED:
        raise DataError(f'curate.photographs.wanted={wanted!r} is unknown: '
                        f'use {" or ".join(WANTED)}.')


def ranked(odd: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The probabilities, float [N], of which those below .01 and above .99 are put in the order of
    `by`, float [N], within these limits: no two rows are the same for no reason."""
    from scipy.stats import rankdata
    found = np.asarray(odd, float).copy()
    for rows, low in ((odd <= _CERTAIN, 0.0), (odd >= 1 - _CERTAIN, 1 - _CERTAIN)):
        found[rows] = low + _CERTAIN * rankdata(by[rows]) / (rows.sum() + 1)
    return found


def to_mark(found: Finding, count: int, drop: float) -> np.ndarray:
    """The rows nearest the border between those that are dropped and the others, the nearest
    first: int [at most `count`], half of them from either side where there are so many.

    Rows that are marked already, which have a score of exactly 0 or 1, are left out.

    Args:
        found: of `to_finding`, perhaps moderated.
        count: how many rows at most.
        drop: as in `to_finding`: the border, also where too many would be dropped.
    """
    open_ = np.flatnonzero((found.score > 0) & (found.score < 1))
    order = open_[np.argsort(found.score[open_], kind='stable')]
    odd = found.score[order] >= drop
    below, above = order[~odd][::-1], order[odd]
    most = max(count // 2, count - len(below))
    above = above[:most]
    below = below[:count - len(above)]
    place = np.concatenate([np.arange(len(below)), np.arange(len(above)) + .5])
    return np.concatenate([below, above])[np.argsort(place)]


def _overturned(odd: np.ndarray, index_says: np.ndarray) -> bool:
    """Whether more rows change sides than a correction would change."""
    changed = np.sum((odd > .5) != (index_says > .5))
    return changed > max(3, _CORRECTED * np.sum(index_says > .5))


def _divided(inputs: np.ndarray, away: np.ndarray, bound: float, odd: np.ndarray,
             marked: tuple[np.ndarray, np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides the rows again until nothing changes, starting from `odd`.

    Returns the probabilities, and by what they are ordered; `marked` are rows and what they are.
    """
    rows, known = marked
    odd, weights, by = odd.copy(), np.ones(len(odd)), away
    odd[rows], weights[rows] = known, _MARK
    labels = odd > .5
    for turn in range(_ROUNDS):
        if not _FEW <= labels.sum() <= len(labels) - _FEW:
            break
        by = _out_of_fold(inputs, labels, weights, seed + turn)
        if not len(rows):
            by = by / max(by.std(), 1e-9) + _INDEX * away / max(away.std(), 1e-9)
        odd = _upper_share(by, labels)
        if not len(rows):
            odd[away < _LEAST * bound] = 0
        odd[rows] = known
        before, labels = labels, odd > .5
        if (labels == before).all():
            break
    return odd, by


def of_clusters(values: np.ndarray, cluster: np.ndarray, *, wanted: str = 'drawings'
                ) -> np.ndarray:
    """1 for rows whose cluster lies as far out on the index as the unwanted kind, else 0.

    Args:
        values: from `picture_statistics.measure`, [N, K].
        cluster: int [N], by any features; each row with -1 counts as its own cluster.
        wanted: as in `photographs`.
    """
    away, bound = _away(values, wanted)
    found = (away > bound).astype(float)
    for one in np.unique(cluster[cluster >= 0]):
        found[cluster == one] = away[cluster == one].mean() > bound
    return found


def to_finding(odd: np.ndarray, *, wanted: str, drop: float, review: float,
               words: str = '') -> Finding:
    """Decisions from the probability of the unwanted kind.

    Args:
        odd: float [N], the probabilities.
        wanted: as in `photographs`.
        drop, review: the probabilities from which a row is dropped or is for review.
        words: the reason for dropping; '' for the usual one.
    """
    action = np.where(odd >= drop, 'drop', np.where(odd >= review, 'review', 'keep')).astype(object)
    kind = 'a photograph' if wanted == 'drawings' else 'a drawing'
    reason = np.where(action == 'drop', words or f'{kind} among {wanted}',
                      np.where(action == 'review', f'perhaps {kind}', '')).astype(object)
    return Finding('photographs', odd, action, reason)


def read_marks(path: str, ids: np.ndarray) -> dict[int, bool]:
    """{row: whether it is a photograph}, from a CSV.

    The CSV has the columns id and photograph (yes or no), or only the column id with the ids of
    photographs.

    Raises:
        DataError: the file cannot be read, has an id or a mark that does not exist, or marks a
            picture as both.
    """
    header, lines, numbers = read_csv(path, edited=True)
    place = column(path, header, 'id')
    mark = header.index('photograph') if 'photograph' in header else None
    row_of = {name: row for row, name in enumerate(ids)}
    found = {}
    for line, number in zip(lines, numbers):
        where = f'The marks {path!r}, line {number},'
        if line[place] not in row_of:
            raise DataError(f'{where} have the id {line[place]!r}, which the data do not have'
                            f'{perhaps(line[place], row_of)}: correct it.')
        word = 'yes' if mark is None else line[mark].strip().lower()
        if word and word not in _MARKS:
            raise DataError(f'{where} have photograph={word!r}: use yes or no.')
        if word and found.setdefault(row_of[line[place]], _MARKS[word]) != _MARKS[word]:
            raise DataError(f'{where} contradict an earlier line about {line[place]!r}: delete '
                            f'one.')
    return found


def read_objects(path: str, ids: np.ndarray) -> np.ndarray:
    """Number of objects that a detector found in each picture, float [N], from a CSV with the
    columns id and objects; 0 for a picture without a line.

    Raises:
        DataError: the file cannot be read, a count is not a number, or no id is one of the data.
    """
    header, lines, numbers = read_csv(path, edited=True)
    place, count = column(path, header, 'id'), column(path, header, 'objects')
    seen = {}
    for line, number in zip(lines, numbers):
        try:
            objects = float(line[count])
        except ValueError:
            objects = np.nan
        if not np.isfinite(objects):
            raise DataError(f'The file {path!r} has objects={line[count]!r} in line {number}: '
                            f'use a number.')
        seen[line[place]] = objects
    if seen and not any(name in seen for name in ids):
        raise DataError(f'The file {path!r} has no id of the data, only such as '
                        f'{next(iter(seen))!r}; ids of the data are like {ids[0]!r}: write those.')
    return np.array([seen.get(name, 0.0) for name in ids])


def _away(values: np.ndarray, wanted: str) -> tuple[np.ndarray, float]:
    """(how far towards the unwanted kind each row lies, a bound that the wanted kind does not
    reach)"""
    check_wanted(wanted)
    away = index(values) if wanted == 'drawings' else -index(values)
    # The spread of the wanted kind shows on the side where the other kind does not lie.
    return away, max(_SURE, 3 * float(np.median(away) - np.quantile(away, .16)))


def _upper_share(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of the upper of two normals, fitted from these labels on. It never falls as the
    scores rise."""
    from sklearn.mixture import GaussianMixture
    parts = scores[~labels], scores[labels]
    normals = GaussianMixture(
        2, means_init=[[part.mean()] for part in parts],
        weights_init=[len(part) / len(scores) for part in parts],
        precisions_init=[[[1 / (part.var() + 1e-2)]] for part in parts], reg_covar=1e-2)
    share = normals.fit(scores[:, None]).predict_proba(scores[:, None])
    upper = int(np.argmax(normals.means_))
    found = share[:, upper].copy()
    found[scores >= normals.means_[upper]] = 1  # a wide lower normal would take the far end
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
    """Log odds of the label, for each row by a model of other rows: float [N]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    found = np.empty(len(labels))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    for train, test in folds.split(inputs, labels):
        model = LogisticRegression(max_iter=300)
        model.fit(inputs[train], labels[train], sample_weight=weights[train])
        found[test] = model.decision_function(inputs[test])
    return found
