"""Products whose weights get float32 gradients while they compute in bfloat16 or float16.

The gradient of a kernel is a sum over the examples of all devices. Written as usual, as the
transpose of a product in bfloat16 of a kernel that was cast from float32, each device rounds its
part to bfloat16, and the parts are added in bfloat16 where the compiler does not promote them
(compiled for TPU, jax 0.10.2 and libtpu 0.0.42.1). A matrix unit adds in float32 anyway: here it
gives what it added, and the devices add that.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, a] times float32 [a, b], in the dtype of x: [N, b]."""
    return x @ kernel.astype(x.dtype)


def _product(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_gradients(saved, gradient):
    x, kernel = saved
    of_kernel = jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())),
                                    preferred_element_type=jnp.float32)
    return gradient @ kernel.astype(x.dtype).T, of_kernel.astype(kernel.dtype)


product.defvjp(_product, _product_gradients)


@jax.custom_vjp
def plus_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """[..., b] plus float32 [b], in the dtype of y."""
    return y + bias.astype(y.dtype)


def _plus_bias(y, bias):
    return plus_bias(y, bias), bias


def _plus_bias_gradients(bias, gradient):
    axes = tuple(range(gradient.ndim - 1))
    return gradient, jnp.sum(gradient, axes, dtype=jnp.float32).astype(bias.dtype)


plus_bias.defvjp(_plus_bias, _plus_bias_gradients)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def by(function: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array
       ) -> jax.Array:
    """function(x, kernel in the dtype of x), which is linear in both, such as a convolution. The
    gradient of the kernel is computed from float32 copies of what was rounded before."""
    return function(x, kernel.astype(x.dtype))


def _by(function, x, kernel):
    return by(function, x, kernel), (x, kernel)


def _by_gradients(function, saved, gradient):
    x, kernel = saved
    of_x, = jax.vjp(lambda x: function(x, kernel.astype(x.dtype)), x)[1](gradient)
    of_kernel, = jax.vjp(lambda kernel: function(x.astype(jnp.float32), kernel),
                         kernel.astype(jnp.float32))[1](gradient.astype(jnp.float32))
    return of_x, of_kernel.astype(kernel.dtype)


by.defvjp(_by, _by_gradients)
