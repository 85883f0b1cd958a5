"""What the validation scores decide besides the best checkpoint: when the learning rate falls,
and when the run ends.

Pure functions of a state that is JSON; every checkpoint holds it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from train_lib.runtime.errors import ConfigError

METRICS = {'accuracy': True, 'loss': False, 'f1_macro': True, 'nll': False}  # higher is better?


@dataclasses.dataclass(frozen=True)
class Plateau:
    """config.schedule.plateau, with durations as numbers of evaluations."""

    patience: int
    factor: float
    min_delta: float
    cooldown: int
    min_scale: float


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """config.early_stopping, with the patience in steps."""

    patience: int
    min_delta: float


def new_state() -> dict:
    """Before the first evaluation. `scale` is the factor of the learning rate."""
    return dict(plateau=dict(best=None, bad=0, cooldown=0, scale=1.0),
                stopping=dict(best=None, step=0))


def better(metric: str, value: float | None, best: float | None, min_delta: float = 0.0) -> bool:
    """Whether a value beats the best by more than min_delta; what is not finite beats nothing."""
    if value is None or not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if METRICS[metric] else value < best - min_delta


def after_evaluation(state: dict, metric: str, value: float | None, step: int,
                     plateau: Plateau | None, stopping: EarlyStopping | None) -> dict:
    """The state after the evaluation of a step."""
    return dict(plateau=_plateau(state['plateau'], metric, value, plateau),
                stopping=_stopping(state['stopping'], metric, value, step, stopping))


def _plateau(state: dict, metric: str, value: float | None, plateau: Plateau | None) -> dict:
    """torch.optim.lr_scheduler.ReduceLROnPlateau, threshold_mode='abs'."""
    if plateau is None:
        return state
    best, bad, cooldown, scale = (state[key] for key in ('best', 'bad', 'cooldown', 'scale'))
    if better(metric, value, best, plateau.min_delta):
        best, bad = value, 0
    else:
        bad += 1
    if cooldown:
        cooldown, bad = cooldown - 1, 0
    if bad > plateau.patience:
        scale = max(scale * plateau.factor, plateau.min_scale)
        cooldown, bad = plateau.cooldown, 0
    return dict(best=best, bad=bad, cooldown=cooldown, scale=scale)


def _stopping(state: dict, metric: str, value: float | None, step: int,
              stopping: EarlyStopping | None) -> dict:
    if stopping is None or not better(metric, value, state['best'], stopping.min_delta):
        return state
    return dict(best=value, step=step)


def exhausted(state: dict, step: int, stopping: EarlyStopping | None) -> bool:
    """Whether the run ends with the evaluation of this step."""
    return stopping is not None and step - state['stopping']['step'] >= stopping.patience


def forget_best(state: dict) -> dict:
    """The state for scores of another kind: the learning rate stays, the best is not known."""
    fresh = new_state()
    return fresh | dict(plateau=fresh['plateau'] | dict(scale=state['plateau']['scale']),
                        stopping=fresh['stopping'] | dict(step=state['stopping']['step']))


# --- from the config --------------------------------------------------------------------------


def make_plateau(config: Mapping, to_steps: Callable[[Mapping, str], int], every: int
                 ) -> Plateau | None:
    """Checks config.schedule.plateau; None if its patience is None.

    Args:
        config: that section.
        to_steps: (duration, config key) -> steps.
        every: steps between two evaluations; durations are rounded up to whole evaluations.

    Raises:
        ConfigError: a number out of its range, or something that is no duration.
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
                   min_delta=_min_delta(config, 'schedule.plateau'), **evaluations)


def make_early_stopping(config: Mapping, to_steps: Callable[[Mapping, str], int]
                        ) -> EarlyStopping | None:
    """Checks config.early_stopping; None if its patience is None.

    Raises:
        ConfigError: a number out of its range, or something that is no duration.
    """
    if config['patience'] is None:
        return None
    steps = _steps(config['patience'], 'early_stopping.patience', to_steps)
    if not steps:
        raise ConfigError('config.early_stopping.patience is 0 steps long: give a longer one, or '
                          'None.')
    return EarlyStopping(steps, _min_delta(config, 'early_stopping'))


def _steps(duration, key: str, to_steps: Callable) -> int:
    if not isinstance(duration, Mapping):
        raise ConfigError(f'config.{key} = {duration!r} is no duration: give e.g. dict(epochs=5).')
    return to_steps(duration, key)


def _min_delta(config: Mapping, section: str) -> float:
    if not 0 <= config['min_delta'] < math.inf:
        raise ConfigError(f'config.{section}.min_delta = {config["min_delta"]}: give a number of '
                          f'0 or more.')
    return config['min_delta']
