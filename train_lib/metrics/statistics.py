"""Comparisons of several answers to the same rows: tests, diversity, robustness.

Intervals are in `intervals`, the scores of one answer in `scores`. NumPy, SciPy and scikit-learn.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from train_lib.metrics.intervals import Groups, mean_variance

_SIGNS = 6  # with fewer groups, flipped signs cannot give p < .05
_BLOCKS = 200  # with more rows or groups that tell answers apart, chi-squared is as good


def macro_f1(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Mean F1 of the classes that occur among labels or predictions, as in `scores.scores`.

    Args:
        predicted: int [N]; labels: int [N] >= 0.
    """
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    both = (np.bincount(labels, minlength=num_classes)
            + np.bincount(predicted, minlength=num_classes))
    there = both > 0
    return float(np.mean(2 * hits[there] / both[there]))


def weighted_scores(predicted: np.ndarray, labels: np.ndarray) -> dict:
    """Precision, recall and F1, each class weighted by its number of labels.

    Args:
        predicted: int [N]; labels: int [N], rows of -1 are left out.

    Returns:
        precision_weighted, recall_weighted, f1_weighted: floats, None without labels.
    """
    known = np.asarray(labels) >= 0
    if not known.any():
        return dict.fromkeys(('precision_weighted', 'recall_weighted', 'f1_weighted'))
    values = precision_recall_fscore_support(
        np.asarray(labels)[known], np.asarray(predicted)[known], average='weighted',
        zero_division=0)
    return {f'{name}_weighted': float(value)
            for name, value in zip(('precision', 'recall', 'f1'), values)}


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict:
    """Exact test whether two answers are right equally often (McNemar 1947).

    Args:
        first, second: bool [N], where each is right.

    Returns:
        only_first, only_second: number of rows that only this one has right; p: two-sided, of a
        binomial distribution.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    p = min(1.0, 2 * float(stats.binom.cdf(min(only_first, only_second), n, 0.5)))
    return {'only_first': only_first, 'only_second': only_second, 'p': p}


def paired_test(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, *,
                chosen: int = 1) -> dict:
    """Test whether two answers are right equally often, by rows or by groups of rows.

    By rows McNemar's with the mid-p value (Fagerland, Lydersen and Laake 2013, BMC Medical Research
    Methodology 13:91): the exact one rejects in 2 to 3 % of the cases where 5 % are meant. By
    groups the sign of each group's difference is flipped, all 2^G ways (Canay, Romano and Shaikh
    2017), also with the mid-p value. Fewer than six groups have too few signs: then Student's t
    over them, and no smaller a p than by rows.

    Args:
        first, second: bool [N], where each is right.
        groups: [N], or None.
        chosen: the second answer is the best on these rows of so many, which favours it; where it
            is the better one, p is multiplied by that (Bonferroni).

    Returns:
        only_first, only_second: number of rows that only this one has right; p: two-sided; None
        for a single group.
    """
    found = mcnemar(first, second)
    differences = np.asarray(first, float) - np.asarray(second, float)
    of = Groups.of(groups, len(differences))
    if groups is not None and len(of) < 2:
        return found | {'p': None}
    if groups is None or len(of) >= _SIGNS:
        p = _sign_flips(of.sums(differences))
    else:
        variance = mean_variance(differences, of)
        t = abs(differences.mean()) / np.sqrt(variance) if variance else np.inf
        p = max(_sign_flips(differences), 2 * float(stats.t.sf(t, len(of) - 1)))
    return found | {'p': min(1.0, p * chosen) if differences.sum() < 0 else p}


def _sign_flips(sums: np.ndarray) -> float:
    """Mid-p of |sum| among all ways to choose the signs of whole numbers, float [G]."""
    sizes, counts = np.unique(np.abs(sums).astype(int), return_counts=True)
    reach = int(sizes @ counts)
    if not reach:
        return 1.0
    # The characteristic function of the sum, whose values are -reach..reach, as a Fourier series.
    angle = 2 * np.pi * np.arange(2 * reach + 1) / (2 * reach + 1)
    product = np.prod([np.cos(size * angle) ** times for size, times in zip(sizes, counts)], axis=0)
    chance = np.maximum(np.fft.fft(product).real / len(angle), 0)
    chance[chance < 1e-13] = 0  # rounding
    seen = abs(int(sums.sum()))
    beyond = chance[seen + 1:reach + 1].sum()
    return float(min(1.0, (2 * beyond + chance[seen]) if seen else 1.0))


def equal_accuracy(right: np.ndarray, groups: np.ndarray | None = None, *,
                   draws: int = 1000, seed: int = 0) -> dict:
    """Cochran's test that K answers are right equally often, by rows or by groups of rows.

    The statistic is Cochran's Q with the answers' hits per group in place of rows. Where few groups
    tell the answers apart, p is that of random orders of the answers in each group (a permutation
    test, as Cochran 1950 derives Q), else of the chi-squared distribution.

    Args:
        right: bool [K, N], K > 1.
        groups: [N], or None.
        draws: random orders.
        seed: of the draws.

    Returns:
        q, degrees (K - 1) and p; q 0 and p 1 if every group has the same number of hits in all
        answers; p None for a single group.
    """
    count, size = right.shape
    of = Groups.of(groups, size)
    hits = np.stack([of.sums(row) for row in right])
    hits -= hits.mean(0)
    hits = hits[:, (np.abs(hits) > 1e-9).any(0)]
    variance = (hits ** 2).sum() / (count - 1)
    if len(of) < 2:
        return {'q': 0.0, 'degrees': count - 1, 'p': None}
    if variance == 0:
        return {'q': 0.0, 'degrees': count - 1, 'p': 1.0}
    q = float((hits.sum(1) ** 2).sum() / variance)
    p = float(stats.chi2.sf(q, count - 1))
    if hits.shape[1] <= _BLOCKS:
        rng = np.random.default_rng(seed)
        drawn = np.zeros((draws, count))
        for block in hits.T:
            drawn += rng.permuted(np.tile(block, (draws, 1)), axis=1)
        others = (drawn ** 2).sum(1) / variance
        equal = np.abs(others - q) <= 1e-9 * max(q, 1)
        p = float((1 + ((others > q) & ~equal).sum() + equal.sum() / 2) / (draws + 1))
    return {'q': q, 'degrees': count - 1, 'p': min(p, 1.0)}


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values of a family of tests, in their order (Holm 1979)."""
    values = np.asarray(p, float)
    order, left = np.argsort(values, kind='stable'), len(values) - np.arange(len(values))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * left), 1)
    return adjusted


