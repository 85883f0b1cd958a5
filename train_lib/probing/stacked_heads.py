"""Many heads trained together on cached features, in one jitted program.

A kind of head is built once for every learning rate and fold, and stacked: its parameters have two
leading axes [rates L, folds F]. A step gathers the features of a fold's batch on the device once,
however many heads use them. Heads do not interact, so each one ends where it would have ended
alone, up to the order of float32 sums.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipeline.label_sets import UNLABELLED
from models.feature_classifier import FeatureClassifier
from train_lib.losses.losses import LossSpec, cross_entropy, head_loss
from train_lib.training.step import as_heads, split_model


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """One architecture of head: its name, and the settings of `Classifier.add_heads`."""

    name: str
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadTask:
    """What all stacked heads have in common.

    Attributes:
        num_features: D.
        classes: number of classes by label head.
        rates: the learning rates, [L].
        rate_factors: float32 [F, S], factors of the learning rate for each fold and step; 0 after
            the end of a fold.
        batch_size: examples per step.
        views: number of augmented views; 0: training sees plain images.
        label_smoothing: as in `cross_entropy`.
        head_weights: weights of the losses by label head.
        seed: of the initial parameters and of dropout.
        losses: of the multi-label heads; other heads have a cross-entropy.
    """

    num_features: int
    classes: Mapping[str, int]
    rates: tuple[float, ...]
    rate_factors: np.ndarray
    batch_size: int
    views: int
    label_smoothing: float
    head_weights: Mapping[str, float]
    seed: int
    losses: Mapping[str, LossSpec] = dataclasses.field(default_factory=dict)


def new_head(kind: HeadKind, num_features: int, classes: Mapping[str, int], seed: int
             ) -> FeatureClassifier:
    """A head on features [B, num_features], as initialised; `classes` are numbers by label head."""
    model = FeatureClassifier(num_features)
    sizes = dict(classes)
    model.add_heads(sizes if len(sizes) > 1 else next(iter(sizes.values())),
                    rngs=nnx.Rngs(seed), **kind.settings)
    return model


def make_heads(kind: HeadKind, task: HeadTask) -> tuple[nnx.GraphDef, dict]:
    """(definition, parameters with leading axes [L, F]); all copies of a kind start equal."""
    graphdef, params, _ = split_model(new_head(kind, task.num_features, task.classes, task.seed))
    lead = (len(task.rates), len(task.rate_factors))
    return graphdef, jax.tree.map(
        lambda leaf: jnp.tile(leaf, (*lead, *(1,) * leaf.ndim)), params)


def make_program(definitions: Mapping[str, nnx.GraphDef], optimizer: optax.GradientTransformation,
                 task: HeadTask) -> Callable[[dict, jax.Array, dict], tuple[dict, dict]]:
    """The jitted training of all heads over a chunk of S steps.

    An accelerator trains all heads side by side. A CPU takes one after another through the chunk,
    within the same program, because its caches hold one head and not twenty.

    Args:
        definitions: {kind: definition}.
        optimizer: gives updates that the learning rate scales.
        task: what all heads have in common.

    Returns:
        A function (state, views, plan) -> (state, losses):
            state: {kind: (params, opt_state)} with leading axes [L, F]; donated.
            views: features [W, N, D] of the W views that the plan uses.
            plan: see `plan_chunk`.
            losses: {kind: float32 [L, F, S]}.
    """
    heads = tuple(task.classes)

    def loss_of(params, graphdef, features, labels, weight, key):
        model = nnx.merge(graphdef, params)
        logits = as_heads(model(features, rngs=nnx.Rngs(dropout=key)), heads)
        return sum(task.head_weights[head] * (
            _set_loss(task.losses[head], logits[head], labels[head], weight)
            if head in task.losses else cross_entropy(
                logits[head], labels[head], weight, task.label_smoothing)) for head in heads)

    def one_head(graphdef, views, rate, params, opt_state, plan):
        def step(carry, now):
            params, opt_state = carry
            features = views[now['view'], now['row']].astype(jnp.float32)
            labels = {head: now[f'label/{head}'] for head in heads}
            key = jax.random.fold_in(jax.random.key(task.seed), now['step'])
            loss, gradients = jax.value_and_grad(loss_of)(
                params, graphdef, features, labels, now.get('weight'), key)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            scale = rate * now['rate_factor']
            params = jax.tree.map(lambda param, update: param - scale * update, params, updates)
            return (params, opt_state), loss

        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), plan)
        return params, opt_state, losses

    def all_heads(each, state, views, plan):
        new_state, losses = {}, {}
        for name, graphdef in definitions.items():
            def of_rate(trees, graphdef=graphdef):
                rate, params, opt_state = trees
                return each(lambda fold: one_head(graphdef, views, rate, *fold),
                            (params, opt_state, plan))

            params, opt_state, losses[name] = each(
                of_rate, (jnp.array(task.rates, jnp.float32), *state[name]))
            new_state[name] = (params, opt_state)
        return new_state, losses

    def side_by_side(function, trees):
        return jax.vmap(function)(trees)

    @functools.partial(jax.jit, donate_argnums=0)
    def program(state, views, plan):
        return jax.lax.platform_dependent(
            state, views, plan, cpu=functools.partial(all_heads, jax.lax.map),
            default=functools.partial(all_heads, side_by_side))

    return program


def _set_loss(spec: LossSpec, logits: jax.Array, targets: jax.Array, weight: jax.Array | None
              ) -> jax.Array:
    """`head_loss` of targets uint8 [B, C], see `LabelSets.targets`."""
    known = targets != UNLABELLED
    return head_loss(spec, logits, jnp.where(known, targets.astype(jnp.float32), -1.0), weight)


def start_state(parameters: Mapping[str, dict], optimizer: optax.GradientTransformation) -> dict:
    """{kind: (params, opt_state)}; the optimizer's state has the same leading axes."""
    init = jax.vmap(jax.vmap(optimizer.init))
    return {name: (params, init(params)) for name, params in parameters.items()}


