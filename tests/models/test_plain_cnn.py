"""The plain CNNs: pooling, normalisation, dropout, sizes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view
from models.plain_cnn import max_pool

SMALL = dict(img_size=(8, 13), widths=(4, 6), dense=10)


def small(name, num_classes=3, **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(0), **SMALL | kwargs)


def abstract(*args, **kwargs):
    """As `small`, but without arrays."""
    return nnx.eval_shape(lambda: small(*args, **kwargs))


def logits_of(model, *shape, **kwargs):
    """Shape and dtype of the model's output for images of that shape."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda model, x: model(x, **kwargs), model, x)


def test_max_pool_takes_the_largest_of_four_pixels_and_ignores_odd_edges():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8, 3))
    want = np.stack([np.asarray(x)[:, i:4:2, j::2] for i in (0, 1) for j in (0, 1)]).max(0)
    assert np.array_equal(max_pool(x), want)


@pytest.mark.parametrize('name, parameters, norms', [
    ('cnn_basic', 896 + 18_496 + 73_856 + 8_192 * 256 + 256, 0),
    ('cnn_final', 864 + 18_432 + 73_728 + 294_912 + 4_096 * 256 + 2 * (480 + 256), 5)])
def test_sizes_of_the_named_models(name, parameters, norms):
    model = nnx.eval_shape(lambda: create_model(name, 0, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters
    assert len(jax.tree.leaves(nnx.state(model, nnx.BatchStat))) == 2 * norms


def test_rates_of_dropout_in_blocks_dense_layer_and_head():
    model = abstract('cnn_final', drop_rate=0.2)
    assert [block.dropout.rate for block in model.blocks] == [0.3, 0.3]
    assert np.isclose(model.head_drop.rate, 1 - 0.5 * 0.8)
    assert np.isclose(abstract('cnn_final').head_drop.rate, 0.5)


def test_a_step_depends_only_on_the_key_and_reaches_every_parameter():
    graphdef, params, batch_stats = nnx.split(small('cnn_final', widths=(4,)), nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (8, 8, 13, 3))

    def loss(params, key):
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        logits = model(x, rngs=nnx.Rngs(dropout=key))
        return (jax.nn.log_softmax(logits) * jnp.arange(3)).sum()

    step = jax.jit(jax.value_and_grad(loss))
    (one, grads), (same, _), (other, _) = (step(params, jax.random.key(k)) for k in (1, 1, 2))
    assert one == same and abs(one - other) > 1e-3
    for path, grad in nnx.to_flat_state(grads):
        assert np.abs(grad[...]).max() > 0, path


def test_training_needs_a_key_for_dropout_and_inference_does_not():
    model = abstract('cnn_final')
    assert logits_of(eval_view(model), 2, 8, 13, 3).shape == (2, 3)
    with pytest.raises(ModelError, match='no random key'):
        logits_of(model, 2, 8, 13, 3)


@pytest.mark.parametrize('kwargs, shape, maps, dtype', [
    ({}, (2, 8, 13, 3), (2, 2, 3, 6), 'float32'),
    (dict(kernel=5, depth=2, in_channels=1, dtype='bfloat16'), (2, 8, 13, 1), (2, 2, 3, 6),
     'bfloat16'),
])
def test_shapes(kwargs, shape, maps, dtype):
    model = abstract('cnn_basic', {'a': 3, 'b': 2}, **kwargs)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    got = jax.eval_shape(lambda model, x: model.forward_features(x), model, x)
    assert got.shape == maps and got.dtype == dtype
    assert model.blocks[0].convs[-1].kernel.shape[0] == kwargs.get('kernel', 3)
    out = logits_of(model, *shape)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in out.items()} == {
        'a': ((2, 3), jnp.float32), 'b': ((2, 2), jnp.float32)}


def test_a_branch_reads_the_feature_maps_and_not_the_dense_layer():
    model = abstract('cnn_basic', head='shallow')
    assert logits_of(model, 2, 8, 13, 3).shape == (2, 3)


def test_remat_wraps_every_block():
    x = jax.ShapeDtypeStruct((1, 8, 13, 3), jnp.float32)
    for remat, count in ((False, 0), (True, 2)):
        graphdef, state = nnx.split(abstract('cnn_basic', remat=remat))
        jaxpr = jax.make_jaxpr(lambda s, x, g=graphdef: nnx.merge(g, s)(x))(state, x)
        found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ('checkpoint', 'remat2')]
        assert len(found) == count


@pytest.mark.parametrize('kwargs, words', [
    (dict(widths=()), r'widths=\(\)'), (dict(widths=(4, 0)), r'widths=\(4, 0\)'),
    (dict(kernel=4), 'kernel=4'), (dict(depth=0), 'depth=0'), (dict(dense=0), 'dense=0'),
    (dict(img_size=3), 'img_size=3.*at least 4'),
    (dict(block_dropout=1.0), r'block_dropout=1\.0'), (dict(dense_dropout=-1), 'dense_dropout=-1'),
    (dict(act='rellu'), "'relu'")])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        abstract('cnn_basic', **kwargs)


def test_wrong_images_are_refused():
    with pytest.raises(ModelError, match=r'\[B, 8, 13, 3\]'):
        logits_of(abstract('cnn_basic'), 2, 16, 13, 3)
