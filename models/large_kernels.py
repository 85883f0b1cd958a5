"""Depthwise convolutions with large kernels, such as the 7x7 of ConvNeXt, for CPUs.

XLA's own form, and the gradients that JAX derives for a sum of shifted images, are slow there and
take long to compile. So the gradients are written out: that of the images is the same sum with the
kernel turned by 180 degrees, and that of the kernel is a loop over parts of single images that stay
in a core's cache. Forward and backward of 7x7 kernels in ms (seconds to compile), 8 images,
float32, two cores that others used too, jax 0.10.2:

| grid, channels | convolution | shifted images, derived | here |
|---|---:|---:|---:|
| 56 x 56, 96 | 4976 (6.5) | 1933 (13.1) | 376 (6.7) |
| 28 x 28, 192 | 2951 (5.2) | 652 (8.5) | 60 (4.0) |
| 14 x 14, 384 | 1300 (2.5) | 316 (9.7) | 40 (4.2) |
| 7 x 7, 768 | 1261 (2.1) | 178 (11.6) | 62 (4.9) |
"""

import functools

import jax
import jax.numpy as jnp

from models.depthwise import shifted

SMALLEST = 7  # side of a kernel; smaller ones were not measured
# Bytes of a part of an image: half of a small core's second-level cache.
_PART = 512 * 1024


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], ...]) -> jax.Array:
    """A depthwise convolution of stride 1.

    Args:
        x: [B, H, W, C].
        kernel: [rows, columns, 1, C].
        padding: pixels (before, after) of height and width, each fewer than the kernel's side.

    Returns:
        [B, h, w, C] in the dtype of x; sums are float32.
    """
    parts = shifted(x.astype(jnp.float32), kernel.shape[:2], (1, 1), padding)
    factors = kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1])
    return functools.reduce(jnp.add, map(jnp.multiply, parts, factors)).astype(x.dtype)


def _depthwise(x, kernel, padding):
    return depthwise(x, kernel, padding), (x, kernel)


def _gradients(padding, saved, gradient):
    x, kernel = saved
    back = tuple((side - 1 - before, side - 1 - after)
                 for side, (before, after) in zip(kernel.shape, padding))
    of_x = depthwise(gradient.astype(x.dtype), kernel[::-1, ::-1], back)
    of_kernel = _of_kernel(_padded(x, padding), gradient, kernel.shape)
    return of_x, of_kernel.astype(kernel.dtype)


depthwise.defvjp(_depthwise, _gradients)


def _of_kernel(x: jax.Array, gradient: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Float32 sums over images [B, ...] that are padded already and the gradient [B, h, w, C] of
    what came out: [rows, columns, 1, C]."""
    rows, columns, _, channels = shape
    batch, height, width, _ = gradient.shape
    part = max(one for one in range(1, height + 1) if height % one == 0
               and (one == 1 or 4 * one * width * channels <= _PART))

    def add(sums, i):
        row, first, image = i % rows, i // rows % (height // part) * part, \
            i // (rows * (height // part))
        these = jax.lax.dynamic_slice(
            gradient, (image, first, 0, 0), (1, part, width, channels))[0].astype(jnp.float32)
        under = jax.lax.dynamic_slice(
            x, (image, first + row, 0, 0), (1, part, *x.shape[2:]))[0].astype(jnp.float32)
        products = jnp.stack([jnp.sum(under[:, j:j + width] * these, (0, 1))
                              for j in range(columns)])
        return sums.at[row].add(products), None

    zeros = jnp.zeros((rows, columns, channels), jnp.float32)
    sums, _ = jax.lax.scan(add, zeros, jnp.arange(batch * rows * (height // part)))
    return sums[:, :, None]


def _padded(x: jax.Array, padding: tuple[tuple[int, int], ...]) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))
