"""Losses of one head, each a mean over the labelled examples of a batch."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None,
                  label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy in natural units.

    Args:
        logits: float [B, C].
        labels: int [B]; -1 leaves the example out.
        weights: float [B], or None for 1.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al.
            2016, arXiv 1512.00567).

    Returns:
        float32 []: weighted mean over the labelled examples, 0 if there is none.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    losses = -(1 - label_smoothing) * of_label - label_smoothing * log_probs.mean(axis=1)
    weights = (labels >= 0) * (jnp.ones_like(losses) if weights is None else weights)
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1e-12)
