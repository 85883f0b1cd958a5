"""What the validation scores decide besides the best checkpoint: when the learning rate falls
(plateau), and when the run ends (early stopping).

Pure functions of a `PatienceState`, which every checkpoint holds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from input_pipeline.errors import did_you_mean
from train_lib.metrics.directions import MORE_IS_BETTER
from train_lib.metrics.structured import ORDER_SCORES
from train_lib.runtime.errors import ConfigError

SET_METRICS = ('map', 'f1_micro', 'f1_examples')  # of multi-label heads alone
METRICS = ('accuracy', 'loss', 'f1_macro', 'nll', *SET_METRICS, *ORDER_SCORES)


def check_metric(metric: str, *, sets: bool, ordered: bool) -> None:
    """Refuses a config.eval.metric that these heads do not have.

    Args:
        metric: its value.
        sets: a head has several labels per picture.
        ordered: a head has classes with an order.

    Raises:
        ConfigError: there is no such metric, or no head that it is a score of.
    """
    if metric not in METRICS:
        raise ConfigError(f'config.eval.metric = {metric!r}: '
                          f'{did_you_mean(metric, METRICS, show=str)}')
    if metric in SET_METRICS and not sets:
        raise ConfigError(f'config.eval.metric = {metric!r} is a score of multi-label heads, and '
                          f'there is none: use accuracy or f1_macro.')
    if metric in ORDER_SCORES and not ordered:
        raise ConfigError(f'config.eval.metric = {metric!r} is a score of heads whose classes have '
                          f'an order, and there is none: say by config.data.ordered which do, or '
                          f'use accuracy or f1_macro.')


@dataclasses.dataclass(frozen=True)
class Plateau:
    """config.schedule.plateau, with durations as numbers of evaluations."""

    patience: int
    factor: float
    min_delta: float
    cooldown: int
    min_scale: float
    begin: int = 0  # evaluations of earlier steps do not count: the warm-up


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """config.early_stopping, with the patience in steps."""

    patience: int
    min_delta: float
    begin: int = 0  # as in `Plateau`


@dataclasses.dataclass(frozen=True)
class PlateauState:
    """What torch's ReduceLROnPlateau remembers.

    Attributes:
        best: the best score so far, None before the first.
        bad: evaluations without an improvement since then.
        cooldown: evaluations that still do not count.
        scale: all cuts of the learning rate together, a factor of it.
    """

    best: float | None = None
    bad: int = 0
    cooldown: int = 0
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class StoppingState:
    """What early stopping remembers: the best score so far, and its step."""

    best: float | None = None
    step: int = 0


@dataclasses.dataclass(frozen=True)
class PatienceState:
    """Both; the default is the state before the first evaluation."""

    plateau: PlateauState = dataclasses.field(default_factory=PlateauState)
    stopping: StoppingState = dataclasses.field(default_factory=StoppingState)

    def to_json(self) -> dict[str, Any]:
        """The state as nested dicts."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> 'PatienceState':
        """The inverse of `to_json`."""
        return cls(PlateauState(**stored['plateau']), StoppingState(**stored['stopping']))


def better(metric: str, value: float | None, best: float | None, min_delta: float = 0.0) -> bool:
    """Whether a value beats the best by more than min_delta; what is not finite beats nothing."""
    if value is None or not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if MORE_IS_BETTER[metric] else value < best - min_delta


def beats_best(metric: str, value: float | None, best: float | None, *, nll: float | None,
               best_nll: float | None, ties: str) -> bool:
    """Whether a checkpoint takes the place of the best one so far.

    Args:
        metric: one of `METRICS`.
        value, best: its score, and that of the best one (None: there is none).
        nll, best_nll: negative log likelihoods, nats; None where it is not known.
        ties: of equal scores 'nll' takes the one with the lower NLL, and the later of two with one
            NLL; 'first' the earlier.
    """
    if better(metric, value, best):
        return True
    if ties == 'first' or value is None or value != best:
        return False
    return best_nll is None or (nll is not None and nll <= best_nll)


def after_evaluation(state: PatienceState, metric: str, value: float | None, step: int,
                     plateau: Plateau | None, stopping: EarlyStopping | None) -> PatienceState:
    """The state after the evaluation of a step."""
    return PatienceState(_plateau(state.plateau, metric, value, step, plateau),
                         _stopping(state.stopping, metric, value, step, stopping))


