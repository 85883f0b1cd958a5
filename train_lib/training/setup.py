"""A run put together from its config: data, model, step, iterator. Nothing is written here."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.batches import Batches
from input_pipeline.curriculum import make_stages
from input_pipeline.durations import to_steps
from input_pipeline.manifest import Manifest, class_counts
from input_pipeline.order import Order
from input_pipeline.resampling import make_order
from train_lib.losses.consistency import make_consistency
from train_lib.losses.mixing import Mixing, make_mixings
from train_lib.losses.objectives import (
    Shown,
    adjust,
    example_weights_end,
    head_weights,
    objectives,
)
from train_lib.optim.optimizers import make_optimizer
from train_lib.optim.param_groups import durations
from train_lib.optim.schedules import Schedule, judged_from, make_schedule, say_left_out
from train_lib.optim.sharpness import read_sharpness
from train_lib.run_dir.goodput import Clock
from train_lib.run_dir.loggers import wanted_loggers
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import compiling
from train_lib.runtime.sharding import (
    keep_layout,
    make_layout,
    make_state_on,
    on_mesh,
    plan_state,
)
from train_lib.training import patience
from train_lib.training.batch_statistics import make_estimate, make_statistics_step
from train_lib.training.beside_labels import BesideLabels
from train_lib.training.checks import check_multi_label, check_swaps
from train_lib.training.class_structure import (
    answered_by_median,
    check_structure,
    ordered_heads,
    with_levels,
)
from train_lib.training.data import Data
from train_lib.training.evaluate import EvalSplit
from train_lib.training.heatmaps import make_heat_step
from train_lib.training.live_teacher import load_teacher
from train_lib.training.network import Network, ParameterCounts, make_network
from train_lib.training.phases import find_phases, graphdef_of
from train_lib.training.preprocess_spec import DTYPES, loader_spec, preprocess_spec
from train_lib.training.rollback import make_guard
from train_lib.training.run_batches import (
    batch_shapes,
    eval_splits,
    taught_of,
    training_batches,
    views_of,
    wide_columns,
)
from train_lib.training.run_spec import (
    Alternating,
    Control,
    Inputs,
    Outputs,
    Programs,
    RunSpec,
    Scoring,
    Timing,
)
from train_lib.training.state import TrainState, Weights, make_state
from train_lib.training.step import (
    StepOptions,
    make_ema_decay,
    make_eval_step,
    make_normalise,
    make_train_step,
)
from train_lib.training.unlabelled_rows import read_spec
from train_lib.training.weight_averages import Averaging, read_averaging

ToSteps = Callable[[Mapping, str], int]  # (duration, config key) -> steps


@dataclasses.dataclass(frozen=True)
class Job:
    """A run ready to begin: `init.begin` turns its state into that of the first step.

    Attributes:
        run: what does not change while it runs.
        state: arrays, or their shapes and shardings where the job is abstract.
        iterator: of the training batches; close it.
        evals: the splits that have rows.
        parameters: of the model.
        replaced: rows whose picture broke, filled while the iterator runs.
        pretrained: the published weights that were loaded; {} for none.
        extra_start: the step from which the extra rows are shown.
    """

    run: RunSpec
    state: TrainState
    iterator: Batches
    evals: dict[str, EvalSplit]
    parameters: ParameterCounts
    replaced: dict[int, int]
    pretrained: dict[str, Any]
    extra_start: int = 0


def assemble(config: ConfigDict, data: Data, mesh: jax.sharding.Mesh, own: Path | None,
             workdir: Path, *, schedule: Schedule | None = None, steps: int = 0,
             abstract: bool = False) -> Job:
    """Everything that a run needs before its first step. Each section of the config is read here,
    into what is passed on.

    Args:
        config: of the run.
        data: see `data.split_data`.
        mesh: of the devices.
        own: the checkpoint that the run goes on from, or None; its weights are not read here.
        workdir: of the run.
        schedule: step -> learning rate, instead of the config's.
        steps: the iterator gives at least this many batches.
        abstract: no weight is created; the state holds shapes and shardings.

    Raises:
        ConfigError, DataError, ModelError: a user's mistake.
    """
    timing, to_steps_of_run = _timing(config, len(data.parts['train']))
    inputs = Inputs(preprocess_spec(config, None if abstract else workdir), loader_spec(config),
                    wide_columns(data))
    stages = make_stages(config.curriculum, to_steps_of_run, inputs.preprocess.channels)
    averaging = read_averaging(config, timing.total_steps, to_steps_of_run)
    check_swaps(config, stages, data.manifest.classes)
    check_multi_label(config, data.manifest.label_sets)
    check_structure(config, data.manifest.classes, data.manifest.label_sets)
    inputs = dataclasses.replace(inputs, views=views_of(config, data, stages, inputs))
    if schedule is None:
        say_left_out(config.schedule.to_dict(), to_steps_of_run)
        schedule = make_schedule(config.schedule.to_dict(), timing.total_steps, to_steps_of_run,
                                 stages, batch_size=config.batch_size,
                                 tail=averaging.tail if averaging else None)
    evals = eval_splits(config.eval.batch_size, data.parts, inputs, mesh.size)
    control = _control(config, to_steps_of_run, timing, scored='val' in evals)
    first = to_steps_of_run(config.profile.start, 'profile.start')
    ema_decay = make_ema_decay(config.ema.to_dict())

    layout = make_layout(config.sharding, mesh)
    network = make_network(config, data.manifest.classes, layout, pretrained=own is None,
                           abstract=abstract)
    optimizer = make_optimizer(config.optimizer.to_dict(), network.parameters.decay,
                               network.scanned, network.parameters.starts)
    phases = find_phases(network, to_steps_of_run, timing.total_steps)
    normalise = make_normalise(inputs.preprocess.mean, inputs.preprocess.std,
                                DTYPES[config.precision])
    order = make_order(data.parts['train'], config.resample.to_dict(), seed=config.seed,
                       batch_size=config.batch_size, to_steps=to_steps_of_run)
    scoring, mixings = _scoring(config, data, to_steps_of_run, evals, order)
    teaching = load_teacher(config, data.manifest.classes, layout, inputs.preprocess,
                            abstract=abstract)
    beside = BesideLabels(make_consistency(read_spec(config), to_steps_of_run),
                          teaching and teaching[0])
    options = StepOptions(
        scoring.heads, config.seed, scoring.losses, head_weights(config, scoring.heads), mixings,
        network.parameters.rates, config.accumulate, ema_decay, guarded=control.guard is not None,
        weights_end=_weights_end(config, data.parts['train'], order),
        sharpness=read_sharpness(config.sharpness.to_dict(), to_steps_of_run),
        averaging=averaging, beside=beside,
        distillation=data.taught.distillation if data.taught else None)

    def of_phase(waiting: Collection[str]) -> tuple[Callable, Callable | None]:
        graphdef = graphdef_of(network, waiting) if waiting else network.graphdef
        of_options = partial(make_train_step, graphdef, optimizer, schedule, normalise)
        whole = dataclasses.replace(options, waiting=waiting)
        step, sharpness = of_options(whole), options.sharpness
        if sharpness is not None and not sharpness.always:
            step = Alternating(step, of_options(dataclasses.replace(whole, sharpness=None)),
                               sharpness.is_due)
        return step, _estimate(config, averaging, network, make_statistics_step(
            graphdef, normalise), mesh, data, inputs)

    train_step, estimate = of_phase(frozenset())
    programs = Programs(
        train_step=train_step,
        eval_step=jax.jit(on_mesh(
            make_eval_step(network.graphdef, normalise, scoring.heads), mesh)),
        heat_step=make_heat_step(network.graphdef, normalise, scoring.heads, mesh),
        mesh=mesh, estimate=estimate, estimate_from=averaging.start if averaging else 0,
        earlier=tuple((phase, *of_phase(phase.waiting)) for phase in phases))
    run = RunSpec(workdir, timing, inputs, programs, scoring, control, _outputs(config), stages,
                  schedule, range(first, first + config.profile.steps))

    extra_start = to_steps_of_run(config.data.extra.start, 'data.extra.start')
    iterator, replaced = training_batches(config, data, run, loader.Course(
        stages=stages, steps=max(timing.total_steps, steps), seed=config.seed, order=order,
        **taught_of(data, extra_start * config.batch_size)))
    make = lambda params, batch_stats, frozen: make_state(
        Weights(params, frozen, batch_stats), optimizer, scoring.heads,
        ema=ema_decay is not None or averaging is not None,
        counted=averaging is not None and averaging.counted,
        plateau=control.plateau is not None, sums=beside.sums(scoring.heads))
    weights = network.weights
    state = (plan_state if abstract else make_state_on)(
        layout, make, weights.params, weights.batch_stats, weights.frozen)
    if teaching:
        state = state.replace(teacher=teaching[1])
    return Job(run, state, iterator, evals, network.parameters, replaced,
               dict(network.pretrained), extra_start)


def _estimate(config: ConfigDict, averaging: Averaging | None, network: Network, step: Callable,
              mesh: jax.sharding.Mesh, data: Data, inputs: Inputs) -> Callable | None:
    """How the BatchNorm statistics of the average are estimated; None if they are not."""
    pictures = averaging.statistics if averaging else config.ema.statistics
    if pictures < 0:
        raise ConfigError(f'config.ema.statistics = {pictures}: give a number of pictures, or 0 '
                          f'for the average of the statistics.')
    if not pictures or not (averaging or config.ema.decay):
        return None
    if not jax.tree.leaves(network.weights.batch_stats):
        return None
    return make_estimate(step, mesh, data.parts['train'], inputs, pictures=pictures,
                         batch_size=config.batch_size)


def _timing(config: ConfigDict, examples: int) -> tuple[Timing, ToSteps]:
    """(when things happen, a function that turns a duration of the config into steps)"""
    total = max(steps_of(config, examples, config.duration, 'duration'), 1)
    to_steps_of_run = partial(steps_of, config, examples, total=total)
    every = [max(to_steps_of_run(config[key].every, f'{key}.every'), 1)
             for key in ('log', 'eval', 'checkpoint')]
    return Timing(total, config.batch_size, examples, *every), to_steps_of_run


def _control(config: ConfigDict, to_steps_of_run: ToSteps, timing: Timing, *, scored: bool
             ) -> Control:
    """The guard, the plateau and early stopping, which do not judge before everything trains;
    `scored`: whether there is a validation split."""
    begin = max(judged_from(config.schedule.to_dict(), timing.total_steps, to_steps_of_run),
                *(to_steps_of_run(duration, key) for key, duration in
                  durations(config.finetune.to_dict()).items()))
    plateau = patience.make_plateau(config.schedule.plateau.to_dict(), to_steps_of_run,
                                    timing.eval_every, begin)
    stopping = patience.make_early_stopping(config.early_stopping.to_dict(), to_steps_of_run,
                                            begin)
    for key, asked in (('schedule.plateau', plateau), ('early_stopping', stopping)):
        if asked and not scored:
            raise ConfigError(f'config.{key}.patience needs a validation split, and there is '
                              f'none: set config.split.val, or patience to None.')
    return Control(make_guard(config.guard.to_dict()), plateau, stopping,
                   config.early_stopping.restore_best, config.eval.ties)


def _scoring(config: ConfigDict, data: Data, to_steps_of_run: ToSteps,
             evals: Mapping[str, EvalSplit], order: Order) -> tuple[Scoring, Sequence[Mixing]]:
    """(how logits become scores, how pictures are mixed)"""
    heads, classes = data.manifest.heads, data.manifest.classes
    counts = {head: class_counts(data.parts['train'], head) for head in heads}
    labelled = {head: data.parts['train'].numbers(head) >= 0 for head in heads}
    shown = None
    if config.resample.kind != 'none':
        rows = order.plan.mean_counts()
        shown = Shown(order.start // config.batch_size,
                      {head: class_counts(data.parts['train'], head, rows) for head in heads},
                      {head: float(rows[known].sum()) for head, known in labelled.items()})
    several = tuple(data.manifest.label_sets)
    losses = with_levels(objectives(config, classes, counts, to_steps_of_run, shown, several,
                                    {head: float(known.sum()) for head, known in labelled.items()}),
                         config, classes)
    mixings = make_mixings(config.mixing, classes, to_steps_of_run, several)
    if several and config.eval.adjust_tau:
        raise ConfigError(f'config.eval.adjust_tau = {config.eval.adjust_tau} adjusts a softmax, '
                          f'and the head {several[0]!r} has several labels per picture: set it to '
                          f'0; thresholds per class are fitted anyway.')
    ordered = ordered_heads(config, classes)
    patience.check_metric(config.eval.metric, sets=bool(several), ordered=bool(ordered))
    medians = answered_by_median(config, classes)
    adjusted = partial(adjust, counts=counts, tau=config.eval.adjust_tau)
    scoring = Scoring(heads, config.eval.metric, losses, adjusted, evals.get('val'),
                      ordered, config.eval.thresholds == 'f1', medians)
    return scoring, mixings


def _outputs(config: ConfigDict) -> Outputs:
    return Outputs(
        model=config.model.name, precision=config.precision, seed=config.seed,
        tensorboard=config.log.tensorboard, loggers=wanted_loggers(config.log),
        kept_checkpoints=config.checkpoint.keep,
        shown_errors=config.report.errors, heat_maps=config.report.heat_maps)


def _weights_end(config: ConfigDict, train: Manifest, order: Order) -> int | None:
    """See `example_weights_end`; None without weights."""
    if 'weight' not in train.table:
        return None
    return example_weights_end(config, order.start // config.batch_size)


def steps_of(config: ConfigDict, examples: int, duration: Mapping, key: str,
             total: int | None = None) -> int:
    """Steps that a duration of the config stands for.

    Args:
        config: of the run.
        examples: number of its training examples.
        duration: such as config.duration or dict(epochs=5).
        key: where the duration stands in the config, for errors.
        total: steps of the whole run, which percentages refer to.

    Raises:
        DataError: the duration is not valid.
    """
    duration = duration.to_dict() if isinstance(duration, ConfigDict) else duration
    return to_steps(duration, key=key, examples_per_epoch=examples,
                    batch_size=config.batch_size, total_steps=total)


def compile_step(run: RunSpec, state: TrainState, parts: Mapping[str, Manifest], clock: Clock,
                 first: int = 0) -> RunSpec:
    """The run with its training steps compiled before its first batch, so that the time is known
    and what does not fit is known at once; those of phases before `first` are left out."""
    programs = run.programs

    def compiled_of(step: Callable) -> Callable:
        if isinstance(step, Alternating):
            return step.each(compiled_of)
        return lower_step(run, state, parts, step).compile()

    with clock('compile'), compiling(distributed.is_first()):
        earlier = tuple((phase, compiled_of(step), estimate)
                        for phase, step, estimate in programs.earlier if phase.until > first)
        compiled = compiled_of(programs.train_step)
    return dataclasses.replace(run, programs=dataclasses.replace(
        programs, train_step=compiled, earlier=earlier))


def lower_step(run: RunSpec, state: TrainState, parts: Mapping[str, Manifest],
               train_step: Callable | None = None) -> jax.stages.Lowered:
    """The training step, or that of a phase, traced; the state (it may be abstract) stays laid out
    as it is."""
    train_step = train_step or run.programs.train_step
    if isinstance(train_step, Alternating):  # the larger of the two
        train_step = train_step.sharp
    step: Any = keep_layout(train_step, state)  # jitted
    return step.lower(state, batch_shapes(run, parts))
