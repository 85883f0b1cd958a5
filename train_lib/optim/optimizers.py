"""Optimizers from optax, without their learning rate: the step multiplies it in."""

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from train_lib.optim.param_groups import scale_updates
from train_lib.runtime.errors import ConfigError


def _unbias(decay: float, count):
    """1 - decay^count, which float32 would give to 1e-5 only for a decay near 1."""
    return -jnp.expm1(count * (math.log(decay) if decay else -math.inf))


def _moments(config, state, gradients):
    def mean(decay, old, new):
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)

    return (mean(config['b1'], state.mu, gradients),
            mean(config['b2'], state.nu, jax.tree.map(jnp.square, gradients)))


def _direction(config, count, mu, nu, gradients, past, present):
    """(past x mu + present x gradient) / (root of the unbiased nu + eps)."""
    unbias = _unbias(config['b2'], count)
    return jax.tree.map(
        lambda m, v, g: (past * m + present * g) / (jnp.sqrt(v / unbias) + config['eps']),
        mu, nu, gradients)


def _adam(config, nesterov=False):
    """Kingma and Ba, arXiv 1412.6980; weight decay makes it AdamW or Adam with L2."""
    b1 = config['b1']

    def update(gradients, state, params=None):
        count = state.count + 1
        mu, nu = _moments(config, state, gradients)
        past, present = 1 / _unbias(b1, count), 0.0
        if nesterov:
            past, present = b1 / _unbias(b1, count + 1), (1 - b1) / _unbias(b1, count)
        return (_direction(config, count, mu, nu, gradients, past, present),
                optax.ScaleByAdamState(count, mu, nu))

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _nadam(config):
    """Adam looking ahead (Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""
    scheduled = config['momentum_decay'] is not None
    return _scheduled_nadam(config) if scheduled else _adam(config, nesterov=True)


class _NadamState(NamedTuple):
    count: jax.Array  # int32 []
    product: jax.Array  # float32 [], of the momenta so far
    mu: dict
    nu: dict


def _scheduled_nadam(config):
    """Dozat's momentum that grows from about b1 / 2 to b1, b1 (1 - 0.96^(decay t) / 2) at step t
    from 1, as torch.optim.NAdam has it."""
    rate = config['momentum_decay'] * math.log(0.96)

    def momentum(step):
        return config['b1'] * (1 - 0.5 * jnp.exp(step * rate))

    def init(params):
        count, mu, nu = optax.scale_by_adam().init(params)
        return _NadamState(count, jnp.ones((), jnp.float32), mu, nu)

    def update(gradients, state, params=None):
        count = state.count + 1
        now, following = momentum(count), momentum(count + 1)
        product = state.product * now
        mu, nu = _moments(config, state, gradients)
        past, present = following / (1 - product * following), (1 - now) / (1 - product)
        return (_direction(config, count, mu, nu, gradients, past, present),
                _NadamState(count, product, mu, nu))

    return optax.GradientTransformation(init, update)


def _rmsprop(config):
    """Tieleman and Hinton 2012, as torch has it: eps outside the root, the mean from 0, and the
    momentum after the division."""
    scale = optax.scale_by_rms(config['alpha'], config['eps'], eps_in_sqrt=False)
    return optax.chain(scale, optax.trace(config['momentum'])) if config['momentum'] else scale


def _lion(config):
    """Chen et al., arXiv 2302.06675: the sign of an interpolated momentum."""
    return optax.scale_by_lion(config['b1'], config['b2'])


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
    'sgd': _sgd,
    'rmsprop': _rmsprop,
    'adam': _adam,
    'nadam': _nadam,
    'adamw': _adam,
    'nadamw': _nadam,
    'lamb': _adam,  # and trust ratios after the weight decay
    'lion': _lion,
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


def _by_tensor(fn: Callable, stacked: bool) -> optax.GradientTransformation:
    """fn(name of the module at the top, kernel?, update, parameter) -> update, of each tensor;
    in a stack of blocks, of each layer by itself."""
    def update(updates, params):
        def apply(path, change, param):
            module, name = str(path[0].key), getattr(path[-1], 'key', None)
            one = functools.partial(fn, module, name == 'kernel' and param.ndim > 1)
            return (jax.vmap(one) if stacked and module == 'blocks' else one)(change, param)

        return jax.tree_util.tree_map_with_path(apply, updates, params)

    return optax.stateless(update)


def _adaptive_clip(limit: float, stacked: bool) -> optax.GradientTransformation:
    """Adaptive gradient clipping (Brock et al., arXiv 2102.06171): the gradient's norm at most
    `limit` x the parameter's, per output unit of a kernel; heads are left alone, as there."""
    def clip(module, kernel, change, param):
        if module in ('head', 'heads'):
            return change
        tx = optax.adaptive_grad_clip(limit, axis=tuple(range(param.ndim - kernel)))
        return tx.update(change, tx.init(param), param)[0]

    return _by_tensor(clip, stacked)


