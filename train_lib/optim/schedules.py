"""Learning rates as functions of the step.

To add one, write a function (ScheduleSpec, steps, length) -> Schedule and give it a line in
`SCHEDULES`. A setting of its own is a key in configs/common.py and a field of `ScheduleSpec`.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from input_pipeline.curriculum import Stage
from input_pipeline.errors import did_you_mean
from train_lib.runtime.config_section import read_section
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
Schedule = Callable[[jax.Array], jax.Array]  # int32 [] -> float32 []
Duration = Mapping[str, float]  # see input_pipeline/durations.py


@dataclasses.dataclass(frozen=True)
class ScheduleSpec:
    """config.schedule. A share is a share of `lr`, 0 to 1.

    Attributes:
        name: a key of `SCHEDULES`.
        lr: the peak of the learning rate.
        scale_with_batch: the batch size that lr is meant for, in examples; 0: lr stays as it is.
        warmup: linear, from near 0; see `rises_by_itself`.
        rules: how the warm-up is read: 2, or 1 as in older versions.
        cooldown: at the end of the run: linear, from where the schedule is.
        cooldown_final: end of the cool-down, a share.
        final: polynomial, cosine, cosine_restarts, one_cycle: the end, a share.
        low: triangular, triangular2: the lowest rate; one_cycle: the start; a share.
        every: step, exponential: how often gamma is applied.
        gamma: step, multi_step, exponential: the factor.
        at: multi_step: when gamma is applied, from the start of the run.
        power: polynomial: exponent, above 0.
        period: cosine_restarts: the first period; triangular, triangular2: up and down.
        mult: cosine_restarts: length of a period / length of the one before, >= 1.
        rise: one_cycle: the share of the run that climbs, between 0 and 1.
        plateau: read by `training.patience`.
    """

    name: str
    lr: float
    scale_with_batch: int
    warmup: Duration
    rules: int
    cooldown: Duration
    cooldown_final: float
    final: float
    low: float
    every: Duration
    gamma: float
    at: Sequence[Duration]
    power: float
    period: Duration
    mult: float
    rise: float
    plateau: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tail:
    """The learning rate from a step to the end of the run, instead of the schedule's: in each
    cycle of `every` steps it falls along a line, and is `low` at the last one.

    Attributes:
        start: the first step, counted from 0.
        lr, low: shares of the schedule's `lr`; equal ones make it constant.
        every: steps of a cycle.
    """

    start: int
    lr: float
    low: float
    every: int

    def share(self, step: jax.Array) -> jax.Array:
        """The rate as a share of `lr`, as in Izmailov et al., arXiv 1803.05407."""
        done = ((step - self.start) % self.every + 1) / self.every
        return self.lr + (self.low - self.lr) * done


def _constant(spec, steps, length):
    return optax.constant_schedule(spec.lr)


def _step(spec, steps, length):
    return optax.exponential_decay(spec.lr, length('every'), spec.gamma, staircase=True)


def _exponential(spec, steps, length):
    return optax.exponential_decay(spec.lr, length('every'), spec.gamma)


def _multi_step(spec, steps, length):
    at = length('at')
    return optax.piecewise_constant_schedule(spec.lr, dict.fromkeys(at, spec.gamma))


def _polynomial(spec, steps, length):
    lr = spec.lr
    return optax.polynomial_schedule(lr, lr * spec.final, spec.power, max(steps, 1))


def _cosine(spec, steps, length):
    return optax.cosine_decay_schedule(spec.lr, max(steps, 1), alpha=spec.final)


def _cosine_restarts(spec, steps, length):
    """SGDR (Loshchilov and Hutter, arXiv 1608.03983)."""
    periods, begins = [float(length('period'))], [0]
    while begins[-1] + round(periods[-1]) <= steps:
        begins.append(begins[-1] + round(periods[-1]))
        periods.append(periods[-1] * spec.mult)
    starts, lengths = jnp.array(begins, jnp.int32), jnp.array(periods, jnp.float32).round()

    def schedule(step):
        i = jnp.searchsorted(starts, step, side='right') - 1
        return spec.lr * _ease(1.0, spec.final, (step - starts[i]) / lengths[i])

    return schedule


def _triangular(spec, steps, length, halved=False):
    """Smith, arXiv 1506.01186: from `low` to lr and back in each period; halved, each peak is
    half as far above `low` as the one before."""
    period, low = length('period'), spec.low

    def schedule(step):
        height = 1 - jnp.abs(2 * (step % period) / period - 1)
        if halved:
            height *= 0.5 ** (step // period).astype(jnp.float32)
        return spec.lr * (low + (1 - low) * height)

    return schedule


def _one_cycle(spec, steps, length):
    """Smith and Topin, arXiv 1708.07120, with half cosines: up from `low`, down to `final`."""
    steps = max(steps, 1)
    peak = spec.rise * steps

    def schedule(step):
        up = _ease(spec.low, 1.0, jnp.minimum(step / peak, 1))
        down = _ease(1.0, spec.final, (step - peak) / (steps - peak))
        return spec.lr * jnp.where(step < peak, up, down)

    return schedule


def _ease(start: float, end: float, share):
    """Half a cosine, from `start` where `share` is 0 to `end` where it is 1."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * share))


