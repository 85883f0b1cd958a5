"""Depthwise convolutions as sums of shifted images, the form for CPUs, with a gradient of its own.

Derived automatically, the gradient of such a sum keeps a copy of every shifted image (25 for a
kernel of 5x5) from the forward to the backward pass: much memory, and the time to write and read
it. Here only the images are kept, and the gradient of the kernel reads them in place.
"""

import functools

import jax
import jax.numpy as jnp

Pair = tuple[int, int]
# Products that the gradient of the kernel adds within one loop. More make longer programs.
TERMS = 8


def shifted(x: jax.Array, kernel: tuple[int, ...], strides: Pair, padding: tuple[Pair, ...]
            ) -> list[jax.Array]:
    """For each element of a kernel of that size, row by row, the pixels of the images
    [B, H, W, a] that it multiplies: [B, h, w, a]."""
    height, width = output_sides(x, kernel, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return [x[:, row:row + strides[0] * (height - 1) + 1:strides[0],
              column:column + strides[1] * (width - 1) + 1:strides[1]]
            for row in range(kernel[0]) for column in range(kernel[1])]


def output_sides(x: jax.Array, kernel: tuple[int, ...], strides: Pair, padding: tuple[Pair, ...]
                 ) -> list[int]:
    """[height, width] of the output for images [B, H, W, a]."""
    return [(side + sum(pad) - taps) // stride + 1 for side, pad, taps, stride in
            zip(x.shape[1:3], padding, kernel, strides)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, ...]
             ) -> jax.Array:
    """Each channel of x [B, H, W, C] convolved with its own kernel [rows, columns, 1, C] of the
    same dtype; padding is (before, after) of height and width. Returns [B, h, w, C]."""
    return sum(part * factor for part, factor in zip(
        shifted(x, kernel.shape[:2], strides, padding), kernel.reshape(-1, kernel.shape[-1])))


def _convolve(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding), (x, kernel)


def _gradients(strides, padding, saved, gradient):
    x, kernel = saved
    return (_of_images(x, kernel, strides, padding, gradient),
            _of_kernel(x, kernel, strides, padding, gradient))


def _of_images(x, kernel, strides, padding, gradient):
    """The convolution of the gradient with the kernel turned by 180 degrees, for a stride of 1;
    XLA's transpose of the slices for others, as fast there."""
    if strides != (1, 1):
        plain = functools.partial(convolve.fun, kernel=kernel, strides=strides, padding=padding)
        return jax.linear_transpose(plain, x)(gradient)[0]
    # The sides of the gradient and of x differ by taps - 1 - padding: this padding may be negative.
    around = [(taps - 1 - before, taps - 1 - after)
              for taps, (before, after) in zip(kernel.shape[:2], padding)]
    gradient = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype),
                           ((0, 0, 0), *((*pad, 0) for pad in around), (0, 0, 0)))
    return convolve.fun(gradient, kernel[::-1, ::-1], strides, ((0, 0), (0, 0)))


def _of_kernel(x, kernel, strides, padding, gradient):
    """Sums over all pixels of gradient x shifted images, in float32.

    A reduction writes its products, or the shifted images, to memory first. So the columns are cut
    into blocks, products of columns at the same place of each block are added in one loop over
    pixels that lie apart, and the reduction gets what is left: an eighth.
    """
    height, width = gradient.shape[1:3]
    blocks = -(-width // TERMS)
    terms = -(-width // blocks)
    more = blocks * terms - width  # columns of zeros
    gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, more), (0, 0)))
    (top, bottom), (left, right) = padding
    x = jax.lax.optimization_barrier(jnp.pad(
        x, ((0, 0), (top, bottom), (left, right + strides[1] * more), (0, 0))))
    parts = []
    for row in range(kernel.shape[0]):
        rows = x[:, row:row + strides[0] * (height - 1) + 1:strides[0]]
        for column in range(kernel.shape[1]):
            part = jnp.zeros((), jnp.float32)
            for term in range(terms):
                first, step = column + strides[1] * term, strides[1] * terms
                seen = rows[:, :, first:first + step * (blocks - 1) + 1:step]
                part += (seen.astype(jnp.float32)
                         * gradient[:, :, term::terms].astype(jnp.float32))
            parts.append(part)
    sums = jnp.sum(jnp.stack(parts), (1, 2, 3))
    return sums.reshape(kernel.shape).astype(kernel.dtype)


convolve.defvjp(_convolve, _gradients)
