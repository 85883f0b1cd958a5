"""Optimizers from optax, without their learning rate: the training step multiplies it in.

To add one, write a function (OptimizerSpec) -> optax.GradientTransformation and give it a line in
`OPTIMIZERS`. A setting of its own is a key in configs/common.py and a field of `OptimizerSpec`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from input_pipeline.errors import did_you_mean
from train_lib.optim.late_start import Start, in_groups
from train_lib.optim.param_groups import scale_updates
from train_lib.runtime.config_section import read_section
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import part_like

DECAYS = ('decoupled', 'coupled')
Tree = Any  # a tree of arrays, or of numbers


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """config.optimizer.

    Attributes:
        name: a key of `OPTIMIZERS`.
        b1, b2: shares of the running means of the gradient and of its square kept per step, [0, 1).
        eps: added to the root of the mean square, >= 0.
        alpha: rmsprop: share of the mean square kept per step, [0, 1).
        momentum: sgd, muon, rmsprop: share of the momentum kept per step, >= 0.
        nesterov: sgd, muon: Nesterov's momentum.
        momentum_decay: nadam, nadamw: how fast b1 grows, >= 0; None: it is constant.
        weight_decay: rate, >= 0.
        decay: one of `DECAYS`.
        clip_first: with coupled decay: whether clipping comes before it.
        clip_norm: largest norm of the whole gradient, 0 for no clipping.
        clip_value: largest absolute value in the gradient, 0 for no clipping.
        clip_adaptive: largest norm of gradient / weights per output unit, 0 for no clipping.
        stacked: of the model, not of the config: its blocks lie on a leading axis (scan=True),
            which is not an axis of a matrix.
    """

    name: str
    b1: float
    b2: float
    eps: float
    alpha: float
    momentum: float
    nesterov: bool
    momentum_decay: float | None
    weight_decay: float
    decay: str
    clip_first: bool
    clip_norm: float
    clip_value: float
    clip_adaptive: float
    stacked: bool = False


def _unbias(decay: float, count: jax.Array) -> jax.Array:
    """1 - decay^count; for a decay near 1 float32 would lose digits in that expression."""
    return -jnp.expm1(count * (math.log(decay) if decay else -math.inf))


def _moments(spec, state, gradients):
    def mean(decay, old, new):
        return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)

    return (mean(spec.b1, state.mu, gradients),
            mean(spec.b2, state.nu, jax.tree.map(jnp.square, gradients)))


def _direction(spec, count, mu, nu, gradients, past, present):
    """(past x mu + present x gradient) / (root of the unbiased nu + eps)."""
    unbias = _unbias(spec.b2, count)
    return jax.tree.map(
        lambda m, v, g: (past * m + present * g) / (jnp.sqrt(v / unbias) + spec.eps),
        mu, nu, gradients)


def _adam(spec: OptimizerSpec, nesterov: bool = False) -> optax.GradientTransformation:
    """Kingma and Ba, arXiv 1412.6980; the kind of weight decay makes it AdamW or Adam with L2."""
    b1 = spec.b1

    def update(gradients, state, params=None):
        count = state.count + 1
        mu, nu = _moments(spec, state, gradients)
        past, present = ((b1 / _unbias(b1, count + 1), (1 - b1) / _unbias(b1, count))
                         if nesterov else (1 / _unbias(b1, count), 0.0))
        return (_direction(spec, count, mu, nu, gradients, past, present),
                optax.ScaleByAdamState(count, mu, nu))

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _nadam(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Adam with Nesterov's momentum (Dozat 2016,
    https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ)."""
    if spec.momentum_decay is None:
        return _adam(spec, nesterov=True)
    return _scheduled_nadam(spec, spec.momentum_decay * math.log(0.96))


class _NadamState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # int32 []; it hides tuple.count
    product: jax.Array  # float32 [], of the momenta so far
    mu: dict
    nu: dict


def _scheduled_nadam(spec: OptimizerSpec, rate: float) -> optax.GradientTransformation:
    """Dozat's momentum that grows from about b1 / 2 to b1: b1 (1 - exp(rate t) / 2) at step t,
    counted from 1, as in torch.optim.NAdam."""
    def momentum(step):
        return spec.b1 * (1 - 0.5 * jnp.exp(step * rate))

    def init(params):
        count, mu, nu = optax.scale_by_adam().init(params)
        return _NadamState(count, jnp.ones((), jnp.float32), mu, nu)

    def update(gradients, state, params=None):
        count = state.count + 1
        now, following = momentum(count), momentum(count + 1)
        product = state.product * now
        mu, nu = _moments(spec, state, gradients)
        past, present = following / (1 - product * following), (1 - now) / (1 - product)
        return (_direction(spec, count, mu, nu, gradients, past, present),
                _NadamState(count, product, mu, nu))

    return optax.GradientTransformation(init, update)


