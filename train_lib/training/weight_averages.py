"""Averages of the weights along the training besides the exponential one, used for predictions.

    swa            the equal-weight mean of the weights every so many steps, from a step on
                   (Izmailov et al., arXiv 1803.05407)
    lookahead      slow weights, which go a share of the way to the trained ones every few steps;
                   these then go on from there (Zhang et al., arXiv 1907.08610)
    schedule_free  the mean of the weights that the optimizer moves, each by the square of its
                   learning rate, with the gradient taken between the two (Defazio et al., arXiv
                   2405.15682), in place of momentum and a falling learning rate

They live in `TrainState.ema`, as the exponential average does, so whatever predicts finds them
there. Like it, they are functions of the state and the step alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.errors import did_you_mean
from train_lib.optim.optimizers import read_optimizer
from train_lib.optim.schedules import Tail
from train_lib.runtime.errors import ConfigError
from train_lib.training.state import MovingAverage

Tree = Any  # a nested dict of arrays
RATES = ('schedule', 'constant', 'cyclic')


@dataclasses.dataclass(frozen=True)
class Averaging:
    """One of the averages above.

    Attributes:
        kind: 'swa' | 'lookahead' | 'schedule_free'.
        start: swa: steps done before the first weights that count.
        every: swa, lookahead: steps between two.
        share: lookahead: of the way that the slow weights go; schedule_free: weight of the mean in
            the point at which the gradient is taken.
        statistics: training pictures on which its BatchNorm statistics are estimated before each
            evaluation; 0: none.
        tail: swa: the learning rate from `start` on; None: that of the schedule.
    """

    kind: str
    start: int = 0
    every: int = 1
    share: float = 0.5
    statistics: int = 0
    tail: Tail | None = None

    @property
    def counted(self) -> bool:
        """Whether `MovingAverage.total` is needed."""
        return self.kind != 'lookahead'

    def point(self, params: Tree, average: MovingAverage | None) -> Tree:
        """The weights at which a step takes its gradient."""
        if self.kind != 'schedule_free' or average is None:
            return params
        return _towards(params, average.params, self.share)

    def after(self, params: Tree, batch_stats: Tree, average: MovingAverage, step: jax.Array,
              rate: jax.Array) -> tuple[Tree, MovingAverage]:
        """(weights, average) after a step.

        Args:
            params, batch_stats: as the step has left them.
            average: before the step.
            step: int32 [], steps done with this one.
            rate: float32 [], its learning rate.
        """
        return getattr(self, f'_{self.kind}')(params, batch_stats, average, step, rate)

    def _swa(self, params, batch_stats, average, step, rate):
        since = step - self.start
        due = (since >= 0) & (since % self.every == 0)
        # Before `start`, and after a longer duration moved it, the average is the weights.
        count = jnp.where(since < 0, 0, average.total + due)
        share = jnp.where(due, 1 / jnp.maximum(count, 1), 0)
        values = (params, batch_stats)
        moved = _towards((average.params, average.batch_stats), values, share)
        first = (since < 0) | (count <= due)
        chosen = jax.tree.map(lambda now, mean: jnp.where(first, now, mean), values, moved)
        return params, MovingAverage(chosen[0], chosen[1], count)

    def _lookahead(self, params, batch_stats, average, step, rate):
        due = step % self.every == 0
        slow = jax.tree.map(lambda moved, before: jnp.where(due, moved, before),
                            _towards(average.params, params, self.share), average.params)
        fast = jax.tree.map(lambda moved, now: jnp.where(due, moved, now), slow, params)
        return fast, MovingAverage(slow, _copied(batch_stats))

    def _schedule_free(self, params, batch_stats, average, step, rate):
        total = average.total + jnp.square(rate)
        share = jnp.where(total > 0, jnp.square(rate) / total, 0)
        mean = _towards(average.params, params, share)
        return params, MovingAverage(mean, _copied(batch_stats), total)


def _towards(old: Tree, new: Tree, share) -> Tree:
    """old + share x (new - old); what is not a floating-point number is that of `new`."""
    def move(before, now):
        if not jnp.issubdtype(now.dtype, jnp.floating):
            return now
        return before + (share * (now - before)).astype(before.dtype)

    return jax.tree.map(move, old, new)


def _copied(tree: Tree) -> Tree:
    return jax.tree.map(jnp.copy, tree)


def read_averaging(config: ConfigDict, total_steps: int, to_steps: Callable[[Mapping, str], int]
                   ) -> Averaging | None:
    """Reads and checks config.swa, config.lookahead and config.schedule_free; None if all are off.

    Args:
        config: of the run.
        total_steps: of the run.
        to_steps: (duration, config key) -> steps.

    Raises:
        ConfigError: a value out of its range, two averages at once, or settings of the optimizer
            or schedule that contradict the average.
    """
    asked = {'ema.decay': config.ema.decay, 'swa.start': config.swa.start is not None,
             'lookahead.every': config.lookahead.every,
             'schedule_free.beta': config.schedule_free.beta}
    keys = [key for key, value in asked.items() if value]
    if len(keys) > 1:
        raise ConfigError(f'config.{" and config.".join(keys)} are set, and predictions come from '
                          f'one average of the weights: turn one off.')
    for key in ('swa', 'lookahead', 'schedule_free'):
        if config[key].statistics < 0:
            raise ConfigError(f'config.{key}.statistics = {config[key].statistics}: give a number '
                              f'of pictures, or 0 to estimate nothing.')
    readers = {'swa.start': _read_swa, 'lookahead.every': _read_lookahead,
               'schedule_free.beta': _read_schedule_free}
    return next((readers[key](config, total_steps, to_steps) for key in keys if key in readers),
                None)


def _read_swa(config, total_steps, to_steps) -> Averaging:
    section = config.swa
    start = to_steps(section.start, 'swa.start')
    every = max(to_steps(section.every, 'swa.every'), 1)
    if start >= total_steps:
        raise ConfigError(f'config.swa.start = {dict(section.start)!r}: that is step {start}, '
                          f'and the run has {total_steps}: begin earlier, or write None.')
    if section.schedule not in RATES:
        raise ConfigError(f'config.swa.schedule = {section.schedule!r}: '
                          f'{did_you_mean(section.schedule, RATES, n=3, show=str)}')
    for key in ('lr', 'low'):
        if not 0 <= section[key] <= 1e3 or (key == 'lr' and not section.lr):
            raise ConfigError(f'config.swa.{key} = {section[key]}: give a share of schedule.lr, '
                              f'{"above 0" if key == "lr" else "0 or more"}.')
    tail = None
    if section.schedule != 'schedule':
        if any(config.schedule.cooldown.values()):
            raise ConfigError(f'config.swa.schedule = {section.schedule!r} sets the learning rate '
                              f'to the end of the run, so config.schedule.cooldown has no effect: '
                              f'leave one out.')
        cyclic = section.schedule == 'cyclic'
        tail = Tail(start, section.lr, section.low if cyclic else section.lr, every)
    return Averaging('swa', start, every, statistics=section.statistics, tail=tail)


def _read_lookahead(config, total_steps, to_steps) -> Averaging:
    every, alpha = config.lookahead.every, config.lookahead.alpha
    if every < 1:
        raise ConfigError(f'config.lookahead.every = {every}: give a number of steps, such as 5, '
                          f'or 0 to turn it off.')
    if not 0 < alpha <= 1:
        raise ConfigError(f'config.lookahead.alpha = {alpha}: give a share above 0, at most 1.')
    return Averaging('lookahead', every=every, share=alpha, statistics=config.lookahead.statistics)


def _read_schedule_free(config, total_steps, to_steps) -> Averaging:
    beta, optimizer = config.schedule_free.beta, read_optimizer(config.optimizer.to_dict())
    if not 0 < beta < 1:
        raise ConfigError(f'config.schedule_free.beta = {beta}: give a number between 0 and 1, '
                          f'such as 0.9, or 0 to turn it off.')
    if optimizer.name not in ('sgd', 'rmsprop', 'adam', 'adamw'):
        raise ConfigError(f'config.schedule_free.beta = {beta}: it is made for sgd, rmsprop, adam '
                          f'and adamw, not {optimizer.name}: choose one of them.')
    key = 'b1' if optimizer.name in ('adam', 'adamw') else 'momentum'
    if getattr(optimizer, key):
        raise ConfigError(f'config.optimizer.{key} = {getattr(optimizer, key)}: schedule_free '
                          f'takes the place of momentum; write 0.')
    if config.schedule.name != 'constant' or any(config.schedule.cooldown.values()) \
            or config.schedule.plateau.patience is not None:
        raise ConfigError("config.schedule_free.beta: it takes the place of a falling learning "
                          "rate; write config.schedule.name='constant', and no cooldown or "
                          "plateau.")
    if any(config.finetune.unfreeze.values()) or any(
            'start' in settings for _, settings in config.finetune.table):
        raise ConfigError('config.schedule_free.beta: its mean is over all steps, so parameters '
                          'that begin to train later would be held back by their old values: leave '
                          'out config.finetune.unfreeze and `start`.')
    return Averaging('schedule_free', share=beta, statistics=config.schedule_free.statistics)
