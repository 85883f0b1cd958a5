"""Losses of a student against a teacher: its answers, and how alike it finds pictures."""

import jax
import jax.numpy as jnp


def distillation(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each picture, in nats (Hinton et al.
    2015, arXiv 1503.02531; T^2 keeps the gradient's size).

    Args:
        student: logits, float [B, C].
        teacher: logits, float [B, C]; no gradient goes through them.
        temperature: T, above 0.

    Returns:
        float32 [B].
    """
    wanted = jax.nn.log_softmax(jax.lax.stop_gradient(teacher.astype(jnp.float32)) / temperature)
    given = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(wanted) * (wanted - given), axis=-1)


def similarity(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """How differently two models find the pictures of a batch alike (Tung and Mori 2019, arXiv
    1907.09682), for features of any two widths.

    A row of F F^T, scaled to length 1, says how alike a picture is to each of the batch; this is
    the squared distance of the two rows. Its mean over the batch is the loss of the paper times B,
    so a weight here is one from there divided by B.

    Args:
        student: features, float [B, D].
        teacher: features, float [B, E]; no gradient goes through them.

    Returns:
        float32 [B], 0 to 4.
    """
    def alike(features: jax.Array) -> jax.Array:
        features = features.astype(jnp.float32)
        products = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
        squares = jnp.sum(products**2, axis=-1, keepdims=True)
        return products * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))  # a row of zeros stays one

    wanted = alike(jax.lax.stop_gradient(teacher))
    return jnp.sum((alike(student) - wanted)**2, axis=-1)