def _rmsprop(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Tieleman and Hinton 2012, as in torch: eps outside the root, the mean starts at 0, and the
    momentum comes after the division."""
    scale = optax.scale_by_rms(spec.alpha, spec.eps, eps_in_sqrt=False)
    return optax.chain(scale, optax.trace(spec.momentum)) if spec.momentum else scale


def _lion(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Chen et al., arXiv 2302.06675: the sign of an interpolated momentum."""
    return optax.scale_by_lion(spec.b1, spec.b2)


def _sgd(spec: OptimizerSpec) -> optax.GradientTransformation:
    return optax.trace(spec.momentum, spec.nesterov)


def _muon(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): the momentum of each matrix
    is made orthogonal, kernels of convolutions count as matrices; Adam for the heads and all other
    parameters.

    Updates are scaled to Adam's root mean square (Liu et al., arXiv 2502.16982), so that
    learning rates and weight decay carry over from AdamW.
    """
    return optax.contrib.muon(  # it returns -rate x direction: a rate of -1 gives the direction
        learning_rate=-1.0, beta=spec.momentum, nesterov=spec.nesterov,
        adam_b1=spec.b1, adam_b2=spec.b2, adam_learning_rate=-1.0,
        consistent_rms=0.2, muon_weight_dimension_numbers=functools.partial(
            _matrices, stacked=spec.stacked))


def _matrices(params: Tree, stacked: bool) -> Tree:
    """Which axes of a kernel are inputs and outputs; None for what Adam updates."""
    def dimensions(path, leaf):
        names = [str(getattr(part, 'key', part)) for part in path]
        if names[-1] != 'kernel' or leaf.ndim < 2 or names[0] in ('head', 'heads'):
            return None
        first = int(stacked and names[0] == 'blocks')
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)),
                                                  (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(dimensions, params)


# name: spec -> the transformation that comes between clipping and weight decay
OPTIMIZERS: dict[str, Callable[[OptimizerSpec], optax.GradientTransformation]] = {
    'sgd': _sgd,
    'rmsprop': _rmsprop,
    'adam': _adam,
    'nadam': _nadam,
    'adamw': _adam,
    'nadamw': _nadam,
    'lamb': _adam,  # with trust ratios after the weight decay
    'lion': _lion,
    'muon': _muon,
}


def decay_mask(params: Tree) -> Tree:
    """A tree like `params`: 1 where weight decay applies, which is kernels; 0 for norms, biases,
    tokens and embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: float(getattr(path[-1], 'key', None) == 'kernel' and leaf.ndim > 1),
        params)


def _decay(rate: float, factors: Tree | None) -> optax.GradientTransformation:
    """Adds rate x factor x parameter to the update. It is decoupled weight decay (Loshchilov and
    Hutter, arXiv 1711.05101), because the step multiplies the sum by the learning rate."""
    def update(updates, params):
        tree = decay_mask(params) if factors is None else part_like(factors, updates)
        return scale_updates(lambda change, param, factor: change + rate * factor * param,
                             updates, params, tree)

    return optax.stateless(update)


def _by_tensor(fn: Callable, stacked: bool) -> optax.GradientTransformation:
    """Applies fn(top-level module, whether it is a kernel, update, parameter) -> update to each
    tensor; in a stack of blocks, to each layer separately."""
    def update(updates, params):
        def apply(path, change, param):
            module, name = str(path[0].key), getattr(path[-1], 'key', None)
            one = functools.partial(fn, module, name == 'kernel' and param.ndim > 1)
            return (jax.vmap(one) if stacked and module == 'blocks' else one)(change, param)

        return jax.tree_util.tree_map_with_path(apply, updates, params)

    return optax.stateless(update)


