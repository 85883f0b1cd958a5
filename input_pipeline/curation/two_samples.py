"""Do two sets of pictures differ? A classifier is asked to tell them apart.

If it cannot on pictures that it was not trained on, their scores overlap and the area under the ROC
curve is about .5 (classifier two-sample test, Lopez-Paz and Oquab 2017, Revisiting classifier
two-sample tests).
"""

import dataclasses

import numpy as np
from scipy import stats

from input_pipeline.curation.quiet import without_sklearn_warnings

FOLDS = 5
LEAST = 10  # groups of pictures in each set, below which nothing is said
_COMPONENTS = 128
_SAMPLE = 5000  # rows that the components are found from
_ROWS = 4096  # projected at once
_PENALTY = 0.1  # inverse strength, of rows whose columns have variance 1


@dataclasses.dataclass(frozen=True)
class TwoSamples:
    """How well N pictures of two sets can be told apart.

    Attributes:
        probability: float64 [N], of belonging to the second set if both were equally large, by a
            model that has not seen the picture; NaN where there is none.
        auc: the share of pairs of one picture of each set in which that of the second has the
            higher probability; NaN if nothing can be said.
        low, high: its 95 % interval.
    """

    probability: np.ndarray
    auc: float
    low: float
    high: float

    @property
    def differ(self) -> bool:
        """Whether the sets can be told apart: the interval lies above chance."""
        return self.low > 0.5


@without_sklearn_warnings()
def compare(features: np.ndarray, second: np.ndarray, groups: np.ndarray, *, seed: int = 0
            ) -> TwoSamples:
    """The test, by logistic regressions in five folds; the copies of a picture are in one fold.

    The area is the mean of those of the folds. Its variance is that of DeLong and others (1988),
    of whole groups as in LeDell and others (2015, Computationally efficient confidence intervals
    for cross-validated area under the ROC curve estimates), and it is enlarged because the models
    share training pictures (Nadeau and Bengio 2003, Inference for the generalization error).

    Args:
        features: float [N, D], see `inputs_of`.
        second: bool [N], which rows are of the second set.
        groups: int [N]; rows of one group are copies of each other.
        seed: of the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    found = np.full(len(second), np.nan)
    smaller = min(len(np.unique(groups[second == side])) for side in (False, True))
    if smaller < LEAST:
        return TwoSamples(found, *[np.nan] * 3)
    areas, influence, tested = [], np.zeros(len(second)), 0
    splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in splits.split(features, second, groups):
        if len(np.unique(second[train])) < 2 or len(np.unique(second[test])) < 2:
            continue
        model = LogisticRegression(C=_PENALTY, class_weight='balanced', max_iter=200)
        model.fit(features[train], second[train])
        found[test] = model.predict_proba(features[test])[:, 1]
        area, moves = _area(model.decision_function(features[test]), second[test])
        areas.append(area)
        influence[test] = moves * len(test)
        tested += len(test)
    if not areas:
        return TwoSamples(found, *[np.nan] * 3)
    by_group = np.bincount(np.unique(groups, return_inverse=True)[1], influence / tested)
    enlarged = 1 + FOLDS / (FOLDS - 1)
    # No smaller than if one picture had half a wrong place: scores may not overlap at all.
    error = max(float(np.sqrt(enlarged * (by_group ** 2).sum())),
                0.5 / min(second.sum(), (~second).sum()))
    auc, half = float(np.mean(areas)), stats.norm.ppf(0.975) * error
    return TwoSamples(found, auc, max(0.0, auc - half), min(1.0, auc + half))


def rank_area(values: np.ndarray, second: np.ndarray) -> float:
    """Share of the pairs of a row of each set in which that of the second has the larger value;
    ties count half.

    Args:
        values: float [N]; second: bool [N], with rows of both.
    """
    return _area(values, second)[0]


def inputs_of(descriptors: np.ndarray, statistics: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the test compares: float32 [N, K], every column with mean 0.

    Args:
        descriptors: float [N, D], of `descriptors.describe`; their principal components are taken.
        statistics: float [N, S], of `picture_statistics.statistics`, taken in units of their
            standard deviation.
        seed: of the rows from which the components are found.
    """
    from sklearn.decomposition import PCA
    count = len(descriptors)
    rows = np.random.default_rng(seed).permutation(count)[:_SAMPLE]
    model = PCA(min(_COMPONENTS, len(rows), descriptors.shape[1]), svd_solver='covariance_eigh')
    model.fit(descriptors[np.sort(rows)].astype(np.float32))
    parts = [np.concatenate([
        model.transform(descriptors[start:start + _ROWS].astype(np.float32)).astype(np.float32)
        for start in range(0, count, _ROWS)]),
             (statistics - statistics.mean(0)).astype(np.float32)]
    parts[0] /= max(float(parts[0].std(0).mean()), 1e-9)
    parts[1] /= np.maximum(parts[1].std(0), 1e-9)
    return np.concatenate(parts, 1)


def _area(values: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray]:
    """The area under the ROC curve, and how far each row moves it, [N]: the sum of their squares
    is its variance, as DeLong and others compute it."""
    ranks, m, n = stats.rankdata(values), np.count_nonzero(~second), np.count_nonzero(second)
    within = np.empty(len(values))
    for side in (False, True):
        within[second == side] = stats.rankdata(values[second == side])
    # Of each row: the share of the other set that it beats, or that beats it.
    share = np.where(second, (ranks - within) / m, 1 - (ranks - within) / n)
    area = float(share[second].mean())
    size = np.where(second, n, m)
    return area, (share - area) / np.sqrt(size * np.maximum(size - 1, 1))
