"""The training and the evaluation step, each one jitted function.

The state is one pure dict, so that it can be donated, sharded and saved as it is:

    params     trained weights, nested dict by module path
    frozen     weights that don't train, likewise; {} if all do
    rest       the model's other variables (BatchNorm statistics)
    opt_state  the optimizer's
    step       int32 [], steps done
    sums       float32 sums since the last log line: loss, correct/<head>, labelled/<head>, steps
    ema        only with config.ema: the moving average of params and rest, dict(params, rest)
    lr_factor  only with config.schedule.plateau: float32 [], a factor of the learning rate
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import models
from train_lib.losses.losses import LossSpec, head_loss, total_weight
from train_lib.losses.mixing import Mixing, mix
from train_lib.optim.param_groups import scale_updates
from train_lib.optim.schedules import Schedule
from train_lib.runtime.errors import ConfigError

State = dict


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """A model as (graph definition, params, other variables), the last two as pure dicts."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def weights_of(state: State) -> dict:
    """What inference needs of a state: params, frozen, rest; averaged, if it has the average."""
    learnt = state.get('ema', state)
    return dict(params=learnt['params'], frozen=state['frozen'], rest=learnt['rest'])


def zero_sums(heads: Sequence[str]) -> dict:
    """The sums of `State` at the start of a log interval."""
    names = ['loss', 'steps', *(f'{what}/{head}' for head in heads
                                for what in ('correct', 'labelled'))]
    return {name: jnp.zeros((), jnp.float32) for name in names}


def make_state(params: dict, rest: dict, optimizer: optax.GradientTransformation,
               heads: Sequence[str], frozen: dict | None = None, *, ema: bool = False,
               plateau: bool = False) -> State:
    """The state before the first step."""
    state = dict(params=params, frozen=frozen or {}, rest=rest, opt_state=optimizer.init(params),
                 step=jnp.zeros((), jnp.int32), sums=zero_sums(heads))
    if ema:
        state['ema'] = start_of_ema(state)
    if plateau:
        state['lr_factor'] = jnp.ones((), jnp.float32)
    return state


def start_of_ema(state: State) -> dict:
    """The average before the first step: a copy, because the state is donated."""
    return jax.tree.map(jnp.copy, dict(params=state['params'], rest=state['rest']))


def make_ema_decay(config: Mapping) -> Schedule | None:
    """The decay of the moving average at each step by config.ema; None for no average.

    With the warm-up it is min(decay, (1 + t) / (10 + t)) after t steps, as in TensorFlow's
    ExponentialMovingAverage, so that the initial weights are soon forgotten.

    Raises:
        ConfigError: a decay outside [0, 1).
    """
    decay, warmup = config['decay'], config['warmup']
    if not 0 <= decay < 1:
        raise ConfigError(f'config.ema.decay = {decay}: give 0 (no average) or a number below 1, '
                          f'e.g. 0.999.')
    if not decay:
        return None
    return lambda step: jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else decay


def make_normalise(mean: Sequence[float], std: Sequence[float], dtype) -> Callable:
    """uint8 [B, H, W, 3] -> dtype, (x / 255 - mean) / std; on the device, where it is free."""
    scale = 1 / (255 * jnp.array(std, jnp.float32))
    offset = -jnp.array(mean, jnp.float32) / jnp.array(std, jnp.float32)
    return lambda images: (images.astype(jnp.float32) * scale + offset).astype(dtype)


def as_heads(logits, heads: Sequence[str]) -> dict[str, jax.Array]:
    """A model's output by head, whether it has one head or several."""
    return logits if isinstance(logits, Mapping) else {heads[0]: logits}


