"""Everything about a run that does not change while it runs, put together once by setup.py."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from input_pipeline.curriculum import Stage
from input_pipeline.loader import LoaderSpec
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.two_views import ViewSpec
from train_lib.losses.losses import LossSpec
from train_lib.optim.schedules import Schedule
from train_lib.training.evaluate import EvalSplit
from train_lib.training.patience import EarlyStopping, Plateau, exhausted
from train_lib.training.phases import Phase
from train_lib.training.rollback import Guard
from train_lib.training.state import HostState


@dataclasses.dataclass(frozen=True)
class Timing:
    """When things happen.

    Attributes:
        total_steps: of the run.
        batch_size: examples per step, over all devices and processes.
        examples_per_epoch: training rows.
        log_every, eval_every, save_every: steps between two such events; the last step of the run
            always counts as one.
    """

    total_steps: int
    batch_size: int
    examples_per_epoch: int
    log_every: int
    eval_every: int
    save_every: int

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps."""
        return step * self.batch_size / self.examples_per_epoch

    def evaluation_at(self, percent: float) -> int | None:
        """The first step with an evaluation from a share of the run on; None if that is its end."""
        step = math.ceil(self.total_steps * percent / 100 / self.eval_every) * self.eval_every
        return step if step < self.total_steps else None

    def is_due(self, every: int, step: int) -> bool:
        """Whether an event that happens every so many steps happens at this one."""
        return step > 0 and (step % every == 0 or step == self.total_steps)


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Two training steps of which each step of the run takes one.

    A condition inside of one program would do the same, but XLA's CPU backend computes convolutions
    in its branches some ten times as slowly.

    Attributes:
        sharp, plain: (TrainState, batch) -> (TrainState, loss), with and without a second gradient.
        is_due: whether a step, counted from 0, takes `sharp`.
    """

    sharp: Callable
    plain: Callable
    is_due: Callable[[int], bool]

    def __call__(self, state, batch):
        """The larger of the two, for a sweep or a benchmark that knows no steps."""
        return self.sharp(state, batch)

    def at(self, step: int) -> Callable:
        """That of a step."""
        return self.sharp if self.is_due(step) else self.plain

    def each(self, change: Callable[[Callable], Callable]) -> 'Alternating':
        """Both, changed in the same way."""
        return Alternating(change(self.sharp), change(self.plain), self.is_due)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted functions, and the mesh that they run on.

    Attributes:
        train_step: (TrainState, batch) -> (TrainState, loss), when everything trains; see
            `step.make_train_step`. It may be Alternating.
        eval_step: (Weights, uint8 images) -> logits by head; see `step.make_eval_step`.
        heat_step: see `heatmaps.make_heat_step`.
        mesh: of the devices.
        estimate: weights of the moving average -> their BatchNorm statistics, see
            `batch_statistics.make_estimate`; None where they are averaged too.
        estimate_from: steps done before an average that needs it.
        earlier: (phase, its train_step, its estimate), in their order, before everything trains.
    """

    train_step: Callable
    eval_step: Callable
    heat_step: Callable
    mesh: jax.sharding.Mesh
    estimate: Callable | None = None
    estimate_from: int = 0
    earlier: tuple[tuple[Phase, Callable, Callable | None], ...] = ()

    def at(self, step: int) -> tuple[Callable, Callable | None]:
        """(train_step, estimate) of a step, counted from 0."""
        train_step, estimate = next((
            (train_step, estimate) for phase, train_step, estimate in self.earlier
            if step < phase.until), (self.train_step, self.estimate))
        return train_step.at(step) if isinstance(train_step, Alternating) else train_step, estimate


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How logits become scores.

    Attributes:
        heads: names of the heads.
        metric: the score of the validation that decides; a name in `patience.METRICS`.
        losses: by head.
        adjust: {head: logits} -> the same, as they are scored.
        val: the validation split, None without one.
        ordered: heads whose classes have an order.
        fit_thresholds: whether multi-label heads get thresholds of their own.
        medians: the ordered heads that answer the median.
    """

    heads: tuple[str, ...]
    metric: str
    losses: Mapping[str, LossSpec]
    adjust: Callable
    val: EvalSplit | None
    ordered: tuple[str, ...] = ()
    fit_thresholds: bool = True
    medians: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Control:
    """What watches the run; None is off.

    Attributes:
        guard: against steps that are not finite.
        plateau: lowers the learning rate.
        stopping: ends the run early.
        keep_best: the best weights count at the end; False: the last ones do.
        ties: which of equally good checkpoints is the best, see `patience.beats_best`.
    """

    guard: Guard | None = None
    plateau: Plateau | None = None
    stopping: EarlyStopping | None = None
    keep_best: bool = True
    ties: str = 'nll'


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a run writes and says besides its scores.

    Attributes:
        model, precision, seed: as in the config, for the log and result.json.
        tensorboard: write event files too.
        loggers: {name: value of its knob} of the others.
        kept_checkpoints: newest checkpoints kept, besides the best.
        shown_errors: in the report, over all heads.
        heat_maps: show where in them the model looked.
    """

    model: str
    precision: str
    seed: int
    tensorboard: bool
    loggers: Mapping[str, str]
    kept_checkpoints: int
    shown_errors: int
    heat_maps: bool


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How pictures become batches: how each is prepared, how they are loaded, and which columns
    training batches have besides labels and weight, {name: width, 0 for a number per example};
    with config.unlabelled also what the views of unlabelled ones show."""

    preprocess: PreprocessSpec
    loading: LoaderSpec
    columns: Mapping[str, int] = dataclasses.field(default_factory=dict)
    views: ViewSpec | None = None


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """A run.

    Attributes:
        workdir: where it lives.
        timing, inputs, programs, scoring, control, outputs: see these classes.
        stages: of the curriculum.
        schedule: step -> learning rate.
        profiled: steps to trace.
        pause_at: the step at which the run saves and pauses; None: at none.
    """

    workdir: Path
    timing: Timing
    inputs: Inputs
    programs: Programs
    scoring: Scoring
    control: Control
    outputs: Outputs
    stages: tuple[Stage, ...]
    schedule: Schedule
    profiled: range = range(0)
    pause_at: int | None = None

    def is_over(self, host: HostState, step: int) -> bool:
        """Whether this step is the last: by its number, or by early stopping."""
        return step == self.timing.total_steps or (
            host.evaluated == step and exhausted(host.patience, step, self.control.stopping))
