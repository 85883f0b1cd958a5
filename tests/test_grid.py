"""A grid of optimizers, schedules, weight decays and batch sizes: one overridden line an arm."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.durations import to_steps
from train_lib.commands import command_line
from train_lib.optim.optimizers import OPTIMIZERS, make_optimizer
from train_lib.optim.schedules import SCHEDULES, make_schedule

ARMS = [*(f'optimizer.name={name}' for name in OPTIMIZERS),
        *(f'schedule.name={name}' for name in SCHEDULES),
        'optimizer.momentum=0.99', 'optimizer.nesterov=False', 'optimizer.b1=0.999',
        'optimizer.weight_decay=1e-2', 'optimizer.weight_decay=1e-4',
        'optimizer.decay=coupled', 'batch_size=16', 'batch_size=128']


@pytest.mark.parametrize('arm', ARMS)
def test_an_arm_is_one_overridden_line(arm):
    key, _, value = arm.partition('=')
    config = command_line.parse(['--config=configs/sketch_vit.py', f'--config.{arm}']).config
    section, _, field = key.rpartition('.')
    found = (config[section] if section else config)[field]
    assert found == (value if isinstance(found, str) else ast.literal_eval(value))

    total = 1000
    schedule = make_schedule(
        config.schedule.to_dict(), total,
        lambda duration, name: to_steps(dict(duration), key=name, examples_per_epoch=640,
                                        batch_size=config.batch_size, total_steps=total),
        batch_size=config.batch_size)
    rates = np.array([float(schedule(jnp.int32(step))) for step in (0, 100, 999)])
    assert rates.min() >= 0 and rates.max() <= config.schedule.lr * 1.0001

    params = {'blocks': {'kernel': jnp.eye(4), 'bias': jnp.ones(4)}}
    decay = {'blocks': {'kernel': 1.0, 'bias': 0.0}}
    optimizer = make_optimizer(config.optimizer.to_dict(), decay)
    gradients = jax.tree.map(lambda leaf: 0.1 * leaf + 0.01, params)
    update, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    descent = jax.tree.map(lambda a, b: jnp.sum(a * b), update, gradients)
    assert all(float(value) > 0 for value in jax.tree.leaves(descent))
