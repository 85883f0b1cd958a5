#!/usr/bin/env bash
# XLA's CPU backend adds up the whole residual stream again in every block, and
# jax.lax.optimization_barrier does not stop it.
#
# One would guess: in the gradient of a residual network, x = x + f(x), the gradient of the stream is
# one sum that grows by one term per block, so a block reads two arrays and writes one whatever the
# depth; and where a compiler wants to compute something twice, optimization_barrier, whose
# documentation says that it keeps operations from being moved across it, makes it store the array.
#
# What happens: the sum is fused into each loop that reads it, so the loops of block i read what all
# later blocks added: up to 12, 24 and 49 arrays at 6, 12 and 24 blocks with a normalisation. The
# bytes that are read grow with the square of the depth. A barrier on the gradient of each block
# changes nothing: it is gone before fusion. A conditional whose predicate is a constant behind a
# barrier does: no loop reads more than 6 arrays then, at any depth.
#
# Why it matters: Vision Transformers train slowly on CPUs, and more so the deeper they are; and a
# barrier that was put somewhere to save time or to keep bits equal may do nothing there.
#
# Needs Python 3.11 or later and 1 GB on disk for the time of the run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import re
import sys

import jax
import jax.numpy as jnp

for name in ('jax', 'jaxlib', 'numpy'):
    print(name, importlib.metadata.version(name))


def branch(x, kernels):
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return jnp.tanh(x @ kernels[0]) @ kernels[1]


def gradient_through(change):
    """x, whose gradient goes through a function."""
    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, gradient: (change(gradient),))
    return same


def conditional(gradient):
    always = jax.lax.optimization_barrier(jnp.array(True))
    return jax.lax.cond(always, lambda x: x, jnp.zeros_like, gradient)


FORMS = {'as it is': lambda x: x,
         'optimization_barrier': gradient_through(jax.lax.optimization_barrier),
         'conditional': gradient_through(conditional)}


def most_arrays(form, depth):
    """The most arrays that one fused loop of the compiled gradient reads."""
    def loss(kernels, x):
        for one in kernels:
            x = form(x)
            x = x + branch(x, one)
        return jnp.sum(x ** 2)

    kernels = [(jnp.ones((64, 256)), jnp.ones((256, 64)))] * depth
    text = jax.jit(jax.grad(loss)).lower(kernels, jnp.ones((512, 64))).compile().as_text()
    return max(len(re.findall(r'%[\w.-]+', loop)) for loop in
               re.findall(r' fusion\((.*?)\), kind', text))


DEPTHS = (6, 12, 24)
found = {name: [most_arrays(form, depth) for depth in DEPTHS] for name, form in FORMS.items()}
print('most arrays read by one loop, at', *DEPTHS, 'blocks')
for name, counts in found.items():
    print(f'{name:21}', *counts)
plain, barrier, stored = found.values()
as_seen = plain == barrier and all(
    count >= 2 * depth for count, depth in zip(plain, DEPTHS)) and max(stored) <= 8
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
