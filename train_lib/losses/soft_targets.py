"""Targets of a batch that are more than its labels: soft pseudo-labels, and what a teacher says.

A teacher adds a term to the loss of a head (Hinton et al. 2015, arXiv 1503.02531). With p the
teacher's probabilities at the temperature T, z the logits and w the weight, an example has

    (1 - w) loss(z, label) + w T^2 cross_entropy(z / T, p)

and one of which the teacher says nothing has loss(z, label). Both terms are linear in the targets,
so mixing, weights and accumulation work as they do for labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from train_lib.losses.losses import LossSpec, head_loss, total_weight


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How much a teacher counts.

    Attributes:
        weight: w, from 0 to 1.
        temperature: T, above 0; batches hold the teacher's probabilities at T.
    """

    weight: float
    temperature: float


def batch_targets(batch: Mapping[str, jax.Array], heads: Sequence[str],
                  distillation: Distillation | None) -> dict[str, Any]:
    """What `mixing.mix` mixes and `losses.head_loss` and `taught_loss` take.

    Args:
        batch: 'label/<head>' int [B], perhaps 'target/<head>' and 'teacher/<head>' float [B, C],
            rows of zeros where there is none.
        heads: their names.
        distillation: needed with a teacher.

    Returns:
        {head: int [B] or float [B, C]}. With a teacher also 'teacher/<head>' float [B, C], its part
        of the target; 'label/<head>', the target as it was; 'any/<head>' float [B, 1], 1 for what
        has a label or a teacher.
    """
    found: dict[str, Any] = {}
    for head in heads:
        labels = batch[f'label/{head}']
        soft, taught = (batch.get(f'{kind}/{head}') for kind in ('target', 'teacher'))
        found[head] = labels
        if soft is not None:
            found[head] = jnp.where(_any(soft), soft, _one_hot(labels, soft))
        if taught is None or distillation is None:
            continue
        own = found[head] if soft is not None else _one_hot(labels, taught)
        known = _any(taught)
        weight = distillation.weight
        found[f'label/{head}'] = found[head]
        found[head] = own * jnp.where(known, 1 - weight, 1.0)
        found[f'teacher/{head}'] = taught * weight
        found[f'any/{head}'] = (known | _any(own)).astype(jnp.float32)
    return found


def _any(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=-1, keepdims=True) > 0


def _one_hot(labels: jax.Array, like: jax.Array) -> jax.Array:
    return jax.nn.one_hot(labels, like.shape[-1], dtype=jnp.float32)


def divisors_of(losses: Mapping[str, LossSpec], targets: Mapping[str, Any],
                weights: jax.Array | None, step: jax.Array | None) -> dict[str, jax.Array]:
    """What the losses of a whole batch are divided by, by head, and for a teacher by
    'teacher/<head>'; float32 [].

    Args:
        losses: by head.
        targets, weights: of `batch_targets`, mixed or not, and of the examples.
        step: int [].
    """
    found = {}
    for head, spec in losses.items():
        # Without the part that the teacher takes over, a label would count more.
        found[head] = total_weight(spec, targets.get(f'label/{head}', targets[head]), weights, step)
        if f'any/{head}' in targets:
            found[f'teacher/{head}'] = total_weight(LossSpec(), targets[f'any/{head}'], weights)
    return found


def taught_loss(head: str, spec: LossSpec, distillation: Distillation, logits: jax.Array,
                targets: Mapping[str, Any], weights: jax.Array | None, step: jax.Array,
                divisors: Mapping[str, jax.Array]) -> jax.Array:
    """The loss of one head that has a teacher, on a batch or on a part of it; float32 [].

    Args:
        head, spec: its name and its loss.
        distillation: of the run.
        logits: float [B, C].
        targets, weights: as in `divisors_of`.
        step: int [].
        divisors: of `divisors_of` of the whole batch; {} if this is the whole.
    """
    divisors = divisors or divisors_of({head: spec}, targets, weights, step)
    heat = distillation.temperature
    own = head_loss(spec, logits, targets[head], weights, step, divisors[head])
    return own + heat ** 2 * head_loss(LossSpec(), logits.astype(jnp.float32) / heat,
                                       targets[f'teacher/{head}'], weights, None,
                                       divisors[f'teacher/{head}'])