def make_train_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation,
                    schedule: Schedule, normalise: Callable, *, heads: Sequence[str], seed: int,
                    losses: Mapping[str, LossSpec] | None = None,
                    head_weights: Sequence[float] = (), mixings: Sequence[Mixing] = (),
                    rates: dict | None = None, accumulate: int = 1,
                    ema_decay: Schedule | None = None, guarded: bool = False) -> Callable:
    """The jitted function (state, batch) -> (state, loss); the state is donated.

    Args:
        graphdef: of the model in training mode.
        optimizer: without its learning rate.
        schedule: step -> learning rate.
        normalise: uint8 images -> the model's input.
        heads: names of the heads; batches hold 'label/<head>' int32 [B], image, and maybe weight.
        seed: of dropout and drop path; their masks are a function of (seed, step).
        losses: of each head; None for cross-entropy.
        head_weights: factor of each head's loss, () for 1.
        mixings: how pictures of a batch are mixed, see `mixing.mix`.
        rates: factors of the learning rate, a tree like params; None for 1.
        accumulate: parts of a batch that are done one after another, for one update; the gradient
            is that of the whole batch, but a BatchNorm sees one part at a time.
        ema_decay: step -> decay of the moving average; the state must have 'ema'.
        guarded: a step that is not finite in its loss, its gradient or what it would write leaves
            all as it was but the step, and its loss is NaN.
    """
    factors = dict(zip(heads, head_weights or [1.0] * len(heads)))
    losses = losses or {head: LossSpec() for head in heads}

    def gradient_of(params, frozen, rest, step, key, part, divisors):
        """(gradient, what is summed up, rest) of a batch, or of a part of it."""
        images, targets, weights, labels = part
        images = normalise(images)

        def objective(params, rest):
            model = nnx.merge(graphdef, params, frozen, rest)
            logits = as_heads(model(images, rngs=nnx.Rngs(dropout=key)), heads)
            loss = sum(factors[head] * head_loss(losses[head], logits[head], targets[head],
                                                 weights, step, divisors.get(head))
                       for head in heads)
            return loss, (logits, split_model(model)[2])

        # The other variables are an argument: BatchNorm writes to them inside the gradient.
        (loss, (logits, rest)), gradient = jax.value_and_grad(objective, has_aux=True)(params, rest)
        found = dict(loss=loss)
        for head in heads:
            hits = jnp.argmax(logits[head], axis=-1) == labels[head]
            found[f'correct/{head}'] = jnp.sum(hits, dtype=jnp.float32)
            found[f'labelled/{head}'] = jnp.sum(labels[head] >= 0, dtype=jnp.float32)
        return gradient, found, rest

    def train_step(state: State, batch: dict) -> tuple[State, jax.Array]:
        labels = {head: batch[f'label/{head}'] for head in heads}
        images, targets, weights = mix(mixings, seed, state['step'], batch['image'], labels,
                                       batch.get('weight'))
        key = jax.random.fold_in(jax.random.key(seed), state['step'])
        whole = images, targets, weights, labels
        of_part = functools.partial(gradient_of, state['params'], state['frozen'])
        if accumulate == 1:
            gradient, found, rest = of_part(state['rest'], state['step'], key, whole, {})
        else:
            divisors = {head: total_weight(losses[head], targets[head], weights, state['step'])
                        for head in heads}

            def add_part(carry, numbered):
                total, rest = carry
                number, part = numbered
                *more, rest = of_part(rest, state['step'], jax.random.fold_in(key, number), part,
                                      divisors)
                return (jax.tree.map(jnp.add, total, more), rest), None

            nothing = [jax.tree.map(jnp.zeros_like, state['params']),
                       {name: jnp.zeros((), jnp.float32) for name in state['sums']
                        if name != 'steps'}]
            parts = jax.tree.map(lambda leaf: _in_parts(leaf, accumulate), whole)
            ((gradient, found), rest), _ = jax.lax.scan(
                add_part, (nothing, state['rest']), (jnp.arange(accumulate), parts))

        updates, opt_state = optimizer.update(gradient, state['opt_state'], state['params'])
        rate = schedule(state['step'])
        if 'lr_factor' in state:
            rate *= state['lr_factor']
        params = scale_updates(lambda param, update, factor: param - rate * factor * update,
                               state['params'], updates, rates or jax.tree.map(
                                   lambda _: 1.0, updates))
        loss = found['loss']
        new = dict(params=params, rest=rest, opt_state=opt_state,
                   sums={name: value + (1 if name == 'steps' else found[name])
                         for name, value in state['sums'].items()})
        if ema_decay is not None:
            new['ema'] = _averaged(state['ema'], dict(params=params, rest=rest),
                                   ema_decay(state['step']))
        if guarded:
            finite = is_finite((loss, gradient, params, rest, opt_state))
            new = jax.tree.map(functools.partial(jnp.where, finite), new,
                               {name: state[name] for name in new})
            loss = jnp.where(finite, loss, jnp.nan)
        return state | new | dict(step=state['step'] + 1), loss

    return jax.jit(train_step, donate_argnums=0)


def _in_parts(leaf: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]. Part i has the examples i, i + parts, ...: so each
    device keeps its own examples of a batch that is split over devices."""
    return leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)


def _averaged(old, new, decay):
    def average(before, now):
        if not jnp.issubdtype(now.dtype, jnp.floating):
            return now
        return before + ((1 - decay) * (now - before)).astype(before.dtype)

    return jax.tree.map(average, old, new)


def is_finite(tree) -> jax.Array:
    """Whether no floating-point leaf holds a NaN or an infinity."""
    return functools.reduce(jnp.logical_and, [
        jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)])


def make_eval_step(graphdef: nnx.GraphDef, normalise: Callable, heads: Sequence[str]) -> Callable:
    """The jitted function (weights, images) -> {head: float32 logits [B, C]}; see `weights_of`."""

    @jax.jit
    def eval_step(weights: dict, images: jax.Array) -> dict[str, jax.Array]:
        parts = (weights[key] for key in ('params', 'frozen', 'rest'))
        model = models.eval_view(nnx.merge(graphdef, *parts))
        logits = as_heads(model(normalise(images)), heads)
        return {head: logits[head].astype(jnp.float32) for head in heads}

    return eval_step
