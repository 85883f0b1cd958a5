#!/usr/bin/env bash
# The gradient of a maximum is NaN where XLA rounds its argument twice.
#
# One would guess: the gradient of max(x) is one at the largest entry.
# What happens: JAX finds that entry by comparing x with max(x), and divides by the number of
# matches. On a CPU at xla_backend_optimization_level=0, which speeds up compilation, x is computed
# again for the comparison and rounded differently, nothing is equal, and 0 / 0 is NaN: for a
# LayerNorm and a maximum over tokens, which is max pooling of a transformer. By argmax and
# take_along_axis the same gradient is finite.
# Why it matters: a test or a run that compiles quickly gets NaN from finite numbers.
#
# Needs Python 3.11 or later and 1 GB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5

cat > "$folder/max.py" <<'PYTHON'
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
x, scale, bias = (jnp.asarray(rng.standard_normal(shape), jnp.float32)
                  for shape in ((2, 16, 32), 32, 32))


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale + bias


def by_max(x):
    return norm(x).max(1).sum()


def by_argmax(x):
    y = norm(x)
    return jnp.take_along_axis(y, y.argmax(1, keepdims=True), 1).sum()


found = {}
for function in (by_max, by_argmax):
    for level in (None, 0):
        options = {} if level is None else {'xla_backend_optimization_level': level}
        gradient = jax.jit(jax.grad(function), compiler_options=options)(x)
        found[function.__name__, level] = int(jnp.isnan(gradient).sum())
        print(f'{function.__name__}, level {level}: {found[function.__name__, level]} of '
              f'{gradient.size} entries are NaN')
for name in ('jax', 'jaxlib', 'numpy'):
    print(name, importlib.metadata.version(name))
assert found['by_max', 0] > 0, 'the gradient of max is finite now'
assert found['by_max', None] == found['by_argmax', 0] == found['by_argmax', None] == 0
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/max.py"
