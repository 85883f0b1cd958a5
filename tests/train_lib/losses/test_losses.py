"""Losses against plain formulas and torch; what weighs how much in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_lib.losses.losses import (
    LOSSES,
    LossSpec,
    Mixed,
    adjust_logits,
    cross_entropy,
    head_loss,
    split_loss,
    weights_at,
)
from train_lib.losses.objectives import make_loss
from train_lib.runtime.errors import ConfigError

COUNTS = (500.0, 40.0, 7.0, 120.0)
LOGITS = np.random.default_rng(0).normal(0, 2, (9, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, -1, 1, 2, 0, 3], np.int32)
KNOWN = LABELS >= 0
loss_of = jax.jit(head_loss, static_argnums=0)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def plain(name, z, c):
    """The loss of each row of z, label c, by its formula."""
    rows, n = np.arange(len(z)), np.array(COUNTS)
    if name == 'cross_entropy':
        return -log_softmax(z)[rows, c]
    if name == 'focal':
        log_p = log_softmax(z)[rows, c]
        return -0.25 * (1 - np.exp(log_p)) ** 1.5 * log_p
    if name == 'binary_cross_entropy':
        hot, p = np.eye(4)[c], 1 / (1 + np.exp(-z))
        return -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).mean(axis=1)
    if name == 'balanced_softmax':
        return -np.log(n[c] * np.exp(z[rows, c]) / (n * np.exp(z)).sum(axis=1))
    if name == 'logit_adjustment':
        return -log_softmax(z + 0.7 * np.log(n / n.sum()))[rows, c]
    z = z.copy()  # ldam
    z[rows, c] -= (0.5 * (n.min() / n) ** 0.25)[c]
    return -log_softmax(3 * z)[rows, c]


def spec_of(name, **settings):
    return LossSpec(name=name, gamma=1.5, alpha=0.25, tau=0.7, scale=3.0, counts=COUNTS, **settings)


@pytest.mark.parametrize('name', LOSSES)
def test_formulas_with_smoothed_and_mixed_labels(name):
    z = LOGITS.astype(np.float64)
    of_class = np.stack([plain(name, z, np.full(9, c)) for c in range(4)], axis=1)
    lam, other = np.linspace(0, 1, 9), np.roll(LABELS, 2)
    shares = np.stack([lam * (LABELS >= 0), (1 - lam) * (other >= 0)])
    losses = np.stack([of_class[np.arange(9), LABELS], of_class[np.arange(9), other]])
    losses = 0.7 * losses + 0.3 * of_class.mean(axis=1)
    found = loss_of(spec_of(name, label_smoothing=0.3), LOGITS, Mixed(LABELS, other, lam))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (shares * losses).sum() / shares.sum(), rtol=2e-6)


def test_torch_says_the_same():
    torch = pytest.importorskip('torch')
    functional = torch.nn.functional
    weights = (0.2, 1.0, 3.0, 0.5)
    logits, labels = torch.tensor(LOGITS[KNOWN]), torch.tensor(LABELS[KNOWN]).long()
    expected = functional.cross_entropy(logits, labels, torch.tensor(weights),
                                        label_smoothing=0.1)
    spec = LossSpec(label_smoothing=0.1, class_weights=weights)
    np.testing.assert_allclose(loss_of(spec, LOGITS, LABELS), expected, rtol=1e-6)
    soft = np.random.default_rng(1).dirichlet(np.ones(4), len(logits)).astype(np.float32)
    np.testing.assert_allclose(loss_of(LossSpec(), LOGITS[KNOWN], jnp.array(soft)),
                               functional.cross_entropy(logits, torch.tensor(soft)), rtol=1e-6)
    smooth = np.full((len(logits), 4), 0.1 / 4) + 0.9 * np.eye(4)[LABELS[KNOWN]]
    np.testing.assert_allclose(
        loss_of(LossSpec('binary_cross_entropy', label_smoothing=0.1), LOGITS, LABELS),
        functional.binary_cross_entropy_with_logits(logits, torch.tensor(smooth)), rtol=1e-6)


def test_focal_at_gamma_0_is_cross_entropy():
    np.testing.assert_array_equal(loss_of(LossSpec('focal', gamma=0.0), LOGITS, LABELS),
                                  loss_of(LossSpec(), LOGITS, LABELS))


def test_weights_of_examples_multiply_those_of_classes():
    of_example = np.array([1, 0, 2, 1, 1, .5, 1, 3, 1], np.float32)
    classes = np.array([0.2, 1.0, 3.0, 0.5], np.float32)
    spec = LossSpec(class_weights=tuple(map(float, classes)))
    each = plain('cross_entropy', LOGITS.astype(np.float64), LABELS)
    weights = of_example * classes[LABELS] * KNOWN
    expected = (weights * each).sum() / weights.sum()
    np.testing.assert_allclose(loss_of(spec, LOGITS, LABELS, of_example), expected, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, classes[LABELS] * of_example),
                               expected, rtol=1e-6)
    # the second label brings its own weight along: an example of weight 0 counts nowhere
    pairs = Mixed(LABELS, LABELS[::-1], jnp.full(9, 0.25))
    both = jnp.stack([of_example, of_example[::-1]], axis=1)
    hidden = pairs._replace(labels_a=np.where(of_example, LABELS, -1),
                            labels_b=np.where(of_example[::-1], LABELS[::-1], -1))
    np.testing.assert_allclose(loss_of(LossSpec(), LOGITS, pairs, (both > 0) * 1.0),
                               loss_of(LossSpec(), LOGITS, hidden), rtol=1e-6)


def test_deferred_class_weights():
    spec = LossSpec(class_weights=(0.2, 1.0, 3.0, 0.5), weights_start=10)
    at = jax.jit(lambda step: weights_at(spec, step))
    np.testing.assert_array_equal(at(9), np.ones(4))
    np.testing.assert_allclose(at(10), spec.class_weights)
    np.testing.assert_allclose(loss_of(spec, LOGITS, LABELS, None, 9),
                               loss_of(LossSpec(), LOGITS, LABELS), rtol=1e-6)
    later = loss_of(spec, LOGITS, LABELS, None, 10)
    np.testing.assert_allclose(split_loss(spec, LOGITS, LABELS), later, rtol=1e-6)
    assert abs(later - loss_of(spec, LOGITS, LABELS, None, 9)) > 0.01


@pytest.mark.parametrize('name', LOSSES)
def test_sure_and_absurd_logits_have_finite_gradients(name):
    logits = jnp.array([[1e4, 0, -1e4, 5], [0, 0, 0, 0], [80, -80, 80, -80], [1, 2, 3, 4.]])
    spec = LossSpec(name, gamma=0.5, counts=(9.0, 0.0, 3.0, 1.0), label_smoothing=0.1)
    for labels in ([0, 0, 0, 0], [2, 1, 1, -1], [-1, -1, -1, -1]):
        loss, gradient = jax.jit(jax.value_and_grad(lambda z, t: head_loss(spec, z, t)))(
            logits, jnp.array(labels))
        assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert loss == 0 and not gradient.any()


def test_blocks_of_a_split_add_up(monkeypatch):
    monkeypatch.setattr('train_lib.losses.losses._BLOCK', 3)
    spec = LossSpec(label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0, 4.0))
    np.testing.assert_allclose(split_loss(spec, LOGITS, LABELS),
                               loss_of(spec, LOGITS, LABELS), rtol=1e-6)
    assert split_loss(spec, LOGITS, np.full(9, -1)) is None


def test_adjusted_logits_give_the_rare_class_its_odds():
    found = adjust_logits(LOGITS, COUNTS, tau=2.0)
    prior = np.array(COUNTS) / sum(COUNTS)
    np.testing.assert_allclose(LOGITS - found, np.broadcast_to(2 * np.log(prior), (9, 4)),
                               rtol=1e-5)
    assert found.dtype == np.float32
    assert np.isfinite(adjust_logits(LOGITS, (3, 0, 1, 2))).all()


def test_make_loss():
    specs = make_loss(dict(name='focal', alpha={'tool': (0.5, 2)}, gamma=1, head_weights=()),
                      {'class': np.array([3, 4, 5]), 'tool': [6, 6]},
                      {'class': np.array([1.0, 2.0, 3.0])}, weights_start=7)
    assert specs['class'] == LossSpec('focal', gamma=1.0, counts=(3, 4, 5),
                                      class_weights=(1, 2, 3), weights_start=7)
    assert specs['tool'].alpha == (0.5, 2.0) and specs['tool'].class_weights == ()
    hash(specs['class'])


@pytest.mark.parametrize('config, counts, weights, words', [
    (dict(name='focall'), [1, 2], [], "'focal'"),
    (dict(gama=1), [1, 2], [], "'gamma'"),
    (dict(gamma=-1.0), [1, 2], [], 'gamma = -1.0'),
    (dict(gamma=float('nan')), [1, 2], [], 'gamma = nan'),
    (dict(label_smoothing=1.0), [1, 2], [], 'label_smoothing'),
    (dict(alpha='0.25'), [1, 2], [], 'alpha'),
    (dict(alpha=(1, 2, 3)), [1, 2], [], '3 numbers for 2 classes'),
    (dict(alpha={'clas': 1}), [1, 2], [], "'class'"),
    (dict(), [1, 2], [1, 2, 3], '3 numbers for 2 classes'),
    (dict(), [1, 2], [0, 0], '0 for every class'),
    (dict(name='ldam'), [0, 0], [], 'there are none'),
])
def test_mistakes_in_the_config(config, counts, weights, words):
    with pytest.raises(ConfigError) as error:
        make_loss(config, {'class': counts}, {'class': weights})
    assert words in str(error.value) and str(error.value).endswith(('.', '?'))
