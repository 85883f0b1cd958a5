"""Losses of one head: what a class costs as the label, and how examples are weighed.

Every loss is linear in its targets: with l_c the loss of an example whose label is c, and t_c the
target, it is sum_c t_c l_c. Label smoothing, mixed labels and class weights are then the same for
all of them. Computed in float32, in natural units.
"""

import dataclasses
import difflib
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train_lib.runtime.errors import ConfigError

_BLOCK = 4096  # rows that `split_loss` takes at a time


class Mixed(NamedTuple):
    """Targets of mixed examples: `lam` of the first label and 1 - `lam` of the second.

    labels_a, labels_b: int [B], -1 for none, which contributes nothing; lam: float [B] in 0..1.
    """

    labels_a: jax.Array
    labels_b: jax.Array
    lam: jax.Array


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """The loss of one head, as `make_loss` checks it; each loss takes the settings it knows.

    alpha: one number, or one a class. counts: training images of each class. class_weights: of
    the loss, () for 1. weights_start: the step from which class_weights hold.
    """

    name: str = 'cross_entropy'
    label_smoothing: float = 0.0
    gamma: float = 2.0
    alpha: float | tuple[float, ...] = 1.0
    tau: float = 1.0
    scale: float = 30.0
    max_margin: float = 0.5
    counts: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    weights_start: int = 0


# --- losses: (logits [B, C], targets float [B, C], *, settings) -> float32 [B] ------------------


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p of the label."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def focal(logits: jax.Array, targets: jax.Array, *, gamma: float = 2.0,
          alpha: float | Sequence[float] = 1.0) -> jax.Array:
    """-alpha (1 - p)^gamma log p of the label (Lin et al. 2017, arXiv 1708.02002), over a softmax.

    `alpha`, one number or one a class, is a plain factor; class weights divide by their sum.
    """
    logits = logits.astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits)
    # log(1 - p) from the other classes: 1 - p itself is 0 in float32 for a sure example, where
    # a power below 1 has no gradient.
    log_others = _logsumexp_of_others(logits) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    of_class = jnp.asarray(alpha, jnp.float32) * jnp.exp(gamma * log_others) * log_probs
    return -jnp.sum(targets * of_class, axis=-1)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """One sigmoid a class, the label against the rest: the mean over classes, as in timm.

    A target that adds up to m has m - t_c against class c; so weights may be multiplied in.
    """
    logits = logits.astype(jnp.float32)
    rest = jnp.sum(targets, axis=-1, keepdims=True) - targets
    return jnp.mean(targets * jax.nn.softplus(-logits) + rest * jax.nn.softplus(logits), axis=-1)


def balanced_softmax(logits: jax.Array, targets: jax.Array, *, counts: Sequence[float]
                     ) -> jax.Array:
    """Cross-entropy of logits + log counts (Ren et al. 2020, arXiv 2007.10740)."""
    return logit_adjustment(logits, targets, counts=counts, tau=1.0)


def logit_adjustment(logits: jax.Array, targets: jax.Array, *, counts: Sequence[float],
                     tau: float = 1.0) -> jax.Array:
    """Cross-entropy of logits + tau log prior (Menon et al. 2020, arXiv 2007.07314)."""
    adjustment = jnp.asarray(tau * _log_prior(counts), jnp.float32)
    return softmax_cross_entropy(logits.astype(jnp.float32) + adjustment, targets)


def ldam(logits: jax.Array, targets: jax.Array, *, counts: Sequence[float],
         scale: float = 30.0, max_margin: float = 0.5) -> jax.Array:
    """Cross-entropy with margins in proportion to n_c^(-1/4), the rarest class having
    `max_margin`, taken off the label's logit, times `scale` (Cao et al. 2019, arXiv 1906.07413).

    The margins and scale of the paper are meant for logits that are cosines of normalised
    features and weights. Here they are the head's own: with a plain linear head take scale=1.
    """
    margins = _filled(counts) ** -0.25
    margins = jnp.asarray(scale * max_margin * margins / margins.max(), jnp.float32)
    scaled = scale * logits.astype(jnp.float32)
    of_class = jax.nn.softplus(_logsumexp_of_others(scaled) - (scaled - margins))
    return jnp.sum(targets * of_class, axis=-1)


# name: (function, the settings of LossSpec that it takes)
LOSSES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    'cross_entropy': (softmax_cross_entropy, ()),
    'focal': (focal, ('gamma', 'alpha')),
    'binary_cross_entropy': (binary_cross_entropy, ()),
    'balanced_softmax': (balanced_softmax, ('counts',)),
    'logit_adjustment': (logit_adjustment, ('counts', 'tau')),
    'ldam': (ldam, ('counts', 'scale', 'max_margin')),
}


def adjust_logits(logits: np.ndarray, counts: Sequence[float], tau: float = 1.0) -> np.ndarray:
    """Logits - tau log prior, [..., C], of a model that was trained without (Menon et al. 2020).

    Classes without images count as the rarest that has any. Keeps the dtype.
    """
    logits = np.asarray(logits)
    return logits - (tau * _log_prior(counts)).astype(logits.dtype)


