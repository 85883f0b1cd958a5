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


def relative_index(grid: tuple[int, int]) -> jax.Array:
    """The entry of each query (first axis) and key (second), the class token first: int32 [N, N]
    with N = 1 + rows * columns. Computed in the program, which would otherwise hold megabytes."""
    (rows, columns), entries = grid, table_entries(grid)
    by_row, by_column = (places[:, None] - places + len(places) - 1
                         for places in map(jnp.arange, grid))
    index = by_row[:, None, :, None] * (2 * columns - 1) + by_column[None, :, None]
    index = index.reshape(rows * columns, rows * columns)
    index = jnp.pad(index, [(0, 0), (1, 0)], constant_values=entries - 2)
    index = jnp.pad(index, [(1, 0), (0, 0)], constant_values=entries - 3)
    return index.at[0, 0].set(entries - 1)


def relative_bias(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The bias of each query for each key: [heads, entries] -> [heads, N, N]."""
    return table.at[:, relative_index(grid)].get(mode='promise_in_bounds')


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
