"""How members become one answer: the table RULES, for one block of rows. NumPy only.

A rule turns the K members of a level into scores [B, C] whose rows sum to 1, and the class with
the largest score is the answer. The weights w_k are positive and sum to 1; p_k are the
probabilities of member k. To add a rule, write its function and add one line to RULES.

A member of weight zero is absent: it is not read, and cannot break a tie.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from train_lib.ensembles.order_statistics import middle_mean, rank_shares, sort_members

FLOOR = 1.1754944e-38  # the smallest normal float32: 87.3 nats
_MIDDLE = 0.5 - 1e-6


class RuleInputs:
    """What a rule pools, for B rows: K members or, in the outer of two levels, K models.

    Args:
        probs: float [K, B, C], rows sum to 1.
        votes: int [K, B], the class that each of the K votes for.
        log_probs: their logarithms, if they are known better than by taking the logarithm.
        order_by: anything [K, B, C] that orders the classes as `probs` does, if it is known more
            finely, as logits are.
        tie_probs: the probabilities whose mean breaks ties, if not `probs`.
    """

    def __init__(self, probs, votes, log_probs=None, order_by=None, tie_probs=None):
        self.probs, self.votes = probs, votes
        self.tie_probs = probs if tie_probs is None else tie_probs
        self._log_probs, self._order_by = log_probs, order_by
        self._whole, self._at = None, None

    def take(self, index: np.ndarray) -> 'RuleInputs':
        """Those of the K at these ascending indices."""
        first, upto = index[0], index[-1] + 1
        if len(index) == len(self.probs):
            return self
        at = slice(first, upto) if upto - first == len(index) else index
        part = RuleInputs(self.probs[at], self.votes[at])
        if self.tie_probs is not self.probs:
            part.tie_probs = self.tie_probs[at]
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


def soft(inputs: RuleInputs, weights: np.ndarray, trim: float) -> np.ndarray:
    """Mean probability: sum w_k p_k."""
    return weighted_sum(inputs.probs, weights)


def log_mean(inputs: RuleInputs, weights: np.ndarray, trim: float) -> np.ndarray:
    """Geometric mean of the probabilities, a product of experts: exp(sum w_k log p_k), normalised.

    Probabilities below FLOOR, which only come from an inner level, count as FLOOR.
    """
    total = weighted_sum(inputs.log_probs, weights)
    total -= total.max(axis=-1, keepdims=True)
    np.exp(total, out=total)
    total /= total.sum(axis=-1, keepdims=True)
    return total


def rank_mean(inputs: RuleInputs, weights: np.ndarray, trim: float) -> np.ndarray:
    """Mean of the ranks of a member's classes, normalised as in `rank_shares` (Borda 1781)."""
    return weighted_sum(inputs.ranks, weights)


def median(inputs: RuleInputs, weights: np.ndarray, trim: float) -> np.ndarray:
    """Weighted median of each class, divided by the sum of the row.

    The members are sorted by their probabilities, and the median is the probability of the member
    at which half of the total weight is reached. Where that point lies between two members, within
    a millionth, it is the mean of both, so equal weights give NumPy's median. A row whose medians
    are all zero takes the mean probability.
    """
    return trimmed_mean(inputs, weights, _MIDDLE)


def trimmed_mean(inputs: RuleInputs, weights: np.ndarray, trim: float) -> np.ndarray:
    """Weighted trimmed mean of each class, divided by the sum of the row.

    The members are sorted by their probabilities, `trim` of the total weight is cut off at either
    end, and the rest is averaged. A member that is cut in two counts with the part of its weight
    that is left, so the result is continuous in the weights. With equal weights and a whole number
    K x trim it is the usual trimmed mean. A row that is all zero takes the mean probability.
    """
    uneven = np.ptp(weights) != 0
    total = middle_mean(*inputs.ordered(uneven), weights, trim)
    norm = total.sum(axis=-1, keepdims=True)
    empty = norm[:, 0] <= 0
    total /= np.where(empty[:, None], 1, norm)
    if empty.any():
        total[empty] = weighted_sum(inputs.probs[:, empty], weights)
    return total


def hard(inputs: RuleInputs, weights: np.ndarray, trim: float) -> np.ndarray:
    """Share of the votes; a member votes for the first of its largest classes."""
    _, rows, classes = inputs.probs.shape
    cells = np.arange(rows) * classes + inputs.votes
    shares = np.bincount(cells.reshape(-1), np.repeat(weights, rows), rows * classes)
    return shares.reshape(rows, classes).astype(inputs.probs.dtype)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of RULES.

    Attributes:
        pool: (inputs, weights float64 [K] > 0 of sum 1, trim) -> scores [B, C].
        distribution: whether the scores are probabilities, so that NLL, Brier and ECE apply.
    """

    pool: Callable[[RuleInputs, np.ndarray, float], np.ndarray]
    distribution: bool


RULES = {
    'soft': Rule(soft, distribution=True),
    'log_mean': Rule(log_mean, distribution=True),
    'rank_mean': Rule(rank_mean, distribution=False),
    'median': Rule(median, distribution=True),
    'trimmed_mean': Rule(trimmed_mean, distribution=True),
    'hard': Rule(hard, distribution=False),
}


def decide(scores: np.ndarray, inputs: RuleInputs, weights: np.ndarray,
           tie_break: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class of the largest score, and where several classes share it.

    Among those that share it the largest mean probability (by the same weights) wins; then the
    class one of whose voters has the largest tie_break; then the lowest index. Two scores are
    equal here if they differ by less than 64 units in the last place of the largest, which is
    what rounding errors amount to.

    Args:
        scores: float [B, C] >= 0.
        inputs: what was pooled, with the votes of K.
        weights: float64 [K] of sum 1.
        tie_break: float [K], higher is better.

    Returns:
        (classes int32 [B], tied bool [B]).
    """
    nearly = 1 - 64 * np.finfo(scores.dtype).eps
    picked = scores.argmax(axis=-1)
    largest = scores[np.arange(len(scores)), picked]
    equal = scores >= (largest * nearly)[:, None]
    # Ties are few: finding them is cheaper than counting along the rows.
    tied = np.bincount(np.flatnonzero(equal) // scores.shape[1], minlength=len(scores)) > 1
    if tied.any():
        rows = np.flatnonzero(tied)
        left = equal[rows]
        mean = weighted_sum(inputs.tie_probs[:, rows], weights)
        left = _largest(np.where(left, mean, -1), left, nearly)
        if (left.sum(1) > 1).any():
            best = np.full(left.shape, -np.inf)
            here = np.arange(len(rows))
            for voted, value in zip(inputs.votes[:, rows], tie_break):
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
