#!/usr/bin/env bash
# Orbax reads a checkpoint into a NumPy array of another shape as if it fitted.
#
# One would guess: restoring into a target whose leaf has another shape than what is stored fails,
# whatever kind of array the leaf is.
#
# What happens: for a jax.Array it does (ValueError, "Requested shape: (2, 3) is not compatible with
# the stored shape: (4, 3)"). For a NumPy array of another shape, of another rank too, the array as it
# was stored comes back, without an error or a warning; only the dtype is that of the target.
#
# Why it matters: code that reads weights on the host, to average them, convert or inspect them,
# takes those of another model for its own, and notices at the first product, or never where the
# shapes broadcast. A way out: compare with PyTreeCheckpointer's metadata(...) before restoring.
#
# Needs Python 3.11 or later and 1 GB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8

JAX_PLATFORMS=cpu FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import os
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

for name in ('jax', 'orbax-checkpoint', 'numpy'):
    print(name, importlib.metadata.version(name))
folder = Path(os.environ['FOLDER']) / 'checkpoint'
with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(folder, {'kernel': jnp.ones((4, 3))})


def outcome(target):
    """The shape that comes back, or the name of the error."""
    item = {'kernel': target}
    with warnings.catch_warnings(record=True) as said, ocp.PyTreeCheckpointer() as checkpointer:
        warnings.simplefilter('always')
        try:
            found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(
                item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)))
        except ValueError as error:
            return f'ValueError: {str(error).partition(".")[0]}'
    about = [str(one.message) for one in said if 'shape' in str(one.message).lower()]
    return f'{type(found["kernel"]).__name__} {found["kernel"].shape}{about or ""}'


as_seen = True
for shape in ((4, 3), (2, 3), (8, 3), (12,), (4, 3, 1)):
    on_host, on_device = outcome(np.zeros(shape, np.float32)), outcome(jnp.zeros(shape))
    print(f'stored (4, 3), wanted {shape}: NumPy {on_host}; jax.Array {on_device}')
    as_seen &= on_host == 'ndarray (4, 3)'
    as_seen &= on_device.startswith('ArrayImpl' if shape == (4, 3) else
                                    'ValueError: Requested shape')
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
