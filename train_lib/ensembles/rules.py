"""How members become one answer: the table RULES, for one block of rows. NumPy only.

A rule turns the K members of a level into scores [B, C] whose rows sum to 1, and the class with
the largest score is the answer. The weights w_k are positive and sum to 1; p_k are the
probabilities of member k. To add a rule, write its function and add one line to RULES.

A member of weight zero is absent: it is not read, and cannot break a tie.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from train_lib.ensembles.order_statistics import (
    middle_mean,
    rank_shares,
    reached,
    sort_members,
)

FLOOR = 1.1754944e-38  # the smallest normal float32: 87.3 nats
_MIDDLE = 0.5 - 1e-6
_RANKED_CELLS = 1 << 18  # at once: many small steps would hold up other threads
_NEARLY = {np.dtype(kind): 1 - 64 * np.finfo(kind).eps for kind in (np.float32, np.float64)}


class RuleInputs:
    """What a rule pools, for B rows: K members or, in the outer of two levels, K models.

    Args:
        probs: float [K, B, C], rows sum to 1.
        votes: int [K, B], the class that each of the K votes for.
        log_probs: their logarithms, if they are known better than by taking the logarithm.
        order_by: K arrays [B, C] of any float that order the classes as `probs` does, if it is
            known more finely, as by logits.
        tie_probs: the probabilities whose mean breaks ties, if not `probs`.
    """

    def __init__(self, probs, votes, log_probs=None, order_by=None, tie_probs=None):
        self.probs, self.votes = probs, votes
        self.tie_probs = probs if tie_probs is None else tie_probs
        self._log_probs, self._order_by = log_probs, order_by
        self._whole, self._at = None, None
        self._means: dict[bytes, np.ndarray] = {}
        self._reached: dict[bytes, list[np.ndarray]] = {}

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
        finest = self.probs if self._order_by is None else self._order_by
        some = max(1, _RANKED_CELLS // max(shares[0].size, 1))
        for start in range(0, len(shares), some):
            part = slice(start, start + some)
            shares[part] = rank_shares(np.stack(finest[part]), shares.dtype)
        return shares

    def mean(self, weights: np.ndarray) -> np.ndarray:
        """`weighted_sum` of the probabilities, once."""
        key = weights.tobytes()
        if key not in self._means:
            self._means[key] = weighted_sum(self.probs, weights)
        return self._means[key]

    def ordered(self, weights: np.ndarray) -> tuple[list, list | None]:
        """The sorted probabilities and what is `reached` by uneven weights, None by even ones;
        both once."""
        if (weights == weights[0]).all():
            return (self.__dict__.get('_ordered_pairs') or self._ordered_values)[0], None
        ordered, order = self._ordered_pairs
        key = weights.tobytes()
        if key not in self._reached:
            self._reached = {key: reached(order, weights)}
        return ordered, self._reached[key]

    @functools.cached_property
    def _ordered_pairs(self):
        return sort_members(self.probs, with_order=True)

    @functools.cached_property
    def _ordered_values(self):
        return sort_members(self.probs, with_order=False)


def soft(inputs: RuleInputs, weights: np.ndarray, trim: float) -> np.ndarray:
    """Mean probability: sum w_k p_k."""
    return inputs.mean(weights)


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
    total = middle_mean(*inputs.ordered(weights), weights, trim)
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


def decide(scores: np.ndarray, pooled: Sequence[tuple[RuleInputs, np.ndarray, np.ndarray]]
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The class of the largest score, where several classes share it, and the largest score.

    Among those that share it the largest mean probability (by the same weights) wins; then the
    class one of whose voters has the largest tie_break; then the lowest index. Two scores are
    equal here if they differ by less than 64 units in the last place of the largest, which is
    what rounding errors amount to.

    Args:
        scores: float [E, B, C] >= 0, of E ensembles.
        pooled: per ensemble what was pooled, with the votes of K; the weights, float64 [K] of sum
            1; and tie_break, float [K], higher is better.

    Returns:
        (classes int32, tied bool, largest float), each [E, B].
    """
    shape, nearly = scores.shape[:2], _NEARLY[scores.dtype]
    rows = scores.reshape(-1, scores.shape[2])
    picked, here = rows.argmax(axis=-1), np.arange(len(rows))
    largest = rows[here, picked]
    least = largest * nearly
    # Without the largest, the next one tells whether there is a tie: a maximum is the cheapest
    # pass over the scores, which are put back.
    rows[here, picked] = -1
    tied = rows.max(axis=-1) >= least
    rows[here, picked] = largest
    picked, tied, largest = (part.reshape(shape) for part in (picked, tied, largest))
    least = least.reshape(shape)
    for ensemble in np.flatnonzero(tied.any(1)):
        at = np.flatnonzero(tied[ensemble])
        equal = scores[ensemble, at] >= least[ensemble, at, None]
        picked[ensemble, at] = _of_equals(equal, at, *pooled[ensemble], nearly)
    return picked.astype(np.int32), tied, largest


def _of_equals(left: np.ndarray, rows: np.ndarray, inputs: RuleInputs, weights: np.ndarray,
               tie_break: np.ndarray, nearly: float) -> np.ndarray:
    """One class per row, int [R], of those that are left, bool [R, C]; see `decide`."""
    mean = weighted_sum(inputs.tie_probs[:, rows], weights)
    left = _largest(np.where(left, mean, -1), left, nearly)
    if (left.sum(1) > 1).any():
        best = np.full(left.shape, -np.inf)
        here = np.arange(len(rows))
        for voted, value in zip(inputs.votes[:, rows], tie_break):
            best[here, voted] = np.maximum(best[here, voted], value)
        best = np.where(left, best, -np.inf)
        left &= best >= best.max(1, keepdims=True)
    return left.argmax(1)


def weighted_sum(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_k weights[k] values[k], in the order of the members (no BLAS, whose order varies)."""
    scale = values.dtype.type
    if (weights == weights[0]).all():
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
