#!/usr/bin/env bash
# Inside jax.lax.scan or jax.lax.cond the gradients of a convolution take 25 to 125 times as long on a
# CPU as outside; the convolution itself, and products of matrices, take about as long as outside.
#
# One would guess: a loop over two halves of a batch that adds up their gradients, which saves memory,
# or a condition that skips a second gradient, costs what its body costs.
#
# What happens: 3x3 convolutions of 16 pictures of 28x28 pixels and 32 channels on two cores: the
# gradient of the pictures takes 2 ms, 48 in a scan over two halves and 99 in a cond; that of the
# kernel 4, 173 and 475 ms. Forward takes 2 ms in each.
#
# Why it matters: accumulating gradients over parts of a batch, steps in a scan, and methods like SAM
# that take a gradient under a condition look impossibly slow for CNNs on a CPU, on laptops and in
# tests, and nothing says why. Unrolling the loop, or two programs in place of the condition, cures it.
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
import sys
import time

import jax
import jax.numpy as jnp

for name in ('jax', 'jaxlib', 'numpy'):
    print(name, importlib.metadata.version(name))

images = jax.random.normal(jax.random.key(0), (16, 28, 28, 32))
kernel = 0.1 * jax.random.normal(jax.random.key(1), (3, 3, 32, 32))


def convolved(kernel, images):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), 'SAME',
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def of_images(kernel, images):
    return jax.vjp(lambda images: convolved(kernel, images), images)[1](jnp.ones_like(images))[0]


def of_kernel(kernel, images):
    return jax.vjp(lambda kernel: convolved(kernel, images), kernel)[1](jnp.ones_like(images))[0]


def product(kernel, images):
    return images.reshape(-1, 32) @ kernel[0, 0]


def in_scan(function):
    def halves(kernel, images, due):
        return jax.lax.scan(lambda carry, half: (carry, function(kernel, half)), 0.0,
                            images.reshape(2, -1, *images.shape[1:]))[1]
    return halves


def in_cond(function):
    return lambda kernel, images, due: jax.lax.cond(
        due, lambda: function(kernel, images),
        lambda: jnp.zeros_like(jax.eval_shape(function, kernel, images)))


def milliseconds(program, rounds=7):
    """Of the fastest run."""
    program = jax.jit(program)
    program(kernel, images, True).block_until_ready()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        program(kernel, images, True).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


found = {}
print(f'{"ms":12} {"outside":>8} {"scan":>8} {"cond":>8}')
for function in (convolved, of_images, of_kernel, product):
    found[function] = [milliseconds(form) for form in (
        lambda kernel, images, due: function(kernel, images), in_scan(function),
        in_cond(function))]
    print(f'{function.__name__:12}', *(f'{one:8.2f}' for one in found[function]))
slow = [min(found[one][1:]) / found[one][0] for one in (of_images, of_kernel)]
as_seen = min(slow) > 10 and max(found[convolved][1:]) < 5 * found[convolved][0]
print('as seen before' if as_seen else 'CHANGED: read the comment of this finding again')
sys.exit(not as_seen)
PYTHON
