#!/usr/bin/env bash
# Orbax keeps the step whose metric is NaN as the best one, and removes good steps for it.
#
# One would guess: with best_fn and max_to_keep a checkpoint manager keeps the steps with the best
# metric, and a NaN, as of an evaluation that diverged, is never among them.
#
# What happens: after 0.9, 0.5, NaN with best_mode='max', and after 0.1, 0.5, NaN with
# best_mode='min', best_step() is the step of the NaN, and with max_to_keep=1 the step of 0.9 or 0.1
# is gone.
#
# Why it matters: a run that diverges at its end gives its broken weights as the best ones, and with
# max_to_keep=1 only they are left. A way out: leave a metric that is not finite out of the
# comparison (best_fn may return -inf or inf for it).
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
import itertools
import math
import os
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

for name in ('jax', 'orbax-checkpoint'):
    print(name, importlib.metadata.version(name))
numbers = itertools.count()


def kept(values, mode, keep, best_fn=lambda metrics: metrics['score']):
    """(best step, steps that are left) after saving one step per value."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, best_fn=best_fn, best_mode=mode, enable_async_checkpointing=False)
    folder = f'{os.environ["FOLDER"]}/{next(numbers)}'
    with ocp.CheckpointManager(folder, options=options) as manager:
        for step, value in enumerate(values):
            manager.save(step, args=ocp.args.StandardSave({'a': jnp.zeros(2)}),
                         metrics={'score': value})
        return manager.best_step(), sorted(manager.all_steps())


as_seen = True
for values, mode in (((0.9, 0.5, math.nan), 'max'), ((0.1, 0.5, math.nan), 'min')):
    for keep in (3, 1):
        best, steps = kept(values, mode, keep)
        print(f'{mode} of {values}, max_to_keep={keep}: best step {best}, left {steps}')
        as_seen &= best == 2 and 2 in steps
        worst = -math.inf if mode == 'max' else math.inf
        best, steps = kept(values, mode, keep, lambda metrics, worst=worst: (
            metrics['score'] if math.isfinite(metrics['score']) else worst))
        print(f'    with {worst} for what is not finite: best step {best}, left {steps}')
        as_seen &= best == 0 and 0 in steps
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