# name: (spec, steps after the warm-up, name of a duration -> its steps) -> schedule after the
# warm-up; for 'at' the steps are a list, counted from its end. All are proportional to lr.
SCHEDULES: dict[str, Callable[[ScheduleSpec, int, Callable[[str], Any]], Schedule]] = {
    'constant': _constant,
    'step': _step,
    'multi_step': _multi_step,
    'exponential': _exponential,
    'polynomial': _polynomial,
    'cosine': _cosine,
    'cosine_restarts': _cosine_restarts,
    'triangular': _triangular,
    'triangular2': functools.partial(_triangular, halved=True),
    'one_cycle': _one_cycle,
}
RISING = ('triangular', 'triangular2', 'one_cycle')  # they begin at `low` and climb


def read_schedule(config: Mapping[str, Any]) -> ScheduleSpec:
    """Reads and checks config.schedule; its durations are checked by `make_schedule`.

    Raises:
        ConfigError: an unknown name, or a number out of its range.
    """
    spec = read_section(ScheduleSpec, config, 'schedule')
    if spec.name not in SCHEDULES:
        raise ConfigError(f'config.schedule.name = {spec.name!r}: '
                          f'{did_you_mean(spec.name, SCHEDULES, n=3, show=str)}')
    if spec.rules not in (1, 2):
        raise ConfigError(f'config.schedule.rules = {spec.rules!r}: give 2, or 1 as in runs of '
                          f'older versions.')
    for key in ('final', 'low', 'cooldown_final'):
        if not 0 <= config[key] <= 1:
            raise ConfigError(f'config.schedule.{key} = {config[key]}: give a share of lr, '
                              f'0 to 1.')
    if not 0 < spec.rise < 1:
        raise ConfigError(f'config.schedule.rise = {spec.rise}: give a share of the run between '
                          f'0 and 1.')
    if not 1 <= spec.mult < 1e3:
        raise ConfigError(f'config.schedule.mult = {spec.mult}: give a factor >= 1.')
    if not 0 < spec.power < 1e3:
        raise ConfigError(f'config.schedule.power = {spec.power}: give a number above 0.')
    if not 0 <= spec.scale_with_batch < 1e9:
        raise ConfigError(f'config.schedule.scale_with_batch = {spec.scale_with_batch}: give the '
                          f'batch size that lr is meant for, or 0.')
    return spec


def rises_by_itself(config: Mapping[str, Any]) -> bool:
    """Whether the named schedule begins low and climbs, so that a warm-up before it would be a
    second one; runs of older versions have both.

    Args:
        config: config.schedule.
    """
    return config['rules'] > 1 and config['name'] in RISING


def say_left_out(config: Mapping[str, Any], to_steps: Callable[[Duration, str], int]) -> None:
    """Logs that there is no warm-up, if the config asks for one before a schedule that climbs."""
    if rises_by_itself(config) and to_steps(config['warmup'], 'schedule.warmup'):
        log.info('schedule no warm-up (schedule.warmup): %s rises by itself', config['name'])