def _plateau(state: PlateauState, metric: str, value: float | None, step: int,
             plateau: Plateau | None) -> PlateauState:
    """torch.optim.lr_scheduler.ReduceLROnPlateau, threshold_mode='abs'."""
    if plateau is None or step < plateau.begin:
        return state
    best, bad, cooldown, scale = dataclasses.astuple(state)
    if better(metric, value, best, plateau.min_delta):
        best, bad = value, 0
    else:
        bad += 1
    if cooldown:
        cooldown, bad = cooldown - 1, 0
    if bad > plateau.patience:
        scale = max(scale * plateau.factor, plateau.min_scale)
        cooldown, bad = plateau.cooldown, 0
    return PlateauState(best, bad, cooldown, scale)


def _stopping(state: StoppingState, metric: str, value: float | None, step: int,
              stopping: EarlyStopping | None) -> StoppingState:
    if (stopping is None or step < stopping.begin
            or not better(metric, value, state.best, stopping.min_delta)):
        return state
    return StoppingState(value, step)


def exhausted(state: PatienceState, step: int, stopping: EarlyStopping | None) -> bool:
    """Whether the run ends with the evaluation of this step."""
    return stopping is not None and step - counted_from(state, stopping) >= stopping.patience


def counted_from(state: PatienceState, stopping: EarlyStopping) -> int:
    """The step from which the patience of early stopping is counted."""
    return max(state.stopping.step, stopping.begin)


def forget_best(state: PatienceState) -> PatienceState:
    """The state for scores of another kind: the learning rate stays, the best is not known."""
    return PatienceState(PlateauState(scale=state.plateau.scale),
                         StoppingState(step=state.stopping.step))


# --- from the config --------------------------------------------------------------------------


def make_plateau(config: Mapping, to_steps: Callable[[Mapping, str], int], every: int,
                 begin: int = 0) -> Plateau | None:
    """Checks config.schedule.plateau; None if its patience is None.

    Args:
        config: that section.
        to_steps: (duration, config key) -> steps.
        every: steps between two evaluations; durations are rounded up to whole evaluations.
        begin: see `Plateau`.

    Raises:
        ConfigError: a number out of its range, or a value that is not a valid duration.
    """
    if config['patience'] is None:
        return None
    evaluations = {key: -(-_steps(config[key], f'schedule.plateau.{key}', to_steps) // every)
                   for key in ('patience', 'cooldown')}
    if not 0 <= config['factor'] < 1:
        raise ConfigError(f'config.schedule.plateau.factor = {config["factor"]}: give a factor of '
                          f'0 or more and below 1.')
    if not 0 <= config['min_scale'] <= 1:
        raise ConfigError(f'config.schedule.plateau.min_scale = {config["min_scale"]}: give a '
                          f'share of the learning rate, 0 to 1.')
    return Plateau(factor=config['factor'], min_scale=config['min_scale'],
                   min_delta=_min_delta(config, 'schedule.plateau'), begin=begin,
                   **evaluations)


def make_early_stopping(config: Mapping, to_steps: Callable[[Mapping, str], int],
                        begin: int = 0) -> EarlyStopping | None:
    """Checks config.early_stopping; None if its patience is None. `begin`: see `Plateau`.

    Raises:
        ConfigError: a number out of its range, or a value that is not a valid duration.
    """
    if config['patience'] is None:
        return None
    steps = _steps(config['patience'], 'early_stopping.patience', to_steps)
    if not steps:
        raise ConfigError('config.early_stopping.patience is 0 steps long: give a longer one, or '
                          'None.')
    return EarlyStopping(steps, _min_delta(config, 'early_stopping'), begin)


def _steps(duration, key: str, to_steps: Callable) -> int:
    if not isinstance(duration, Mapping):
        raise ConfigError(f'config.{key} = {duration!r} is not a valid duration: '
                          f'give e.g. dict(epochs=5).')
    return to_steps(duration, key)


def _min_delta(config: Mapping, section: str) -> float:
    if not 0 <= config['min_delta'] < math.inf:
        raise ConfigError(f'config.{section}.min_delta = {config["min_delta"]}: give a number of '
                          f'0 or more.')
    return config['min_delta']
