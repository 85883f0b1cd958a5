"""Learning rates against values worked out by hand."""

import jax
import numpy as np
import pytest

from configs import common
from input_pipeline.curriculum import Stage
from train_lib.errors import ConfigError
from train_lib.schedules import make_schedule


def rates(steps, stages=(), total=100, **settings):
    config = common.get_config().schedule.to_dict() | {'warmup': {'steps': 0}} | settings
    schedule = make_schedule(config, total, lambda duration, key: duration['steps'], stages)
    return np.array([jax.jit(schedule)(step) for step in steps])


def test_constant():
    np.testing.assert_allclose(rates([0, 99], name='constant', lr=0.3, every={'steps': 1}), 0.3)


def test_step():
    found = rates([0, 9, 10, 25], name='step', lr=1.0, every={'steps': 10}, gamma=0.1)
    np.testing.assert_allclose(found, [1, 1, 0.1, 0.01], rtol=1e-5)


def test_multi_step():
    found = rates([0, 9, 10, 29, 30, 99], name='multi_step', lr=1.0, every={'steps': 1}, gamma=0.1,
                  at=({'steps': 10}, {'steps': 30}))
    np.testing.assert_allclose(found, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)
    with pytest.raises(ConfigError, match=r'schedule\.at'):
        rates([0], name='multi_step', every={'steps': 1}, at=({'steps': 5}, {'steps': 5}))


def test_exponential():
    found = rates([0, 5, 10], name='exponential', lr=1.0, every={'steps': 10}, gamma=0.25)
    np.testing.assert_allclose(found, [1, 0.5, 0.25], rtol=1e-5)


def test_cosine_with_warmup():
    found = rates([0, 4, 9, 10, 55, 100], name='cosine', lr=2.0, final=0.1,
                  warmup={'steps': 10}, every={'steps': 1})
    np.testing.assert_allclose(found, [0.2, 1.0, 2.0, 2.0, 1.1, 0.2], rtol=1e-5)


def test_the_curriculum_scales_any_of_them():
    stages = (Stage(0, ()), Stage(20, (), 0.5), Stage(50, (), 0.1))
    found = rates([0, 19, 20, 49, 50, 99], stages, name='constant', lr=1.0, every={'steps': 1})
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.5, 0.1, 0.1], rtol=1e-6)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match='cosin'):
        rates([0], name='cosin', every={'steps': 1})