def _logsumexp_of_others(logits: jax.Array) -> jax.Array:
    """log sum_{j != c} exp(z_j) of each class c, [B, C].

    From the whole sum, but for the largest logit, where that would be a difference of equals.
    """
    index = jnp.arange(logits.shape[-1])
    largest = index == jnp.argmax(logits, axis=-1, keepdims=True)
    without = jnp.where(largest, -1e30, logits)  # not -inf, which has no gradient
    probs = jnp.where(largest, 0.0, jax.nn.softmax(logits))
    return jnp.where(largest, jax.nn.logsumexp(without, axis=-1, keepdims=True),
                     jax.nn.logsumexp(logits, axis=-1, keepdims=True) + jnp.log1p(-probs))


def _filled(counts: Sequence[float]) -> np.ndarray:
    """Counts, float64 [C]; a class without images counts as the rarest that has any."""
    counts = np.asarray(counts, np.float64)
    return np.where(counts > 0, counts, counts[counts > 0].min())


def _log_prior(counts: Sequence[float]) -> np.ndarray:
    counts = _filled(counts)
    return np.log(counts / counts.sum())


# --- the loss of a head -----------------------------------------------------------------------


def head_loss(spec: LossSpec, logits: jax.Array, targets, weights: jax.Array | None = None,
              step: jax.Array | None = None, divisor: jax.Array | None = None) -> jax.Array:
    """The mean loss of a batch, each label counting with its weights.

    It is sum(w l) / sum(w) over all labels of the batch, w being the example's weight times the
    class's times the share of the label; torch's CrossEntropyLoss(weight, label_smoothing) for
    plain labels. Smoothing spreads a share of the target over all classes, each with its own
    weight, and doesn't change the divisor.

    Args:
        spec: of this head.
        logits: float [B, C].
        targets: int [B], -1 leaves the example out; or `Mixed`; or float [B, C], not negative,
            a row of zeros leaving the example out.
        weights: of the examples, float [B]; with `Mixed` also [B, 2], of the two labels. None: 1.
        step: int [], for class weights that start later; None for after their start.
        divisor: float32 [], sum(w) of the batch that these examples are a part of, by
            `total_weight`; the losses of the parts add up to that of the batch. None: their own.

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
    """`head_loss` of a whole split, added up in float64 over blocks of rows; None without labels.

    Args:
        spec: of this head.
        logits: float [N, C].
        labels: int [N]; -1 leaves the row out.
        step: as in `head_loss`.
    """
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    step = np.int32(spec.weights_start if step is None else step)
    block = min(_BLOCK, len(labels))
    sums = np.zeros(2)
    for start in range(0, len(labels), block or 1):
        part = labels[start:start + block]
        missing = block - len(part)  # filled up, so that one program serves all blocks
        found = _jitted_losses(spec, np.pad(logits[start:start + block], ((0, missing), (0, 0))),
                               np.pad(part, (0, missing), constant_values=-1), None, step)
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
    if step is None or not spec.weights_start:
        return weights
    return jnp.where(step < spec.weights_start, 1.0, weights)


def _weighted_losses(spec, logits, targets, weights, step):
    """(weight x loss, weight) of each example, float32 [B] both."""
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
    return function(logits, targets * factors,
                    **{name: getattr(spec, name) for name in settings}), total


_jitted_losses = jax.jit(_weighted_losses, static_argnums=0)


def _weights_of_examples(spec, targets, weights, step) -> jax.Array:
    """The weight of all labels of each example, float32 [B]; no need to know how many classes."""
    factors = weights_at(spec, step)

    def of_label(labels):
        counts = (labels >= 0).astype(jnp.float32)
        return counts if factors is None else counts * factors[labels]

    if isinstance(targets, Mixed):
        return sum(share * of_label(labels)
                   for share, labels in zip(_shares(targets, weights).T, targets[:2]))
    if targets.ndim == 1:
        total = of_label(targets)
    else:
        total = jnp.sum(targets if factors is None else targets * factors, axis=-1)
    return total if weights is None else total * weights


def _shares(targets: Mixed, weights: jax.Array | None) -> jax.Array:
    """What each of both labels counts, float32 [B, 2]."""
    shares = jnp.stack([targets.lam, 1 - targets.lam], axis=1).astype(jnp.float32)
    if weights is None:
        return shares
    return shares * (weights if weights.ndim == 2 else weights[:, None])


def _dense(targets, weights: jax.Array | None, classes: int) -> jax.Array:
    """Any targets as float32 [B, C], times the examples' weights."""
    if isinstance(targets, Mixed):
        return sum(share[:, None] * jax.nn.one_hot(labels, classes, dtype=jnp.float32)
                   for share, labels in zip(_shares(targets, weights).T, targets[:2]))
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, classes, dtype=jnp.float32)
    targets = targets.astype(jnp.float32)
    return targets if weights is None else targets * weights[:, None]


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None,
                  label_smoothing: float = 0.0) -> jax.Array:
    """`head_loss` of plain cross-entropy.

    Args:
        logits: float [B, C].
        labels: int [B]; -1 leaves the example out.
        weights: float [B], or None for 1.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al.
            2016, arXiv 1512.00567).

    Returns:
        float32 []: weighted mean over the labelled examples, 0 if there is none.
    """
    return head_loss(LossSpec(label_smoothing=label_smoothing), logits, labels, weights)


