"""Losses of pictures without labels: what a model says of one view is the target of another one.

    fixmatch      Sohn et al. 2020, arXiv 2001.07685: where the weak view gets an answer of at least
                  `threshold`, that class is the label of the strong view
    mean_teacher  Tarvainen and Valpola 2017, arXiv 1703.01780: the probabilities that the moving
                  average of the weights gives the weak view are the target of the strong one

Both are means over all unlabelled pictures of a batch; a picture below the threshold contributes 0.
They are computed in float32, in nats where logarithms occur.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from train_lib.runtime.config_section import read_section
from train_lib.runtime.errors import ConfigError

FIXMATCH, MEAN_TEACHER = 'fixmatch', 'mean_teacher'
KINDS = ('none', FIXMATCH, MEAN_TEACHER)
DISTANCES = ('mse', 'kl')
_SURE = 0.95  # the threshold of FixMatch in its paper


@dataclasses.dataclass(frozen=True)
class UnlabelledSpec:
    """config.unlabelled as it stands there; see the comments in configs/."""

    kind: str
    source: str
    folder: str
    csv: str
    images: str
    batch_size: int | None
    weight: float
    start: Mapping
    ramp: Mapping
    threshold: float | None
    distance: str
    weak: Any
    strong: Any
    transductive: bool


def read_unlabelled(section: Mapping) -> UnlabelledSpec:
    """config.unlabelled, as a dict, with the kind checked.

    Raises:
        ConfigError: an unknown key or kind.
    """
    spec = read_section(UnlabelledSpec, section, 'unlabelled')
    _choose('kind', spec.kind, KINDS)
    return spec


@dataclasses.dataclass(frozen=True)
class Consistency:
    """The loss of unlabelled pictures.

    Attributes:
        kind: FIXMATCH or MEAN_TEACHER.
        weight: of the loss, 0 or more.
        start, ramp: steps: it is 0 before `start` and grows as exp(-5 (1 - t)^2) from there, t
            rising from 0 to 1 over `ramp` steps.
        threshold: the least probability of an answer that is a target, 0 to below 1.
        distance: of MEAN_TEACHER, one of DISTANCES.
    """

    kind: str
    weight: float = 1.0
    start: int = 0
    ramp: int = 0
    threshold: float = _SURE
    distance: str = 'mse'

    def strength(self, step: jax.Array) -> jax.Array:
        """The weight at a step, float32 []."""
        t = jnp.clip((step - self.start) / max(self.ramp, 1), 0.0, 1.0) if self.ramp else 1.0
        grown = self.weight * jnp.exp(-5.0 * (1.0 - jnp.float32(t)) ** 2)
        return jnp.where(step < self.start, 0.0, grown)

    def losses(self, target: jax.Array, strong: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(loss, whether the target is sure enough) of each picture: float32 [U], bool [U].

        Args:
            target: logits of the weak view, float [U, C]; no gradient goes through them.
            strong: logits of the strong view, float [U, C].
        """
        target = jax.lax.stop_gradient(target.astype(jnp.float32))
        strong = strong.astype(jnp.float32)
        wanted = jax.nn.softmax(target)
        sure = jnp.max(wanted, axis=-1) >= self.threshold
        if self.kind == FIXMATCH:
            found = -jnp.take_along_axis(jax.nn.log_softmax(strong),
                                         jnp.argmax(target, axis=-1)[:, None], axis=-1)[:, 0]
        elif self.distance == 'mse':
            found = jnp.sum((wanted - jax.nn.softmax(strong)) ** 2, axis=-1)
        else:
            found = jnp.sum(wanted * (jax.nn.log_softmax(target) - jax.nn.log_softmax(strong)),
                            axis=-1)
        return jnp.where(sure, found, 0.0), sure


def make_consistency(spec: UnlabelledSpec, to_steps: Callable[[Mapping, str], int]
                     ) -> Consistency | None:
    """The loss that config.unlabelled asks for; None for none.

    Args:
        spec: of the run.
        to_steps: (duration, config key) -> steps.

    Raises:
        ConfigError: a value out of its range.
    """
    if spec.kind == 'none':
        return None
    _choose('distance', spec.distance, DISTANCES)
    threshold = spec.threshold
    if threshold is None:
        threshold = _SURE if spec.kind == FIXMATCH else 0.0
    for key, value, below in (('weight', spec.weight, float('inf')), ('threshold', threshold, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < below:
            wanted = '0 or more' if below > 1 else 'from 0 to below 1'
            raise ConfigError(f'config.unlabelled.{key} = {value!r}: give a number, {wanted}.')
    return Consistency(spec.kind, float(spec.weight), to_steps(spec.start, 'unlabelled.start'),
                       to_steps(spec.ramp, 'unlabelled.ramp'), float(threshold), spec.distance)


def _choose(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f'config.unlabelled.{key} = {value!r}: choose one of '
                          f'{", ".join(allowed)}.')
