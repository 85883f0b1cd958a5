"""A run put together from its config: data, model, step, iterator. Nothing is written here."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import models
from input_pipeline import loader
from input_pipeline.curriculum import make_stages
from input_pipeline.descriptors import with_clusters
from input_pipeline.durations import to_steps
from input_pipeline.manifest import Manifest, class_counts, digest
from input_pipeline.resampling import make_order
from input_pipeline.splits import parts_of
from input_pipeline.warp import BORDERS
from train_lib.losses.mixing import make_mixings
from train_lib.losses.objectives import adjust, objectives
from train_lib.optim import param_groups
from train_lib.optim.optimizers import make_optimizer
from train_lib.optim.schedules import Schedule, make_schedule
from train_lib.run_dir.goodput import Clock
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharded_init import create
from train_lib.runtime.sharding import (
    batch_sharding,
    keep_layout,
    make_layout,
    make_state_on,
    on_mesh,
    plan_state,
)
from train_lib.training import init, patience
from train_lib.training.evaluate import EvalSplit
from train_lib.training.heatmaps import make_heat_step
from train_lib.training.loop import Every, Run
from train_lib.training.preprocess_spec import DTYPES, Prepared, image_spec, prepared_for
from train_lib.training.rollback import make_guard
from train_lib.training.row_splits import split_rows
from train_lib.training.step import (
    make_ema_decay,
    make_eval_step,
    make_normalise,
    make_state,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Data:
    """The manifest with its splits, the rows of each part, and what the rows are known by."""

    manifest: Manifest
    parts: dict[str, Manifest]
    digest: str


@dataclasses.dataclass(frozen=True)
class Job:
    """A run ready to begin: `init.begin` turns its state into that of the first step."""

    run: Run
    state: dict
    iterator: object  # of the training batches; close it
    evals: dict[str, EvalSplit]
    spec: loader.ImageSpec
    prepared: Prepared
    replaced: dict[int, int]  # rows whose picture broke, filled while the iterator runs
    count: str  # of the parameters, in words
    sizes: tuple[int, int]  # parameters that train, that don't
    rates: dict  # factors of the learning rate, a tree like the params that train
    decay: dict  # of the weight decay, likewise
    heat_step: Callable  # see `heatmaps.make_heat_step`


def check_values(config: ConfigDict, devices: int) -> None:
    """Refuses values that no part of a run would complain about, or only late.

    Raises:
        ConfigError: with the first of them.
    """
    for key, value, allowed in (
            ('precision', config.precision, DTYPES),
            ('image.border', config.image.border, BORDERS),
            ('data.changed', config.data.changed, ('error', 'accept')),
            ('eval.metric', config.eval.metric, patience.METRICS)):
        if value not in allowed:
            raise ConfigError(f'config.{key} = {value!r}: choose one of {", ".join(allowed)}.')
    for key, value, least, most in (
            ('batch_size', config.batch_size, 1, 2**24),
            ('image.size', config.image.size, 1, 2**14),
            ('eval.batch_size', config.eval.batch_size, 1, 2**24),
            ('accumulate', config.accumulate, 1, 2**24), ('seed', config.seed, 0, 2**32 - 1),
            ('loader.threads', config.loader.threads, 1, 1024),
            ('loader.workers', config.loader.workers, 0, 1024),
            ('loader.prefetch', config.loader.prefetch, 1, 2**14),
            ('image.cache_mb', config.image.cache_mb, 0, 2**40)):
        if not least <= value <= most:
            raise ConfigError(f'config.{key} = {value}: give a number from {least:,} to {most:,}.')
    if config.eval.adjust_tau and config.loss.name in ('balanced_softmax', 'logit_adjustment'):
        raise ConfigError(f'config.eval.adjust_tau = {config.eval.adjust_tau} and config.loss.name '
                          f'= {config.loss.name!r} would adjust for the class sizes twice: '
                          f'keep one of them.')
    if config.batch_size % devices:
        raise ConfigError(f'config.batch_size = {config.batch_size} cannot be shared by '
                          f'{devices} devices: give a multiple of {devices}.')
    if config.batch_size % (devices * config.accumulate):
        raise ConfigError(f'config.batch_size = {config.batch_size} cannot be done in '
                          f'config.accumulate = {config.accumulate} equal parts on {devices} '
                          f'device{"s" * (devices > 1)}: give a multiple of '
                          f'{devices * config.accumulate}.')


def arrange(config: ConfigDict, manifest: Manifest, run: Path | None = None) -> Data:
    """Splits the rows, cuts the tail, finds the clusters that the resampling asks for; `run`: see
    `split_rows`."""
    manifest = split_rows(config, manifest, run)
    parts = parts_of(manifest, config.split)
    if config.resample.kind == 'cluster' and not config.resample.column:
        parts['train'] = with_clusters(parts['train'], config.resample.head, config.resample.k,
                                       config.seed)
    return Data(manifest, parts, digest(manifest))


def make_model(config: ConfigDict, classes: Mapping[str, tuple]) -> nnx.Module:
    """The model of config.model for these classes, with its image size if it has one."""
    settings = {key: value for key, value in config.model.to_dict().items() if key != 'name'}
    known = models.model_settings(config.model.name)
    if 'img_size' in known:
        settings.setdefault('img_size', config.image.size)
    if 'dtype' in known:
        settings.setdefault('dtype', DTYPES[config.precision])
    sizes = {head: len(names) for head, names in classes.items()}
    num_classes = sizes if len(sizes) > 1 else next(iter(sizes.values()))
    return models.create_model(config.model.name, num_classes=num_classes,
                               rngs=nnx.Rngs(config.seed), **settings)


def assemble(config: ConfigDict, data: Data, mesh: jax.sharding.Mesh, own: Path | None,
             workdir: Path, *, schedule: Schedule | None = None, steps: int = 0,
             abstract: bool = False) -> Job:
    """Everything that a run needs before its first step.

    Args:
        config: of the run.
        data: see `arrange`.
        mesh: of the devices.
        own: the checkpoint that the run goes on from, or None; its weights are not read here.
        workdir: of the run.
        schedule: step -> learning rate, instead of the config's.
        steps: the iterator gives at least so many batches.
        abstract: no weight is created; the state holds shapes and shardings.

    Raises:
        ConfigError, DataError, ModelError: a user's mistake.
    """
    parts, heads = data.parts, data.manifest.heads
    steps_of = partial(_steps, config, len(parts['train']))
    total = max(steps_of(config.duration, 'duration'), 1)
    in_run = partial(steps_of, total=total)
    stages = make_stages(config.curriculum, in_run)
    schedule = schedule or make_schedule(config.schedule.to_dict(), total, in_run, stages,
                                         batch_size=config.batch_size)
    prepared = prepared_for(config)
    spec = image_spec(config, prepared)
    evals = _eval_splits(config, parts, spec, mesh.size)
    every = Every(*(max(in_run(config[key].every, f'{key}.every'), 1)
                    for key in ('log', 'eval', 'checkpoint')))
    plateau = patience.make_plateau(config.schedule.plateau.to_dict(), in_run, every.eval)
    stopping = patience.make_early_stopping(config.early_stopping.to_dict(), in_run)
    for key, asked in (('schedule.plateau', plateau), ('early_stopping', stopping)):
        if asked and 'val' not in evals:
            raise ConfigError(f'config.{key}.patience needs a validation split, and there is '
                              f'none: set config.split.val, or patience to None.')
    first = in_run(config.profile.start, 'profile.start')
    guarded = make_guard(config.guard.to_dict())
    ema_decay = make_ema_decay(config.ema.to_dict())

    rules = {}

    def build():
        model = make_model(config, data.manifest.classes)
        rules.update(param_groups.prepare(model, config.finetune.to_dict(), config.seed))
        return model

    layout = make_layout(config.sharding, mesh)
    model = nnx.eval_shape(build) if abstract else create(build, layout)
    if own is None and not abstract:
        init.load_pretrained(config, model)
    count = param_groups.describe(model, rules)
    graphdef, params, frozen, rest = param_groups.split(model, rules)
    rates, decay = param_groups.factors(params, rules)
    optimizer = make_optimizer(config.optimizer.to_dict(), decay, getattr(model, 'scan', False))
    del model
    normalise = make_normalise(prepared.mean, prepared.std, DTYPES[config.precision])
    counts = {head: class_counts(parts['train'], head) for head in heads}
    losses = objectives(config, data.manifest.classes, counts, in_run)
    mixings = make_mixings(config.mixing, data.manifest.classes, in_run)
    run = Run(
        workdir=workdir, total_steps=total, batch_size=config.batch_size,
        image_size=config.image.size, examples_per_epoch=len(parts['train']),
        every=every, heads=heads, stages=stages, schedule=schedule,
        train_step=make_train_step(graphdef, optimizer, schedule, normalise, heads=heads,
                                   seed=config.seed, losses=losses,
                                   head_weights=config.loss.head_weights, mixings=mixings,
                                   rates=rates, accumulate=config.accumulate,
                                   ema_decay=ema_decay, guarded=guarded is not None),
        eval_step=jax.jit(on_mesh(make_eval_step(graphdef, normalise, heads), mesh)),
        val=evals.get('val'), metric=config.eval.metric,
        losses=losses, adjust=partial(adjust, counts=counts, tau=config.eval.adjust_tau),
        mesh=mesh, guard=guarded, plateau=plateau, stopping=stopping,
        keep_best=config.early_stopping.restore_best,
        profiled=range(first, first + config.profile.steps))

    shard = (jax.process_index(), jax.process_count())
    order = make_order(parts['train'], config.resample.to_dict(), seed=config.seed,
                       batch_size=config.batch_size, to_steps=in_run)
    replaced: dict[int, int] = {}
    iterator = loader.train_iterator(
        parts['train'], spec, stages, steps=max(total, steps), batch_size=config.batch_size,
        seed=config.seed, order=order, shard=shard, threads=config.loader.threads,
        workers=config.loader.workers, prefetch=config.loader.prefetch,
        cache_mb=config.image.cache_mb, unreadable=config.data.unreadable, replaced=replaced)
    make = lambda params, rest, frozen: make_state(
        params, rest, optimizer, heads, frozen, ema=ema_decay is not None,
        plateau=plateau is not None)
    state = (plan_state if abstract else make_state_on)(layout, make, params, rest, frozen)
    sizes = tuple(sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, frozen))
    return Job(run, state, iterator, evals, spec, prepared, replaced, count, sizes, rates, decay,
               make_heat_step(graphdef, normalise, heads, mesh))


def _steps(config: ConfigDict, examples: int, duration, key: str, total: int | None = None) -> int:
    duration = duration.to_dict() if isinstance(duration, ConfigDict) else duration
    return to_steps(duration, key=key, examples_per_epoch=examples,
                    batch_size=config.batch_size, total_steps=total)


def _eval_splits(config: ConfigDict, parts: Mapping[str, Manifest], spec: loader.ImageSpec,
                 devices: int) -> dict[str, EvalSplit]:
    """The splits that have rows, all with one batch size, so that one program serves them."""
    processes = jax.process_count()
    largest = max(len(parts['val']), len(parts['test']), 1)
    batch_size = -(-min(config.eval.batch_size, largest) // devices) * devices
    make = partial(loader.eval_dataset, spec=spec, batch_size=batch_size,
                   shard=(jax.process_index(), processes), threads=config.loader.threads,
                   cache_mb=config.image.cache_mb, unreadable=config.data.unreadable)
    return {name: EvalSplit(part, make(part)) for name, part in parts.items() if len(part)}


def compile_step(run: Run, state: dict, parts: Mapping[str, Manifest], clock: Clock) -> Run:
    """The training step compiled ahead of its first batch, so that its time is known."""
    with clock('compile'):
        compiled = lower_step(run, state, parts).compile()
    return dataclasses.replace(run, train_step=compiled)


def lower_step(run: Run, state: dict, parts: Mapping[str, Manifest]) -> jax.stages.Lowered:
    """The training step, traced; the state (it may be abstract) stays laid out as it is."""
    def spec(shape, dtype):
        return jax.ShapeDtypeStruct((run.batch_size, *shape), dtype,
                                    sharding=batch_sharding(run.mesh))

    image = run.image_size
    batch = {'image': spec((image, image, 3), jnp.uint8)}
    batch |= {f'label/{head}': spec((), jnp.int32) for head in run.heads}
    if 'weight' in parts['train'].table:
        batch['weight'] = spec((), jnp.float32)
    return keep_layout(run.train_step, state).lower(state, batch)
