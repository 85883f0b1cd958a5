"""Optimizers from optax, without their learning rate: the step multiplies it in."""

import functools
from collections.abc import Callable, Mapping

import jax
import optax
import optax.contrib

from train_lib.errors import ConfigError
from train_lib.finetuning import scale_updates


def _adamw(config):
    return optax.scale_by_adam(config['b1'], config['b2'], config['eps'])


def _sgd(config):
    return optax.trace(config['momentum'], config['nesterov'])


def _muon(config):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): the momentum of each
    matrix made orthogonal, convolutions as matrices too; Adam for the rest and the heads.

    Updates are scaled to Adam's root mean square (Liu et al., arXiv 2502.16982), so that
    learning rates and weight decay carry over from AdamW.
    """
    return optax.contrib.muon(  # it would subtract: a rate of -1 gives the direction itself
        learning_rate=-1.0, beta=config['momentum'], nesterov=config['nesterov'],
        adam_b1=config['b1'], adam_b2=config['b2'], adam_learning_rate=-1.0,
        consistent_rms=0.2, muon_weight_dimension_numbers=functools.partial(
            _matrices, stacked=config['stacked']))


def _matrices(params, stacked: bool):
    def dimensions(path, leaf):
        names = [str(getattr(part, 'key', part)) for part in path]
        if names[-1] != 'kernel' or leaf.ndim < 2 or names[0] in ('head', 'heads'):
            return None
        first = int(stacked and names[0] == 'blocks')
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)),
                                                  (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)


# name: optimizer config -> the transformation that comes between clipping and weight decay
OPTIMIZERS: dict[str, Callable] = {
    'adamw': _adamw,
    'sgd': _sgd,
    'muon': _muon,
}


DECAYS = ('decoupled', 'coupled')


def decay_mask(params):
    """1 where weight decay applies: kernels; 0 for norms, biases, tokens and embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: float(getattr(path[-1], 'key', None) == 'kernel' and leaf.ndim > 1),
        params)


def _decay(rate: float, factors) -> optax.GradientTransformation:
    """Adds rate x factor x parameter to the update: decoupled weight decay (Loshchilov and
    Hutter, arXiv 1711.05101), as the step multiplies all by the learning rate."""
    def update(updates, params):
        tree = decay_mask(params) if factors is None else factors
        return scale_updates(lambda change, param, factor: change + rate * factor * param,
                             updates, params, tree)

    return optax.stateless(update)


def make_optimizer(config: Mapping, decay=None, stacked: bool = False
                   ) -> optax.GradientTransformation:
    """Clipping, then the optimizer, then decoupled weight decay; or, coupled, weight decay as
    an L2 term in the gradient, before all else, as torch's SGD and Adam have it.

    The update has the direction of the gradient; a step subtracts learning rate x update.

    Args:
        config: config.optimizer.
        decay: factors of the weight decay, a tree like the parameters; None for `decay_mask`.
        stacked: the blocks lie on a leading axis (a model with scan=True), which is no axis of
            a matrix.

    Raises:
        ConfigError: an unknown name or kind of decay.
    """
    if config['name'] not in OPTIMIZERS:
        raise ConfigError(f'config.optimizer.name = {config["name"]!r}: '
                          f'choose one of {", ".join(OPTIMIZERS)}.')
    parts = [OPTIMIZERS[config['name']]({**config, 'stacked': stacked})]
    if config['clip_norm']:
        parts.insert(0, optax.clip_by_global_norm(config['clip_norm']))
    if config['decay'] not in DECAYS:
        raise ConfigError(f'config.optimizer.decay = {config["decay"]!r}: '
                          f'choose one of {", ".join(DECAYS)}.')
    if config['weight_decay']:
        place = 0 if config['decay'] == 'coupled' else len(parts)
        parts.insert(place, _decay(config['weight_decay'], decay))
    return optax.chain(*parts)
