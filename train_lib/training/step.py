"""The training and the evaluation step, each one jitted function."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import models
from input_pipeline.errors import did_you_mean
from input_pipeline.extra_rows import FACTOR
from models import stored
from train_lib.losses.losses import LossSpec, head_loss
from train_lib.losses.mixing import Mixing, mix
from train_lib.losses.soft_targets import (
    Distillation,
    batch_targets,
    divisors_of,
    taught_loss,
)
from train_lib.optim.param_groups import scale_updates
from train_lib.optim.schedules import Schedule
from train_lib.optim.sharpness import Sharpness, ascended
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import joined, part_like, select
from train_lib.training.beside_labels import FEATURES, NOTHING, BesideLabels, Given
from train_lib.training.state import MovingAverage, TrainState, Weights
from train_lib.training.weight_averages import Averaging


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """A model as (graph definition, params, batch_stats), the last two as pure dicts."""
    parts: Any = nnx.split(model, nnx.Param, ...)  # as many as filters, and one
    graphdef, params, batch_stats = parts
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


_UNROLLED = 16  # parts of a batch at most
# name: step, float32 [] -> the largest decay at it during the warm-up
EMA_WARMUPS: dict[str, Callable] = {
    'tensorflow': lambda step: (1.0 + step) / (10.0 + step),
    'timm': lambda step: 1.0 - (1.0 + step) ** (-2 / 3),
}


def make_ema_decay(config: Mapping) -> Schedule | None:
    """The decay of the moving average at each step by config.ema; None for no average.

    With the warm-up it is at most (1 + t) / (10 + t) after t steps, as in TensorFlow's
    ExponentialMovingAverage, so that the initial weights are soon forgotten; or with
    warmup_kind='timm' 1 - (1 + t)^(-2/3), as in timm's ModelEmaV3 with use_warmup=True.

    Raises:
        ConfigError: a decay outside [0, 1), or an unknown kind of warm-up.
    """
    decay, warmup = config['decay'], config['warmup']
    kind = config.get('warmup_kind', 'tensorflow')
    if kind not in EMA_WARMUPS:
        raise ConfigError(f'config.ema.warmup_kind = {kind!r}: '
                          f'{did_you_mean(kind, EMA_WARMUPS, show=str)}')
    if not 0 <= decay < 1:
        raise ConfigError(f'config.ema.decay = {decay}: give 0 (no average) or a number below 1, '
                          f'e.g. 0.999.')
    if not decay:
        return None
    return lambda step: jnp.minimum(decay, EMA_WARMUPS[kind](step)) if warmup else decay


def make_normalise(mean: Sequence[float], std: Sequence[float], dtype) -> Callable:
    """uint8 [B, H, W, C] -> dtype, (x / 255 - mean) / std, a number per channel or one for all; on
    the device, where it is free."""
    scale = 1 / (255 * jnp.array(std, jnp.float32))
    offset = -jnp.array(mean, jnp.float32) / jnp.array(std, jnp.float32)
    return lambda images: (images.astype(jnp.float32) * scale + offset).astype(dtype)


def as_heads(logits, heads: Sequence[str]) -> dict[str, jax.Array]:
    """A model's output by head, whether it has one head or several."""
    return dict(logits) if isinstance(logits, Mapping) else {heads[0]: logits}


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a batch becomes an update.

    Attributes:
        heads: names of the heads; batches hold 'label/<head>' int32 [B], of multi-label heads also
            'target/<head>' float32 [B, C], image, and maybe weight and what `extra_rows` adds.
        seed: of dropout and drop path; their masks are a function of (seed, step).
        losses: of each head; None for cross-entropy.
        head_weights: factor of each head's loss, () for 1.
        mixings: how pictures of a batch are mixed, see `mixing.mix`.
        rates: factors of the learning rate, a tree like params; None for 1.
        accumulate: parts of a batch that are computed one after another, for one update; the
            gradient is that of the whole batch, but a BatchNorm sees one part at a time.
        ema_decay: step -> decay of the moving average; the state must have `ema`.
        guarded: a step that is not finite in its loss, its gradient or what it would write leaves
            everything as it was except the step, and its loss is NaN.
        weights_end: see `objectives.example_weights_end`.
        waiting: names of parameters that do not train yet: they get no gradient, their moments
            stay as they are, and a BatchNorm of theirs must be frozen in the graph definition.
        sharpness: the gradient is taken at other weights, in every step of this program, see
            `run_spec.Alternating`; None: at those of the state.
        averaging: an average besides that of `ema_decay`; the state must have `ema`.
        beside: what is learned besides labels.
        distillation: how much the 'teacher/<head>' of a batch counts.
    """

    heads: Sequence[str]
    seed: int
    losses: Mapping[str, LossSpec] | None = None
    head_weights: Sequence[float] = ()
    mixings: Sequence[Mixing] = ()
    rates: dict | None = None
    accumulate: int = 1
    ema_decay: Schedule | None = None
    guarded: bool = False
    weights_end: int | None = None
    waiting: Collection[str] = frozenset()
    sharpness: Sharpness | None = None
    averaging: Averaging | None = None
    beside: BesideLabels = NOTHING
    distillation: Distillation | None = None


def make_train_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation,
                    schedule: Schedule, normalise: Callable, options: StepOptions) -> Callable:
    """The jitted function (state, batch) -> (state, loss); the state is donated.

    Args:
        graphdef: of the model in training mode.
        optimizer: without its learning rate.
        schedule: step -> learning rate.
        normalise: uint8 images -> the model's input.
        options: see `StepOptions`.
    """
    heads, seed, accumulate = options.heads, options.seed, options.accumulate
    factors = dict(zip(heads, options.head_weights or [1.0] * len(heads)))
    losses = options.losses or {head: LossSpec() for head in heads}
    one_label = [head for head in heads if not losses[head].multi_label]
    beside, own = options.beside, make_eval_step(graphdef, normalise, heads)

    def loss_of(head, logits, targets, weights, step, divisors):
        if options.distillation and f'teacher/{head}' in targets:
            return taught_loss(head, losses[head], options.distillation, logits, targets, weights,
                               step, divisors)
        return head_loss(losses[head], logits, targets[head], weights, step, divisors.get(head))

    def parts_of(params):
        """(those that train, those that wait)"""
        if not options.waiting:
            return params, {}
        return (select(params, lambda name: name not in options.waiting),
                select(params, options.waiting.__contains__))

    def gradient_of(params, frozen, guides, batch_stats, step, key, part, divisors):
        """(gradient, metric sums, batch_stats) of a batch, or of a part of it."""
        images, targets, weights, labels, more = part
        answers = beside.answers(guides, images, more, own)
        inputs = beside.together(normalise, images, more)

        def objective(params, batch_stats):
            model = nnx.merge(graphdef, params, frozen, batch_stats)
            logits, views = beside.apart(
                outputs_of(model, inputs, heads, nnx.Rngs(dropout=key),
                           features=beside.wants_features), len(images), more)
            of_labels = {head: factors[head] * loss_of(
                head, logits[head], targets, weights, step, divisors) for head in heads}
            loss, sums = beside.objective(of_labels, logits, views, answers,
                                          Given(step, factors, accumulate, more))
            return loss, (dict(loss=sum(of_labels.values())) | sums, logits, split_model(model)[2])

        # batch_stats is an argument: BatchNorm writes to it inside the gradient.
        (_, (sums, logits, batch_stats)), gradient = jax.value_and_grad(
            objective, has_aux=True)(params, batch_stats)
        for head in heads:
            if losses[head].multi_label:  # right if every class is, at the threshold 0.5
                hits = jnp.all((logits[head] >= 0) == labels[head], axis=-1)
                known = labels[head][:, 0] >= 0
                hits = hits & known
            else:
                hits, known = jnp.argmax(logits[head], axis=-1) == labels[head], labels[head] >= 0
            sums[f'correct/{head}'] = jnp.sum(hits, dtype=jnp.float32)
            sums[f'labelled/{head}'] = jnp.sum(known, dtype=jnp.float32)
        return gradient, sums, batch_stats

    def gradient_of_batch(state: TrainState, at, key: jax.Array, whole: tuple):
        """`gradient_of` the whole batch at some weights, `accumulate` parts one after another."""
        params, waiting = parts_of(at)
        of_part = functools.partial(gradient_of, params, joined(state.frozen, waiting),
                                    beside.guides(state))
        if accumulate == 1:
            return of_part(state.batch_stats, state.step, key, whole, {})
        _, targets, weights, *_ = whole
        divisors = divisors_of({head: losses[head] for head in heads}, targets, weights,
                               state.step)

        def add_part(carry, numbered):
            total, batch_stats = carry
            number, part = numbered
            *more, batch_stats = of_part(batch_stats, state.step, jax.random.fold_in(key, number),
                                         part, divisors)
            return (jax.tree.map(jnp.add, total, more), batch_stats), None

        nothing = [jax.tree.map(jnp.zeros_like, params),
                   {name: jnp.zeros((), jnp.float32) for name in state.metric_sums
                    if name != 'steps'}]
        parts = jax.tree.map(lambda leaf: _in_parts(leaf, accumulate), whole)
        by_platform = functools.partial(jax.lax.platform_dependent,
                                        cpu=functools.partial(_unrolled, add_part),
                                        default=functools.partial(_looped, add_part))
        (gradient, sums), batch_stats = by_platform((nothing, state.batch_stats),
                                                    (jnp.arange(accumulate), parts))
        return gradient, sums, batch_stats

    def sharp_gradient(state: TrainState, at, gradient, key: jax.Array, whole: tuple):
        """The second gradient of a batch; without `options.sharpness` the first, which is given."""
        sharpness = options.sharpness
        if sharpness is None:
            return gradient
        params, waiting = parts_of(at)
        there = joined(ascended(sharpness, params, gradient), waiting)
        return gradient_of_batch(state, there, key, whole)[0]

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, jax.Array]:
        labels = {head: batch[f'{"target" if losses[head].multi_label else "label"}/{head}']
                  for head in heads}
        weights = batch.get('weight')
        if weights is not None and options.weights_end is not None:
            weights = jnp.where(state.step < options.weights_end, weights, 1)
        if FACTOR in batch:
            weights = batch[FACTOR] if weights is None else weights * batch[FACTOR]
        images, targets, weights = mix(
            options.mixings, seed, state.step, batch['image'], labels, weights,
            labels | batch_targets(batch, one_label, options.distillation))
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        averaging = options.averaging
        whole = images, targets, weights, labels, beside.arrays(batch)
        at = averaging.point(state.params, state.ema) if averaging else state.params
        gradient, sums, batch_stats = gradient_of_batch(state, at, key, whole)
        gradient = sharp_gradient(state, at, gradient, key, whole)

        old, waiting = parts_of(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, parts_of(at)[0])
        rate = schedule(state.step)
        if state.lr_factor is not None:
            rate *= state.lr_factor
        rates = part_like(options.rates, old) if options.rates else jax.tree.map(
            lambda _: 1.0, updates)
        params = joined(scale_updates(
            lambda param, update, factor: param - rate * factor * update, old, updates, rates),
            waiting)
        loss = sums['loss']
        new = dict(params=params, batch_stats=batch_stats, opt_state=opt_state,
                   metric_sums={name: value + (1 if name == 'steps' else sums[name])
                                for name, value in state.metric_sums.items()})
        if options.ema_decay is not None:
            new['ema'] = _averaged(state.ema, MovingAverage(params, batch_stats),
                                   options.ema_decay(state.step))
        if averaging and state.ema is not None:
            new['params'], new['ema'] = averaging.after(params, batch_stats, state.ema,
                                                        state.step + 1, rate)
        if options.guarded:  # what else is learned shows in the gradient
            finite = is_finite((loss, gradient, params, batch_stats, opt_state))
            new = jax.tree.map(functools.partial(jnp.where, finite), new,
                               {name: getattr(state, name) for name in new})
            loss = jnp.where(finite, loss, jnp.nan)
        return state.replace(**new, step=state.step + 1), loss

    return jax.jit(train_step, donate_argnums=0)


def _looped(add: Callable, carry, parts):
    """What is left of the carry after all parts, [parts, ...], one after another."""
    return jax.lax.scan(add, carry, parts)[0]


def _unrolled(add: Callable, carry, parts):
    """The same without a loop: in one, XLA's CPU backend takes 25 to 125 times as long for the
    gradients of a convolution (jax 0.10.2). Many parts would take too long to compile."""
    count = len(jax.tree.leaves(parts)[0])
    if count > _UNROLLED:
        return _looped(add, carry, parts)
    for number in range(count):
        part = jax.tree.map(operator.itemgetter(number), parts)
        carry, part = stored.together((carry, part))  # one part in memory at a time
        carry, _ = add(carry, part)
    return carry


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
    flags = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)
             if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jax.lax.platform_dependent(
        *flags, cpu=_least, default=lambda *flags: functools.reduce(jnp.logical_and, flags))


def _least(*flags: jax.Array) -> jax.Array:
    """Whether all hold. Of a chain of `and`, and of `jnp.all`, which XLA makes such a chain, its
    CPU backend puts a copy into each of the many loops that choose between old and new values, and
    compiles them for minutes."""
    stacked = jnp.stack(flags)
    return stacked[jnp.argmin(stacked)]


def outputs_of(model: Any, inputs: jax.Array, heads: Sequence[str],
               rngs: nnx.Rngs | None = None, *, features: bool = False) -> dict[str, jax.Array]:
    """{head: logits [B, C]} of normalised images, and if asked for their pooled features [B, D],
    before any dropout, as FEATURES."""
    if not features:
        return as_heads(model(inputs, rngs=rngs), heads)
    x = model.forward_features(inputs, rngs=rngs)
    pooled = model.pool(x, rngs)
    return as_heads(model.forward_head(x, rngs=rngs, pooled=pooled), heads) | {FEATURES: pooled}


def make_eval_step(graphdef: nnx.GraphDef, normalise: Callable, heads: Sequence[str], *,
                   features: bool = False) -> Callable:
    """The jitted function (weights, images) -> {head: float32 logits [B, C]}; uint8 images.
    `features` adds the pooled features [B, D] as FEATURES."""

    @jax.jit
    def eval_step(weights: Weights, images: jax.Array) -> dict[str, jax.Array]:
        model = models.eval_view(nnx.merge(graphdef, weights.params, weights.frozen,
                                           weights.batch_stats))
        logits = outputs_of(model, normalise(images), heads, features=features)
        wanted = [*heads, FEATURES] if features else heads
        return {name: logits[name].astype(jnp.float32) for name in wanted}

    return eval_step