def diversity(predicted: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """How similar the errors of the members are, each float [M, M] (Kuncheva & Whitaker 2003).

    Args:
        predicted: int [M, N]; labels: int [N], rows of -1 are left out.

    Returns:
        disagreement: share of the rows with different answers.
        double_fault: share of the rows that both answer wrongly.
        q_statistic: Yule's Q of being right, -1..1; NaN where it is 0/0.
        correlation: of being wrong (phi), -1..1; NaN if a member is always right or always wrong.
    """
    known = np.asarray(labels) >= 0
    predicted, labels = np.asarray(predicted)[:, known], np.asarray(labels)[known]
    n = max(len(labels), 1)
    right = (predicted == labels).astype(float)
    both, neither = right @ right.T, (1 - right) @ (1 - right).T
    first, second = right @ (1 - right).T, (1 - right) @ right.T
    agreeing, crossing = both * neither, first * second
    alone = right.sum(1)
    spread = np.sqrt(np.outer(alone * (n - alone), alone * (n - alone)))
    return {
        'disagreement': disagreement(predicted),
        'double_fault': neither / n,
        'q_statistic': _ratio(agreeing - crossing, agreeing + crossing),
        'correlation': _ratio(agreeing - crossing, spread),
    }


def disagreement(predicted: np.ndarray) -> np.ndarray:
    """Share of the rows with different answers, float [M, M], from int [M, N]; 0 without rows."""
    if not np.size(predicted):
        return np.zeros((len(predicted), len(predicted)))
    return np.stack([(row != predicted).mean(1) for row in predicted])


def oracle(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of the labelled rows that at least one member answers rightly.

    Args:
        predicted: int [M, N]; labels: int [N], rows of -1 are left out.
    """
    known = np.asarray(labels) >= 0
    return float((np.asarray(predicted) == labels)[:, known].any(0).mean())


def robustness(predicted: np.ndarray, labels: np.ndarray, folds: np.ndarray | None = None) -> dict:
    """How good an answer is where it is worst.

    Args:
        predicted: int [N]; labels: int [N], -1 for none; folds: int [N] or None.

    Returns:
        accuracy: for comparison.
        worst_class: the smallest recall of a class that occurs.
        worst_fold: the smallest accuracy of a fold; None without folds.
        evenness: 1 - the Gini coefficient of the recalls: 1 if they are all equal, 1 / classes if
            only one is above 0, 0 if none is.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    right, truth = (np.asarray(predicted) == labels)[known], labels[known]
    count = np.bincount(truth)
    recalls = np.bincount(truth, right)[count > 0] / count[count > 0]
    size = len(recalls)
    spread = (2 * np.arange(1, size + 1) - size - 1) @ np.sort(recalls)
    worst = None
    if folds is not None:
        of = np.asarray(folds)[known]
        worst = float(min(right[of == fold].mean() for fold in np.unique(of)))
    return {'accuracy': float(right.mean()), 'worst_class': float(recalls.min()),
            'worst_fold': worst,
            'evenness': float(1 - spread / (size * recalls.sum())) if recalls.any() else 0.0}


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.where(bottom == 0, np.nan, top / np.where(bottom == 0, 1, bottom))
