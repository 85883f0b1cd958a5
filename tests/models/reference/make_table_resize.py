"""Writes relative_position_resize.npz: tables of relative positions as timm resizes them.

    python tests/models/reference/make_table_resize.py

`source` is a table [entries, heads] of 5 x 5 patches with three entries for the class token, the
others are named by their grids, '5x5-9x4'.
"""

from pathlib import Path

import numpy as np
import torch
from timm.layers import resize_rel_pos_bias_table

GRIDS = ((14, 14), (9, 4), (3, 3), (5, 8), (1, 6), (5, 5))


def main() -> None:
    source = np.random.default_rng(0).standard_normal((84, 2)).astype(np.float32)
    found = {'source': source}
    for rows, columns in GRIDS:
        entries = (2 * rows - 1) * (2 * columns - 1) + 3
        found[f'5x5-{rows}x{columns}'] = resize_rel_pos_bias_table(
            torch.from_numpy(source), (rows, columns), (entries, 2)).numpy()
    path = Path(__file__).with_name('relative_position_resize.npz')
    np.savez_compressed(path, **found)
    print(path.name, path.stat().st_size, 'bytes')


if __name__ == '__main__':
    main()
