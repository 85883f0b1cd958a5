"""EfficientNets and MobileNets: tables, options, training, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view, model_settings
from models.efficientnet import Blocks, round_channels

TINY = (
    (Blocks('separable', 1, 3, 1, 1, 16, se=True),),
    (Blocks('fused', 1, 3, 2, 2, 16),),
    (Blocks('inverted', 2, 5, 2, 2.5, 24, se=True, act='relu'),),
    (Blocks('conv', 2, 3, 1, 1, 32),),
)


def tiny(name='efficientnet_b0', num_classes=3, **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(0),
                        **{'stages': TINY, 'stem_size': 16, 'num_features': 40, **kwargs})


def images(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def blocks_of(model):
    return [block for stage in model.blocks for block in stage]


@jax.jit
def step(model, x):
    """(gradients, batch statistics after the step) of a training step."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)

    def loss(params, batch_stats):
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        logits = model(x, rngs=nnx.Rngs(dropout=3))
        value = (jax.nn.log_softmax(logits) * jnp.arange(3)).sum()
        return value, nnx.state(model, nnx.BatchStat)

    return jax.grad(loss, has_aux=True)(params, batch_stats)


@pytest.mark.parametrize('name, count', [
    ('efficientnet_b1', 7_794_184), ('efficientnet_b3', 12_233_232)])
def test_number_of_parameters(name, count):
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


def test_tensorflow_models_differ_in_padding_and_epsilon_only():
    for name in ('b0', 'b1', 'b2', 'b3', 'b4'):
        ours, theirs = (model_settings(f'{prefix}efficientnet_{name}') for prefix in ('', 'tf_'))
        assert theirs == {**ours, 'pad_type': 'same', 'bn_eps': 1e-3}
    model = nnx.eval_shape(lambda: tiny('tf_efficientnetv2_s'))
    for block in blocks_of(model):
        assert block.bn1.epsilon == 1e-3
    assert model.conv_stem.padding == model.blocks[2][0].conv_dw.padding == 'SAME'


def test_channels_are_rounded_to_multiples_of_8_and_never_lose_a_tenth():
    assert [round_channels(n) for n in (1, 18, 19, 44, 92, 184)] == [8, 24, 24, 48, 96, 184]


@pytest.mark.parametrize('name, reduced', [
    ('efficientnet_b0', [4, 4, 6]), ('mobilenetv3_large_100', [8, 16, 16])])
def test_the_squeeze_has_a_quarter_of_the_right_channels(name, reduced):
    # The blocks have 16, 16 and 24 input channels, and 16, 40 and 64 inside.
    model = nnx.eval_shape(lambda: tiny(name))
    gates = [block.se for block in blocks_of(model) if getattr(block, 'se', None)]
    assert [gate.conv_reduce.kernel.shape[-1] for gate in gates] == reduced


@pytest.mark.parametrize('name, kwargs, shape, maps', [
    ('efficientnet_b0', dict(in_channels=1), (2, 33, 64, 1), (2, 5, 8, 40)),
    ('tf_efficientnet_b0', {}, (2, 33, 64, 3), (2, 5, 8, 40)),
    ('mobilenetv3_large_100', dict(depth_multiplier=1.5, channel_multiplier=2), (2, 32, 32, 3),
     (2, 4, 4, 64)),
])
def test_shapes(name, kwargs, shape, maps):
    model = nnx.eval_shape(lambda: tiny(name, num_classes=0, **kwargs))
    x = jnp.zeros(shape)
    assert jax.eval_shape(lambda m, x: m.forward_features(x), model, x).shape == maps
    assert jax.eval_shape(lambda m, x: m(x), model, x).shape == (2, 40)
    deeper = [2, 2, 3, 3] if 'depth_multiplier' in kwargs else [1, 1, 2, 2]
    assert [len(stage) for stage in model.blocks] == deeper


