"""The endless order of training: position -> (epoch, row, copy).

A plan says how often each row comes in epoch e, as a pure function of (seed, e), and `Order`
shuffles these rows. Nothing is copied. Every epoch of a plan has the same number of examples,
so a look-up costs one division, wherever a run resumes.
"""

import dataclasses
import threading
from fractions import Fraction

import numpy as np

# The purposes of random streams; the loader uses other numbers.
_ORDER, _WALK, _WEIGHTED = 1, 3, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """Every cell (usually a class) gets its quota, and its rows come equally often.

    The numbers of times that two rows of a cell come differ by at most one, within any epoch and
    over all epochs so far. The walk goes through one permutation of the cell after another.

    Attributes:
        num_rows: rows of the manifest.
        seed: of the permutations.
        rows: int [M], the rows that take part, cell after cell.
        sizes: int [C], rows per cell.
        quotas: int [C], examples of each cell per epoch; 0 for an empty cell.
    """

    num_rows: int
    seed: int
    rows: np.ndarray
    sizes: np.ndarray
    quotas: np.ndarray

    @property
    def length(self) -> int:
        """Examples per epoch."""
        return int(self.quotas.sum())

    def mean_counts(self) -> np.ndarray:
        """How often each row comes per epoch in the long run, float64 [num_rows]."""
        found = np.zeros(self.num_rows)
        found[self.rows] = np.repeat(self.quotas / np.maximum(self.sizes, 1), self.sizes)
        return found

    def counts(self, epoch: int) -> np.ndarray:
        """How often each row comes in this epoch, int32 [num_rows]."""
        sizes = np.maximum(self.sizes, 1)
        every = (2 * self.quotas + sizes) // (2 * sizes)
        # Some rows come once more or once less than `every` times: at most half of the cell.
        extra = self.quotas - every * sizes
        counts = np.zeros(self.num_rows, np.int32)
        counts[self.rows] = np.repeat(every, self.sizes)
        starts = np.cumsum(self.sizes) - self.sizes
        for cell in np.flatnonzero(extra):
            size, step = int(self.sizes[cell]), int(extra[cell])
            picked = _walk(self.seed, int(cell), size, abs(step), epoch)
            counts[self.rows[starts[cell] + picked]] += 1 if step > 0 else -1
        return counts


def _walk(seed: int, cell: int, size: int, step: int, epoch: int) -> np.ndarray:
    """Entries epoch * step to (epoch + 1) * step of an endless sequence of permutations of
    0..size-1.

    No number comes twice in the result; `step` is at most size / 2.
    """
    def permutation(number: int) -> np.ndarray:
        return np.random.default_rng((seed, _WALK, cell, number)).permutation(size)

    def start_of(number: int, before: int) -> np.ndarray:
        # The numbers that this epoch has already taken from the end of the previous permutation
        # move back, but not into the end of this one. So that end depends on no earlier one.
        taken = np.zeros(size, bool)
        taken[permutation(number - 1)[size - before:]] = True
        zone = permutation(number)
        end = (number + 1) * size % step
        zone, rest = zone[:size - end], zone[size - end:]
        moved = taken[zone]
        return np.concatenate([zone[~moved], zone[moved], rest])

    number, offset = divmod(epoch * step, size)
    if offset + step > size:
        before = size - offset
        return np.concatenate([permutation(number)[offset:],
                               start_of(number + 1, before)[:step - before]])
    before = number * size % step
    order = start_of(number, before) if before else permutation(number)
    return order[offset:offset + step]


@dataclasses.dataclass(frozen=True, eq=False)
class Systematic:
    """Every row comes as often as expected, rounded up or down (systematic sampling).

    Attributes:
        num_rows: rows of the manifest.
        seed: of the rounding, which is drawn again each epoch.
        rows: int [M], the rows that may come.
        expected: float64 [M], how often each comes per epoch; positive, adds up to `length`.
        length: examples per epoch.
    """

    num_rows: int
    seed: int
    rows: np.ndarray
    expected: np.ndarray
    length: int

    def mean_counts(self) -> np.ndarray:
        """How often each row comes per epoch in the long run, float64 [num_rows]."""
        found = np.zeros(self.num_rows)
        found[self.rows] = self.expected
        return found

    def counts(self, epoch: int) -> np.ndarray:
        """How often each row comes in this epoch, int32 [num_rows]."""
        rng = np.random.default_rng((self.seed, _WEIGHTED, epoch))
        order = rng.permutation(len(self.rows))
        # The half unit keeps whole numbers of expected examples away from the rounding's edge.
        shift = (rng.integers(2**20) + 0.5) / 2**20
        edges = np.floor(np.cumsum(self.expected[order]) + shift).astype(np.int64)
        edges[-1] = self.length
        counts = np.zeros(self.num_rows, np.int32)
        counts[self.rows[order]] = np.diff(edges, prepend=0)
        return counts


Plan = Walk | Systematic


class Order:
    """The endless order of training: position -> (epoch, row, copy). O(1), shuffled each epoch.

    Before position `start` every row comes once per epoch. There the plan takes over, if
    necessary in the middle of an epoch, and the count of epochs continues. `copy` (0, 1, ...)
    numbers the times that a row comes in one epoch: each needs its own augmentation.
    """

    def __init__(self, plan: Plan, start: int = 0):
        self.plan = plan
        self.start = start
        self._length = plan.length
        self._first = -(-start // plan.num_rows)  # the plan's first epoch
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._lock = threading.Lock()

    def __call__(self, position: int) -> tuple[int, int, int]:
        if position < self.start:
            epoch, offset = divmod(position, self.plan.num_rows)
        else:
            epoch, offset = divmod(position - self.start, self._length)
            epoch += self._first
        rows, copies = self._epochs.get(epoch) or self._draw(epoch)
        return epoch, rows.item(offset), 0 if copies is None else copies.item(offset)

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        with self._lock:
            if epoch in self._epochs:
                return self._epochs[epoch]
            plan = self.plan
            if epoch < self._first:
                counts = np.ones(plan.num_rows, np.int32)
            else:
                counts = plan.counts(epoch - self._first)
            rows = np.repeat(np.arange(plan.num_rows), counts)
            shuffle = np.random.default_rng((plan.seed, _ORDER, epoch)).permutation(len(rows))
            copies = None
            if counts.max() > 1:
                copies = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
                copies = copies.astype(np.int32)[shuffle]
            drawn = rows[shuffle], copies
            # Threads never work on more than two neighbouring epochs.
            self._epochs = dict(list(self._epochs.items())[-1:]) | {epoch: drawn}
            return drawn

    def __getstate__(self):
        return self.plan, self.start

    def __setstate__(self, state):
        self.__init__(*state)


class Joined:
    """Two orders in one: from position `start` on, a fixed share of the positions, evenly spread,
    walks through a second order, whose rows are numbered behind those of the first. O(1).

    Attributes:
        order, extra: of the N rows and of the M others.
        start: position from which on the others are shown.
        share: of the positions from there on that are theirs, 0 < share < 1.
    """

    def __init__(self, order: Order, extra: Order, start: int, share: Fraction):
        self.order, self.extra, self.start, self.share = order, extra, start, share

    def __call__(self, position: int) -> tuple[int, int, int]:
        if position < self.start:
            return self.order(position)
        passed, (top, bottom) = position - self.start, self.share.as_integer_ratio()
        before = passed * top // bottom  # positions of the others so far
        if (passed + 1) * top // bottom == before:
            return self.order(position - before)
        epoch, row, copy = self.extra(before)
        return epoch, self.order.plan.num_rows + row, copy
