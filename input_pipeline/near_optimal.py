"""Draws at random among the near-optimal ways to deal groups to parts, such as folds.

A greedy deal of unequal groups has no freedom: every seed gives the same parts, and scores over
seeds then say nothing about other splits. Here the greedy deal says only what balance can be had.
What is drawn starts from random parts, and is improved by moves and exchanges of groups until it is
as balanced, within a tolerance. It is not improved further, so that each near-optimal deal may come
out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

# Pairs of groups are tried for an exchange among so many groups at a time.
_EXCHANGED = 256
# Starts until the greedy deal is taken: fewer for many groups, which find a way from most starts.
_STARTS = (3, 200)
_WORK = 20_000  # starts x groups
_STEPS = 5000  # of one start at most
_AT_ONCE = 500  # one group moves in a step, and one more for every so many groups


@dataclasses.dataclass(frozen=True)
class ClassShares:
    """How the rows of C classes lie in G groups.

    Attributes:
        matrix: scipy.sparse.csr_array [G, C], of each class the share of its rows that each group
            has.
        sizes: float [C], rows of each class.
        spread: float [G], standard deviation of each group's rows over the classes.
    """

    matrix: Any
    sizes: np.ndarray
    spread: np.ndarray

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def of_group(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """The classes that a group has, and its shares of them."""
        here = slice(*self.matrix.indptr[group:group + 2])
        return self.matrix.indices[here], self.matrix.data[here]

    def of_parts(self, part: np.ndarray, count: int) -> np.ndarray:
        """float [count, C], the share of each class that each part has."""
        return np.stack([self.matrix.T @ (part == number).astype(float)
                         for number in range(count)])


def class_shares(groups: np.ndarray, labels: np.ndarray) -> ClassShares:
    """The class shares of rows.

    Args:
        groups: int [N], from 0 to G - 1; every group has a row.
        labels: int [N], from 0; classes without rows are left out.
    """
    from scipy.sparse import csr_array  # a quarter of a second, only where needed

    _, labels = np.unique(labels, return_inverse=True)
    sizes = np.bincount(labels).astype(float)
    counts = csr_array((np.ones(len(labels)), (groups, labels)))
    counts.sum_duplicates()
    mean = counts.sum(1) / len(sizes)
    spread = np.sqrt(np.maximum((counts * counts).sum(1) / len(sizes) - mean**2, 0))
    counts.data /= sizes[counts.indices]
    return ClassShares(counts, sizes, spread)


def greedy_folds(groups: ClassShares, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each group, int [G], as scikit-learn's StratifiedGroupKFold deals them.

    Groups of a large spread come first; each goes to the fold that keeps the standard deviation of
    the class shares over the folds least, or of equal ones to that of the fewest rows.
    """
    order = rng.permutation(len(groups))
    # Rounded: equal groups must stay in their random order.
    order = order[np.argsort(-groups.spread[order].round(9), kind='stable')]
    have = np.zeros((folds, len(groups.sizes)))
    rows = np.zeros(folds)
    sums, squares = np.zeros(have.shape[1]), np.zeros(have.shape[1])
    deviation = np.zeros(have.shape[1])
    fold = np.zeros(len(groups), int)
    total = 0.0
    for group in order:
        classes, shares = groups.of_group(group)
        mean = (sums[classes] + shares) / folds
        square = (squares[classes] + (2 * have[:, classes] + shares) * shares) / folds
        after = np.sqrt(np.maximum(square - mean**2, 0))
        value = total + (after - deviation[classes]).sum(1)
        near = value <= value.min() * (1 + 1e-5) + 1e-8 * len(sums)
        best = int(np.argmin(np.where(near, rows, np.inf)))
        squares[classes] += (2 * have[best, classes] + shares) * shares
        sums[classes] += shares
        have[best, classes] += shares
        deviation[classes] = after[best]
        total = value[best]
        rows[best] += shares @ groups.sizes[classes]
        fold[group] = best
    return fold


