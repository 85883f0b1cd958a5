"""Which class was taken for which, as the pairs that occur.

Of 10,000 classes the square matrix has 100 million cells, nearly all of them 0; of N rows at most N
pairs occur.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Confusions:
    """The cells above 0 of a confusion matrix of C classes, row by row.

    Attributes:
        true, predicted: int64 [K], the row and the column of each cell; right ones are included.
        count: int64 [K], 1 or more.
        size: C.
    """

    true: np.ndarray
    predicted: np.ndarray
    count: np.ndarray
    size: int

    @functools.cached_property
    def totals(self) -> np.ndarray:
        """Rows of each true class, int64 [C]."""
        return self._sums(self.true, self.count)

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """Rows predicted as each class, int64 [C]."""
        return self._sums(self.predicted, self.count)

    @functools.cached_property
    def right(self) -> np.ndarray:
        """Rows of each class that were predicted as it, int64 [C]."""
        same = self.true == self.predicted
        return self._sums(self.true[same], self.count[same])

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """Each cell as a share of its true class, float64 [K]."""
        return self.count / np.maximum(self.totals[self.true], 1)

    def wrong(self) -> np.ndarray:
        """Positions of the cells that are confusions, int64 [<= K]."""
        return np.flatnonzero(self.true != self.predicted)

    def matrix(self) -> np.ndarray:
        """All cells, int64 [C, C]; for few classes."""
        cells = np.zeros((self.size, self.size), np.int64)
        cells[self.true, self.predicted] = self.count
        return cells

    def _sums(self, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        found = np.zeros(self.size, np.int64)
        np.add.at(found, classes, counts)
        return found


def count_pairs(labels: np.ndarray, predicted: np.ndarray, size: int) -> Confusions:
    """The confusions of N rows.

    Args:
        labels, predicted: int [N] in 0..size-1.
        size: the number of classes.
    """
    cells, counts = np.unique(labels.astype(np.int64) * size + predicted, return_counts=True)
    return Confusions(cells // size, cells % size, counts.astype(np.int64), size)
