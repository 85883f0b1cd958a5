"""The loss of a tree of classes is the weighted sum of the cross-entropies of its levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from configs.common import get_config
from train_lib.losses.losses import LossSpec, Mixed, head_loss, split_loss
from train_lib.losses.tree_loss import node_log_probs
from train_lib.runtime.errors import ConfigError
from train_lib.training.class_structure import with_levels

NAMES = ('Greek/a', 'Korean/a', 'Greek/b', 'Korean/b')
NODES = (0, 1, 0, 1)
LEVELS = ((0.5, NODES), (1.0, ()))
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (6, 4)).astype(np.float32)


def wanted(labels, weights=(0.5, 1.0)):
    """[N] by hand, in float64."""
    log_probs = log_softmax(LOGITS.astype(np.float64), 1)
    of_nodes = np.log(np.exp(log_probs) @ np.eye(2)[list(NODES)])
    rows = np.arange(len(labels))
    return -(weights[0] * of_nodes[rows, np.array(NODES)[labels]]
             + weights[1] * log_probs[rows, labels])


def test_the_loss_of_a_tree():
    labels = np.array([0, 1, 2, 3, 3, 0])
    spec = LossSpec(levels=LEVELS)
    np.testing.assert_allclose(head_loss(spec, LOGITS, jnp.array(labels)), wanted(labels).mean(),
                               rtol=1e-5)
    np.testing.assert_allclose(split_loss(spec, LOGITS, labels), wanted(labels).mean(), rtol=1e-5)
    # Unlabelled rows, weights of examples and mixed labels, as for any loss.
    some = np.where(np.arange(6) == 2, -1, labels)
    weights = np.arange(1.0, 7.0)
    known = some >= 0
    np.testing.assert_allclose(
        head_loss(spec, LOGITS, jnp.array(some), jnp.array(weights, jnp.float32)),
        np.sum((weights * wanted(labels))[known]) / weights[known].sum(), rtol=1e-5)
    other, lam = (labels + 1) % 4, np.linspace(0, 1, 6)
    mixed = Mixed(jnp.array(labels), jnp.array(other), jnp.array(lam))
    np.testing.assert_allclose(
        head_loss(spec, LOGITS, mixed),
        np.mean(lam * wanted(labels) + (1 - lam) * wanted(other)), rtol=1e-5)
    # Class weights are those of the leaves; without weight a level costs nothing.
    of_class = (1.0, 3.0, 2.0, 0.5)
    np.testing.assert_allclose(
        head_loss(LossSpec(levels=LEVELS, class_weights=of_class), LOGITS, jnp.array(labels)),
        np.average(wanted(labels), weights=np.array(of_class)[labels]), rtol=1e-5)
    np.testing.assert_allclose(
        head_loss(LossSpec(levels=((0.0, NODES), (1.0, ()))), LOGITS, jnp.array(labels)),
        head_loss(LossSpec(), LOGITS, jnp.array(labels)), rtol=1e-6)


def test_nodes_without_probability_have_finite_gradients():
    logits = jnp.array([[0.0, 300.0, -5.0, 299.0]])
    found = node_log_probs(logits, NODES)
    np.testing.assert_allclose(found[0, 0], 0.0067 - 300.3133, atol=1e-3)
    gradient = jax.grad(lambda x: -node_log_probs(x, NODES)[0, 0])(logits)
    assert np.isfinite(gradient).all()


def config_of(levels, **loss):
    config = get_config()
    with config.ignore_type():
        config.loss.update(levels=levels, **loss)
    return config


def test_the_levels_of_the_config():
    losses, classes = {'class': LossSpec(), 'tool': LossSpec()}, {'class': NAMES,
                                                                  'tool': ('x', 'y')}
    found = with_levels(losses, config_of({'class': (0.5, 1)}), classes)
    assert found['class'].levels == LEVELS and found['tool'] == LossSpec()
    assert with_levels(losses, config_of(()), classes) == losses


@pytest.mark.parametrize(('levels', 'words'), [
    ((1.0,), r"have 2 levels between \"/\": give 2 weights"), ((1, 1, 1), 'give 2 weights'),
    (0.5, 'give 2 weights'), ((-1, 1), 'numbers of 0 or more'), (('a', 1), 'numbers of 0'),
    ((0, 0), 'leaves nothing of the loss'), ({'clas': (1, 1)}, "did you mean 'class'")])
def test_wrong_levels_are_refused(levels, words):
    with pytest.raises(ConfigError, match=words):
        with_levels({'class': LossSpec()}, config_of(levels), {'class': NAMES})
    with pytest.raises(ConfigError, match='have 1 level between "/": leave it out'):
        with_levels({'class': LossSpec()}, config_of((1, 1)), {'class': ('a', 'b')})
    with pytest.raises(ConfigError, match='cross_entropy and focal'):
        with_levels({'class': LossSpec(name='ldam')}, config_of((1, 1)), {'class': NAMES})


