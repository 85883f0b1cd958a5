"""Heads of ordered classes: fewer outputs than classes, and from them the log probability of each.

Classes have an order y = 0 < 1 < ... < C - 1. What leaves the head are log probabilities [B, C],
whose exponentials add up to 1, so losses, votes and reports take them like any other logits.

    corn             C - 1 logits f_k of P(y >= k | y >= k - 1) (Shi, Cao, Raschka 2021,
                     arXiv 2111.08851): P(y = k) = sigmoid(f_1) ... sigmoid(f_k) sigmoid(-f_{k+1})
    cumulative_link  one score s and C - 1 increasing thresholds t_k, shared by all pictures
                     (proportional odds, McCullagh 1980): P(y < k) = sigmoid(t_k - s)

The cross-entropy of either is the method's own loss: of CORN the sum of its conditional
cross-entropies, which its authors divide by the number of those instead of the pictures.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ORDERS = ('corn', 'cumulative_link')
_LEAST_GAP = 1e-4  # between two thresholds, whose difference has a logarithm


def outputs_of(order: str, classes: int) -> int:
    """How many numbers the last layer gives."""
    return classes - 1 if order == 'corn' else 1


class OrderedHead(nnx.Module):
    """A head of fewer outputs, and the order of its classes: [B, D] -> log probabilities [B, C].

    Args:
        make_out: number of outputs -> the head that gives them.
        classes: C, two or more.
        order: one of `ORDERS`.
    """

    def __init__(self, make_out: Callable[[int], nnx.Module], classes: int, order: str):
        self.raw = make_out(outputs_of(order, classes))
        self.order = order
        if order == 'cumulative_link':  # classes start equally likely at the score 0
            starts = [math.log(k / (classes - k)) for k in range(1, classes)]
            gaps = np.maximum(np.diff(starts) - _LEAST_GAP, 1e-3)
            self.thresholds = nnx.Param(jnp.array(
                [starts[0], *np.log(np.expm1(gaps))], jnp.float32))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        raw = self.raw(x, rngs).astype(jnp.float32)
        if self.order == 'corn':
            return corn_log_probs(raw)
        return cumulative_log_probs(raw[:, 0], increasing(self.thresholds[...]))


def increasing(raw: jax.Array) -> jax.Array:
    """Thresholds [C - 1] from free numbers: the first, and the gaps by their softplus."""
    gaps = jax.nn.softplus(raw[1:]) + _LEAST_GAP
    return jnp.cumsum(jnp.concatenate([raw[:1], gaps]))


def corn_log_probs(logits: jax.Array) -> jax.Array:
    """Conditional logits float [B, C - 1] of P(y >= k | y >= k - 1) -> log P(y = k) [B, C]."""
    reached = jnp.cumsum(jax.nn.log_sigmoid(logits), axis=-1)
    ended = jax.nn.log_sigmoid(-logits)
    edge = jnp.zeros_like(logits[:, :1])
    return jnp.concatenate([edge, reached], -1) + jnp.concatenate([ended, edge], -1)


def cumulative_log_probs(scores: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Scores float [B] and increasing thresholds [C - 1] -> log P(y = k) [B, C].

    Between two thresholds sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), whose
    logarithm loses nothing far from both.
    """
    above = thresholds - scores[:, None]  # [B, C - 1]
    below, beyond = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-above)
    gaps = jnp.log(-jnp.expm1(thresholds[:-1] - thresholds[1:]))
    between = below[:, 1:] + beyond[:, :-1] + gaps
    return jnp.concatenate([below[:, :1], between, beyond[:, -1:]], axis=-1)