def _adaptive_clip(limit: float, stacked: bool) -> optax.GradientTransformation:
    """Adaptive gradient clipping (Brock et al., arXiv 2102.06171): the norm of the gradient is at
    most `limit` x that of the parameter, per output unit of a kernel. Heads are not clipped, as in
    the paper."""
    def clip(module, kernel, change, param):
        if module in ('head', 'heads'):
            return change
        tx = optax.adaptive_grad_clip(limit, axis=tuple(range(param.ndim - kernel)))
        return tx.update(change, tx.init(param), param)[0]

    return _by_tensor(clip, stacked)


def _trust_ratios(stacked: bool) -> optax.GradientTransformation:
    """Trust ratios of LAMB (You et al., arXiv 1904.00962): the update of a kernel gets the norm of
    the kernel. As in the authors' code, norms and biases are left as they are."""
    tx = optax.scale_by_trust_ratio()

    def scale(module, kernel, change, param):
        return tx.update(change, tx.init(param), param)[0] if kernel else change

    return _by_tensor(scale, stacked)


def read_optimizer(config: Mapping[str, Any]) -> OptimizerSpec:
    """Reads and checks config.optimizer.

    Raises:
        ConfigError: an unknown name or kind of decay, a number out of its range, or a setting
            that contradicts the name.
    """
    spec = read_section(OptimizerSpec, config, 'optimizer')
    for key, value, known in (('name', spec.name, OPTIMIZERS), ('decay', spec.decay, DECAYS)):
        if value not in known:
            raise ConfigError(f'config.optimizer.{key} = {value!r}: '
                              f'{did_you_mean(value, known, n=3, show=str)}')
    if spec.decay == 'coupled' and spec.weight_decay and spec.name in ('adamw', 'nadamw'):
        raise ConfigError(f"config.optimizer.decay = 'coupled' contradicts {spec.name}: write "
                          f"'decoupled', or config.optimizer.name={spec.name[:-1]}.")
    for key in ('clip_norm', 'clip_value', 'clip_adaptive', 'weight_decay', 'eps', 'momentum'):
        if not 0 <= config[key] < math.inf:
            raise ConfigError(f'config.optimizer.{key} = {config[key]}: give a number >= 0.')
    for key in ('b1', 'b2', 'alpha'):
        if not 0 <= config[key] < 1:
            raise ConfigError(f'config.optimizer.{key} = {config[key]}: give a number >= 0 and '
                              f'below 1.')
    rate = spec.momentum_decay
    if rate is None:
        return spec
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1e3:
        raise ConfigError(f'config.optimizer.momentum_decay = {rate!r}: give a number >= 0, such '
                          f'as 0.004, or None.')
    if spec.name not in ('nadam', 'nadamw'):
        raise ConfigError(f'config.optimizer.momentum_decay = {rate}: {spec.name} does not use it; '
                          f'write None, or choose nadam or nadamw.')
    return spec


def make_optimizer(config: Mapping[str, Any], decay: Tree | None = None, stacked: bool = False,
                   starts: Mapping[str, Start] | None = None) -> optax.GradientTransformation:
    """Clipping (adaptive, by value, by norm), then the optimizer, then decoupled weight decay.

    Coupled weight decay is an L2 term in the gradient instead, as in torch's SGD and Adam. It is
    added after clipping, as torch's optimizers add it after clip_grad_norm_; or, with
    clip_first=False, before it, so that the sum is clipped. The trust ratios of LAMB come last. The
    update has the direction of the gradient; a step subtracts learning rate x update.

    Args:
        config: config.optimizer.
        decay: factors of the weight decay, a tree like the parameters; None for `decay_mask`.
        stacked: see `OptimizerSpec`.
        starts: of parameters that begin to train later, see `late_start.in_groups`.

    Raises:
        ConfigError: see `read_optimizer`.
    """
    spec = dataclasses.replace(read_optimizer(config), stacked=stacked)
    parts = []
    if spec.clip_adaptive:
        parts.append(_adaptive_clip(spec.clip_adaptive, stacked))
    if spec.clip_value:
        parts.append(optax.clip(spec.clip_value))
    if spec.clip_norm:
        parts.append(optax.clip_by_global_norm(spec.clip_norm))
    clips = len(parts)
    parts.append(in_groups(OPTIMIZERS[spec.name](spec), starts or {}))
    if spec.weight_decay:
        place = (len(parts) if spec.decay == 'decoupled' else clips if spec.clip_first else 0)
        parts.insert(place, _decay(spec.weight_decay, decay))
    if spec.name == 'lamb':
        parts.append(_trust_ratios(stacked))
    return optax.chain(*parts)
