"""The logits of all folds as one array that is never made."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


class StackedArrays:
    """Arrays [n, C] as if concatenated to one [N, C], which is not made; indexed by rows.

    Args:
        parts: one or more, arrays or memory maps.
    """

    ndim = 2

    def __init__(self, parts: Sequence):
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self._starts[-1]), parts[0].shape[1])
        self.dtype = np.result_type(*parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        rows = np.arange(len(self))[rows]
        found = np.empty((*rows.shape, self.shape[1]), self.dtype)
        of_part = np.searchsorted(self._starts, rows, 'right') - 1
        for k, part in enumerate(self._parts):
            mine = of_part == k
            if mine.any():
                found[mine] = part[rows[mine] - self._starts[k]]
        return found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)
