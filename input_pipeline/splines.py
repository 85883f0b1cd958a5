"""Cubic B-splines over two axes at the points of a grid, as narrow matrix products."""

import functools

import cv2
import numpy as np

# Multiply-adds up to which OpenBLAS stays on the calling thread. The loader has enough threads, and
# on busy cores a product that waits for a second thread takes ten times as long.
_PRODUCT = 2**18


def on_grid(coefficients: np.ndarray, x: np.ndarray, y: np.ndarray, spacing: float,
            phases: int) -> np.ndarray:
    """Two splines at every (x[j], y[i]).

    Args:
        coefficients: float32 [2, rows, columns], of control points `spacing` apart; the first two
            lie before 0.
        x, y: monotone, with two control points on either side of each value.
        spacing: distance of the control points in pixels.
        phases: points are rounded to this fraction of `spacing`.

    Returns:
        float32 [2, len(y), len(x)].
    """
    num_rows, num_columns = coefficients.shape[1:]
    basis, first = _basis(np.concatenate([y, x]) * (phases / spacing),
                          max(num_rows, num_columns), phases)
    # Row after row, both splines beside each other: one product makes a block of rows of both.
    rows = coefficients.transpose(1, 0, 2).reshape(2 * num_rows, num_columns)
    columns = cv2.transpose(basis[len(y):, :num_columns])
    across = np.empty((2 * num_rows, len(x)), np.float32)
    block = max(_PRODUCT // columns.size, 1)
    for start in range(0, len(rows), block):
        np.matmul(rows[start:start + block], columns, out=across[start:start + block])
    across = across.reshape(num_rows, 2 * len(x))
    out = np.empty((len(y), 2 * len(x)), np.float32)
    pitch = (abs(first.item(len(y) - 1) - first.item(0)) + 1) / len(y)
    block = 64
    while block > 1 and block * (block * pitch + 5) * len(x) > _PRODUCT:
        block //= 2
    for start in range(0, len(y), block):
        # Only four control points affect a row, so the product for a block of rows is narrow.
        end = min(start + block, len(y))
        low, high = sorted((first.item(start), first.item(end - 1)))
        np.matmul(basis[start:end, low:high + 4], across[low:high + 4], out=out[start:end])
    return out.reshape(len(y), 2, len(x)).transpose(1, 0, 2)


def _basis(at: np.ndarray, width: int, phases: int) -> tuple[np.ndarray, np.ndarray]:
    """(weight of each of `width` control points at the places `at` [N], in phases, float32
    [N, width]; the first control point whose weight is not 0, int [N])"""
    at = np.rint(at).astype(np.intp)
    at += phases
    first = at // phases
    windows, length = _windows(width, phases)
    # phase * length + width - first, of the phase at - first * phases
    at *= length
    at -= first * (phases * length + 1)
    at += width
    return windows[at], first


@functools.lru_cache(maxsize=8)
def _windows(width: int, phases: int) -> tuple[np.ndarray, int]:
    """(all windows of `width` values over the concatenated rows, length of a row); each row has
    the four weights of one phase between `width` zeros."""
    t = np.arange(phases) / phases
    rows = np.zeros((len(t), 2 * width + 4), np.float32)
    weights = rows[:, width:width + 4]
    weights[:, 0], weights[:, 3] = (1 - t) ** 3 / 6, t**3 / 6
    weights[:, 1] = 2 / 3 - t * t * (1 - t / 2)
    weights[:, 2] = 1 - weights[:, 0] - weights[:, 1] - weights[:, 3]
    return np.lib.stride_tricks.sliding_window_view(rows.reshape(-1), width), rows.shape[1]
