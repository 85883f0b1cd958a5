"""ResNets: sizes, shortcuts, pooling, options, errors. Parity with timm is in test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view
from models.resnet import BasicBlock, Bottleneck, max_pool

TINY = dict(layers=(1, 2), channels=(4, 8))
infer = jax.jit(lambda model, x: eval_view(model)(x))
train = jax.jit(lambda layer, x: layer(x))


def tiny(num_classes=5, name='resnet18', **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(0), **{**TINY, **kwargs})


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


@pytest.mark.parametrize('name, classes, parameters, features', [
    ('resnet18', 1000, 11689512, 512),
    ('resnet34', 1000, 21797672, 512),
    ('resnet50', 1000, 25557032, 2048),
    ('resnet101', 1000, 44549160, 2048),
    ('wide_resnet50_2', 1000, 68883240, 2048),
    # 0.27 and 0.46 million in table 6 of the paper
    ('resnet20_cifar', 10, 269722, 64),
    ('resnet32_cifar', 10, 464154, 64),
])
def test_number_of_parameters_and_grid(name, classes, parameters, features):
    model = nnx.eval_shape(lambda: create_model(name, classes, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters
    side, last = (32, 8) if name.endswith('cifar') else (224, 7)
    x = jax.ShapeDtypeStruct((2, side, side, 3), np.float32)
    maps = jax.eval_shape(lambda m, x: eval_view(m).forward_features(x), model, x)
    assert maps.shape == (2, last, last, features)


@pytest.mark.parametrize('height, width', [(8, 7), (1, 2)])
def test_max_pool_equals_the_window_reduction_and_so_does_its_gradient(height, width):
    def plain(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    x = images(2, height, width, 3) - 3  # below zero, where padding with zeros would win
    weights = images(*plain(x).shape, seed=1)
    assert np.array_equal(max_pool(x), plain(x))
    ours, theirs = (jax.jit(lambda x, w, f=f: jax.vjp(f, x)[1](w)[0])(x, weights)
                    for f in (max_pool, plain))
    assert np.allclose(ours, theirs, atol=1e-6)


def block(kind, a, planes, **kwargs):
    return kind(a, planes, drop_path=0.0, dtype=None, rngs=nnx.Rngs(0), **{
        **dict(stride=1, base_width=64, shortcut='B', zero_init_last=True), **kwargs})


@pytest.mark.parametrize('kind, a', [(BasicBlock, 4), (Bottleneck, 16)])
def test_a_block_starts_as_its_shortcut(kind, a):
    x = images(2, 6, 6, a)
    assert np.array_equal(train(block(kind, a, 4), x), jax.nn.relu(x))
    other = block(kind, a, 4, zero_init_last=False)
    assert not np.allclose(train(other, x), jax.nn.relu(x), atol=0.1)


def test_shortcut_a_takes_every_other_pixel_and_adds_channels_of_zeros():
    x = images(2, 5, 6, 4)
    layer = block(BasicBlock, 4, 8, stride=2, shortcut='A')
    y = np.asarray(train(layer, x))
    assert y.shape == (2, 3, 3, 8)
    assert np.array_equal(y[..., 2:6], jax.nn.relu(x)[:, ::2, ::2])
    assert not y[..., [0, 1, 6, 7]].any()
    assert layer.downsample is None


def test_remat_changes_neither_gradients_nor_statistics_nor_dropout():
    settings = dict(layers=(2,), channels=(4,), block='bottleneck', drop_path=0.4,
                    zero_init_last=False)
    x, key = images(4, 16, 16, 3), jax.random.key(1)
    plain, again = (gradients(tiny(0, remat=remat, **settings), x, key) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5 + 1e-4 * np.abs(b).max())
    other = gradients(tiny(0, remat=True, **settings), x, jax.random.key(2))
    assert not np.allclose(other[0]['conv1']['kernel'], plain[0]['conv1']['kernel'], rtol=0.01)


def test_drop_path_rises_over_the_blocks_of_all_stages():
    model = tiny(drop_path=0.3)
    rates = [model.layer1[0].drop_path.rate, *(b.drop_path.rate for b in model.layer2)]
    assert np.allclose(rates, [0, 0.15, 0.3])


def test_half_precision_keeps_parameters_statistics_and_logits_in_float32():
    x = images(4, 32, 32, 1)
    full, half = (tiny(in_channels=1, dtype=dtype) for dtype in (None, 'bfloat16'))
    maps = jax.eval_shape(lambda m, x: m.forward_features(x), half, x)
    assert maps.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(half))} == {'float32'}
    a, b = infer(full, x), infer(half, x)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_without_classes_a_model_returns_pooled_maps_and_the_3x3_stem_keeps_the_resolution():
    model, x = tiny(0, stem='3x3'), images(2, 9, 8, 3)
    maps = jax.jit(lambda m, x: eval_view(m).forward_features(x))(model, x)
    assert maps.shape == (2, 5, 4, 8)
    assert np.allclose(infer(model, x), maps.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize('kwargs, words', [
    (dict(block='bottlenek'), "did you mean 'bottleneck'"),
    (dict(stem='7'), "stem '7' is not known"),
    (dict(shortcut='C'), "shortcut 'C' is not known"),
    (dict(layers=(1, 2, 1)), r'layers=\(1, 2, 1\) and channels=\(4, 8\)'),
    (dict(layers=(1, 0)), r'layers=\(1, 0\)'),
    (dict(base_width=128), 'base_width=128'),
    (dict(drop_path=1.0), 'drop_path=1.0'),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        tiny(**kwargs)


def test_wrong_images_are_refused():
    with pytest.raises(ModelError, match=r'\[B, H, W, 3\] and got \[2, 32, 32, 1\]'):
        tiny()(images(2, 32, 32, 1))
