"""Optimizers from optax, without their learning rate: the step multiplies it in."""

from collections.abc import Callable, Mapping

import jax
import optax

from train_lib.errors import ConfigError


def _adamw(config):
    return optax.scale_by_adam(config['b1'], config['b2'], config['eps'])


def _sgd(config):
    return optax.trace(config['momentum'], config['nesterov'])


# name: optimizer config -> the transformation that comes between clipping and weight decay
OPTIMIZERS: dict[str, Callable] = {
    'adamw': _adamw,
    'sgd': _sgd,
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
