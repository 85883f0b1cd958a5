"""DenseNets: sizes, options, older keys, errors. Parity with timm is in test_parity.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view
from models.densenet import DenseBlock, Transition
from models.pretrained import load_timm, to_timm

TINY = dict(growth_rate=4, block_config=(2, 1), bn_size=2)
infer = jax.jit(lambda model, x: eval_view(model)(x))
train = jax.jit(lambda layer, x: layer(x))


def tiny(num_classes=5, seed=0, **kwargs):
    return create_model('densenet121', num_classes, rngs=nnx.Rngs(seed), **{**TINY, **kwargs})


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@jax.jit
def gradients(model, x, key):
    """(gradients of a weighted sum of the outputs, batch statistics after the call)"""
    graph, params, batch_stats = nnx.split(model, nnx.Param, ...)

    def loss(params, batch_stats):
        model = nnx.merge(graph, params, batch_stats, copy=True)
        y = model(x, rngs=nnx.Rngs(dropout=key))
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), \
            nnx.state(model, nnx.BatchStat)

    return jax.grad(loss, has_aux=True)(params, batch_stats)


@pytest.mark.parametrize('name, parameters, features', [
    ('densenet169', 14149480, 1664),
    ('densenet201', 20013928, 1920),
])
def test_number_of_parameters_and_features(name, parameters, features):
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters
    assert model.num_features == features


def test_a_block_keeps_its_input_and_a_transition_averages_2x2_patches():
    settings = dict(dtype=None, rngs=nnx.Rngs(0))
    x = images(2, 5, 7, 6)
    block = DenseBlock(6, depth=2, growth=4, bn_size=2, drop=0.0, remat=False, **settings)
    y = train(block, x)
    assert y.shape == (2, 5, 7, 14)
    assert np.array_equal(y[..., :6], x)

    layer = Transition(6, 3, **settings)
    maps = train(layer.conv, jax.nn.relu(train(layer.norm, x)))
    halved = train(layer, x)
    assert halved.shape == (2, 2, 3, 3)
    assert np.allclose(halved[:, 1, 2], maps[:, 2:4, 4:6].mean((1, 2)), atol=1e-6)


def test_the_last_norm_is_followed_by_a_relu():
    model, x = tiny(0), images(2, 32, 32, 3)
    maps = jax.jit(lambda m, x: eval_view(m).forward_features(x))(model, x)
    assert maps.shape == (2, 4, 4, 12)
    assert maps.min() == 0
    assert np.allclose(infer(model, x), maps.mean((1, 2)), atol=1e-6)


def test_remat_changes_neither_gradients_nor_statistics_nor_dropout():
    x, key = images(4, 16, 16, 3), jax.random.key(1)
    settings = dict(block_config=(2,), proj_drop_rate=0.3)
    plain, again = (gradients(tiny(0, remat=remat, **settings), x, key) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5 + 1e-4 * np.abs(b).max())
    other = gradients(tiny(0, remat=True, **settings), x, jax.random.key(2))
    stem = other[0]['features']['conv0']['kernel'], plain[0]['features']['conv0']['kernel']
    assert not np.allclose(*stem, rtol=0.01)


def test_half_precision_keeps_parameters_statistics_and_logits_in_float32():
    x = images(4, 16, 16, 1)
    full, half = (tiny(in_channels=1, dtype=dtype) for dtype in (None, 'bfloat16'))
    maps = jax.eval_shape(lambda m, x: m.forward_features(x), half, x)
    assert maps.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(half))} == {'float32'}
    a, b = infer(full, x), infer(half, x)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_weights_with_older_keys_are_loaded():
    model, other = tiny(), tiny(seed=1)
    weights = to_timm(other)
    older = {re.sub(r'(denselayer\d+\.[a-z]+)([12])', r'\1.\2', key): value
             for key, value in weights.items()}
    assert 'features.denseblock1.denselayer2.conv.1.weight' in older
    assert 'features.transition1.norm.weight' in older
    load_timm(model, older)
    ours = to_timm(model)
    assert all(np.array_equal(ours[key], value) for key, value in weights.items())


def test_the_smallest_image_leaves_one_pixel_for_the_last_block():
    model = tiny(block_config=(1, 1, 1))
    forward = lambda side: jax.eval_shape(
        lambda m: m.forward_features(jnp.zeros((1, side, 40, 3))), model)
    assert forward(13).shape[1] == 1
    with pytest.raises(ModelError, match=r'at least 13 pixels and got \[1, 12, 40, 3\]'):
        forward(12)
    with pytest.raises(ModelError, match='in_channels'):
        model(images(2, 32, 32, 1))


@pytest.mark.parametrize('kwargs, words', [
    (dict(growth_rate=0), 'growth_rate=0'),
    (dict(block_config=(2, 0)), r'block_config=\(2, 0\)'),
    (dict(block_config=()), r'block_config=\(\)'),
    (dict(proj_drop_rate=-0.1), 'proj_drop_rate=-0.1'),
    (dict(drop_path=0.1), "setting 'drop_path' is not known"),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        tiny(**kwargs)
