"""Losses of heads with several labels per picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from input_pipeline.errors import DataError
from input_pipeline.label_sets import UNLABELLED
from train_lib.losses.losses import LossSpec, Mixed, head_loss, split_loss, total_weight
from train_lib.losses.mixing import make_mixings, mix
from train_lib.losses.objectives import Shown, make_loss, objectives
from train_lib.runtime.errors import ConfigError

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(6, 4))).astype(np.float32)
TARGETS = (RNG.random((6, 4)) < 0.4).astype(np.float32)
WEIGHTS = RNG.random(6).astype(np.float32)
BCE = LossSpec('binary_cross_entropy', multi_label=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def by_hand(z, t):
    """Mean over classes, float64 [B]."""
    p = sigmoid(z)
    return -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(1)


def official(z, t, gamma_neg, gamma_pos, clip):
    """AsymmetricLoss of the authors' repository, with a mean over classes for its sum."""
    p = sigmoid(z)
    other = np.minimum(1 - p + clip, 1) if clip else 1 - p
    loss = t * np.log(np.maximum(p, 1e-8)) + (1 - t) * np.log(np.maximum(other, 1e-8))
    pt = p * t + other * (1 - t)
    return -(loss * (1 - pt) ** (gamma_pos * t + gamma_neg * (1 - t))).mean(1)


def test_binary_cross_entropy_is_the_mean_over_classes_and_labelled_rows():
    np.testing.assert_allclose(head_loss(BCE, LOGITS, TARGETS), by_hand(LOGITS, TARGETS).mean(),
                               rtol=1e-5)
    known = np.array([1, 1, 0, 1, 0, 1], bool)
    some = np.where(known[:, None], TARGETS, np.float32(-1))
    mean = (WEIGHTS * by_hand(LOGITS, TARGETS))[known].sum() / WEIGHTS[known].sum()
    np.testing.assert_allclose(head_loss(BCE, LOGITS, some, WEIGHTS), mean, rtol=1e-5)
    assert head_loss(BCE, LOGITS, np.full_like(TARGETS, -1)) == 0
    stored = np.where(known[:, None], TARGETS, UNLABELLED).astype(np.uint8)
    np.testing.assert_allclose(split_loss(BCE, LOGITS, stored),
                               by_hand(LOGITS, TARGETS)[known].mean(), rtol=1e-5)


def test_the_empty_set_is_a_label():
    nothing = np.zeros_like(TARGETS)
    np.testing.assert_allclose(head_loss(BCE, LOGITS, nothing), by_hand(LOGITS, nothing).mean(),
                               rtol=1e-5)


@pytest.mark.parametrize(('gamma_neg', 'gamma_pos', 'clip'),
                         [(4, 0, 0.05), (4, 1, 0.05), (2, 1, 0.0), (0, 0, 0.0)])
def test_the_asymmetric_loss_is_that_of_its_authors(gamma_neg, gamma_pos, clip):
    spec = LossSpec('asymmetric', multi_label=True, gamma_neg=gamma_neg, gamma_pos=gamma_pos,
                    clip=clip)
    np.testing.assert_allclose(head_loss(spec, LOGITS, TARGETS),
                               official(LOGITS, TARGETS, gamma_neg, gamma_pos, clip).mean(),
                               rtol=1e-4)


@pytest.mark.parametrize('spec', [
    LossSpec('asymmetric', multi_label=True), LossSpec('asymmetric', multi_label=True, clip=0.0),
    LossSpec('asymmetric', multi_label=True, gamma_neg=0.5), BCE])
def test_gradients_are_finite_at_any_logit(spec):
    far = np.array([[0, 60, -60, 1e4], [-1e4, 0, -200, 200]], np.float32)
    for targets in (np.zeros_like(far), np.ones_like(far), np.full_like(far, 0.5)):
        assert np.isfinite(jax.grad(lambda z, t=targets: head_loss(spec, z, t))(far)).all()


def test_smoothing_moves_both_ways_and_class_weights_count_where_a_class_applies():
    smooth = LossSpec('binary_cross_entropy', multi_label=True, label_smoothing=0.2)
    np.testing.assert_allclose(head_loss(smooth, LOGITS, TARGETS),
                               by_hand(LOGITS, 0.8 * TARGETS + 0.1).mean(), rtol=1e-5)
    weights = (1.0, 2.0, 3.0, 0.5)
    p = sigmoid(LOGITS)
    want = -(np.array(weights) * TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p)).mean()
    weighted = LossSpec('binary_cross_entropy', multi_label=True, class_weights=weights)
    np.testing.assert_allclose(head_loss(weighted, LOGITS, TARGETS), want, rtol=1e-5)


@pytest.mark.parametrize('name', ['binary_cross_entropy', 'asymmetric'])
def test_parts_of_a_batch_add_up(name):
    spec = LossSpec(name, multi_label=True, class_weights=(1.0, 2.0, 3.0, 0.5))
    some = TARGETS.copy()
    some[1] = -1
    whole = total_weight(spec, jnp.array(some), jnp.array(WEIGHTS))
    parts = sum(head_loss(spec, LOGITS[k:k + 2], some[k:k + 2], WEIGHTS[k:k + 2], divisor=whole)
                for k in (0, 2, 4))
    np.testing.assert_allclose(parts, head_loss(spec, LOGITS, some, WEIGHTS), rtol=1e-5)