def test_mobilenet_v3_pools_before_its_last_convolution():
    # The activation is not linear, so the order matters.
    model = tiny('mobilenetv3_large_100', 0, stages=TINY[3:])
    model.conv_head.bias[...] = jnp.linspace(-4, 4, 40)
    maps = images(2, 2, 2, 32)
    y = maps.mean((1, 2)) @ model.conv_head.kernel[0, 0] + model.conv_head.bias[...]
    pooled = jax.jit(lambda m, x: m.pool(x))(model, maps)
    assert np.allclose(pooled, y * np.clip(y + 3, 0, 6) / 6, atol=1e-5)


def test_depthwise_kernels_are_initialised_by_their_own_fan_out():
    model = tiny(stages=((Blocks('separable', 1, 5, 1, 1, 8),),), stem_size=320)
    kernel = model.blocks[0][0].conv_dw.kernel[...]
    assert kernel.shape == (5, 5, 1, 320)
    assert np.isclose(kernel.std(), (2 / 25) ** 0.5, rtol=0.05)


def test_drop_path_grows_with_depth_and_acts_only_on_blocks_with_a_shortcut():
    model = tiny(drop_path=0.6)
    blocks = blocks_of(model)
    assert np.allclose([block.drop_path.rate for block in blocks], np.arange(6) / 10)
    assert [block.skip for block in blocks] == [True, False, False, True, False, True]
    x = images(64, 4, 4, 32)
    call = jax.jit(lambda block, x: block(x, nnx.Rngs(dropout=0)))
    y = call(blocks[-1], x)
    dropped = (y == x).all((1, 2, 3))
    assert 0.3 < dropped.mean() < 0.7
    y = call(blocks[-2], x[..., :24])
    assert (y != 0).any((1, 2, 3)).all()
    with pytest.raises(ModelError, match='no random key'):
        jax.eval_shape(lambda m, x: m(x), model, images(2, 32, 32, 3))


def test_every_parameter_has_a_gradient_and_remat_changes_none():
    stages = tuple((dataclasses.replace(row, repeats=1),) for (row,) in TINY)
    x = images(8, 16, 16, 3)
    model, recomputed = (tiny(stages=stages, drop_path=0.1, remat=remat) for remat in (False, True))
    (grads, after), again = step(model, x), step(recomputed, x)
    for path, grad in nnx.to_flat_state(grads):
        assert np.abs(grad[...]).max() > 0, path
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert not any(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(after)))
    for a, b in zip(jax.tree.leaves((grads, after)), jax.tree.leaves(again)):
        assert np.allclose(a, b, atol=1e-5 + 1e-4 * np.abs(a).max())
    assert 'remat' in str(jax.make_jaxpr(step)(recomputed, x))


def test_half_precision_is_close_to_single():
    infer = jax.jit(lambda model, x: eval_view(model)(x))
    x = images(4, 32, 32, 3)
    single = infer(tiny('mobilenetv3_large_100', 0), x)
    model = tiny('mobilenetv3_large_100', 0, dtype='bfloat16')
    half = infer(model, x)
    maps = jax.eval_shape(lambda m, x: m.forward_features(x), model, x)
    assert (maps.dtype, half.dtype) == (jnp.bfloat16, jnp.float32)
    assert 0 < np.abs(half - single).max() < 0.05 * np.abs(single).max()


@pytest.mark.parametrize('kwargs, words', [
    (dict(pad_type='SAME'), "pad_type 'SAME'.*same"),
    (dict(act='relu7'), "'relu7'.*'relu6'"),
    (dict(channel_multiplier=0), 'channel_multiplier=0 '),
    (dict(depth_multiplier=-1), 'depth_multiplier=-1 '),
    (dict(drop_path=1.5), 'drop_path='),
    (dict(stages=((Blocks('invert', 1, 3, 1, 1, 16),),)), "'invert'.*'inverted'"),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        tiny(**kwargs)


def test_wrong_images_are_refused():
    with pytest.raises(ModelError, match='in_channels'):
        jax.eval_shape(lambda m, x: m(x), tiny(), jnp.zeros((2, 32, 32, 1)))
