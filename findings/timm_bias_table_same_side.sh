#!/usr/bin/env bash
# timm resizes BEiT's tables of relative positions along a side that keeps its length, too.
#
# One would guess: a BEiT for 14 x 14 patches that is set to 14 x 28 keeps its biases between rows,
# since there are as many rows as before; and one that is set to fewer patches looks up what lies
# there in the table.
#
# What happens: resize_rel_pos_bias_table spreads the old offsets by a geometric progression whose
# factor is searched between 1.01 and 1.5, and is never 1. Where a side keeps its length or shrinks,
# the factor ends at 1.01: from 14 rows to 14 the offset of 13 rows gets the bias of 12.28 rows, and
# from 14 to 13 rows that of 12 gets the one of 11.39. Only a table whose two sides both stay is
# left alone. Where a side grows the ends meet: from 14 to 24, offset 23 gets the bias of 13.
#
# Why it matters: weights for a square that are loaded for wide pictures have other biases along
# the side that did not change. Whoever reads the table directly gets other logits than timm.
#
# Needs Python 3.11 or later, and up to 8 GB on disk for the time of the run (torch).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
# Without torchvision, which timm imports and its module of such tables does not use: pip may choose
# one that does not fit a torch for CPUs.
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps timm==1.0.31

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib
import importlib.metadata
import importlib.util
import sys
import types
import warnings

warnings.simplefilter('ignore')
import torch  # noqa: E402

where = importlib.util.find_spec('timm').submodule_search_locations[0]
for name, folder in (('timm', where), ('timm.layers', f'{where}/layers')):
    sys.modules[name] = types.ModuleType(name)  # only the places, see above
    sys.modules[name].__path__ = [folder]
resize_rel_pos_bias_table = importlib.import_module(
    'timm.layers.pos_embed_rel').resize_rel_pos_bias_table

for name in ('timm', 'torch'):
    print(name, importlib.metadata.version(name))


def rows_told(source, grid):
    """Of a table that holds the offset in rows: what it says for 0 .. rows - 1 after resizing."""
    offsets = torch.arange(1 - source[0], source[0]).float()
    table = offsets[:, None].expand(-1, 2 * source[1] - 1).reshape(-1, 1)
    table = torch.cat([table, torch.zeros(3, 1)])  # three entries of the class token
    entries = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
    found = resize_rel_pos_bias_table(table, grid, (entries, 1))[:-3]
    return found.reshape(2 * grid[0] - 1, -1)[grid[0] - 1:, 0]


as_seen = True
for grid, last in (((14, 14), 13), ((14, 28), 12.28), ((13, 13), 11.39), ((24, 24), 13)):
    told = rows_told((14, 14), grid)
    print(f'14 x 14 -> {grid[0]} x {grid[1]} patches: the offset of {grid[0] - 1} rows has the bias '
          f'of {told[-1]:.2f} rows')
    as_seen &= abs(told[-1].item() - last) < 0.01
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
