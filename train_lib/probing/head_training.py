"""Trains every head of every fold on cached features, chunk by chunk."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from input_pipeline.curriculum import Stage, make_stages
from input_pipeline.resampling import make_order
from train_lib.losses.objectives import example_weights_end, head_weights
from train_lib.optim.optimizers import make_optimizer
from train_lib.optim.schedules import make_schedule, say_left_out
from train_lib.probing.feature_cache import Features
from train_lib.probing.probe_folds import FoldedData
from train_lib.probing.probe_losses import probe_losses
from train_lib.probing.probe_spec import ProbeSpec
from train_lib.probing.stacked_heads import (
    FoldRows,
    HeadTask,
    TrainingRows,
    make_heads,
    make_program,
    plan_chunk,
    start_state,
)
from train_lib.run_dir.metrics_log import MetricsLog
from train_lib.runtime.progress import bar
from train_lib.runtime.signals import Interrupted
from train_lib.training.preprocess_spec import input_channels
from train_lib.training.setup import steps_of

CHUNK = 64  # steps per call of the program: hides the cost of a call, and is planned quickly


@dataclasses.dataclass(frozen=True)
class TrainedHeads:
    """All heads of a probing run.

    Attributes:
        rates: the learning rates, [L].
        steps: of the longest fold.
        definitions: {kind: definition}.
        params: {kind: parameters with leading axes [L, F]}.
    """

    rates: tuple[float, ...]
    steps: int
    definitions: dict[str, nnx.GraphDef]
    params: dict[str, dict]


def run_length(config: ConfigDict, examples: int) -> tuple[int, tuple[Stage, ...]]:
    """(steps of a run over this number of training examples, its stages)"""
    total = max(steps_of(config, examples, config.duration, 'duration'), 1)
    to_steps = partial(steps_of, config, examples, total=total)
    return total, make_stages(config.curriculum, to_steps, input_channels(config))


def train_heads(config: ConfigDict, spec: ProbeSpec, data: FoldedData, features: Features,
                metrics: MetricsLog | None = None, stop: Callable[[], bool] = lambda: False
                ) -> TrainedHeads:
    """Trains every kind of head with every learning rate on every fold.

    Args:
        config: of the run; its duration, schedule, optimizer, resampling and loss apply.
        spec: heads, rates and views.
        data: the folds.
        features: of all rows of `data.manifest`.
        metrics: receives one row per chunk.
        stop: asked between chunks.

    Raises:
        Interrupted: `stop` became true.
    """
    if not spec.heads:
        return TrainedHeads(spec.rates, 0, {}, {})
    examples = len(data.folds[0].train)
    say_left_out(config.schedule.to_dict(), partial(steps_of, config, examples,
                                                    total=run_length(config, examples)[0]))
    factors = [_rate_factors(config, len(fold.train)) for fold in data.folds]
    task = _task(config, spec, data, features, factors)
    optimizer = make_optimizer(config.optimizer.to_dict())
    made = {kind.name: make_heads(kind, task) for kind in spec.heads}
    definitions = {name: graphdef for name, (graphdef, _) in made.items()}
    state = start_state({name: params for name, (_, params) in made.items()}, optimizer)
    program = make_program(definitions, optimizer, task)
    rows = _training_rows(config, data, [len(of_fold) for of_fold in factors])
    longest = task.rate_factors.shape[1]
    used, views = np.zeros(0, int), jax.numpy.zeros(0)  # those of the last chunk, on the device
    for first in bar(range(0, longest, CHUNK), unit=f'x{CHUNK} steps'):
        if stop():
            raise Interrupted
        last = min(first + CHUNK, longest)
        plan, wanted = plan_chunk(task, rows, first, last)
        if not np.array_equal(used, wanted):
            views, used = jax.device_put(features.views[wanted]), wanted
        state, losses = program(state, views, plan)
        if metrics:
            epoch = last * config.batch_size / len(data.folds[0].train)
            mean = float(np.mean([np.mean(value) for value in losses.values()]))
            metrics.write(dict(step=last, epoch=epoch, split='train', loss=mean,
                               **{f'{name}/loss': float(np.mean(value[..., -1]))
                                  for name, value in losses.items()}))
    return TrainedHeads(task.rates, longest, definitions,
                        {name: params for name, (params, _) in state.items()})


def _task(config: ConfigDict, spec: ProbeSpec, data: FoldedData, features: Features,
          factors: list[np.ndarray]) -> HeadTask:
    longest = max(map(len, factors))
    heads = data.manifest.heads
    return HeadTask(
        num_features=features.views.shape[-1],
        classes={head: len(names) for head, names in data.manifest.classes.items()},
        rates=spec.rates,
        rate_factors=np.stack([np.pad(one, (0, longest - len(one))) for one in factors]),
        batch_size=config.batch_size, views=features.views.shape[0] - 1,
        label_smoothing=config.loss.label_smoothing,
        head_weights=dict(zip(heads, head_weights(config, heads) or [1.0] * len(heads))),
        seed=config.seed, losses=probe_losses(config, data.manifest))


def _rate_factors(config: ConfigDict, examples: int) -> np.ndarray:
    """The factor of the learning rate at each step, float32 [S]."""
    total, stages = run_length(config, examples)
    schedule = make_schedule(config.schedule.to_dict() | dict(lr=1.0), total,
                             partial(steps_of, config, examples, total=total), stages,
                             batch_size=config.batch_size)
    return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(total)))


def _training_rows(config: ConfigDict, data: FoldedData, steps: list[int]) -> TrainingRows:
    """The rows of each fold, in the order in which a run of `steps` would show them."""
    manifest = data.manifest
    weight = manifest.table['weight'].to_numpy() if 'weight' in manifest.table else None
    folds = []
    for fold, total in zip(data.folds, steps):
        order = make_order(manifest.select(fold.train), config.resample.to_dict(),
                           seed=config.seed, batch_size=config.batch_size,
                           to_steps=partial(steps_of, config, len(fold.train), total=total))
        end = None if weight is None else example_weights_end(
            config, order.start // config.batch_size)
        folds.append(FoldRows(fold.train, order, end))
    return TrainingRows(folds, {head: manifest.truth(head) for head in manifest.heads}, weight)
