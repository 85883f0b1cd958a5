"""The training and the evaluation step, each one jitted function.

The state is one pure dict, so that it can be donated, sharded and saved as it is:

    params     trained weights, nested dict by module path
    frozen     weights that don't train, likewise; {} if all do
    rest       the model's other variables (BatchNorm statistics)
    opt_state  the optimizer's
    step       int32 [], steps done
    sums       float32 sums since the last log line: loss, correct/<head>, labelled/<head>, steps
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import models
from train_lib.finetuning import scale_updates
from train_lib.losses import LossSpec, head_loss
from train_lib.mixing import Mixing, mix
from train_lib.schedules import Schedule

State = dict


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """A model as (graph definition, params, other variables), the last two as pure dicts."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def weights_of(state: State) -> dict:
    """What inference needs of a state: params, frozen, rest."""
    return {key: state[key] for key in ('params', 'frozen', 'rest')}


def zero_sums(heads: Sequence[str]) -> dict:
    """The sums of `State` at the start of a log interval."""
    names = ['loss', 'steps', *(f'{what}/{head}' for head in heads
                                for what in ('correct', 'labelled'))]
    return {name: jnp.zeros((), jnp.float32) for name in names}


def make_state(params: dict, rest: dict, optimizer: optax.GradientTransformation,
               heads: Sequence[str], frozen: dict | None = None) -> State:
    """The state before the first step."""
    return dict(params=params, frozen=frozen or {}, rest=rest, opt_state=optimizer.init(params),
                step=jnp.zeros((), jnp.int32), sums=zero_sums(heads))


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
                    rates: dict | None = None) -> Callable:
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
    """
    factors = dict(zip(heads, head_weights or [1.0] * len(heads)))
    losses = losses or {head: LossSpec() for head in heads}

    def train_step(state: State, batch: dict) -> tuple[State, jax.Array]:
        images, targets, weights = mix(
            mixings, seed, state['step'], batch['image'],
            {head: batch[f'label/{head}'] for head in heads}, batch.get('weight'))
        images = normalise(images)
        key = jax.random.fold_in(jax.random.key(seed), state['step'])

        def objective(params, rest):
            model = nnx.merge(graphdef, params, state['frozen'], rest)
            logits = as_heads(model(images, rngs=nnx.Rngs(dropout=key)), heads)
            loss = sum(factors[head] * head_loss(losses[head], logits[head], targets[head],
                                                 weights, state['step']) for head in heads)
            return loss, (logits, split_model(model)[2])

        # The other variables are an argument: BatchNorm writes to them inside the gradient.
        (loss, (logits, rest)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state['params'], state['rest'])
        updates, opt_state = optimizer.update(gradients, state['opt_state'], state['params'])
        rate = schedule(state['step'])
        params = scale_updates(lambda param, update, factor: param - rate * factor * update,
                               state['params'], updates, rates or jax.tree.map(
                                   lambda _: 1.0, updates))

        sums = dict(state['sums'])
        sums['loss'] += loss
        sums['steps'] += 1
        for head in heads:
            labels = batch[f'label/{head}']
            sums[f'correct/{head}'] += jnp.sum(jnp.argmax(logits[head], axis=-1) == labels)
            sums[f'labelled/{head}'] += jnp.sum(labels >= 0)
        return dict(params=params, frozen=state['frozen'], rest=rest, opt_state=opt_state,
                    step=state['step'] + 1, sums=sums), loss

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(graphdef: nnx.GraphDef, normalise: Callable, heads: Sequence[str]) -> Callable:
    """The jitted function (weights, images) -> {head: float32 logits [B, C]}; see `weights_of`."""

    @jax.jit
    def eval_step(weights: dict, images: jax.Array) -> dict[str, jax.Array]:
        parts = (weights[key] for key in ('params', 'frozen', 'rest'))
        model = models.eval_view(nnx.merge(graphdef, *parts))
        logits = as_heads(model(normalise(images)), heads)
        return {head: logits[head].astype(jnp.float32) for head in heads}

    return eval_step
