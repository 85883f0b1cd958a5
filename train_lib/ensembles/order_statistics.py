"""Ranks within a row and order statistics over members, on whole blocks at once. NumPy only."""

import functools

import numpy as np

_MOST_PACKED = 1 << 15  # columns; twice their points are below 2 ** 16
_SHORT_RUN = 16


def rank_shares(values: np.ndarray, dtype: type | None = None) -> np.ndarray:
    """Ranks along the last axis as a distribution (a normalised Borda count).

    A class gets one point for each class below it and half a point for each other class of the
    same value. The points of a row are divided by their sum, C (C - 1) / 2.

    Values of up to 32 bits are sorted together with their columns as whole numbers, and the points
    are brought back to their columns by sorting once more: NumPy sorts whole numbers three to six
    times as fast as it sorts indices or writes to scattered places.

    Args:
        values: float [..., C], C > 1, no NaN.
        dtype: of the result; None: that of the values.

    Returns:
        float [..., C]; rows sum to 1.
    """
    dtype = values.dtype if dtype is None else np.dtype(dtype)
    count = values.shape[-1]
    rows = np.ascontiguousarray(values, values.dtype.newbyteorder('=')).reshape(-1, count)
    bits = 8 * rows.dtype.itemsize
    if bits > 32 or count > _MOST_PACKED:
        order = np.argsort(rows, axis=-1)
        doubled = _doubled_points(np.take_along_axis(rows, order, axis=-1), np.int64)
        found = np.empty(rows.shape, dtype)
        np.put_along_axis(found, order, doubled.astype(dtype), axis=-1)
    else:
        whole, low = (np.uint32, 16) if bits == 16 else (np.uint64, 32)
        packed = _ascending(rows).astype(whole)
        packed <<= whole(low)
        packed |= np.arange(count, dtype=whole)
        packed.sort(axis=-1)
        back = packed.astype(np.uint32)  # without the value if that is above; shifted out if not
        back <<= np.uint32(16)
        packed >>= whole(low)
        back |= _doubled_points(packed, np.uint16)
        back.sort(axis=-1)
        found = back.astype(np.uint16).astype(dtype)
    found *= dtype.type(1 / (count * (count - 1)))
    return found.reshape(values.shape)


def _ascending(values: np.ndarray) -> np.ndarray:
    """Unsigned whole numbers in the order of the floats; equal ones get the same, also 0 and -0."""
    size = values.dtype.itemsize
    codes = values.view(f'u{size}')
    sign = codes.dtype.type(1 << 8 * size - 1)
    if not codes.size or not codes.max() & sign:
        return codes
    flip = codes.view(f'i{size}') >> 8 * size - 1  # all ones if negative
    flip |= sign.view(flip.dtype)
    found = codes ^ flip.view(codes.dtype)
    found[codes == sign] = sign  # -0 is 0
    return found


def _doubled_points(ordered: np.ndarray, dtype: type) -> np.ndarray:
    """Twice the points of `rank_shares` at each place of sorted rows: one point per place before
    and one per place up to the end of a run of equal values, whole [B, C]."""
    rows, count = ordered.shape
    same = np.empty(ordered.shape, bool)  # as the one before
    same = same.reshape(-1)
    np.equal(ordered.reshape(-1)[1:], ordered.reshape(-1)[:-1], out=same[1:])
    same[::count] = False
    if 4 * np.count_nonzero(same) <= same.size:
        # Few and short runs: place i has twice i, one less for each equal one before it, and one
        # more for each after it. `still` says where the n places before are equal.
        change, still = np.zeros(same.size, np.int8), same
        for n in range(1, _SHORT_RUN):
            if not np.count_nonzero(still):
                places = np.arange(0, 2 * count, 2, dtype=dtype)
                return places + change.reshape(rows, count).astype(dtype)
            ones = still.view(np.int8)
            change -= ones
            change[:-n] += ones[n:]
            still = np.concatenate([[False], same[1:] & still[:-1]])
    heads = np.flatnonzero(~same)
    lengths = np.diff(heads, append=same.size)
    points = (2 * (heads % count) + lengths - 1).astype(dtype)
    return np.repeat(points, lengths).reshape(rows, count)


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
    count, free = len(values), []
    ordered, ours = list(values), [False] * count  # the values as they are are not ours to change
    new = lambda: free.pop() if free else np.empty_like(values[0])
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
        ordered[i] = np.minimum(low, high, out=new())
        ordered[j] = np.maximum(low, high, out=high if ours[j] else new())
        if ours[i]:
            free.append(low)
        ours[i] = ours[j] = True
    return ordered, order


def reached(order: list, weights: np.ndarray) -> list[np.ndarray]:
    """The total weight up to each place of the sorted members, K arrays float64 [...].

    Args:
        order: K arrays, from `sort_members`.
        weights: float64 [K].
    """
    found: list[np.ndarray] = []
    for whose in order:
        total = np.take(weights, whose.astype(np.intp), mode='clip')  # clip: without a check
        found.append(np.add(found[-1], total, out=total) if found else total)
    return found


def middle_mean(ordered: list, upto: list | None, weights: np.ndarray,
                trim: float) -> np.ndarray:
    """Mean of what lies between the quantiles `trim` and 1 - `trim` over the members.

    The members are sorted by their values, each as wide as its weight. `trim` of the total width
    is cut off at either end, if need be through a member.

    Args:
        ordered: K arrays [...], ascending, from `sort_members`.
        upto: K arrays, from `reached`; not read if the weights are equal.
        weights: float64 [K] > 0, sum 1.
        trim: in [0, 0.5).
    """
    count, low, high = len(ordered), trim, 1 - trim
    total = np.zeros_like(ordered[0])
    if upto is None:
        for values, share in zip(ordered, _even_shares(count, trim)):
            if share > 0:
                total += values * total.dtype.type(share)
        return total
    # The first k members may reach from the k least weights to the k largest. Places that are cut
    # off whatever the order are skipped; the margin is for rounding.
    least, most = (np.cumsum(np.sort(weights)[::step]) for step in (1, -1))
    cut, kept = np.full(total.shape, float(low)), np.empty(total.shape)
    share = np.empty_like(total)
    for k, (values, edge) in enumerate(zip(ordered, upto)):
        if most[k] < low - 1e-9:
            continue
        if k and least[k - 1] > high + 1e-9:
            break
        np.clip(edge, low, high, out=kept)
        np.subtract(kept, cut, out=share, casting='same_kind')
        cut, kept = kept, cut
        np.multiply(values, share, out=share)
        total += share
    total *= 1 / (high - low)
    return total


@functools.lru_cache(maxsize=128)
def _even_shares(count: int, trim: float) -> tuple[float, ...]:
    """What each of the sorted members weighs in `middle_mean` if all are equally wide."""
    low, high = trim, 1 - trim
    return tuple(np.diff(np.clip(np.arange(count + 1) / count, low, high)) / (high - low))
