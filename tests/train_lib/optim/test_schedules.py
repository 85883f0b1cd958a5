"""Learning rates against values worked out by hand."""

import jax
import numpy as np
import pytest

from configs import common
from input_pipeline.curriculum import Stage
from train_lib.optim.schedules import judged_from, make_schedule, say_left_out
from train_lib.runtime.errors import ConfigError


def rates(steps, stages=(), total=100, **settings):
    config = common.get_config().schedule.to_dict() | {'warmup': {'steps': 0}} | settings
    schedule = jax.jit(make_schedule(config, total, lambda duration, key: duration['steps'], stages,
                                     batch_size=64))
    return np.array([schedule(step) for step in steps])


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


def test_polynomial():
    found = rates([0, 50, 75, 100], name='polynomial', lr=2.0, power=2.0, final=0.1)
    np.testing.assert_allclose(found, [2, 0.65, 0.3125, 0.2], rtol=1e-5)


def test_cosine_restarts():
    found = rates([0, 10, 19, 20, 40, 60, 99], name='cosine_restarts', lr=1.0, final=0.1,
                  period={'steps': 20}, mult=2.0)
    late = 0.1 + 0.45 * (1 + np.cos(np.pi * 39 / 80))
    first = 0.1 + 0.45 * (1 + np.cos(np.pi * 19 / 20))
    np.testing.assert_allclose(found, [1, 0.55, first, 1, 0.55, 1, late], rtol=1e-5)


@pytest.mark.parametrize(('name', 'peaks'), [('triangular', (1, 1, 1)),
                                             ('triangular2', (1, 0.6, 0.4))])
def test_cyclic(name, peaks):
    found = rates([0, 5, 10, 15, 20, 30, 40, 50], name=name, lr=1.0, low=0.2, period={'steps': 20})
    first, second, third = peaks
    np.testing.assert_allclose(found, [0.2, 0.6, first, 0.6, 0.2, second, 0.2, third], rtol=1e-5)


def test_one_cycle():
    found = rates([0, 15, 30, 65, 100], name='one_cycle', lr=2.0, low=0.1, rise=0.3, final=0.01)
    np.testing.assert_allclose(found, [0.2, 1.1, 2, 1.01, 0.02], rtol=1e-5)


def test_as_torch_has_them():
    torch = pytest.importorskip('torch')
    optim = torch.optim
    peers = {
        'cosine_restarts': lambda it: optim.lr_scheduler.CosineAnnealingWarmRestarts(
            it, T_0=7, T_mult=2, eta_min=0.05),
        'triangular': lambda it: optim.lr_scheduler.CyclicLR(
            it, 0.02, 0.5, step_size_up=7, cycle_momentum=False),
        'triangular2': lambda it: optim.lr_scheduler.CyclicLR(
            it, 0.02, 0.5, step_size_up=7, mode='triangular2', cycle_momentum=False),
        'one_cycle': lambda it: optim.lr_scheduler.OneCycleLR(  # its peak and end a step earlier
            it, 0.5, total_steps=101, pct_start=31 / 101, div_factor=25, final_div_factor=0.4,
            cycle_momentum=False),
        'polynomial': lambda it: optim.lr_scheduler.PolynomialLR(it, 100, power=1.5),
    }
    for name, peer in peers.items():
        optimizer = optim.SGD([torch.zeros(1)], lr=0.5)
        scheduler, expected = peer(optimizer), []
        for _ in range(100):
            expected.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            scheduler.step()
        period = {'steps': 7 if name == 'cosine_restarts' else 14}
        found = rates(range(100), name=name, lr=0.5, low=0.04, power=1.5, mult=2.0, period=period,
                      final=0.0 if name == 'polynomial' else 0.1)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7, err_msg=name)


def test_warmup_leads_to_where_the_schedule_begins():
    found = rates([0, 1, 2], name='one_cycle', lr=1.0, low=0.1, warmup={'steps': 2}, rules=1)
    np.testing.assert_allclose(found, [0.05, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize('name', ['one_cycle', 'triangular', 'triangular2'])
def test_a_schedule_that_rises_by_itself_has_no_warm_up(name, caplog):
    settings = dict(name=name, lr=1.0, low=0.1, period={'steps': 20})
    wanted = rates(range(100), **settings)
    np.testing.assert_array_equal(rates(range(100), **settings, warmup={'steps': 5}), wanted)
    assert (rates(range(5), **settings, warmup={'steps': 5}, rules=1) < 0.101).all()
    config = common.get_config().schedule.to_dict() | settings
    with caplog.at_level('INFO'):
        say_left_out(config, lambda duration, key: 5)
        say_left_out(config, lambda duration, key: 0)
        say_left_out(config | dict(rules=1), lambda duration, key: 5)
    assert caplog.messages == [
        f'schedule no warm-up (schedule.warmup): {name} rises by itself']


def test_a_warm_up_longer_than_the_run_is_refused():
    rates([0], warmup={'steps': 100})
    rates([0], warmup={'steps': 101}, rules=1)  # as in runs of older versions
    with pytest.raises(ConfigError, match=r'schedule\.warmup.* 101 steps, and the run has 100'):
        rates([0], warmup={'steps': 101})


@pytest.mark.parametrize('name, rules, wanted', [
    ('cosine', 2, 5), ('one_cycle', 2, 30), ('triangular', 2, 0), ('cosine', 1, 0),
    ('one_cycle', 1, 0)])
def test_scores_count_from_the_end_of_the_climb(name, rules, wanted):
    config = common.get_config().schedule.to_dict() | dict(name=name, rules=rules)
    assert judged_from(config, 100, lambda duration, key: 5) == wanted


def test_cooldown_is_a_line_from_wherever_the_schedule_is():
    found = rates([0, 79, 80, 90, 99], name='constant', lr=2.0, cooldown={'steps': 20},
                  cooldown_final=0.1)
    np.testing.assert_allclose(found, [2, 2, 2, 1.1, 0.29], rtol=1e-5)
    found = rates([49, 50, 75, 100], name='cosine', lr=1.0, cooldown={'steps': 50})
    np.testing.assert_allclose(found, [0.5157, 0.5, 0.25, 0.0], atol=1e-4)
    with pytest.raises(ConfigError, match=r'schedule\.cooldown.*110 of 100'):
        rates([0], warmup={'steps': 60}, cooldown={'steps': 50})


def test_scaled_with_the_batch():
    found = rates([0, 99], name='constant', lr=0.1, scale_with_batch=256, cooldown={'steps': 2},
                  cooldown_final=0.5)
    np.testing.assert_allclose(found, [0.025, 0.01875], rtol=1e-5)  # batches of 64
    config = common.get_config().schedule.to_dict() | {'scale_with_batch': 256}
    with pytest.raises(ConfigError, match='scale_with_batch'):
        make_schedule(config, 100, lambda duration, key: 0)


def test_the_curriculum_scales_any_of_them():
    stages = (Stage(0, ()), Stage(20, (), 0.5), Stage(50, (), 0.1))
    found = rates([0, 19, 20, 49, 50, 99], stages, name='constant', lr=1.0, every={'steps': 1})
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.5, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize('settings, words', [
    (dict(name='cosin'), 'cosin.*cosine'),
    (dict(name='cosine', final=2.0), 'final = 2'),
    (dict(name='one_cycle', rise=1.0), 'rise = 1'),
    (dict(name='cosine_restarts', mult=0.5), 'mult = 0.5'),
    (dict(name='polynomial', power=0.0), 'power = 0'),
])
def test_mistakes_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        rates([0], **settings)
