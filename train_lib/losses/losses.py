"""Losses of one head, and how its examples are weighted.

Every loss is linear in its targets: with l_c the loss of an example whose label is c, and t_c the
target, it is sum_c t_c l_c. So label smoothing, mixed labels and class weights work alike for all
losses. They are computed in float32, in nats.

To add one, write a function of logits, targets and its settings, and give it a line in `LOSSES`. A
setting of its own is a key in configs/common.py, a field of `LossSpec`, and a range in
objectives.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.label_sets import float_targets
from train_lib.losses.set_losses import for_and_against, weighted_losses
from train_lib.losses.tree_loss import Levels, inner_loss, leaf_weight

Counts = Sequence[float] | np.ndarray  # training images per class, [C]
_BLOCK = 4096  # rows that `split_loss` computes at a time


class Mixed(NamedTuple):
    """Targets of mixed examples.

    Attributes:
        labels_a, labels_b: int [B]; -1 for no label, which contributes nothing. Or both float
            [B, C], not negative.
        lam: float [B], the share of the first label, 0 to 1; the second has 1 - lam.
    """

    labels_a: jax.Array
    labels_b: jax.Array
    lam: jax.Array


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """The loss of one head, as `objectives.make_loss` checks it. Each loss uses the settings that
    `LOSSES` names.

    Attributes:
        name: a key of `LOSSES`.
        label_smoothing: share of the target that is spread over all classes, [0, 1).
        gamma: focal: exponent, >= 0.
        alpha: focal: a factor, or one per class.
        tau: logit_adjustment: strength, >= 0.
        scale: ldam: factor of the logits, > 0.
        max_margin: ldam: margin of the rarest class, >= 0.
        multi_label: pictures have a set of classes each: name is a key of `SET_LOSSES`, targets are
            float [B, C], and class weights count where a class applies.
        gamma_pos, gamma_neg, clip: asymmetric: exponents, >= 0, and what is taken off the
            probability of a class that does not apply, 0 to below 1.
        counts: training images per class, [C].
        class_weights: weights of the classes in the loss, [C]; () for 1.
        weights_start: the step from which class_weights apply.
        shown_start: the step from which the next two take the place of counts and class_weights,
            because resampling begins there.
        shown_counts, shown_weights: () where nothing changes.
        levels: of a tree of classes, see tree_loss.py; () for the classes alone.
    """

    name: str = 'cross_entropy'
    label_smoothing: float = 0.0
    gamma: float = 2.0
    alpha: float | tuple[float, ...] = 1.0
    tau: float = 1.0
    scale: float = 30.0
    max_margin: float = 0.5
    multi_label: bool = False
    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    clip: float = 0.05
    counts: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    weights_start: int = 0
    shown_start: int = 0
    shown_counts: tuple[float, ...] = ()
    shown_weights: tuple[float, ...] = ()
    levels: Levels = ()


# --- losses: (logits [B, C], targets float [B, C], *, settings) -> float32 [B] ------------------


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p of the label."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def focal(logits: jax.Array, targets: jax.Array, *, gamma: float = 2.0,
          alpha: float | Sequence[float] = 1.0) -> jax.Array:
    """-alpha (1 - p)^gamma log p of the label (Lin et al. 2017, arXiv 1708.02002), over a softmax.

    `alpha`, one number or one per class, is a plain factor, while the loss is divided by the sum of
    class weights.
    """
    logits = logits.astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits)
    # log(1 - p) from the other classes: for a confident prediction 1 - p is 0 in float32, where a
    # power below 1 has no gradient.
    log_others = _logsumexp_of_others(logits) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    of_class = jnp.asarray(alpha, jnp.float32) * jnp.exp(gamma * log_others) * log_probs
    return -jnp.sum(targets * of_class, axis=-1)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """One sigmoid per class, the label against all others: the mean over classes, as in timm.

    If the targets of an example add up to m, the target against class c is m - t_c; so weights may
    be multiplied in.
    """
    logits = logits.astype(jnp.float32)
    against = jnp.sum(targets, axis=-1, keepdims=True) - targets
    return jnp.mean(targets * jax.nn.softplus(-logits) + against * jax.nn.softplus(logits), axis=-1)


def balanced_softmax(logits: jax.Array, targets: jax.Array, *, counts: Counts
                     ) -> jax.Array:
    """Cross-entropy of logits + log counts (Ren et al. 2020, arXiv 2007.10740)."""
    return logit_adjustment(logits, targets, counts=counts, tau=1.0)


def logit_adjustment(logits: jax.Array, targets: jax.Array, *, counts: Counts,
                     tau: float = 1.0) -> jax.Array:
    """Cross-entropy of logits + tau log prior (Menon et al. 2020, arXiv 2007.07314)."""
    adjustment = jnp.asarray(tau * _log_prior(counts), jnp.float32)
    return softmax_cross_entropy(logits.astype(jnp.float32) + adjustment, targets)


def ldam(logits: jax.Array, targets: jax.Array, *, counts: Counts,
         scale: float = 30.0, max_margin: float = 0.5) -> jax.Array:
    """Cross-entropy of scale x logits, with a margin subtracted from the label's logit. Margins are
    in proportion to n_c^(-1/4); the rarest class has `max_margin` (Cao et al. 2019, arXiv
    1906.07413).

    The margins and the scale of the paper are meant for logits that are cosines of normalised
    features and weights. Here logits are those of the head: with a plain linear head use scale=1.
    """
    sizes = _filled(counts) ** -0.25
    margins = jnp.asarray(scale * max_margin * sizes / sizes.max(), jnp.float32)
    scaled = scale * logits.astype(jnp.float32)
    of_class = jax.nn.softplus(_logsumexp_of_others(scaled) - (scaled - margins))
    return jnp.sum(targets * of_class, axis=-1)


# name: (function, the fields of LossSpec that it takes)
LOSSES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    'cross_entropy': (softmax_cross_entropy, ()),
    'focal': (focal, ('gamma', 'alpha')),
    'binary_cross_entropy': (binary_cross_entropy, ()),
    'balanced_softmax': (balanced_softmax, ('counts',)),
    'logit_adjustment': (logit_adjustment, ('counts', 'tau')),
    'ldam': (ldam, ('counts', 'scale', 'max_margin')),
}


def adjust_logits(logits: np.ndarray, counts: Counts, tau: float = 1.0) -> np.ndarray:
    """Logits - tau log prior, [..., C], for a model that was trained without adjustment (Menon et
    al. 2020).

    A class without images counts like the rarest one that has any. Keeps the dtype.
    """
    logits = np.asarray(logits)
    return logits - (tau * _log_prior(counts)).astype(logits.dtype)


def _logsumexp_of_others(logits: jax.Array) -> jax.Array:
    """log sum_{j != c} exp(z_j) of each class c, [B, C].

    From the sum over all classes, except for the largest logit, where that would be a difference of
    nearly equal numbers.
    """
    index = jnp.arange(logits.shape[-1])
    largest = index == jnp.argmax(logits, axis=-1, keepdims=True)
    without = jnp.where(largest, -1e30, logits)  # not -inf, which has no gradient
    probs = jnp.where(largest, 0.0, jax.nn.softmax(logits))
    return jnp.where(largest, jax.nn.logsumexp(without, axis=-1, keepdims=True),
                     jax.nn.logsumexp(logits, axis=-1, keepdims=True) + jnp.log1p(-probs))


def _filled(counts: Counts) -> np.ndarray:
    """Counts, float64 [C]; a class without images counts like the rarest one that has any."""
    found = np.asarray(counts, np.float64)
    return np.where(found > 0, found, found[found > 0].min())


def _log_prior(counts: Counts) -> np.ndarray:
    filled = _filled(counts)
    return np.log(filled / filled.sum())


# --- the loss of a head -----------------------------------------------------------------------


def head_loss(spec: LossSpec, logits: jax.Array, targets, weights: jax.Array | None = None,
              step: jax.Array | None = None, divisor: jax.Array | None = None) -> jax.Array:
    """The mean loss of a batch, each label counting with its weights.

    It is sum(w l) / sum(w) over all labels of the batch; w is the weight of the example times that
    of the class times the share of the label. For plain labels this is torch's
    CrossEntropyLoss(weight, label_smoothing). Smoothing spreads a share of the target over all
    classes, each with its own weight, and does not change the divisor.

    Args:
        spec: of this head.
        logits: float [B, C].
        targets: int [B], -1 leaves the example out; or `Mixed`; or float [B, C], not negative: a
            row of zeros leaves the example out. Of a multi-label head float [B, C], 1 for each
            class that applies, a row of -1 leaves the example out; or `Mixed` of such.
        weights: of the examples, float [B]; with `Mixed` also [B, 2], of the two labels. None: 1.
        step: int [], for class weights that start later; None: they apply.
        divisor: float32 [], `total_weight` of the whole batch of which these examples are a part;
            then the losses of the parts add up to that of the batch. None: that of these examples.

    Returns:
        float32 []: 0 if nothing is labelled.
    """
    losses, weights = _weighted_losses(spec, logits, targets, weights, step)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(weights) if divisor is None else divisor, 1e-12)


def total_weight(spec: LossSpec, targets, weights: jax.Array | None = None,
                 step: jax.Array | None = None) -> jax.Array:
    """sum(w) over all labels of a batch, float32 []; arguments as in `head_loss`."""
    return jnp.sum(_weights_of_examples(spec, targets, weights, step))


def split_loss(spec: LossSpec, logits: np.ndarray, labels: np.ndarray, step: int | None = None
               ) -> float | None:
    """`head_loss` of a whole split, summed in float64 over blocks of rows; None without labels.

    Args:
        spec: of this head.
        logits: float [N, C].
        labels: int [N]; -1 leaves the row out. Of a multi-label head uint8 [N, C], see
            `LabelSets.targets`.
        step: as in `head_loss`.
    """
    if spec.multi_label:
        labels = float_targets(labels)
        labelled = labels[:, 0] >= 0
        logits, labels = logits[labelled], labels[labelled]
    elif (labels < 0).any():
        logits, labels = logits[labels >= 0], labels[labels >= 0]
    at = np.int32(max(spec.weights_start, spec.shown_start) if step is None else step)
    block = min(_BLOCK, len(labels))
    sums = np.zeros(2)
    for start in range(0, len(labels), block or 1):
        part, rows = labels[start:start + block], logits[start:start + block]
        missing = block - len(part)
        if missing:  # padded, so that one program serves all blocks
            rows = np.pad(rows, ((0, missing), (0, 0)))
            part = np.pad(part, ((0, missing), *[(0, 0)] * (part.ndim - 1)), constant_values=-1)
        found = _jitted_losses(spec, rows, part, None, at)
        sums += [np.asarray(each, np.float64).sum() for each in found]
    return float(sums[0] / sums[1]) if sums[1] else None


def weights_at(spec: LossSpec, step: jax.Array | None = None) -> jax.Array | None:
    """Class weights at a step, float32 [C]: 1 before their start; None where they are 1 always.

    With a late start and `balanced` or effective-number weights this is deferred re-weighting
    (Cao et al. 2019).
    """
    if not spec.class_weights:
        return None
    weights = jnp.array(spec.class_weights, jnp.float32)
    if spec.shown_weights:
        shown = jnp.array(spec.shown_weights, jnp.float32)
        weights = shown if step is None else jnp.where(step < spec.shown_start, weights, shown)
    if step is None or not spec.weights_start:
        return weights
    return jnp.where(step < spec.weights_start, 1.0, weights)


def _weighted_losses(spec, logits, targets, weights, step):
    """(weight x loss, weight) of each example, float32 [B] both."""
    if spec.multi_label:
        return weighted_losses(spec, logits, targets, weights, weights_at(spec, step))
    classes = logits.shape[-1]
    total = _weights_of_examples(spec, targets, weights, step)
    targets = _dense(targets, weights, classes)
    factors = weights_at(spec, step)
    factors = jnp.ones(classes, jnp.float32) if factors is None else factors
    smooth = spec.label_smoothing
    if smooth:
        mass = jnp.sum(targets, axis=-1, keepdims=True)
        targets = (1 - smooth) * targets + smooth / classes * mass
    function, settings = LOSSES[spec.name]
    given = {name: getattr(spec, name) for name in settings}
    found = function(logits, targets * factors, **given)
    if spec.shown_counts and 'counts' in settings:
        shown = function(logits, targets * factors, **given | dict(counts=spec.shown_counts))
        found = shown if step is None else jnp.where(step < spec.shown_start, found, shown)
    if spec.levels:
        found = leaf_weight(spec.levels) * found + inner_loss(spec.levels, logits,
                                                              targets * factors)
    return found, total


_jitted_losses = jax.jit(_weighted_losses, static_argnums=0)


def _weights_of_examples(spec, targets, weights, step) -> jax.Array:
    """The weight of all labels of each example, float32 [B], without the number of classes."""
    if spec.multi_label:
        return for_and_against(targets, weights)[2]
    factors = weights_at(spec, step)

    def of_label(labels):
        if labels.ndim == 2:
            return jnp.sum(labels if factors is None else labels * factors, axis=-1)
        counts = (labels >= 0).astype(jnp.float32)
        return counts if factors is None else counts * factors[labels]

    if isinstance(targets, Mixed):
        return sum(share * of_label(labels)
                   for share, labels in zip(_shares(targets, weights).T, targets[:2]))
    total = of_label(targets)
    return total if weights is None else total * weights


def _shares(targets: Mixed, weights: jax.Array | None) -> jax.Array:
    """The weight of each of the two labels, float32 [B, 2]."""
    shares = jnp.stack([targets.lam, 1 - targets.lam], axis=1).astype(jnp.float32)
    if weights is None:
        return shares
    return shares * (weights if weights.ndim == 2 else weights[:, None])


def _dense(targets, weights: jax.Array | None, classes: int) -> jax.Array:
    """Any targets as float32 [B, C], times the examples' weights."""
    def dense(labels):
        if labels.ndim == 1:
            return jax.nn.one_hot(labels, classes, dtype=jnp.float32)
        return labels.astype(jnp.float32)

    if isinstance(targets, Mixed):
        return sum(share[:, None] * dense(labels)
                   for share, labels in zip(_shares(targets, weights).T, targets[:2]))
    targets = dense(targets)
    return targets if weights is None else targets * weights[:, None]


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None,
                  label_smoothing: float = 0.0) -> jax.Array:
    """`head_loss` of plain cross-entropy.

    Args:
        logits: float [B, C].
        labels: int [B]; -1 leaves the example out.
        weights: float [B], or None for 1.
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al.
            2016, arXiv 1512.00567).

    Returns:
        float32 []: weighted mean over the labelled examples, 0 if there are none.
    """
    return head_loss(LossSpec(label_smoothing=label_smoothing), logits, labels, weights)
