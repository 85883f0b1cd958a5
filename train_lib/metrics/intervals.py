"""95 % intervals of a score, and of the difference of two, from rows or from groups of rows.

Rows of one group (a person, a drawer) are right or wrong together, so a new group may do much
better or worse than those seen. How well the intervals cover is measured by
benchmarks/coverage.py and kept in docs/statistics.md. An interval by groups is never narrower than
the one by rows.
"""

import dataclasses

import numpy as np
from scipy import special, stats

from train_lib.metrics.scores import wilson_interval

LEVEL = 0.95
_Z = float(stats.norm.ppf((1 + LEVEL) / 2))
# What the likelihood of an accuracy is computed for: its logits, and correlations within a group.
_LOGITS = np.linspace(-11, 11, 177)
_CORRELATIONS = np.geomspace(.004, .9, 10)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which group each of N rows belongs to.

    Attributes:
        index: int [N], in 0..G-1.
        sizes: float [G], rows of each.
    """

    index: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, groups: np.ndarray | None, rows: int) -> 'Groups':
        """From labels [N] of any kind; None: each row is a group of its own."""
        if groups is None:
            return cls(np.arange(rows), np.ones(rows))
        values = np.asarray(groups)
        index = np.unique(values.astype(str) if values.dtype.kind == 'O' else values,
                          return_inverse=True)[1]
        return cls(index, np.bincount(index).astype(float))

    def __len__(self) -> int:
        return len(self.sizes)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of float [N] in each group, float64 [G]."""
        return np.bincount(self.index, values, minlength=len(self.sizes))


def mean_variance(values: np.ndarray, groups: Groups) -> float:
    """Variance of the mean of float [N], robust to any correlation within groups.

    The bias-reduced estimator CR2 of a regression on a constant (Bell and McCaffrey 2002): each
    group's sum of residuals, squared, over one minus its share of the rows. NaN for one group.
    """
    size = groups.sizes.sum()
    if len(groups) < 2:
        return float('nan')
    residuals = groups.sums(values) - groups.sizes * values.mean()
    return float((residuals ** 2 / (1 - groups.sizes / size)).sum() / size ** 2)


