"""What a training carries from one step to the next: arrays on the devices, and facts on the host.

Both are saved with every checkpoint. The names under which they are stored are those of the first
format, so that old runs go on; `to_stored` and `from_stored` translate.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train_lib.training.patience import PatienceState
from train_lib.training.rollback import GuardState

Tree = Any  # a nested dict of arrays by module path


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """What inference needs.

    Attributes:
        params: weights that train.
        frozen: weights that do not train; {} if all do.
        batch_stats: the model's other variables (running statistics of BatchNorm).
    """

    params: Tree
    frozen: Tree
    batch_stats: Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """Averages over the steps of the fields of the same name of `TrainState`: exponential ones
    (config.ema), or see `weight_averages`.

    Attributes:
        total: float32 [], the sum of the weights of what is averaged; None where none is needed.
    """

    params: Tree
    batch_stats: Tree
    total: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step reads and writes; donated, sharded and saved as it is.

    Attributes:
        params, frozen, batch_stats: see `Weights`.
        opt_state: of the optimizer.
        step: int32 [], steps done.
        metric_sums: float32 [] each, sums since the last log line: loss, steps, and for each head
            correct/<head> and labelled/<head>.
        ema: the average of the weights; None without one.
        lr_factor: float32 [], a factor of the learning rate; None without config.schedule.plateau.
        teacher: the weights of config.teacher, which stay as they are and are in no checkpoint.
    """

    params: Tree
    frozen: Tree
    batch_stats: Tree
    opt_state: optax.OptState
    step: jax.Array
    metric_sums: dict[str, jax.Array]
    ema: MovingAverage | None = None
    lr_factor: jax.Array | None = None
    teacher: Weights | None = None

    @property
    def weights(self) -> Weights:
        """The weights to predict with: the moving average, if there is one."""
        learnt = self if self.ema is None else self.ema
        return Weights(learnt.params, self.frozen, learnt.batch_stats)

    def replace(self, **changes: Any) -> 'TrainState':
        """A copy with other values."""
        return dataclasses.replace(self, **changes)


def zero_sums(heads: Sequence[str], more: Sequence[str] = ()) -> dict[str, jax.Array]:
    """`TrainState.metric_sums` at the start of a log interval, and those named `more`."""
    names = ['loss', 'steps', *(f'{what}/{head}' for head in heads
                                for what in ('correct', 'labelled')), *more]
    return {name: jnp.zeros((), jnp.float32) for name in names}


def make_state(weights: Weights, optimizer: optax.GradientTransformation, heads: Sequence[str], *,
               ema: bool = False, counted: bool = False, plateau: bool = False,
               sums: Sequence[str] = ()) -> TrainState:
    """The state before the first step; `counted`: the average has a `total`; `sums`: names of
    further sums of metrics."""
    state = TrainState(weights.params, weights.frozen, weights.batch_stats,
                       optimizer.init(weights.params), jnp.zeros((), jnp.int32),
                       zero_sums(heads, sums))
    average = start_of_ema(state) if ema else None
    if average is not None and counted:
        average = dataclasses.replace(average, total=jnp.zeros((), jnp.float32))
    return state.replace(ema=average,
                         lr_factor=jnp.ones((), jnp.float32) if plateau else None)


def start_of_ema(state: TrainState) -> MovingAverage:
    """The average before the first step: a copy, because the state is donated."""
    return jax.tree.map(jnp.copy, MovingAverage(state.params, state.batch_stats))


# --- as stored --------------------------------------------------------------------------------


def to_stored(state: TrainState) -> dict[str, Any]:
    """The state as checkpoints hold it: a dict, without what the run does not have."""
    stored = dict(params=state.params, frozen=state.frozen, rest=state.batch_stats,
                  opt_state=state.opt_state, step=state.step, sums=state.metric_sums)
    if state.ema is not None:
        stored['ema'] = dict(params=state.ema.params, rest=state.ema.batch_stats)
        if state.ema.total is not None:
            stored['ema']['total'] = state.ema.total
    if state.lr_factor is not None:
        stored['lr_factor'] = state.lr_factor
    return stored


def from_stored(stored: Mapping[str, Any]) -> TrainState:
    """The inverse of `to_stored`."""
    ema = stored.get('ema')
    return TrainState(stored['params'], stored['frozen'], stored['rest'], stored['opt_state'],
                      stored['step'], stored['sums'],
                      None if ema is None else MovingAverage(ema['params'], ema['rest'],
                                                             ema.get('total')),
                      stored.get('lr_factor'))


@dataclasses.dataclass(frozen=True)
class HostState:
    """What the host knows besides the arrays; saved with every checkpoint, as JSON.

    Attributes:
        evaluated: the step of the newest evaluation.
        metric: the name of config.eval.metric at that time.
        best_step: the step with the best `metric`, None before the first finite score.
        best_value: its score.
        best_nll: its negative log likelihood, nats; None where it is not known.
        metrics_bytes: the length of metrics.jsonl at the checkpoint.
        seconds: spent so far, by kind; see `goodput.Clock`.
        patience: what the plateau schedule and early stopping remember.
        guard: what the guard against steps that are not finite remembers.
    """

    evaluated: int = 0
    metric: str | None = None
    best_step: int | None = None
    best_value: float | None = None
    best_nll: float | None = None
    metrics_bytes: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    patience: PatienceState = dataclasses.field(default_factory=PatienceState)
    guard: GuardState = dataclasses.field(default_factory=GuardState)

    def replace(self, **changes: Any) -> 'HostState':
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The state as nested dicts and lists."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return found | dict(seconds=dict(self.seconds), patience=self.patience.to_json(),
                            guard=self.guard.to_json())

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'HostState':
        """The inverse of `to_json`; what an older run did not know has its default."""
        found = dict(stored)
        if 'patience' in found:
            found['patience'] = PatienceState.from_json(found['patience'])
        if 'guard' in found:
            found['guard'] = GuardState.from_json(found['guard'])
        return cls(**found)