@dataclasses.dataclass(frozen=True)
class FoldRows:
    """The training rows of one fold.

    Attributes:
        rows: int [n], their numbers in the whole manifest.
        order: position -> (epoch, index into `rows`, ...), from `make_order`.
        weights_end: the step from which examples count alike; None: there is none.
    """

    rows: np.ndarray
    order: Callable[[int], tuple]
    weights_end: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """What the heads are trained on.

    Attributes:
        folds: the rows of each fold, F.
        labels: {label head: int32 [N]; of a multi-label head uint8 [N, C], see
            `LabelSets.targets`}.
        weight: [N], or None.
    """

    folds: Sequence[FoldRows]
    labels: Mapping[str, np.ndarray]
    weight: np.ndarray | None = None


def plan_chunk(task: HeadTask, data: TrainingRows, first: int, last: int
               ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The batches of the steps [first, last).

    A step has the same positions of the endless order as in an ordinary run. Epoch e shows view
    e modulo `task.views`, or the plain image if there are no views.

    Args:
        task: what all heads have in common.
        data: what they are trained on.
        first, last: S = last - first steps.

    Returns:
        (plan, used): `used` holds the W views that the plan needs, as indices into the cached
        features. The plan has arrays [F, S, B]: view (index into `used`), row, label/<head> (of a
        multi-label head [F, S, B, C]) and, if there are weights, weight; and arrays [F, S]: step
        and rate_factor.
    """
    positions = range(first * task.batch_size, last * task.batch_size)
    shape = (len(data.folds), last - first, task.batch_size)
    drawn = np.array([[fold.order(position)[:2] for position in positions] for fold in data.folds])
    epochs = drawn[..., 0].reshape(shape)
    rows = np.stack([fold.rows[one[:, 1]] for fold, one in zip(data.folds, drawn)])
    rows = rows.reshape(shape).astype(np.int32)
    shown = epochs % task.views if task.views else np.full(shape, -1)
    used, index = np.unique(shown, return_inverse=True)
    steps = np.broadcast_to(np.arange(first, last, dtype=np.int32), shape[:2])
    plan = dict(view=index.reshape(shape).astype(np.int32), row=rows, step=steps,
                rate_factor=task.rate_factors[:, first:last])
    plan |= {f'label/{head}': values[rows] for head, values in data.labels.items()}
    if data.weight is not None:
        plan['weight'] = data.weight[rows].astype(np.float32)
        for weights, fold in zip(plan['weight'], data.folds):
            if fold.weights_end is not None:
                weights[max(fold.weights_end - first, 0):] = 1
    return plan, used


def predict_heads(graphdef: nnx.GraphDef, params: dict, features: np.ndarray,
                  heads: Sequence[str], batch_size: int = 4096) -> dict[str, np.ndarray]:
    """Logits of one head (parameters without leading axes).

    Args:
        graphdef, params: of the head.
        features: [N, D].
        heads: names of the label heads.
        batch_size: examples per call of the device.

    Returns:
        {label head: float32 [N, C]}
    """
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
