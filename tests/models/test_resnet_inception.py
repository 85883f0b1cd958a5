"""The ResNet of inception modules: size, windows, initial values, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model
from models.resnet_inception import InceptionBlock


def abstract(**kwargs):
    return nnx.eval_shape(lambda: create_model('resnet_inception', 20, rngs=nnx.Rngs(0), **kwargs))


def features(model, *shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda model, x: model.forward_features(x), model, x)


def block(long=3, **kwargs):
    layer = InceptionBlock(8, long=long, dtype=jnp.float32, rngs=nnx.Rngs(0),
                           **dict(act='gelu', drop_path=0.0) | kwargs)
    layer.eval()
    return layer


def test_the_model_is_small():
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract(), nnx.Param)))
    assert 3e6 < count < 5e6


@pytest.mark.parametrize('kwargs, shape, maps, dtype', [
    ({}, (2, 128, 224, 3), (2, 4, 7, 512), 'float32'),
    (dict(width=16, depth=(1, 2, 1, 1), in_channels=1, dtype='bfloat16'), (2, 33, 32, 1),
     (2, 2, 1, 128), 'bfloat16'),
])
def test_shapes(kwargs, shape, maps, dtype):
    got = features(abstract(**kwargs), *shape)
    assert got.shape == maps and got.dtype == dtype


def test_a_block_starts_as_its_activation():
    x = jnp.arange(-100.0, 100).reshape(1, 5, 5, 8)
    out = jax.jit(lambda layer, x: layer(x))(block(act='relu'), x)
    assert np.allclose(out, np.maximum(x, 0), atol=1e-6)


@pytest.mark.parametrize('long', [3, 5])
def test_a_block_sees_all_its_windows_and_uses_all_parameters(long):
    layer = block(long)
    layer.project_bn.scale[...] = jnp.ones(8)
    graphdef, params, batch_stats = nnx.split(layer, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (1, 9, 9, 8))
    of_params, of_x = jax.jit(jax.grad(
        lambda params, x: nnx.merge(graphdef, params, batch_stats)(x)[0, 4, 4].sum(),
        (0, 1)))(params, x)
    want = np.zeros((9, 9), bool)
    want[4 - long // 2:5 + long // 2, 4 - long // 2:5 + long // 2] = True  # the row and the column
    want[2:7:2, 2:7:2] = True  # the dilated window
    assert np.array_equal(np.abs(of_x[0]).sum(-1) > 0, want)
    for path, grad in nnx.to_flat_state(of_params):
        assert np.abs(grad[...]).max() > 0, path


def test_remat_wraps_every_block_and_nothing_else():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for remat, count in ((False, 0), (True, 5)):
        graphdef, state = nnx.split(abstract(width=8, depth=(1, 1, 2, 1), remat=remat))
        jaxpr = jax.make_jaxpr(lambda s, x, g=graphdef: nnx.merge(g, s)(x))(state, x)
        found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ('checkpoint', 'remat2')]
        assert len(found) == count


def test_drop_path_grows_with_depth_and_needs_a_key():
    model = abstract(drop_path=0.3, depth=1, width=8)
    assert np.allclose([stage[0].drop_path.rate for stage in model.stages], [0, 0.1, 0.2, 0.3])
    with pytest.raises(ModelError, match='no random key'):
        features(model, 2, 32, 32, 3)


@pytest.mark.parametrize('kwargs, words', [
    (dict(width=10), 'width=10'), (dict(depth=(1, 2)), r'depth=\(1, 2\).*4 stages'),
    (dict(act='rellu'), "'relu'")])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        abstract(**kwargs)


def test_wrong_images_are_refused():
    with pytest.raises(ModelError, match='at least 32 pixels'):
        features(abstract(), 2, 31, 64, 3)