def test_mixed_pictures_are_for_and_against_by_their_shares():
    lam = np.linspace(0.1, 0.9, 6).astype(np.float32)
    other = TARGETS[::-1].copy()
    mixed = Mixed(jnp.array(TARGETS), jnp.array(other), jnp.array(lam))
    soft = lam[:, None] * TARGETS + (1 - lam)[:, None] * other
    np.testing.assert_allclose(head_loss(BCE, LOGITS, mixed), by_hand(LOGITS, soft).mean(),
                               rtol=1e-5)
    other[2] = -1  # an unlabelled partner says nothing
    half = Mixed(jnp.array(TARGETS[2:3]), jnp.array(other[2:3]), jnp.array(lam[2:3]))
    np.testing.assert_allclose(head_loss(BCE, LOGITS[2:3], half),
                               by_hand(LOGITS, TARGETS)[2], rtol=1e-5)


def test_mixing_takes_targets_along():
    mixing = make_mixings([dict(kind='mixup')], {'tags': 'abcd'}, lambda *_: 0, ('tags',))
    images = jnp.zeros((6, 4, 4, 3), jnp.uint8)
    _, targets, _ = mix(mixing, 0, jnp.int32(3), images, {'tags': jnp.array(TARGETS)})
    assert targets['tags'].labels_a.shape == targets['tags'].labels_b.shape == (6, 4)
    assert np.isfinite(head_loss(BCE, LOGITS, targets['tags']))
    for entry in (dict(kind='mixup', partner='same_class'), dict(kind='cutmix', classes=('a',))):
        with pytest.raises(ConfigError, match=r"config.mixing\[0\] chooses by the class"):
            make_mixings([entry], {'tags': 'abcd'}, lambda *_: 0, ('tags',))


COUNTS = {'tags': np.array([3, 1]), 'kind': np.array([2, 2])}


@pytest.mark.parametrize(('name', 'words'), [
    ('cross_entropy', "not a loss for the head 'tags', whose pictures have several labels each: "
                      'use binary_cross_entropy or asymmetric'),
    ('asymmetric', "not a loss for the head 'kind', whose pictures have one label each"),
    ({'kind': 'asymmetric'}, "not a loss for the head 'kind'"), ({'x': 'focal'}, "head 'x'"),
    ({'tags': 'asymetric'}, "did you mean 'asymmetric'")])
def test_a_loss_of_the_other_kind_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        make_loss(dict(name=name), COUNTS, multi_label=('tags',))


def test_the_loss_may_differ_by_head():
    made = make_loss(dict(name={'kind': 'focal'}), COUNTS, multi_label=('tags',))
    assert (made['tags'].name, made['tags'].multi_label) == ('binary_cross_entropy', True)
    assert (made['kind'].name, made['kind'].multi_label) == ('focal', False)
    both = make_loss(dict(name='binary_cross_entropy'), COUNTS, multi_label=('tags',))
    assert [spec.multi_label for spec in both.values()] == [True, False]
    config = get_config()
    config.loss.name = {'tags': 'asymmetric'}
    config.loss.class_weights.kind = 'manual'
    config.loss.class_weights.manual = {'b': 7.0}
    config.loss.class_weights.head = 'tags'
    found = objectives(config, {'tags': ('a', 'b'), 'kind': ('x', 'y')}, COUNTS, lambda *_: 0,
                       multi_label=('tags',))
    assert found['tags'].class_weights == (1.0, 7.0) and found['kind'].class_weights == ()


def test_pos_weight_goes_by_what_is_shown():
    config, counts = get_config(), {'tags': np.array([2.0, 5.0]), 'kind': np.array([6.0, 4.0])}
    config.loss.name = {'tags': 'binary_cross_entropy'}
    config.loss.class_weights.update(kind='pos_weight', head='tags', cap=3.5)
    classes = {'tags': ('a', 'b'), 'kind': ('x', 'y')}
    shown = Shown(6, {'tags': np.array([6.0, 6.0]), 'kind': np.array([6.0, 8.0])},
                  {'tags': 12.0, 'kind': 14.0})
    made = lambda **given: objectives(config, classes, counts, lambda *_: 0, multi_label=('tags',),
                                      labelled={'tags': 10.0, 'kind': 10.0}, **given)
    assert made()['tags'].class_weights == (3.5, 1.0)  # 8 / 2 is above the cap
    spec = made(shown=shown)['tags']
    assert (spec.class_weights, spec.shown_start, spec.shown_weights) == ((3.5, 1.0), 6, (1.0, 1.0))
    logits = np.array([[0.3, -2.0], [1.0, 0.5]], np.float32)
    targets = np.array([[1, 0], [1, 1]], np.float32)
    found = head_loss(made()['tags'], logits, targets)
    positive = np.log1p(np.exp(-logits)) * targets * [3.5, 1.0]
    assert found == pytest.approx((positive + np.log1p(np.exp(logits)) * (1 - targets)).mean())
    config.loss.class_weights.head = ''
    with pytest.raises(DataError, match='name a multi-label head in loss'):
        made()
