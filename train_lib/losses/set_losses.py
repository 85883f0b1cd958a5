"""Losses of a multi-label head, whose pictures have a set of classes each: one sigmoid per class.

Every loss is linear in how much an example is for and against each class, so mixed pictures, label
smoothing and weights work alike for all. They are computed in float32, in nats, as means over the
classes. To add one, write a function and give it a line in `SET_LOSSES`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_TINY = 1e-8


def set_cross_entropy(logits: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """-log p of each class that applies and -log(1 - p) of the others."""
    logits = logits.astype(jnp.float32)
    return jnp.mean(positive * jax.nn.softplus(-logits) + negative * jax.nn.softplus(logits),
                    axis=-1)


def asymmetric(logits: jax.Array, positive: jax.Array, negative: jax.Array, *,
               gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05) -> jax.Array:
    """The asymmetric loss (Ridnik et al. 2021, arXiv 2009.14119): -(1 - p)^gamma_pos log p of each
    class that applies, and -q^gamma_neg log(1 - q) of the others, where q = max(p - clip, 0). The
    paper sums over the classes; this is the mean, so that a learning rate keeps its meaning.
    """
    logits = logits.astype(jnp.float32)
    # 1 - p from the other side: it would be 0 in float32 for a confident p.
    chosen = jnp.exp(gamma_pos * jax.nn.log_sigmoid(-logits)) * jax.nn.softplus(-logits)
    shifted = jnp.maximum(jax.nn.sigmoid(logits) - clip, 0.0)
    # With clip = 0 the exact logarithm; 1 - q is at least `clip` otherwise.
    others = -jnp.log1p(-shifted) if clip else jax.nn.softplus(logits)
    # A power below 1 has no gradient at 0.
    focus = jnp.where(shifted > _TINY, jnp.maximum(shifted, _TINY) ** gamma_neg,
                      1.0 if gamma_neg == 0 else 0.0)
    return jnp.mean(positive * chosen + negative * focus * others, axis=-1)


# name: (function (logits [B, C], positive [B, C], negative [B, C], *, settings) -> float32 [B], the
# fields of LossSpec that it takes)
SET_LOSSES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    'binary_cross_entropy': (set_cross_entropy, ()),
    'asymmetric': (asymmetric, ('gamma_pos', 'gamma_neg', 'clip')),
}


def for_and_against(targets, weights: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How much each example is for and against each class, float32 [B, C] both, and the weight of
    its labels, float32 [B].

    Args:
        targets: float [B, C], 0 to 1, a row below 0 is unlabelled; or two of them and the share
            float [B] of the first, as `losses.Mixed`.
        weights: of the examples, float [B]; of mixed ones also [B, 2]. None: 1.
    """
    if isinstance(targets, tuple):
        first, second, share = targets
        parts = [(first, share), (second, 1 - share)]
    else:
        parts = [(targets, jnp.ones(len(targets), jnp.float32))]
    positive = negative = total = jnp.zeros((), jnp.float32)
    for number, (rows, share) in enumerate(parts):
        if weights is not None:
            share = share * (weights[:, number] if weights.ndim == 2 else weights)
        share = jnp.where(rows[:, 0] >= 0, share, 0.0).astype(jnp.float32)
        rows = jnp.clip(rows.astype(jnp.float32), 0, 1)
        positive = positive + share[:, None] * rows
        negative = negative + share[:, None] * (1 - rows)
        total = total + share
    return positive, negative, total


def weighted_losses(spec, logits: jax.Array, targets, weights: jax.Array | None,
                    factors: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """(weight x loss, weight) of each example, float32 [B] both.

    Args:
        spec: the `LossSpec` of a multi-label head.
        logits: float [B, C].
        targets, weights: as in `for_and_against`.
        factors: float [C], of a class where it applies; None: 1.
    """
    positive, negative, total = for_and_against(targets, weights)
    if spec.label_smoothing:
        half = spec.label_smoothing / 2 * (positive + negative)
        positive = (1 - spec.label_smoothing) * positive + half
        negative = (1 - spec.label_smoothing) * negative + half
    if factors is not None:
        positive = positive * factors
    function, settings = SET_LOSSES[spec.name]
    given = {name: getattr(spec, name) for name in settings}
    return function(logits, positive, negative, **given), total
