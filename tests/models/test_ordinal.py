"""Heads of ordered classes: probabilities by the formulas of their papers, finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models.errors import ModelError
from models.ordinal import ORDERS, corn_log_probs, cumulative_log_probs, increasing

SMALL = dict(width=8, stages=1)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def corn_loss(logits, labels, classes):
    """(sum of the losses of all binary tasks, their number), as the paper's reference code
    (Raschka-research-group/coral-pytorch, corn_loss) adds them up."""
    total = number = 0
    for task in range(classes - 1):
        rows = labels > task - 1
        above = labels[rows] > task
        raw = logits[rows, task]
        total -= np.sum(np.log(sigmoid(raw)) * above + np.log(1 - sigmoid(raw)) * ~above)
        number += rows.sum()
    return total, number


@pytest.mark.parametrize('classes', [2, 5])
def test_corn_is_the_sum_of_its_conditional_losses(classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (40, classes - 1)), rng.integers(0, classes, 40)
    found = np.asarray(corn_log_probs(jnp.array(logits, jnp.float32)))
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
    total, number = corn_loss(logits, labels, classes)
    np.testing.assert_allclose(-found[np.arange(40), labels].sum(), total, rtol=1e-5)
    assert number >= 40  # by which the paper divides
    # P(y > k) = the product of the conditional probabilities.
    above = np.cumprod(sigmoid(logits), 1)
    np.testing.assert_allclose(1 - np.cumsum(np.exp(found), 1)[:, :-1], above, atol=1e-6)


def test_cumulative_link_is_a_difference_of_sigmoids():
    rng = np.random.default_rng(1)
    scores, thresholds = rng.normal(0, 3, 30), np.array([-2.0, 0.5, 0.7, 3.0])
    below = sigmoid(thresholds - scores[:, None])
    wanted = np.diff(np.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1))), axis=1)
    found = np.exp(np.asarray(cumulative_log_probs(jnp.array(scores), jnp.array(thresholds))))
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize('order', ORDERS)
def test_logits_and_gradients_are_finite_far_away(order):
    def loss(x):
        found = corn_log_probs(jnp.stack([x, -x, x], 1)) if order == 'corn' else (
            cumulative_log_probs(x, jnp.array([-1.0, -0.9999, 60.0])))
        return -found.sum(), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(
        jnp.array([-300.0, -1.0, 0.0, 90.0, 1e4]))
    assert np.isfinite(found).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize('head', ['linear', 'mlp', 'shallow'])
@pytest.mark.parametrize('order', ORDERS)
def test_every_kind_of_head_can_have_an_order(head, order):
    model = models.create_model('small_cnn', {'age': 4, 'mask': 3}, head=head,
                                head_order={'age': order}, rngs=nnx.Rngs(0), **SMALL)
    found = models.eval_view(model)(jnp.ones((2, 16, 16, 3)))
    np.testing.assert_allclose(np.exp(found['age']).sum(1), 1, rtol=1e-5)
    assert found['age'].shape == (2, 4) and found['mask'].shape == (2, 3)
    lone = models.create_model('small_cnn', 4, head=head, head_order=order, rngs=nnx.Rngs(0),
                               **SMALL)
    assert models.eval_view(lone)(jnp.ones((2, 16, 16, 3))).shape == (2, 4)


def test_a_new_cumulative_link_finds_all_classes_equally_likely():
    model = models.create_model('small_cnn', 5, head_order='cumulative_link', head_init='zeros',
                                rngs=nnx.Rngs(0), **SMALL)
    found = np.exp(models.eval_view(model)(jnp.ones((1, 16, 16, 3))))
    np.testing.assert_allclose(found, 0.2, atol=1e-3)
    assert np.all(np.diff(increasing(jnp.array([3.0, -50.0, 0.0, 40.0]))) > 0)


@pytest.mark.parametrize(('given', 'classes', 'words'), [
    ('corns', 3, "head_order 'corns' is not known: did you mean 'corn'"),
    ({'ages': 'corn'}, {'age': 3, 'mask': 2}, "the head 'ages' is not known: did you mean 'age'"),
    ('corn', 1, 'needs two classes')])
def test_a_wrong_order_is_refused(given, classes, words):
    with pytest.raises(ModelError, match=words):
        models.create_model('small_cnn', classes, head_order=given, rngs=nnx.Rngs(0), **SMALL)
