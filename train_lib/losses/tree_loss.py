"""Cross-entropies of the levels of a tree of classes, from the logits of its leaves."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# (weight, node above each class): () for the classes themselves.
Levels = tuple[tuple[float, tuple[int, ...]], ...]


def node_log_probs(logits: jax.Array, nodes: Sequence[int] | np.ndarray) -> jax.Array:
    """Log probabilities of nodes, each the sum over the classes below it.

    Args:
        logits: float [B, C].
        nodes: int [C], the node of each class, 0 to G - 1.

    Returns:
        float32 [B, G].
    """
    nodes = np.asarray(nodes)
    count = int(nodes.max()) + 1
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).T
    # Of each node by its own largest class, because a whole node may have less than float32 holds.
    top = jax.lax.stop_gradient(jax.ops.segment_max(log_probs, nodes, count))
    total = jax.ops.segment_sum(jnp.exp(log_probs - top[nodes]), nodes, count)
    return (top + jnp.log(total)).T


def inner_loss(levels: Levels, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """sum over the levels above the classes of weight x cross-entropy of their nodes, float32 [B].

    Args:
        levels: of the tree; those without weight cost nothing.
        logits: float [B, C].
        targets: float [B, C] of the classes; a node has the sum of those below it.
    """
    total = jnp.zeros(logits.shape[0], jnp.float32)
    for weight, nodes in levels:
        if weight and nodes:
            count = max(nodes) + 1
            of_nodes = jax.ops.segment_sum(targets.T, np.asarray(nodes), count).T
            total -= weight * jnp.sum(of_nodes * node_log_probs(logits, nodes), axis=-1)
    return total


def leaf_weight(levels: Levels) -> float:
    """The weight of the loss of the classes themselves: 1 without a tree."""
    return next((weight for weight, nodes in levels if not nodes), 1.0)
