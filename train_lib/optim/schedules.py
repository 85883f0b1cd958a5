"""Learning rates as functions of the step."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from input_pipeline.curriculum import Stage
from train_lib.runtime.errors import ConfigError

Schedule = Callable[[jax.Array], jax.Array]


def _constant(config, steps, length):
    return optax.constant_schedule(config['lr'])


def _step(config, steps, length):
    return optax.exponential_decay(config['lr'], length('every'), config['gamma'], staircase=True)


def _exponential(config, steps, length):
    return optax.exponential_decay(config['lr'], length('every'), config['gamma'])


def _multi_step(config, steps, length):
    at = length('at')
    return optax.piecewise_constant_schedule(config['lr'], dict.fromkeys(at, config['gamma']))


def _polynomial(config, steps, length):
    lr = config['lr']
    return optax.polynomial_schedule(lr, lr * config['final'], config['power'], max(steps, 1))


def _cosine(config, steps, length):
    return optax.cosine_decay_schedule(config['lr'], max(steps, 1), alpha=config['final'])


def _cosine_restarts(config, steps, length):
    """SGDR (Loshchilov and Hutter, arXiv 1608.03983)."""
    periods, starts = [float(length('period'))], [0]
    while starts[-1] + round(periods[-1]) <= steps:
        starts.append(starts[-1] + round(periods[-1]))
        periods.append(periods[-1] * config['mult'])
    starts, lengths = jnp.array(starts, jnp.int32), jnp.array(periods, jnp.float32).round()

    def schedule(step):
        i = jnp.searchsorted(starts, step, side='right') - 1
        return config['lr'] * _ease(1.0, config['final'], (step - starts[i]) / lengths[i])

    return schedule


def _triangular(config, steps, length, halved=False):
    """Smith, arXiv 1506.01186: from `low` to lr and back in each period; halved, each peak is
    half as far above `low` as the one before."""
    period, low = length('period'), config['low']

    def schedule(step):
        height = 1 - jnp.abs(2 * (step % period) / period - 1)
        if halved:
            height *= 0.5 ** (step // period).astype(jnp.float32)
        return config['lr'] * (low + (1 - low) * height)

    return schedule


def _one_cycle(config, steps, length):
    """Smith and Topin, arXiv 1708.07120, with half cosines: up from `low`, down to `final`."""
    steps = max(steps, 1)
    peak = config['rise'] * steps

    def schedule(step):
        up = _ease(config['low'], 1.0, jnp.minimum(step / peak, 1))
        down = _ease(1.0, config['final'], (step - peak) / (steps - peak))
        return config['lr'] * jnp.where(step < peak, up, down)

    return schedule


def _ease(start: float, end: float, share):
    """Half a cosine from start, where share is 0, to end, where it is 1."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * share))


# name: (schedule config, steps after the warm-up, key of a duration -> steps) -> schedule after
# the warm-up; `at` gives a list of steps after it. All are proportional to lr.
SCHEDULES: dict[str, Callable] = {
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


def _check(config: Mapping) -> None:
    if config['name'] not in SCHEDULES:
        near = difflib.get_close_matches(config['name'], SCHEDULES, n=3)
        hint = (f'did you mean {" or ".join(near)}?' if near else
                f'choose one of {", ".join(SCHEDULES)}.')
        raise ConfigError(f'config.schedule.name = {config["name"]!r}: {hint}')
    for key in ('final', 'low', 'cooldown_final'):
        if not 0 <= config[key] <= 1:
            raise ConfigError(f'config.schedule.{key} = {config[key]}: give a share of lr, '
                              f'0 to 1.')
    if not 0 < config['rise'] < 1:
        raise ConfigError(f'config.schedule.rise = {config["rise"]}: give a share of the run '
                          f'between 0 and 1.')
    if not 1 <= config['mult'] < 1e3:
        raise ConfigError(f'config.schedule.mult = {config["mult"]}: give a factor >= 1.')
    if not 0 < config['power'] < 1e3:
        raise ConfigError(f'config.schedule.power = {config["power"]}: give a number above 0.')
    if not 0 <= config['scale_with_batch'] < 1e9:
        raise ConfigError(f'config.schedule.scale_with_batch = {config["scale_with_batch"]}: give '
                          f'the batch size that lr is meant for, or 0.')


def make_schedule(config: Mapping, total_steps: int, to_steps: Callable[[Mapping, str], int],
                  stages: Sequence[Stage] = (), *, batch_size: int = 0) -> Schedule:
    """The learning rate of each step, counted from 0.

    A linear warm-up comes first (its first step has 1 / warm-up steps of the rate that the
    schedule begins with, never 0), then the named schedule, which starts when the warm-up is over
    and ends with the run. A cool-down replaces the last of it by a line. The curriculum's lr_scale
    is a factor on top.

    Args:
        config: config.schedule.
        total_steps: length of the run.
        to_steps: (duration, config key) -> steps.
        stages: the curriculum's.
        batch_size: of a step, over all devices; needed if scale_with_batch is set.

    Returns:
        A jittable function, int32 [] -> float32 [].

    Raises:
        ConfigError: an unknown name, a number out of its range, or warm-up and cool-down longer
            than the run.
    """
    _check(config)
    warmup = to_steps(config['warmup'], 'schedule.warmup')
    cooldown = to_steps(config['cooldown'], 'schedule.cooldown')
    if cooldown and warmup + cooldown > total_steps:
        raise ConfigError(f'config.schedule.cooldown = {config["cooldown"]!r}: with the warm-up '
                          f'it takes {warmup + cooldown} of {total_steps} steps; shorten one.')
    if config['scale_with_batch']:
        if not batch_size:
            raise ConfigError(f'config.schedule.scale_with_batch = {config["scale_with_batch"]}: '
                              f'the batch size is not known here; set 0 and scale lr by hand.')
        config = {**config, 'lr': config['lr'] * batch_size / config['scale_with_batch']}

    def length(key):
        if key != 'at':
            return max(to_steps(config[key], f'schedule.{key}'), 1)
        at = [to_steps(duration, f'schedule.at[{i}]') - warmup
              for i, duration in enumerate(config['at'])]
        if len(set(at)) < len(at) or any(step < 0 for step in at):
            raise ConfigError(f'config.schedule.at = {config["at"]!r}: give different moments '
                              f'after the warm-up.')
        return at

    main = SCHEDULES[config['name']](config, total_steps - warmup, length)
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
            rate += (config['cooldown_final'] * config['lr'] - rate) * share
        stage = jnp.searchsorted(starts, step, side='right') - 1
        return jnp.asarray(rate * scales[stage], jnp.float32)

    return schedule