def _trust_ratios(stacked: bool) -> optax.GradientTransformation:
    """LAMB's (You et al., arXiv 1904.00962): a kernel's update gets the norm of the kernel; as in
    the authors' code, norms and biases are left as they are."""
    tx = optax.scale_by_trust_ratio()

    def scale(module, kernel, change, param):
        return tx.update(change, tx.init(param), param)[0] if kernel else change

    return _by_tensor(scale, stacked)


def _check(config: Mapping) -> None:
    name, decay = config['name'], config['decay']
    for key, value, known in (('name', name, OPTIMIZERS), ('decay', decay, DECAYS)):
        if value not in known:
            near = difflib.get_close_matches(value, known, n=3)
            hint = (f'did you mean {" or ".join(near)}?' if near else
                    f'choose one of {", ".join(known)}.')
            raise ConfigError(f'config.optimizer.{key} = {value!r}: {hint}')
    if decay == 'coupled' and config['weight_decay'] and name in ('adamw', 'nadamw'):
        raise ConfigError(f"config.optimizer.decay = 'coupled' contradicts {name}: write "
                          f"'decoupled', or config.optimizer.name={name[:-1]}.")
    for key in ('clip_norm', 'clip_value', 'clip_adaptive', 'weight_decay', 'eps', 'momentum'):
        if not 0 <= config[key] < float('inf'):
            raise ConfigError(f'config.optimizer.{key} = {config[key]}: give a number >= 0.')
    for key in ('b1', 'b2', 'alpha'):
        if not 0 <= config[key] < 1:
            raise ConfigError(f'config.optimizer.{key} = {config[key]}: give a number from 0 up '
                              f'to, but not, 1.')
    rate = config['momentum_decay']
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1e3:
        raise ConfigError(f'config.optimizer.momentum_decay = {rate!r}: give a number >= 0, such '
                          f'as 0.004, or None.')
    if name not in ('nadam', 'nadamw'):
        raise ConfigError(f'config.optimizer.momentum_decay = {rate}, which {name} has not: '
                          f'write None, or choose nadam or nadamw.')


def make_optimizer(config: Mapping, decay=None, stacked: bool = False
                   ) -> optax.GradientTransformation:
    """Clipping (adaptive, by value, by norm), then the optimizer, then decoupled weight decay;
    or, coupled, weight decay as an L2 term in the gradient, before all else, as torch's SGD and
    Adam have it. LAMB's trust ratios come last.

    The update has the direction of the gradient; a step subtracts learning rate x update.

    Args:
        config: config.optimizer.
        decay: factors of the weight decay, a tree like the parameters; None for `decay_mask`.
        stacked: the blocks lie on a leading axis (a model with scan=True), which is no axis of
            a matrix.

    Raises:
        ConfigError: an unknown name or kind of decay, a number out of its range, or a setting
            that contradicts the name.
    """
    _check(config)
    parts = []
    if config['clip_adaptive']:
        parts.append(_adaptive_clip(config['clip_adaptive'], stacked))
    if config['clip_value']:
        parts.append(optax.clip(config['clip_value']))
    if config['clip_norm']:
        parts.append(optax.clip_by_global_norm(config['clip_norm']))
    parts.append(OPTIMIZERS[config['name']]({**config, 'stacked': stacked}))
    if config['weight_decay']:
        place = 0 if config['decay'] == 'coupled' else len(parts)
        parts.insert(place, _decay(config['weight_decay'], decay))
    if config['name'] == 'lamb':
        parts.append(_trust_ratios(stacked))
    return optax.chain(*parts)
