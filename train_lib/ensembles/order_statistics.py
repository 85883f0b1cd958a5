"""Ranks within a row and order statistics over members, on whole blocks at once. NumPy only."""

import functools

import numpy as np


def rank_shares(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis as a distribution (a normalised Borda count).

    A class gets one point for each class below it and half a point for each other class of the
    same value. The points of a row are divided by their sum, C (C - 1) / 2.

    Args:
        values: float [..., C], C > 1, no NaN.

    Returns:
        float [..., C] of the same dtype; rows sum to 1.
    """
    count = values.shape[-1]
    rows = np.ascontiguousarray(values).reshape(-1, count)
    order = np.argsort(rows, axis=-1)
    order += (np.arange(len(rows)) * count)[:, None]
    ordered = rows.reshape(-1)[order]
    first = np.ones(ordered.shape, bool)  # of a run of equal values
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    points = np.tile(np.arange(count, dtype=values.dtype), (len(rows), 1))
    _share_runs(points.reshape(-1), first.reshape(-1))
    points *= 2 / (count * (count - 1))
    shares = np.empty(rows.size, values.dtype)
    shares[order] = points
    return shares.reshape(values.shape)


def _share_runs(points: np.ndarray, first: np.ndarray) -> None:
    """Gives each of a run of equal values the mean points of the run, in place."""
    later = np.flatnonzero(~first)
    if not len(later):
        return
    opens = first[later - 1]
    run = np.cumsum(opens) - 1
    heads = later[opens] - 1
    points[heads] += np.bincount(run) / 2
    points[later] = points[heads[run]]


@functools.lru_cache(maxsize=128)
def merge_exchange(n: int) -> tuple[tuple[int, int], ...]:
    """Comparators (i, j), i < j, that sort n numbers: Batcher's odd-even merge sort, in the form of
    Knuth's algorithm 5.2.2M, which takes any n."""
    pairs = []
    top = p = 1 << max((n - 1).bit_length() - 1, 0)
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)


def sort_members(values: np.ndarray, with_order: bool) -> tuple[list, list | None]:
    """Sorts over the first axis by a network, which works on whole blocks without branches.

    Args:
        values: float [K, ...], no NaN; not changed.
        with_order: whether to return which member each value came from.

    Returns:
        (K arrays [...] in ascending order, K arrays of the members' indices or None).
    """
    count = len(values)
    ordered, spare = list(values.copy()), np.empty_like(values[0])
    order = None
    if with_order:
        dtype = np.uint8 if count <= 256 else np.uint32
        order = [np.full(values.shape[1:], i, dtype) for i in range(count)]
    for i, j in merge_exchange(count):
        low, high = ordered[i], ordered[j]
        if with_order:
            flip = (order[i] ^ order[j]) * (low > high)
            order[i] ^= flip
            order[j] ^= flip
        np.minimum(low, high, out=spare)
        np.maximum(low, high, out=high)
        ordered[i], spare = spare, low
    return ordered, order


def middle_mean(ordered: list, order: list | None, weights: np.ndarray,
                trim: float) -> np.ndarray:
    """Mean of what lies between the quantiles `trim` and 1 - `trim` over the members.

    The members are sorted by their values, each as wide as its weight. `trim` of the total width
    is cut off at either end, if need be through a member.

    Args:
        ordered: K arrays [...], ascending, from `sort_members`.
        order: which member each value is from; not read if the weights are equal.
        weights: float64 [K] > 0, sum 1.
        trim: in [0, 0.5).
    """
    count, low, high = len(ordered), trim, 1 - trim
    total = np.zeros_like(ordered[0])
    if np.ptp(weights) == 0:
        shares = np.diff(np.clip(np.arange(count + 1) / count, low, high)) / (high - low)
        for values, share in zip(ordered, shares):
            if share > 0:
                total += values * total.dtype.type(share)
        return total
    reached, cut = np.zeros(total.shape), np.full(total.shape, low)
    kept, share = np.empty(total.shape), np.empty_like(total)
    for values, whose in zip(ordered, order):
        reached += weights[whose]
        np.clip(reached, low, high, out=kept)
        np.subtract(kept, cut, out=share, casting='same_kind')
        cut, kept = kept, cut
        np.multiply(values, share, out=share)
        total += share
    total *= 1 / (high - low)
    return total
