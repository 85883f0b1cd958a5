"""Biases of attention by the offset between two patches (Shaw et al., arXiv 1803.02155), as in
BEiT: one table per block, whose grid of offsets is followed by three entries for the class token.

Tables are [..., heads, entries] here and [entries, heads] in timm. The entry of an offset of
(i, j) patches, from -(rows - 1) to rows - 1 and so on, comes row by row; then those of class token
to patch, patch to class token, and class token to itself.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

CLASS_TOKEN = 3  # entries
_STEPS = (1.01, 1.5)  # from one offset to the next, see `_spread`


def table_entries(grid: tuple[int, int]) -> int:
    """How many entries a table has for a grid of (rows, columns) of patches."""
    return math.prod(2 * side - 1 for side in grid) + CLASS_TOKEN


def relative_bias(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The bias of each query (second axis) for each key (third), the class token first:
    [heads, entries] -> [heads, N, N] with N = 1 + rows * columns.

    Only copies of whole rows: a gather by an index [N, N] would have a scatter as its gradient,
    which is slow on TPUs, and the index would be in the program.
    """
    heads, (rows, columns) = table.shape[0], grid
    offsets = table[:, :-CLASS_TOKEN].reshape(heads, 2 * rows - 1, 2 * columns - 1)
    by_column = jnp.moveaxis(_pairs(offsets), 1, -1)  # [heads, columns, columns, 2 rows - 1]
    bias = _pairs(by_column).transpose(0, 3, 1, 4, 2).reshape(heads, rows * columns, -1)
    to_patch, to_class, itself = (table[:, i, None, None] for i in range(-CLASS_TOKEN, 0))
    bias = jnp.concatenate([jnp.broadcast_to(to_class, (heads, rows * columns, 1)), bias], 2)
    first = jnp.concatenate([itself, jnp.broadcast_to(to_patch, (heads, 1, rows * columns))], 2)
    return jnp.concatenate([first, bias], 1)


def _pairs(x: jax.Array) -> jax.Array:
    """Entries by offset, from -(n - 1) to n - 1, to entries by two positions, [..., 2 n - 1] ->
    [..., n, n]: of the offset that the first is behind the second.

    Copies of the reversed entries with one number between them, cut into rows that are one number
    shorter, lie one number further to the right in each row.
    """
    n = (x.shape[-1] + 1) // 2
    reverse = jnp.pad(x[..., ::-1], [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    copies = jnp.broadcast_to(reverse[..., None, :], (*x.shape[:-1], n, 2 * n))
    flat = copies.reshape(*x.shape[:-1], -1)[..., :n * (2 * n - 1)]
    return flat.reshape(*x.shape[:-1], n, 2 * n - 1)[..., n - 1:]


def resize_table(table: np.ndarray, grid: tuple[int, int], source: tuple[int, int]) -> np.ndarray:
    """A table [..., entries] of the grid `source` for another grid, as by timm's
    `resize_rel_pos_bias_table`; the entries of the class token stay.

    A larger grid stretches far offsets more than near ones, by a geometric progression, so that
    those of neighbours stay nearly as they are. A smaller one leaves out the farthest offsets.
    """
    if tuple(grid) == tuple(source):
        return table
    offsets, tokens = table[..., :-CLASS_TOKEN], table[..., -CLASS_TOKEN:]
    shape = table.shape[:-1]
    maps = offsets.reshape(*shape, *(2 * side - 1 for side in source)).astype(np.float64)
    for axis, (old, new) in enumerate(zip(source, grid, strict=True)):
        places, wanted = _spread(old - 1, new - 1), np.arange(1 - new, new, dtype=np.float64)
        maps = np.moveaxis(maps, axis - 2, -1)
        lines = [np.interp(wanted, places, line) for line in maps.reshape(-1, maps.shape[-1])]
        maps = np.moveaxis(np.reshape(lines, (*maps.shape[:-1], len(wanted))), -1, axis - 2)
    resized = maps.reshape(*shape, -1).astype(table.dtype)
    return np.concatenate([resized, tokens], -1)


def _spread(old: int, new: int) -> np.ndarray:
    """Where the offsets -old ... old come to lie among -new ... new, [2 old + 1]: at sums of a
    geometric progression that reaches `new`, by bisection of its factor within _STEPS."""
    low, high = _STEPS
    factor = low
    while high - low > 1e-6:
        factor = (low + high) / 2
        if (1 - factor ** old) / (1 - factor) > new:
            high = factor
        else:
            low = factor
    places = np.cumsum(factor ** np.arange(old))
    return np.concatenate([-places[::-1], [0], places])
