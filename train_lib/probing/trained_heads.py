"""Many heads trained together on cached features, in one jitted program.

A head kind is built once for every (setting, fold) and stacked: its parameters have two leading
axes [settings, folds]. A step gathers the features of a fold's batch on the device, whatever
the number of heads that it moves. Heads never see each other, so each one ends where it would
have ended alone, up to the order of float32 sums.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from models.probe import FeatureClassifier
from train_lib.losses.losses import cross_entropy
from train_lib.training.step import as_heads, split_model


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """One architecture of head: its name and the settings of `Classifier.add_heads`."""

    name: str
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Task:
    """What all heads have in common.

    classes: number of classes by head name; rates: learning rates of the settings, [L]; shares:
    float32 [F, S], of each fold and step the share of the rate, 0 after the fold's end.
    """

    num_features: int
    classes: Mapping[str, int]
    rates: tuple[float, ...]
    shares: np.ndarray
    label_smoothing: float
    head_weights: Mapping[str, float]
    seed: int


def make_heads(kind: HeadKind, task: Task) -> tuple[nnx.GraphDef, dict]:
    """(definition, parameters with leading axes [settings, folds]); every head starts alike."""
    model = FeatureClassifier(task.num_features)
    sizes = dict(task.classes)
    model.add_heads(sizes if len(sizes) > 1 else next(iter(sizes.values())),
                    rngs=nnx.Rngs(task.seed), **kind.settings)
    graphdef, params, _ = split_model(model)
    lead = (len(task.rates), len(task.shares))
    return graphdef, jax.tree.map(
        lambda leaf: jnp.tile(leaf, (*lead, *(1,) * leaf.ndim)), params)


def make_program(definitions: Mapping[str, nnx.GraphDef], optimizer: optax.GradientTransformation,
                 task: Task) -> Callable:
    """The jitted function (state, slab, plan) -> (state, losses) over a chunk of steps.

    state: {kind: (params, opt_state)} with leading axes [L, F]; slab: features [W, N, D] of the
    views in use; plan: a dict of arrays [F, S, B] (slot: number in the slab, row), label/<head>
    likewise, maybe weight, and [F, S] (step, rate: share of the learning rate, 0 after the end).
    losses: {kind: float32 [L, F, S]}.

    An accelerator moves all heads side by side. A CPU takes one after another through the chunk,
    within the same program: its caches hold one head, not twenty.
    """
    heads = tuple(task.classes)
    side_by_side = jax.default_backend() != 'cpu'

    def each(function, trees):
        return jax.vmap(function)(trees) if side_by_side else jax.lax.map(function, trees)

    def loss_of(params, graphdef, features, labels, weight, key):
        model = nnx.merge(graphdef, params)
        logits = as_heads(model(features, rngs=nnx.Rngs(dropout=key)), heads)
        return sum(task.head_weights[head] * cross_entropy(
            logits[head], labels[head], weight, task.label_smoothing) for head in heads)

    def one_head(graphdef, slab, rate, params, opt_state, plan):
        def step(carry, now):
            params, opt_state = carry
            features = slab[now['slot'], now['row']].astype(jnp.float32)
            labels = {head: now[f'label/{head}'] for head in heads}
            key = jax.random.fold_in(jax.random.key(task.seed), now['step'])
            loss, gradients = jax.value_and_grad(loss_of)(
                params, graphdef, features, labels, now.get('weight'), key)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            scale = rate * now['rate']
            params = jax.tree.map(lambda param, update: param - scale * update, params, updates)
            return (params, opt_state), loss

        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), plan)
        return params, opt_state, losses

    @functools.partial(jax.jit, donate_argnums=0)
    def program(state, slab, plan):
        moved, losses = {}, {}
        for name, graphdef in definitions.items():
            def of_setting(trees, graphdef=graphdef):
                rate, params, opt_state = trees
                return each(lambda fold: one_head(graphdef, slab, rate, *fold),
                            (params, opt_state, plan))

            params, opt_state, losses[name] = each(
                of_setting, (jnp.array(task.rates, jnp.float32), *state[name]))
            moved[name] = (params, opt_state)
        return moved, losses

    return program


def start_state(parameters: Mapping[str, dict], optimizer: optax.GradientTransformation) -> dict:
    """{kind: (params, opt_state)}, the optimizer's state with the same leading axes."""
    init = jax.vmap(jax.vmap(optimizer.init))
    return {name: (params, init(params)) for name, params in parameters.items()}


@dataclasses.dataclass(frozen=True)
class FoldRows:
    """The training rows of one fold: their numbers in the whole manifest, and their order."""

    rows: np.ndarray
    order: Callable[[int], tuple]


def plan_chunk(task: Task, folds: Sequence[FoldRows], labels: Mapping[str, np.ndarray],
               weight: np.ndarray | None, first: int, last: int, batch_size: int, views: int
               ) -> tuple[dict, np.ndarray]:
    """The batches of steps [first, last): (plan as in `make_program`, the views of its slab).

    A step belongs to the same position of the endless order as in a run of its own; epoch e
    shows view e modulo `views` (the plain picture if there are none).
    """
    positions = range(first * batch_size, last * batch_size)
    shape = (len(folds), last - first, batch_size)
    drawn = np.array([[fold.order(position)[:2] for position in positions] for fold in folds])
    epochs = drawn[..., 0].reshape(shape)
    rows = np.stack([fold.rows[one[:, 1]] for fold, one in zip(folds, drawn)])
    rows = rows.reshape(shape).astype(np.int32)
    shown = epochs % views if views else np.full(shape, -1)
    used, slots = np.unique(shown, return_inverse=True)
    steps = np.broadcast_to(np.arange(first, last, dtype=np.int32), shape[:2])
    plan = dict(slot=slots.reshape(shape).astype(np.int32), row=rows, step=steps,
                rate=task.shares[:, first:last])
    plan |= {f'label/{head}': values[rows] for head, values in labels.items()}
    if weight is not None:
        plan['weight'] = weight[rows].astype(np.float32)
    return plan, used


def predict_heads(graphdef: nnx.GraphDef, params: dict, features: np.ndarray,
                  heads: Sequence[str], batch_size: int = 4096) -> dict[str, np.ndarray]:
    """Logits of one head (parameters without leading axes) for features [N, D], float32 [N, C]."""
    parts = []
    for start in range(0, len(features), batch_size):
        parts.append(jax.device_get(_infer(graphdef, params, tuple(heads),
                                           np.asarray(features[start:start + batch_size],
                                                      np.float32))))
    return {head: np.concatenate([part[head] for part in parts]) for head in heads}


@jax.jit(static_argnums=(0, 2))
def _infer(graphdef, params, heads, features):
    model = nnx.view(nnx.merge(graphdef, params), deterministic=True, raise_if_not_found=False)
    return as_heads(model(features), heads)