def judged_from(config: Mapping[str, Any], total_steps: int,
                to_steps: Callable[[Duration, str], int]) -> int:
    """The step from which scores of the validation tell whether the training still improves: the
    end of the warm-up, or of the climb of one_cycle, before which the rate is what holds it back.

    Args:
        config: config.schedule.
        total_steps: length of the run.
        to_steps: (duration, config key) -> steps.
    """
    if config['rules'] < 2:
        return 0
    if config['name'] == 'one_cycle':
        return math.ceil(config['rise'] * total_steps)
    return 0 if rises_by_itself(config) else to_steps(config['warmup'], 'schedule.warmup')


def make_schedule(config: Mapping[str, Any], total_steps: int,
                  to_steps: Callable[[Duration, str], int],
                  stages: Sequence[Stage] = (), *, batch_size: int = 0,
                  tail: Tail | None = None) -> Schedule:
    """The learning rate of each step, counted from 0.

    A linear warm-up comes first; its first step has 1 / warm-up steps of the rate with which the
    schedule begins, never 0. A schedule that rises by itself has none. Then comes the named
    schedule, which ends with the run. A cool-down replaces its last part by a line. The
    curriculum's lr_scale is a factor on top.

    Args:
        config: config.schedule.
        total_steps: length of the run.
        to_steps: (duration, config key) -> steps.
        stages: of the curriculum.
        batch_size: examples per step, over all devices; needed if scale_with_batch is set.
        tail: see `Tail`; the curriculum's factor is on top of it too.

    Returns:
        A jittable function, int32 [] -> float32 [].

    Raises:
        ConfigError: an unknown name, a number out of its range, or warm-up and cool-down longer
            than the run.
    """
    spec = read_schedule(config)
    warmup = 0 if rises_by_itself(config) else to_steps(spec.warmup, 'schedule.warmup')
    if spec.rules > 1 and warmup > total_steps:
        raise ConfigError(f'config.schedule.warmup = {dict(spec.warmup)!r}: it takes {warmup} '
                          f'steps, and the run has {total_steps}: shorten it, or lengthen '
                          f'config.duration.')
    cooldown = to_steps(spec.cooldown, 'schedule.cooldown')
    if cooldown and warmup + cooldown > total_steps:
        raise ConfigError(f'config.schedule.cooldown = {spec.cooldown!r}: with the warm-up '
                          f'it takes {warmup + cooldown} of {total_steps} steps; shorten one.')
    if spec.scale_with_batch:
        if not batch_size:
            raise ConfigError(f'config.schedule.scale_with_batch = {spec.scale_with_batch}: '
                              f'the batch size is not known here; set 0 and scale lr by hand.')
        spec = dataclasses.replace(spec, lr=spec.lr * batch_size / spec.scale_with_batch)

    def length(key: str) -> Any:
        if key != 'at':
            return max(to_steps(getattr(spec, key), f'schedule.{key}'), 1)
        at = [to_steps(duration, f'schedule.at[{i}]') - warmup
              for i, duration in enumerate(spec.at)]
        if len(set(at)) < len(at) or any(step < 0 for step in at):
            raise ConfigError(f'config.schedule.at = {spec.at!r}: give different moments '
                              f'after the warm-up.')
        return at

    main = SCHEDULES[spec.name](spec, total_steps - warmup, length)
    starts = jnp.array([stage.start for stage in stages] or [0], jnp.int32)
    scales = jnp.array([stage.lr_scale for stage in stages] or [1.0], jnp.float32)
    begin = total_steps - cooldown

    def schedule(step):
        last = jnp.minimum(step, begin) if cooldown else step
        rate = main(jnp.maximum(last - warmup, 0))
        if warmup:
            rate *= jnp.minimum((step + 1) / warmup, 1)
        if cooldown:
            share = jnp.clip((step - begin) / cooldown, 0, 1)
            rate += (spec.cooldown_final * spec.lr - rate) * share
        if tail is not None:
            rate = jnp.where(step < tail.start, rate, spec.lr * tail.share(step))
        stage = jnp.searchsorted(starts, step, side='right') - 1
        return jnp.asarray(rate * scales[stage], jnp.float32)

    return schedule
