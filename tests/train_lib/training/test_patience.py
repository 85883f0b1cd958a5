"""Plateau against torch; early stopping by hand."""

import json

import numpy as np
import pytest

from configs import common
from train_lib.metrics.directions import MORE_IS_BETTER, more_is_better
from train_lib.runtime.errors import ConfigError
from train_lib.training import patience
from train_lib.training.patience import EarlyStopping, PatienceState, Plateau, PlateauState

SCORES = [0.5, 0.6, 0.61, 0.61, 0.6, 0.62, 0.55, 0.5, 0.5, 0.7, 0.7, 0.69, 0.7, 0.71, 0.2, 0.2, 0.2,
          0.2, 0.2, 0.2, 0.2, 0.2, 0.8, 0.1, 0.1, 0.1, 0.1]


def states(values, metric, plateau=None, stopping=None, every=10):
    state, found = PatienceState(), []
    for i, value in enumerate(values):
        state = patience.after_evaluation(
            PatienceState.from_json(json.loads(json.dumps(state.to_json()))), metric, value,
            (i + 1) * every, plateau, stopping)
        found.append(state)
    return found


@pytest.mark.parametrize('metric, sign', [('accuracy', 1), ('nll', -1), ('qwk', 1), ('mae', -1)])
@pytest.mark.parametrize('settings', [
    dict(patience=0, factor=0.5, min_delta=0.0, cooldown=0, min_scale=0.0),
    dict(patience=2, factor=0.1, min_delta=0.015, cooldown=2, min_scale=0.002),
    dict(patience=1, factor=0.3, min_delta=0.0, cooldown=1, min_scale=0.0)])
def test_the_plateau_is_torch_s(metric, sign, settings):
    torch = pytest.importorskip('torch')
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, 'max' if sign > 0 else 'min', factor=settings['factor'],
        patience=settings['patience'], threshold=settings['min_delta'], threshold_mode='abs',
        cooldown=settings['cooldown'], min_lr=settings['min_scale'], eps=0)
    values = [sign * value for value in SCORES]
    values[7] = float('nan')
    for value, state in zip(values, states(values, metric, Plateau(**settings))):
        theirs.step(value)
        np.testing.assert_allclose(state.plateau.scale, optimizer.param_groups[0]['lr'],
                                   rtol=1e-12)
    assert state.plateau.scale < 1


def test_early_stopping_counts_steps_since_the_last_improvement():
    stopping = EarlyStopping(patience=30, min_delta=0.02)
    #         10   20    30   40            50    60    70    80
    values = [0.5, 0.51, 0.53, float('inf'), 0.54, 0.56, 0.57, 0.9]
    found = states(values, 'accuracy', stopping=stopping)
    over = [patience.exhausted(state, (i + 1) * 10, stopping) for i, state in enumerate(found)]
    assert not any(over)
    assert [state.stopping.step for state in found] == [10, 10, 30, 30, 30, 60, 60, 80]
    over = [patience.exhausted(state, (i + 1) * 10, EarlyStopping(20, 0.02))
            for i, state in enumerate(found)]
    assert over == [False] * 4 + [True, False, False, False]


def test_scores_that_are_not_finite_never_count():
    for metric in patience.METRICS:
        for value in (float('nan'), float('inf'), -float('inf'), None):
            assert not patience.better(metric, value, None)


def test_every_metric_has_a_direction():
    assert set(patience.METRICS) <= set(MORE_IS_BETTER)
    for metric in patience.METRICS:
        less = metric in ('loss', 'nll', 'mae', 'mae_median')
        assert patience.better(metric, 0.3, 0.4) is less
        assert patience.better(metric, 0.4, 0.3) is not less
        assert more_is_better(f'test.age.{metric}') is not less


def test_another_metric_forgets_the_best_and_keeps_the_rate():
    plateau = Plateau(0, 0.5, 0.0, 0, 0.0)
    state = patience.forget_best(states([0.9, 0.8], 'accuracy', plateau)[-1])
    after = patience.after_evaluation(state, 'loss', 3.0, 30, plateau, None)
    assert after.plateau == PlateauState(best=3.0, bad=0, cooldown=0, scale=0.5)


def test_durations_become_evaluations_and_steps():
    config = common.get_config().to_dict()
    assert patience.make_plateau(config['schedule']['plateau'], None, 5) is None
    assert patience.make_early_stopping(config['early_stopping'], None) is None

    def to_steps(duration, key):
        return duration['steps']

    plateau = config['schedule']['plateau'] | dict(patience=dict(steps=11), cooldown=dict(steps=5))
    found = patience.make_plateau(plateau, to_steps, 5)
    assert (found.patience, found.cooldown) == (3, 1)
    with pytest.raises(ConfigError, match=r'schedule\.plateau\.patience = 3 is not a valid dur'):
        patience.make_plateau(plateau | dict(patience=3), to_steps, 5)
    with pytest.raises(ConfigError, match=r'factor = 1\.5'):
        patience.make_plateau(plateau | dict(factor=1.5), to_steps, 5)
    with pytest.raises(ConfigError, match='0 steps long'):
        patience.make_early_stopping(
            config['early_stopping'] | dict(patience=dict(steps=0)), to_steps)


def test_what_comes_before_the_end_of_the_warm_up_does_not_count():
    plateau = Plateau(patience=0, factor=0.1, min_delta=0.0, cooldown=0, min_scale=0.0, begin=30)
    stopping = EarlyStopping(patience=20, min_delta=0.0, begin=30)
    #                10   20   30   40   50   60
    found = states([0.9, 0.5, 0.5, 0.6, 0.6, 0.6], 'accuracy', plateau, stopping)
    assert [state.plateau.scale for state in found[:4]] == [1] * 4
    np.testing.assert_allclose([state.plateau.scale for state in found[4:]], [0.1, 0.01])
    assert [state.stopping.step for state in found] == [0, 0, 30, 40, 40, 40]
    over = [patience.exhausted(state, (i + 1) * 10, stopping) for i, state in enumerate(found)]
    assert over == [False] * 5 + [True]
    lost = states([None] * 5, 'accuracy', plateau, stopping)  # counted from there if none is finite
    over = [patience.exhausted(state, (i + 1) * 10, stopping) for i, state in enumerate(lost)]
    assert over == [False] * 4 + [True]


@pytest.mark.parametrize('value, nll, wanted', [
    (0.8, 0.1, False), (0.9, 0.5, False), (0.9, 0.4, True), (0.9, 0.3, True), (0.91, 9.0, True),
    (0.9, None, False), (None, 0.1, False), (float('nan'), 0.1, False)])
def test_of_equal_scores_the_lower_nll_is_the_best_then_the_later(value, nll, wanted):
    def beats(best_nll=0.4, ties='nll'):
        return patience.beats_best('accuracy', value, 0.9, nll=nll, best_nll=best_nll, ties=ties)

    assert beats() is wanted
    assert beats(ties='first') is (value == 0.91)  # as in runs of older versions
    if value == 0.9:
        assert beats(best_nll=None)  # an older run does not know it
