"""BatchNorm in training where the batch is split over devices, with two exchanges per layer.

Written as on one device (the mean, then the variance of centred values, then their derivatives),
a layer makes four exchanges per step that wait for each other. Here each device takes the mean and
the variance of its own part, one exchange brings both to all devices, and they are merged by the
formula of Chan, Golub and LeVeque (1983), which is as precise as the variance of centred values.
The gradient needs two sums over the batch, which are those of scale and bias too, and adds them in
one exchange. The values are those of one device up to rounding.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def devices_of(x: jax.Array) -> int:
    """Over how many devices the first axis of x is split, by the mesh in the context."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or x.shape[0] % mesh.size else mesh.size


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float, devices: int
              ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over all axes but the last.

    Args:
        x: [B, ..., C], of any floating-point dtype.
        scale: float32 [C].
        bias: float32 [C].
        eps: added to the variance.
        devices: over which the batch is split, see `devices_of`.

    Returns:
        (the result, float32 like x; mean, float32 [C]; variance divided by n, float32 [C]). No
        gradient goes through the last two.
    """
    mean, variance = _moments(x.astype(jnp.float32), devices)
    centred = x.astype(jnp.float32) - mean
    return centred * (jax.lax.rsqrt(variance + eps) * scale) + bias, mean, variance


def _moments(x: jax.Array, devices: int) -> tuple[jax.Array, jax.Array]:
    parts = _by_device(x, devices)
    axes = tuple(range(1, parts.ndim - 1))
    means = jnp.mean(parts, axes, keepdims=True)
    variances = jnp.mean(jnp.square(parts - means), axes)
    means = means.reshape(variances.shape)
    # [devices, 2, C]: small, and on every device from here on.
    both = jax.lax.with_sharding_constraint(jnp.stack([means, variances], 1), PartitionSpec())
    means, variances = both[:, 0], both[:, 1]
    mean = jnp.mean(means, 0)
    return mean, jnp.mean(variances, 0) + jnp.mean(jnp.square(means - mean), 0)


def _by_device(x: jax.Array, devices: int) -> jax.Array:
    """[B, ..., C] -> [devices, B / devices, ..., C], each device with its own part."""
    axes = jax.sharding.get_abstract_mesh().axis_names
    return jax.lax.with_sharding_constraint(
        x.reshape(devices, -1, *x.shape[1:]), PartitionSpec(axes))


def _normalise(x, scale, bias, eps, devices):
    y, mean, variance = normalise(x, scale, bias, eps, devices)
    return (y, mean, variance), (x, scale, mean, jax.lax.rsqrt(variance + eps))


def _normalise_gradients(eps, devices, saved, gradients):
    x, scale, mean, factor = saved
    gradient = gradients[0].astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * factor
    axes = tuple(range(1, x.ndim))
    sums = jnp.stack([jnp.sum(_by_device(values, devices), axes)
                      for values in (gradient, gradient * normed)], 1)  # [devices, 2, C]
    of_bias, of_scale = jnp.sum(sums, 0)
    count = x.size // x.shape[-1]
    of_x = factor * scale * (gradient - of_bias / count - normed * (of_scale / count))
    return of_x.astype(x.dtype), of_scale, of_bias


normalise.defvjp(_normalise, _normalise_gradients)
