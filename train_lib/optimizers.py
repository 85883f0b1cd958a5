"""Optimizers from optax, without their learning rate: the step multiplies it in."""

from collections.abc import Callable, Mapping

import jax
import optax
import optax.contrib

from train_lib.errors import ConfigError


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
        consistent_rms=0.2, muon_weight_dimension_numbers=_matrices)


def _matrices(params):
    def dimensions(path, leaf):
        names = [str(getattr(part, 'key', part)) for part in path]
        if names[-1] != 'kernel' or leaf.ndim < 2 or names[0] in ('head', 'heads'):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)


# name: optimizer config -> the transformation that comes between clipping and weight decay
OPTIMIZERS: dict[str, Callable] = {
    'adamw': _adamw,
    'sgd': _sgd,
    'muon': _muon,
}


def decay_mask(params):
    """True where weight decay applies: kernels; not norms, biases, tokens and embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: getattr(path[-1], 'key', None) == 'kernel' and leaf.ndim > 1, params)


def make_optimizer(config: Mapping) -> optax.GradientTransformation:
    """Clipping, then the optimizer, then decoupled weight decay.

    The update has the direction of the gradient; a step subtracts learning rate x update.

    Raises:
        ConfigError: an unknown name.
    """
    if config['name'] not in OPTIMIZERS:
        raise ConfigError(f'config.optimizer.name = {config["name"]!r}: '
                          f'choose one of {", ".join(OPTIMIZERS)}.')
    parts = [OPTIMIZERS[config['name']](config)]
    if config['clip_norm']:
        parts.insert(0, optax.clip_by_global_norm(config['clip_norm']))
    if config['weight_decay']:
        parts.append(optax.add_decayed_weights(config['weight_decay'], mask=decay_mask))
    return optax.chain(*parts)