# --- from the config --------------------------------------------------------------------------

_RANGES = {'label_smoothing': (0, 1), 'gamma': (0, np.inf), 'tau': (0, np.inf),
           'scale': (0, np.inf), 'max_margin': (0, np.inf)}
_OTHERS = ('name', 'alpha', 'head_weights', 'class_weights')


def make_loss(config: Mapping, counts: Mapping[str, Sequence[float]],
              class_weights: Mapping[str, Sequence[float]] | None = None,
              weights_start: int = 0) -> dict[str, LossSpec]:
    """The loss of each head.

    Args:
        config: config.loss: name, label_smoothing, gamma, alpha, tau, scale, max_margin; missing
            ones have the defaults of `LossSpec`. alpha is a number, one a class, or either by
            head; () for 1. head_weights and class_weights are read by others.
        counts: {head: training images of each class [C]}.
        class_weights: {head: [C]}; a head without has 1.
        weights_start: the step from which they hold.

    Raises:
        ConfigError: an unknown name or key, a value outside its range, an alpha or class weights
            of another length than the classes, or no images for a loss that needs their numbers.
    """
    known = (*_RANGES, *_OTHERS)
    for key in config:
        if key not in known:
            raise ConfigError(f'config.loss.{key} is unknown: {_hint(key, known)}')
    name = config.get('name', 'cross_entropy')
    if name not in LOSSES:
        raise ConfigError(f'config.loss.name = {name!r} is unknown: {_hint(name, LOSSES)}')
    numbers_of = {key: _number(config[key], f'config.loss.{key}', *_RANGES[key])
                  for key in _RANGES if key in config}
    if numbers_of.get('label_smoothing') == 1:
        raise ConfigError('config.loss.label_smoothing = 1 leaves nothing of the label: '
                          'give less than 1, e.g. 0.1.')
    if numbers_of.get('scale') == 0:
        raise ConfigError('config.loss.scale = 0 leaves nothing of the logits: '
                          'give more, e.g. 1 for a linear head, 30 for cosines.')
    alphas = config.get('alpha', ())
    if isinstance(alphas, Mapping):
        for head in alphas:
            if head not in counts:
                raise ConfigError(f'config.loss.alpha names the head {head!r}, which does not '
                                  f'exist: {_hint(head, counts)}')
    specs = {}
    for head, of_head in counts.items():
        if 'counts' in LOSSES[name][1] and not np.sum(of_head):
            raise ConfigError(f'config.loss.name = {name!r} needs labelled training images of the '
                              f'head {head!r}, and there are none: use cross_entropy.')
        alpha = alphas.get(head, ()) if isinstance(alphas, Mapping) else alphas
        specs[head] = LossSpec(
            name=name, **numbers_of, alpha=_alpha(alpha, head, len(of_head)),
            counts=tuple(float(count) for count in of_head), weights_start=int(weights_start),
            class_weights=_of_classes((class_weights or {}).get(head, ()), len(of_head),
                                      f'The class weights of the head {head!r}'))
    return specs


def _alpha(alpha, head: str, classes: int) -> float | tuple[float, ...]:
    if isinstance(alpha, numbers.Real):
        return _number(alpha, 'config.loss.alpha', 0, np.inf)
    if isinstance(alpha, str) or not isinstance(alpha, Sequence | np.ndarray):
        raise ConfigError(f'config.loss.alpha = {alpha!r} is neither a number nor numbers: '
                          f'give one, or one a class.')
    return _of_classes(alpha, classes, f'config.loss.alpha of the head {head!r}') or 1.0


def _of_classes(values: Sequence[float], classes: int, what: str) -> tuple[float, ...]:
    """Numbers that are not negative, one a class, or ()."""
    values = tuple(_number(value, what, 0, np.inf) for value in values)
    if values and (len(values) != classes or not any(values)):
        wrong = (f'has {len(values)} numbers for {classes} classes: give one a class'
                 if len(values) != classes else 'is 0 for every class: give some class more')
        raise ConfigError(f'{what} {wrong}.')
    return values


def _number(value, what: str, low: float, high: float) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real) or not (
            np.isfinite(value) and low <= value <= high):
        wanted = f'from {low} to {high}' if np.isfinite(high) else f'of {low} or more'
        raise ConfigError(f'{what} = {value!r}: give a number {wanted}.')
    return float(value)


def _hint(word: object, known) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f'did you mean {near[0]!r}?' if near else f'use one of {", ".join(known)}.'
