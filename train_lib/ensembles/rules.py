"""How members become one answer: the table RULES, for one block of rows. NumPy only.

A rule turns the K members of a level into scores [B, C] that sum to 1 a row, and the class with
the largest score is the answer. With weights w_k >= 0, which are divided by their sum:

    soft          sum w_k p_k, the mean probability
    log_mean      exp(sum w_k log p_k) over its sum, the geometric mean; probabilities under FLOOR,
                  which only an earlier level can hand over, count as FLOOR
    rank_mean     sum w_k r_k with r_k the ranks of a member's classes over their sum (Borda 1781)
    median        the weighted median of each class over its sum (see `median`)
    trimmed_mean  the same with the weighted trimmed mean (see `trimmed_mean`)
    hard          the share of the votes; a member votes for the first of its largest classes

A member of weight zero is absent: it is not read, and cannot break a tie.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from train_lib.ensembles.order_statistics import middle_mean, rank_shares, sort_members

FLOOR = 1.1754944e-38  # the smallest normal float32: 87.3 nats
_MIDDLE = 0.5 - 1e-6


class Entries:
    """What a level votes on, for B rows: K members or, in a second level, K models.

    Args:
        probs: float [K, B, C], rows sum to 1.
        votes: int [K, B], the class that each entry votes for.
        log_probs: their logarithms, if they are known better than by taking the logarithm.
        order_by: anything [K, B, C] that orders the classes as `probs` does, if it is known more
            finely, as logits are.
        beliefs: the mean probabilities that break ties, if not `probs`.
    """

    def __init__(self, probs, votes, log_probs=None, order_by=None, beliefs=None):
        self.probs, self.votes = probs, votes
        self.beliefs = probs if beliefs is None else beliefs
        self._log_probs, self._order_by = log_probs, order_by
        self._whole, self._at = None, None

    def take(self, index: np.ndarray) -> 'Entries':
        """The entries at these ascending indices."""
        first, upto = index[0], index[-1] + 1
        if len(index) == len(self.probs):
            return self
        at = slice(first, upto) if upto - first == len(index) else index
        part = Entries(self.probs[at], self.votes[at])
        if self.beliefs is not self.probs:
            part.beliefs = self.beliefs[at]
        part._whole, part._at = self, at
        return part

    @functools.cached_property
    def log_probs(self) -> np.ndarray:
        if self._whole is not None:
            return self._whole.log_probs[self._at]
        if self._log_probs is not None:
            return self._log_probs
        return np.log(np.maximum(self.probs, self.probs.dtype.type(FLOOR)))

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        if self._whole is not None:
            return self._whole.ranks[self._at]
        shares = np.empty_like(self.probs)
        for i, member in enumerate(self.probs if self._order_by is None else self._order_by):
            shares[i] = rank_shares(member)
        return shares

    def ordered(self, with_order: bool) -> tuple[list, list | None]:
        """`sort_members` of the probabilities, once."""
        if with_order:
            return self._ordered_pairs
        return self.__dict__.get('_ordered_pairs') or self._ordered_values

    @functools.cached_property
    def _ordered_pairs(self):
        return sort_members(self.probs, with_order=True)

    @functools.cached_property
    def _ordered_values(self):
        return sort_members(self.probs, with_order=False)


def soft(entries: Entries, weights: np.ndarray, trim: float) -> np.ndarray:
    """Mean probability."""
    return weighted_sum(entries.probs, weights)


def log_mean(entries: Entries, weights: np.ndarray, trim: float) -> np.ndarray:
    """Geometric mean of the probabilities, a product of experts."""
    total = weighted_sum(entries.log_probs, weights)
    total -= total.max(axis=-1, keepdims=True)
    np.exp(total, out=total)
    total /= total.sum(axis=-1, keepdims=True)
    return total


def rank_mean(entries: Entries, weights: np.ndarray, trim: float) -> np.ndarray:
    """Mean of the normalised ranks: `rank_shares`."""
    return weighted_sum(entries.ranks, weights)


def median(entries: Entries, weights: np.ndarray, trim: float) -> np.ndarray:
    """Weighted median of each class, over the sum of the row.

    With the members in the order of their probabilities, the median is that of the member in
    whose weight the half of the whole weight falls; where it falls between two members, within
    a millionth, the mean of both (so it is NumPy's median for equal weights). A row whose medians
    are all zero takes the mean probability.
    """
    return trimmed_mean(entries, weights, _MIDDLE)


def trimmed_mean(entries: Entries, weights: np.ndarray, trim: float) -> np.ndarray:
    """Weighted trimmed mean of each class, over the sum of the row.

    With the members in the order of their probabilities, `trim` of the whole weight is cut off at
    either end, and the rest is averaged. A member in which a cut falls counts with the part of its
    weight that is left, so nothing jumps when weights change; for equal weights and K trim a
    whole number it is the usual trimmed mean. A row that is all zero takes the mean probability.
    """
    uneven = np.ptp(weights) != 0
    total = middle_mean(*entries.ordered(uneven), weights, trim)
    norm = total.sum(axis=-1, keepdims=True)
    empty = norm[:, 0] <= 0
    total /= np.where(empty[:, None], 1, norm)
    if empty.any():
        total[empty] = weighted_sum(entries.probs[:, empty], weights)
    return total


def hard(entries: Entries, weights: np.ndarray, trim: float) -> np.ndarray:
    """Share of the votes."""
    _, rows, classes = entries.probs.shape
    cells = np.arange(rows) * classes + entries.votes
    shares = np.bincount(cells.reshape(-1), np.repeat(weights, rows), rows * classes)
    return shares.reshape(rows, classes).astype(entries.probs.dtype)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of RULES.

    Attributes:
        pool: (entries, weights float64 [K] > 0 of sum 1, trim) -> scores [B, C].
        distribution: whether the scores are probabilities, which NLL, Brier and ECE may judge.
    """

    pool: Callable[[Entries, np.ndarray, float], np.ndarray]
    distribution: bool


RULES = {
    'soft': Rule(soft, distribution=True),
    'log_mean': Rule(log_mean, distribution=True),
    'rank_mean': Rule(rank_mean, distribution=False),
    'median': Rule(median, distribution=True),
    'trimmed_mean': Rule(trimmed_mean, distribution=True),
    'hard': Rule(hard, distribution=False),
}


def decide(scores: np.ndarray, entries: Entries, weights: np.ndarray,
           merit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class of the largest score, and where several classes share it.

    Among those that share it the largest mean probability (by the same weights) wins; then the
    class whose best voter has the most merit; then the lowest index. Numbers are equal here if
    they differ by less than 64 units in the last place of the largest, which rounding makes.

    Args:
        scores: float [B, C] >= 0.
        merit: float [K], higher is better.

    Returns:
        (int32 [B], bool [B]).
    """
    nearly = 1 - 64 * np.finfo(scores.dtype).eps
    picked = scores.argmax(axis=-1)
    largest = scores[np.arange(len(scores)), picked]
    equal = scores >= (largest * nearly)[:, None]
    # They are few, so finding them is cheaper than counting along the rows.
    tied = np.bincount(np.flatnonzero(equal) // scores.shape[1], minlength=len(scores)) > 1
    if tied.any():
        rows = np.flatnonzero(tied)
        left = equal[rows]
        belief = weighted_sum(entries.beliefs[:, rows], weights)
        left = _largest(np.where(left, belief, -1), left, nearly)
        if (left.sum(1) > 1).any():
            best = np.full(left.shape, -np.inf)
            here = np.arange(len(rows))
            for voted, value in zip(entries.votes[:, rows], merit):
                best[here, voted] = np.maximum(best[here, voted], value)
            best = np.where(left, best, -np.inf)
            left &= best >= best.max(1, keepdims=True)
        picked[rows] = left.argmax(1)
    return picked.astype(np.int32), tied


def weighted_sum(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_k weights[k] values[k], in the order of the members (no BLAS, whose order varies)."""
    scale = values.dtype.type
    if np.ptp(weights) == 0:
        total = np.add.reduce(values, axis=0)
        total *= scale(weights[0])
        return total
    term = np.empty_like(values[0])
    total = values[0] * scale(weights[0])
    for value, weight in zip(values[1:], weights[1:]):
        np.multiply(value, scale(weight), out=term)
        total += term
    return total


def _largest(values: np.ndarray, among: np.ndarray, nearly: float) -> np.ndarray:
    return among & (values >= values.max(1, keepdims=True) * nearly)