def accuracy_interval(right: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of an accuracy, two floats 0..1.

    By rows that of Wilson (1927). By groups the hits of a group follow a beta-binomial distribution
    whose correlation is unknown: the values whose profile likelihood is not too low (Venzon and
    Moolgavkar 1988; the quantile is that of Student's t with 2 (G - 1) degrees of freedom, chosen
    by simulation), joined with Wilson's. A t interval over groups does worse near 1, where most
    groups are without an error and a few have many.

    Args:
        right: bool [N], N > 0.
        groups: [N], or None.

    Returns:
        (low, high); (0, 1) for a single group, which says nothing about others.
    """
    right = np.asarray(right, bool)
    of = Groups.of(groups, len(right))
    low, high = wilson_interval(float(right.mean()), len(right), _Z)
    if len(of) == len(right):
        return low, high
    if len(of) < 2:
        return 0.0, 1.0
    hits = of.sums(right)
    profile = _profile(hits, of.sizes)
    cut = stats.t.ppf((1 + LEVEL) / 2, 2 * (len(of) - 1)) ** 2
    lower, upper = _where_above(2 * (profile - profile.max()) + cut)
    return min(low, lower), max(high, upper)


def _profile(hits: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Log likelihood of each of _LOGITS with the best correlation, float [len(_LOGITS)]."""
    rate = 1 / (1 + np.exp(-_LOGITS))
    hits, misses = hits.astype(int), (sizes - hits).astype(int)
    independent = hits.sum() * np.log(rate) + misses.sum() * np.log1p(-rate)
    spread = (1 - _CORRELATIONS) / _CORRELATIONS
    correlated = (_rising(rate[:, None] * spread, hits)
                  + _rising((1 - rate[:, None]) * spread, misses)
                  - _rising(spread, hits + misses))
    return np.maximum(independent, correlated.max(axis=1))


def _rising(start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum over `counts` of log(start (start + 1) ... (start + count - 1)), the shape of `start`."""
    found = np.zeros(start.shape)
    for count, times in zip(*np.unique(counts, return_counts=True)):
        found += times * special.gammaln(start + count)
    return found - counts.size * special.gammaln(start)


def _where_above(values: np.ndarray) -> tuple[float, float]:
    """Between which rates a function over _LOGITS is above 0; 0 or 1 where it does not end."""
    inside = np.flatnonzero(values >= 0)
    first, last = inside[0], inside[-1]
    edge = lambda a, b: 1 / (1 + np.exp(-np.interp(0, [values[b], values[a]],
                                                   [_LOGITS[b], _LOGITS[a]])))
    return (0.0 if first == 0 else float(edge(first, first - 1)),
            1.0 if last == len(values) - 1 else float(edge(last, last + 1)))


def f1_interval(rows: np.ndarray, right: np.ndarray, groups: np.ndarray | None = None
                ) -> tuple[float, float]:
    """95 % interval of macro F1, two floats 0..1; (0, 1) for a single group.

    Wilson's with as many rows as would have the variance of `f1_rows`, and Student's quantile for
    G - 1 degrees of freedom (Dean and Pagano 2015). By groups it reaches at least as far to either
    side as that of the accuracy, since both share the few groups with many errors.

    Args:
        rows: float [N], of `f1_rows`.
        right: bool [N], where the answer is right.
        groups: [N], or None.
    """
    rate, found = float(np.clip(rows.mean(), 0, 1)), []
    for of in _units(groups, len(rows)):
        if len(of) < 2:
            return 0.0, 1.0
        variance = mean_variance(rows, of)
        count = rate * (1 - rate) / variance if variance > 0 and 0 < rate < 1 else len(rows)
        found.append(wilson_interval(rate, max(count, 1e-9), _quantile(of)))
    if groups is not None:
        shift = rate - float(np.mean(right))
        found.append(tuple(float(np.clip(edge + shift, 0, 1))
                           for edge in accuracy_interval(right, groups)))
    return min(low for low, _ in found), max(high for _, high in found)


def difference_interval(differences: np.ndarray, groups: np.ndarray | None = None, *,
                        share: bool = False, chosen: int = 1) -> tuple[float, float]:
    """95 % interval of the mean of paired differences, float [N].

    Student's with G - 1 degrees of freedom and the variance of `mean_variance`.

    Args:
        differences: of one answer to another.
        groups: [N], or None.
        share: of being right, so in -1..1. By rows half a row more is then right in one answer
            alone, and half a row in the other (Agresti and Min 2005): a difference of few
            rows is not taken for certain.
        chosen: the other answer is the best on these rows of so many, which favours it; the upper
            end then has the level that Bonferroni's correction for them asks.

    Returns:
        (low, high); (-inf, inf) for a single group or row.
    """
    mean, size = float(differences.mean()), len(differences)
    low = high = mean
    for of in _units(groups, size):
        if len(of) < 2:
            return -np.inf, np.inf
        rows = share and len(of) == size
        if rows:
            middle = differences.sum() / (size + 2)
            variance = (((differences ** 2).sum() + 1) / (size + 2) - middle ** 2) / (size + 2)
        else:
            middle, variance = mean, mean_variance(differences, of)
        tail, error = (1 - LEVEL) / 2, np.sqrt(variance)
        below, above = (float(stats.norm.isf(share_of_tail) if rows else
                              stats.t.isf(share_of_tail, len(of) - 1))
                        for share_of_tail in (tail, tail / chosen))
        low, high = min(low, middle - below * error), max(high, middle + above * error)
    return float(low), float(high)


def _units(groups: np.ndarray | None, rows: int) -> list[Groups]:
    """By what an interval is taken: rows, and groups if there are any."""
    found = [Groups.of(None, rows)]
    return found if groups is None else [*found, Groups.of(groups, rows)]


def _quantile(groups: Groups) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, len(groups) - 1))


def f1_rows(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """What each row adds to macro F1, float [N], whose mean is the macro F1 of `macro_f1`.

    The score plus the influence of the row (Hampel 1974), so the variance of their mean is that of
    the score to first order.

    Args:
        predicted: int [N]; labels: int [N] >= 0.
    """
    size = len(labels)
    right = predicted == labels
    hits = np.bincount(labels[right], minlength=num_classes)
    both = (np.bincount(labels, minlength=num_classes)
            + np.bincount(predicted, minlength=num_classes))
    there = both > 0
    share = 1 / np.maximum(both, 1)
    f1 = 2 * hits * share
    count = there.sum()
    influence = (2 * right * share[labels] - f1[labels] * share[labels]
                 - f1[predicted] * share[predicted]) * size / count
    return f1.sum() / count + influence
