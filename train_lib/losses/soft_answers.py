"""The loss of a student against the answers of a teacher."""

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
