"""Learning rates as functions of the step."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from input_pipeline.curriculum import Stage
from train_lib.errors import ConfigError

Schedule = Callable[[jax.Array], jax.Array]


def _constant(config, steps, every, at):
    return optax.constant_schedule(config['lr'])


def _step(config, steps, every, at):
    return optax.exponential_decay(config['lr'], every, config['gamma'], staircase=True)


def _exponential(config, steps, every, at):
    return optax.exponential_decay(config['lr'], every, config['gamma'])


def _cosine(config, steps, every, at):
    return optax.cosine_decay_schedule(config['lr'], max(steps, 1), alpha=config['final'])


def _multi_step(config, steps, every, at):
    return optax.piecewise_constant_schedule(config['lr'], dict.fromkeys(at, config['gamma']))


# name: (schedule config, steps after the warm-up, steps of `every`, those of `at` after the
# warm-up) -> schedule after the warm-up
SCHEDULES: dict[str, Callable] = {
    'constant': _constant,
    'step': _step,
    'multi_step': _multi_step,
    'cosine': _cosine,
    'exponential': _exponential,
}


def make_schedule(config: Mapping, total_steps: int, to_steps: Callable[[Mapping, str], int],
                  stages: Sequence[Stage] = ()) -> Schedule:
    """The learning rate of each step, counted from 0.

    A linear warm-up comes first (its first step has lr / warm-up steps, never 0), then the
    named schedule, which starts when the warm-up is over; the curriculum's lr_scale is a
    factor on top.

    Args:
        config: config.schedule.
        total_steps: length of the run.
        to_steps: (duration, config key) -> steps.
        stages: the curriculum's.

    Returns:
        A jittable function, int32 [] -> float32 [].

    Raises:
        ConfigError: an unknown name.
    """
    if config['name'] not in SCHEDULES:
        raise ConfigError(f'config.schedule.name = {config["name"]!r}: '
                          f'choose one of {", ".join(SCHEDULES)}.')
    warmup = to_steps(config['warmup'], 'schedule.warmup')
    every = max(to_steps(config['every'], 'schedule.every'), 1)
    at = [to_steps(duration, f'schedule.at[{i}]') - warmup
          for i, duration in enumerate(config['at'])]
    if len(set(at)) < len(at) or any(step < 0 for step in at):
        raise ConfigError(f'config.schedule.at = {config["at"]!r}: give different moments after '
                          f'the warm-up.')
    main = SCHEDULES[config['name']](config, total_steps - warmup, every, at)
    starts = jnp.array([stage.start for stage in stages] or [0], jnp.int32)
    scales = jnp.array([stage.lr_scale for stage in stages] or [1.0], jnp.float32)

    def schedule(step):
        rate = main(jnp.maximum(step - warmup, 0))
        if warmup:
            rate = jnp.where(step < warmup, config['lr'] * (step + 1) / warmup, rate)
        stage = jnp.searchsorted(starts, step, side='right') - 1
        return jnp.asarray(rate * scales[stage], jnp.float32)

    return schedule
