"""Inception-ResNet-v2: parts, shapes, errors. Parity with timm is in test_parity.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, model_settings
from models.inception_resnet_v2 import AvgPool, Mixed5b, Residual, max_pool


@functools.cache
def abstract(num_classes=5, **kwargs):
    """The model without its arrays, which would take 250 MB."""
    return nnx.eval_shape(lambda: create_model(
        'inception_resnet_v2', num_classes, rngs=nnx.Rngs(0), **dict(depth=1) | kwargs))


def features(model, *shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda model, x: model.forward_features(x), model, x)


def test_the_number_of_parameters_is_that_of_timm():
    def count(module):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))

    model = abstract()  # one block of each kind, and a head for 5 classes
    more = [depth - 1 for depth in model_settings('inception_resnet_v2')['depth']]
    blocks = [stage[0] for stage in (model.repeat, model.repeat_1, model.repeat_2)]
    total = count(model) + sum(n * count(block) for n, block in zip(more, blocks)) + 995 * 1537
    assert total == 55_843_464


@pytest.mark.parametrize('kwargs, shape, maps, dtype', [
    ({}, (2, 299, 299, 3), (2, 8, 8, 1536), 'float32'),
    (dict(in_channels=1, dtype='bfloat16'), (2, 75, 139, 1), (2, 1, 3, 1536), 'bfloat16'),
])
def test_shapes(kwargs, shape, maps, dtype):
    got = features(abstract(**kwargs), *shape)
    assert got.shape == maps and got.dtype == dtype


def test_average_pooling_does_not_count_padding():
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 2)).astype(np.float32)
    want = [[x[0, max(i - 1, 0):i + 2, max(j - 1, 0):j + 2].mean((0, 1)) for j in range(5)]
            for i in range(4)]
    assert np.allclose(AvgPool()(jnp.asarray(x))[0], want, atol=1e-6)
    assert np.allclose(AvgPool(2)(jnp.asarray(x))[0], np.asarray(want)[::2, ::2], atol=1e-6)


def test_max_pool_uses_only_windows_inside_the_image():
    x = jax.random.normal(jax.random.key(0), (2, 8, 9, 3))
    assert np.array_equal(max_pool(x), nnx.max_pool(x, (3, 3), (2, 2)))


@pytest.mark.parametrize('relu', [True, False])
def test_the_scaled_branches_are_added_to_the_input(relu):
    block = Residual(2, (((1, 1),), ((2, 1), (1, (1, 3)))), scale=0.25, relu=relu, drop_path=0.0,
                     dtype=jnp.float32, rngs=nnx.Rngs(0))
    block.conv2d.kernel[...] = jnp.zeros((1, 1, 2, 2))
    block.conv2d.bias[...] = jnp.arange(2.0)
    x = jnp.arange(-4.0, 14).reshape(1, 3, 3, 2)
    want = x + 0.25 * np.arange(2)
    got = jax.jit(lambda block, x: block(x))(block, x)
    assert np.allclose(got, np.maximum(want, 0) if relu else want, atol=1e-6)


def test_drop_path_grows_to_the_last_block():
    model = abstract(drop_path=0.3)
    blocks = (*model.repeat, *model.repeat_1, *model.repeat_2, model.block8)
    assert np.allclose([block.drop_path.rate for block in blocks], [0, 0.1, 0.2, 0.3])


def test_remat_wraps_every_block_and_nothing_else():
    x = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    for remat, count in ((False, 0), (True, 7)):
        graphdef, state = nnx.split(abstract(remat=remat))
        jaxpr = jax.make_jaxpr(lambda s, x, g=graphdef: nnx.merge(g, s)(x))(state, x)
        found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ('checkpoint', 'remat2')]
        assert len(found) == count


def test_mixed_5b_keeps_the_size_and_returns_320_channels():
    block = nnx.eval_shape(lambda: Mixed5b(dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((1, 5, 6, 192), jnp.float32)
    assert jax.eval_shape(lambda block, x: block(x), block, x).shape == (1, 5, 6, 320)


@pytest.mark.parametrize('depth', [0, (1, 2), (1, 2, 0), (1, 2, 1.5)])
def test_a_wrong_depth_is_named(depth):
    with pytest.raises(ModelError, match=r'depth=.*3 stages'):
        abstract(depth=depth)


def test_wrong_images_are_refused():
    with pytest.raises(ModelError, match='in_channels'):
        features(abstract(), 2, 99, 99, 1)
    with pytest.raises(ModelError, match=r'at least 75 pixels'):
        features(abstract(), 2, 74, 99, 3)
