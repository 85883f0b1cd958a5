"""The small CNN: shapes, batch statistics, errors."""

import jax
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view

infer = jax.jit(lambda model, x: eval_view(model)(x))
train = jax.jit(lambda model, x: model(x))


@jax.jit
def statistics_after(model, x):
    """Batch statistics of the model after one call."""
    model(x)
    return dict(nnx.to_flat_state(nnx.state(model, nnx.BatchStat)))


def small(num_classes=5, **kwargs):
    return create_model('small_cnn', num_classes, rngs=nnx.Rngs(0), **{'width': 8, **kwargs})


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('kwargs, shape, maps', [
    ({}, (2, 32, 32, 3), (2, 2, 2, 64)),
    (dict(stages=3, depth=2, in_channels=1), (2, 32, 48, 1), (2, 4, 6, 32)),
])
def test_shapes(kwargs, shape, maps):
    model = small(**kwargs)
    x = images(*shape)
    assert jax.eval_shape(lambda m, x: m.forward_features(x), model, x).shape == maps
    assert infer(model, x).shape == (2, 5)
    assert jax.eval_shape(lambda m, x: m(x), model, x).shape == (2, 5)


def test_running_statistics_move_by_a_tenth_and_in_training_only():
    model = small(stages=1)
    x = 3 + 2 * images(16, 8, 8, 3)
    after, still = statistics_after(model, x), statistics_after(eval_view(model), x)
    # The stem turns each 2x2 patch into channels: by rows, then by columns.
    cells = np.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
    maps = model.conv1(jax.numpy.asarray(cells))
    assert np.allclose(after['bn1', 'mean'], 0.1 * maps.mean((0, 1, 2)), atol=1e-5)
    assert np.allclose(after['bn1', 'var'], 0.9 + 0.1 * maps.var((0, 1, 2), ddof=1), atol=1e-5)
    for path, value in still.items():
        assert (np.asarray(value) == (path[-1] == 'var')).all(), path


def test_logits_depend_on_the_rest_of_the_batch_in_training_only():
    model = small(stages=2)
    x = images(8, 32, 32, 3)
    assert np.allclose(infer(model, x)[:2], infer(model, x[:2]), atol=1e-5)
    assert np.abs(train(model, x)[:2] - train(model, x[:2])).max() > 1e-3


def test_variance_is_accurate_for_a_large_mean():
    # E[x^2] - E[x]^2 in float32 would be 0 or less here.
    x = 1e4 + images(64, 8, 8, 8)
    assert np.allclose(np.std(train(small(stages=1).bn1, x), axis=(0, 1, 2)), 1, atol=0.05)


@pytest.mark.parametrize('kwargs, words', [
    (dict(width=0), 'width=0'), (dict(stages=0), 'stages=0'), (dict(depth=0), 'depth=0')])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        small(**kwargs)


def test_wrong_images_are_refused():
    with pytest.raises(ModelError, match=r'in_channels'):
        small()(images(2, 32, 32, 1))
    with pytest.raises(ModelError, match=r'at least 16 pixels'):
        small()(images(2, 32, 8, 3))
