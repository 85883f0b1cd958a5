"""Losses of unlabelled pictures and of a teacher, against plain NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from train_lib.losses.consistency import (
    Consistency,
    make_consistency,
    read_unlabelled,
)
from train_lib.losses.soft_answers import distillation
from train_lib.runtime.errors import ConfigError

RNG = np.random.default_rng(0)
WEAK, STRONG = RNG.normal(0, 2, (2, 40, 5))


def softmax(logits):
    found = np.exp(logits - logits.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


def gradient(losses, strong):
    return np.asarray(jax.grad(lambda values: losses(values).sum())(jnp.asarray(strong)))


def test_fixmatch_is_the_cross_entropy_of_sure_answers():
    loss = Consistency('fixmatch', threshold=0.7)
    found, sure = loss.losses(WEAK, STRONG)
    p, labels = softmax(WEAK), WEAK.argmax(-1)
    wanted = p.max(-1) >= 0.7
    assert 5 < wanted.sum() < 35
    np.testing.assert_array_equal(sure, wanted)
    rows = np.arange(40)
    np.testing.assert_allclose(found, np.where(wanted, -np.log(softmax(STRONG)[rows, labels]), 0),
                               rtol=1e-5)
    slope = softmax(STRONG) - np.eye(5)[labels]
    np.testing.assert_allclose(gradient(lambda strong: loss.losses(WEAK, strong)[0], STRONG),
                               slope * wanted[:, None], atol=1e-6)


@pytest.mark.parametrize('distance', ['mse', 'kl'])
def test_mean_teacher_learns_probabilities(distance):
    loss = Consistency('mean_teacher', threshold=0.4, distance=distance)
    found, sure = loss.losses(WEAK, STRONG)
    p, q = softmax(WEAK), softmax(STRONG)
    wanted = p.max(-1) >= 0.4
    of_all = ((p - q) ** 2).sum(-1) if distance == 'mse' else (p * np.log(p / q)).sum(-1)
    np.testing.assert_array_equal(sure, wanted)
    np.testing.assert_allclose(found, np.where(wanted, of_all, 0), rtol=1e-5, atol=1e-6)
    if distance == 'mse':
        to_probs = 2 * (q - p)
        slope = q * (to_probs - (to_probs * q).sum(-1, keepdims=True))
    else:
        slope = q - p
    np.testing.assert_allclose(gradient(lambda strong: loss.losses(WEAK, strong)[0], STRONG),
                               slope * wanted[:, None], atol=1e-6)


@pytest.mark.parametrize('kind', ['fixmatch', 'mean_teacher'])
def test_no_gradient_goes_through_the_target(kind):
    loss = Consistency(kind, threshold=0.0)
    assert not gradient(lambda weak: loss.losses(weak, STRONG)[0], WEAK).any()


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_distillation(temperature):
    p, q = softmax(WEAK / temperature), softmax(STRONG / temperature)
    np.testing.assert_allclose(distillation(STRONG, WEAK, temperature),
                               temperature**2 * (p * np.log(p / q)).sum(-1), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(
        gradient(lambda student: distillation(student, WEAK, temperature), STRONG),
        temperature * (q - p), atol=1e-5)
    assert not gradient(lambda teacher: distillation(STRONG, teacher, temperature), WEAK).any()
    assert np.abs(distillation(WEAK, WEAK, temperature)).max() < 1e-5


def test_the_weight_grows():
    loss = Consistency('fixmatch', weight=2.0, start=10, ramp=20)
    at = [float(loss.strength(jnp.int32(step))) for step in (9, 10, 20, 30, 99)]
    np.testing.assert_allclose(at, [0, 2 * np.exp(-5), 2 * np.exp(-1.25), 2, 2], rtol=1e-6)
    at_once = Consistency('fixmatch', weight=2.0, start=10)
    assert [float(at_once.strength(jnp.int32(step))) for step in (9, 10)] == [0, 2]


def made(**changes):
    section = common.get_config().unlabelled.to_dict() | changes
    return make_consistency(read_unlabelled(section),
                            lambda duration, key: duration.get('steps', 0))


def test_defaults_follow_the_kind():
    assert made() is None
    assert made(kind='fixmatch').threshold == 0.95
    assert made(kind='mean_teacher').threshold == 0
    found = made(kind='mean_teacher', start=dict(steps=3), ramp=dict(steps=4), threshold=0.5)
    assert (found.start, found.ramp, found.threshold) == (3, 4, 0.5)


@pytest.mark.parametrize(('changes', 'words'), [
    (dict(kind='fixmatsch'), "kind = 'fixmatsch': choose one of none, fixmatch, mean_teacher"),
    (dict(kind='mean_teacher', distance='l1'), "distance = 'l1': choose one of mse, kl"),
    (dict(kind='fixmatch', threshold=1.0), 'threshold = 1.0: give a number, from 0 to below 1'),
    (dict(kind='fixmatch', threshold='high'), "threshold = 'high'"),
    (dict(kind='fixmatch', weight=-1.0), 'weight = -1.0: give a number, 0 or more'),
    (dict(kind='fixmatch', wieght=1.0), 'config.unlabelled.wieght is unknown')])
def test_wrong_values_are_refused(changes, words):
    with pytest.raises(ConfigError) as error:
        made(**changes)
    assert words in str(error.value)
