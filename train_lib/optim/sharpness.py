"""Sharpness-aware minimisation: the gradient of a step is taken where its batch's loss is high.

SAM (Foret et al., arXiv 2010.01412) moves the weights by rho along the gradient, whose norm over
all weights that train is 1 there, and takes the gradient again. ASAM (Kwon et al., arXiv
2102.11600) measures that distance in units of the weights, so that scaling a layer up and the next
one down changes nothing. The second gradient is that of the same batch, mixed in the same way and
with the same dropout; the loss, the hits and BatchNorm's running statistics are those of the first.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from input_pipeline.errors import did_you_mean
from train_lib.runtime.errors import ConfigError

Tree = Any  # a nested dict of arrays
KINDS = ('none', 'sam', 'asam')
ETA = 0.01  # of ASAM, added to each weight's size, as in the paper


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """config.sharpness of a run that has it.

    Attributes:
        kind: 'sam' | 'asam'.
        rho: length of the move, above 0.
        start: the first step, counted from 0, that takes a second gradient.
        every: one step in so many takes it, from `start` on.
    """

    kind: str
    rho: float
    start: int = 0
    every: int = 1

    @property
    def always(self) -> bool:
        """Whether every step of the run takes the second gradient."""
        return self.start == 0 and self.every == 1

    def is_due(self, step: int) -> bool:
        """Whether a step takes it."""
        return step >= self.start and (step - self.start) % self.every == 0


def read_sharpness(config: Mapping[str, Any], to_steps: Callable[[Mapping, str], int]
                   ) -> Sharpness | None:
    """Reads and checks config.sharpness; None for kind='none'.

    Args:
        config: the section.
        to_steps: (duration, config key) -> steps.

    Raises:
        ConfigError: an unknown kind, or a number out of its range.
    """
    kind, rho, every = config['kind'], config['rho'], config['every']
    if kind not in KINDS:
        raise ConfigError(f'config.sharpness.kind = {kind!r}: '
                          f'{did_you_mean(kind, KINDS, n=3, show=str)}')
    if not 0 < rho < math.inf:
        raise ConfigError(f'config.sharpness.rho = {rho}: give a number above 0, such as 0.05 for '
                          f'sam or 0.5 for asam.')
    if every < 1:
        raise ConfigError(f'config.sharpness.every = {every}: give a number of steps, 1 or more.')
    start = to_steps(config['start'], 'sharpness.start')
    return None if kind == 'none' else Sharpness(kind, rho, start, every)


def ascended(spec: Sharpness, params: Tree, gradient: Tree) -> Tree:
    """The weights at which the second gradient is taken.

    Args:
        spec: see `Sharpness`.
        params, gradient: nested dicts of equal float arrays.

    Returns:
        params + rho g / |g|, or for 'asam' params + rho T^2 g / |T g| with T = |params| + 0.01;
        T = 1 for biases, as in the authors' code.
    """
    if spec.kind == 'asam':
        scales = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (jnp.ones_like(leaf) if getattr(path[-1], 'key', None) == 'bias'
                                else jnp.abs(leaf) + ETA), params)
        gradient = jax.tree.map(jnp.multiply, scales, gradient)
    length = spec.rho / (optax.tree.norm(gradient) + 1e-12)
    if spec.kind == 'asam':
        gradient = jax.tree.map(jnp.multiply, scales, gradient)
    return jax.tree.map(lambda param, slope: (param + length * slope).astype(param.dtype),
                        params, gradient)