def errors(groups: ClassShares, part: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How far parts are from their targets; each is 0 where they are met.

    Args:
        groups: G of them.
        part: int [G].
        targets: float [F], the share of every class that each part should have; they sum to 1.

    Returns:
        float [4]: the mean and the largest difference between the share of a class that a part
        has and the target; and the largest total variation distance between the classes of the
        rows of a part and of all rows, and the largest difference of the share of a class there.
    """
    return _errors(groups.of_parts(part, len(targets)), groups.sizes, targets)


def _errors(have: np.ndarray, sizes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    off = np.abs(have - targets[:, None])
    rows = have * sizes
    among = np.abs(rows / np.maximum(rows.sum(1, keepdims=True), 1) - sizes / sizes.sum())
    return np.array([off.mean(), off.max(), 0.5 * among.sum(1).max(), among.max()])


def draw_parts(groups: ClassShares, targets: np.ndarray, greedy: np.ndarray, tolerance: float,
               valid: Callable[[np.ndarray], bool], rng: np.random.Generator) -> np.ndarray:
    """Draws parts whose errors are at most 1 + tolerance times those of a greedy deal.

    Args:
        groups: G of them.
        targets: float [F]; see `errors`.
        greedy: int [G], the part of each group in the greedy deal; it is the result if random
            starts find no other within the tolerance.
        tolerance: 0 or more.
        valid: int [G] -> whether these parts may be the result.
        rng: of the draw.

    Returns:
        int [G].
    """
    limits = errors(groups, greedy, targets) * (1 + tolerance) + 1e-9
    least, most = _STARTS
    starts = int(np.clip(_WORK // len(groups), least, most))
    search = _Search(groups, targets, limits, valid, rng)
    for _ in range(starts):
        found = search.from_random_parts()
        if found is not None:
            return found
    return greedy


class _Search:
    """Improves random parts until they are within the limits."""

    def __init__(self, groups: ClassShares, targets: np.ndarray, limits: np.ndarray,
                 valid: Callable[[np.ndarray], bool], rng: np.random.Generator):
        self.groups, self.targets, self.limits = groups, targets, limits
        self.valid, self.rng = valid, rng
        self.rows = groups.matrix @ groups.sizes
        self.norms = (groups.matrix * groups.matrix).sum(1)

    def from_random_parts(self) -> np.ndarray | None:
        """Valid parts within the limits, or None if the way from one start does not reach any."""
        part = self._random_parts()
        have = self.groups.of_parts(part, len(self.targets))
        for _ in range(_STEPS):
            if (_errors(have, self.groups.sizes, self.targets) <= self.limits).all() and \
                    self.valid(part):
                return part
            off = have - self.targets[:, None]
            if not (self._move(part, have, off) or self._exchange(part, have, off)):
                return None
        return None

    def _random_parts(self) -> np.ndarray:
        """Parts of about the right sizes, each with a group."""
        order = self.rng.permutation(len(self.groups))
        middles = np.cumsum(self.rows[order]) - self.rows[order] / 2
        ends = np.cumsum(self.targets)[:-1] * self.rows.sum()
        part = np.zeros(len(order), int)
        part[order] = np.searchsorted(ends, middles)
        for empty in np.flatnonzero(np.bincount(part, minlength=len(self.targets)) == 0):
            count = np.bincount(part, minlength=len(self.targets))
            part[self.rng.choice(np.flatnonzero(count[part] > 1))] = empty
        return part

    def _apply(self, part: np.ndarray, have: np.ndarray, group: int, to: int) -> None:
        classes, shares = self.groups.of_group(group)
        have[part[group], classes] -= shares
        have[to, classes] += shares
        part[group] = to

    def _move(self, part: np.ndarray, have: np.ndarray, off: np.ndarray) -> bool:
        """Moves the group whose move to another part lowers the sum of squares most; of many
        groups several, each if it still lowers it after those before."""
        pull = self.groups.matrix @ off.T
        rows = np.arange(len(part))
        change = pull - pull[rows, part][:, None] + self.norms[:, None]
        change[rows, part] = np.inf
        to = change.argmin(1)
        change = change[rows, to]
        moved = False
        for group in np.argpartition(change, at := len(part) // _AT_ONCE)[:at + 1]:
            classes, shares = self.groups.of_group(group)
            now = have[to[group], classes] - self.targets[to[group]] \
                - have[part[group], classes] + self.targets[part[group]]
            alone = np.count_nonzero(part == part[group]) == 1  # no part becomes empty
            if not alone and shares @ now + self.norms[group] < -1e-12:
                self._apply(part, have, int(group), int(to[group]))
                moved = True
        return moved

    def _exchange(self, part: np.ndarray, have: np.ndarray, off: np.ndarray) -> bool:
        """Exchanges the two groups that lower the sum of squares most."""
        few = np.arange(len(part))
        if len(few) > _EXCHANGED:
            few = self.rng.choice(few, _EXCHANGED, replace=False)
        shares, of_few = self.groups.matrix[few].toarray(), part[few]
        pull = (shares @ off.T)[:, of_few]
        own, norms = np.diagonal(pull), self.norms[few]
        change = (pull + pull.T - own - own[:, None] + norms + norms[:, None]
                  - 2 * shares @ shares.T)
        change[of_few == of_few[:, None]] = np.inf
        one, other = np.unravel_index(change.argmin(), change.shape)
        if not change[one, other] < -1e-12:
            return False
        to = part[few[other]]
        self._apply(part, have, int(few[other]), int(part[few[one]]))
        self._apply(part, have, int(few[one]), int(to))
        return True
