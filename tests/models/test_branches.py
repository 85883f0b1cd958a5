"""Heads on feature maps: branches of blocks, and separate pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view

X = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
BACKBONES = {
    'small_cnn': dict(width=8, stages=3),
    'vit_tiny_patch16_224': dict(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4),
}
backbones = pytest.mark.parametrize('name', BACKBONES)
FEATURES = {  # what forward_features may return: maps, or a class token and patches
    name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    for name, shape in (('small_cnn', (4, 4, 4, 32)), ('vit_tiny_patch16_224', (4, 17, 32)))}
infer = jax.jit(lambda model, features: eval_view(model).forward_head(features))
apply = jax.jit(lambda layer, x: layer(x))


def build(name, num_classes, **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(0), **BACKBONES[name], **kwargs)


def with_scale_one(model):
    """Sets every scale to 1, so that no block is hidden by its initial scale of 0."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] == 'scale':
            variable[...] = jnp.ones_like(variable[...])
    return model


def maps_of(name):
    """The maps in FEATURES; for a ViT the tokens after the class token, row by row."""
    x = FEATURES[name]
    return x if x.ndim == 4 else x[:, 1:].reshape(4, 4, 4, 32)


@backbones
@pytest.mark.parametrize('head, blocks', [('shallow', 1), ('deep', 3)])
def test_a_branch_has_its_blocks_and_gives_float32_logits(name, head, blocks):
    model = nnx.eval_shape(lambda: build(name, {'age': 3, 'mask': 2}, head=head, dtype='bfloat16'))
    logits = jax.eval_shape(lambda model: model(X), model)
    assert {key: (y.shape, y.dtype) for key, y in logits.items()} == {
        'age': ((4, 3), jnp.float32), 'mask': ((4, 2), jnp.float32)}
    for branch in model.heads.values():
        assert len(branch.blocks) == blocks
        assert branch.conv.kernel.shape == (1, 1, 32, 8)  # a quarter of the width
        assert branch.out.kernel.shape[0] == 8
    wide = nnx.eval_shape(lambda: build(name, 3, head=head, head_hidden=12))
    assert wide.head.blocks[0].conv2.kernel.shape == (3, 3, 12, 12)


def test_maps_of_a_vit_are_its_patch_tokens_row_by_row():
    model = nnx.eval_shape(lambda: create_model(
        'vit_tiny_patch16_224', 0, rngs=nnx.Rngs(0), img_size=(16, 24), patch_size=8, embed_dim=8,
        num_heads=2, depth=1))
    tokens = jnp.arange(7.0)[None, :, None]
    assert np.array_equal(model.maps(tokens)[0, :, :, 0], [[1, 2, 3], [4, 5, 6]])


@backbones
def test_heads_share_only_the_backbone(name):
    model = with_scale_one(build(name, {'age': 3, 'mask': 2}, head='shallow'))
    before = infer(model, FEATURES[name])
    kernel = model.heads['age'].blocks[0].conv1.kernel
    kernel[...] = 2 * kernel[...] + 0.1
    after = infer(model, FEATURES[name])
    assert np.array_equal(before['mask'], after['mask'])
    assert np.abs(before['age'] - after['age']).max() > 1e-4
    alone = apply(eval_view(model.heads['mask']), maps_of(name))
    assert np.allclose(alone, after['mask'], atol=1e-5)


def test_a_new_branch_ignores_positions_until_its_blocks_have_a_scale():
    model = build('small_cnn', 3, head='deep')
    maps = FEATURES['small_cnn']
    turned = maps[:, ::-1].transpose(0, 2, 1, 3)
    assert np.allclose(infer(model, maps), infer(model, turned), atol=1e-6)
    with_scale_one(model)
    assert np.abs(infer(model, maps) - infer(model, turned)).max() > 1e-4


def test_a_branch_trains_its_parameters_and_batch_statistics():
    model = with_scale_one(build('small_cnn', {'age': 3}, head='shallow'))
    graphdef, params, batch_stats = nnx.split(model.heads['age'], nnx.Param, ...)
    maps = FEATURES['small_cnn']

    def loss(params, batch_stats):
        branch = nnx.merge(graphdef, params, batch_stats, copy=True)
        logits = branch(maps)
        return (jax.nn.log_softmax(logits) * jnp.arange(3)).sum(), nnx.state(branch, nnx.BatchStat)

    gradients, after = jax.jit(jax.grad(loss, has_aux=True))(params, batch_stats)
    for path, gradient in nnx.to_flat_state(gradients):
        assert np.abs(gradient[...]).max() > 0, path
    assert all(not np.array_equal(a, b)
               for a, b in zip(jax.tree.leaves(batch_stats), jax.tree.leaves(after), strict=True))


@pytest.mark.parametrize('name, head', [('small_cnn', 'mlp'), ('vit_tiny_patch16_224', 'linear')])
def test_separate_pooling_starts_as_the_mean_and_then_attends(name, head):
    model = build(name, {'age': 3, 'mask': 2}, head=head, head_pool='separate')
    age, flat = model.heads['age'], maps_of(name).reshape(4, 16, 32)
    before = infer(model, FEATURES[name])
    assert np.allclose(before['age'], apply(age.out, flat.mean(1)), atol=1e-5)
    query = np.random.default_rng(1).standard_normal(flat.shape[-1]).astype(np.float32)
    age.query[...] = jnp.asarray(query)
    scores = flat @ query / np.sqrt(len(query))
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    after = infer(model, FEATURES[name])
    assert np.allclose(after['age'], apply(age.out, np.einsum('bn,bnd->bd', weights, flat)),
                       atol=1e-5)
    assert np.array_equal(after['mask'], before['mask'])
    assert np.abs(after['age'] - before['age']).max() > 1e-5


def test_shared_pooling_is_that_of_the_backbone_and_has_no_parameters():
    model = build('vit_tiny_patch16_224', {'age': 3}, head_pool='shared')
    assert not any('query' in path for path, _ in nnx.to_flat_state(nnx.state(model)))
    tokens, head = FEATURES['vit_tiny_patch16_224'], model.heads['age']
    assert np.allclose(infer(model, tokens)['age'], apply(head, tokens[:, 0]), atol=1e-6)
    # For a CNN that is the mean, so both kinds of pooling start equal.
    cnn, separate = (build('small_cnn', 3, head_pool=pool) for pool in ('shared', 'separate'))
    separate.head.out.kernel[...] = cnn.head.kernel[...]
    separate.head.out.bias[...] = cnn.head.bias[...]
    maps = FEATURES['small_cnn']
    assert np.allclose(infer(cnn, maps), infer(separate, maps), atol=1e-6)


@pytest.mark.parametrize('kwargs', [
    dict(head='shallow', drop_rate=0.25), dict(head='shallow', head_dropout=0.25),
    dict(head_pool='separate', drop_rate=0.25), dict(head_pool='separate', head_dropout=0.25),
])
def test_dropout_acts_in_training_only(kwargs):
    model = nnx.eval_shape(lambda: build('small_cnn', 3, **kwargs))
    with pytest.raises(ModelError, match=r'rate 0\.25'):
        jax.eval_shape(lambda model: model(X), model)
    assert jax.eval_shape(lambda model: model(X, rngs=nnx.Rngs(dropout=0)), model).shape == (4, 3)
    assert jax.eval_shape(lambda model: eval_view(model)(X), model).shape == (4, 3)


def test_a_model_with_a_branch_can_return_pooled_features_too():
    model = nnx.eval_shape(lambda: build('small_cnn', 3, head='deep'))
    pooled = jax.eval_shape(
        lambda model: model.forward_head(model.forward_features(X), pre_logits=True), model)
    assert pooled.shape == (4, model.num_features)


@pytest.mark.parametrize('name, settings', [  # their pooling changes the number of channels
    ('cnn_basic', dict(img_size=32, widths=(4, 8), dense=16, head='shallow')),
    ('mobilenetv3_large_100', dict(head_pool='separate')),
])
def test_backbones_with_fewer_channels_in_maps_than_in_features(name, settings):
    model = nnx.eval_shape(lambda: create_model(name, 3, rngs=nnx.Rngs(0), **settings))
    assert jax.eval_shape(lambda model: eval_view(model)(X), model).shape == (4, 3)


@pytest.mark.parametrize('kwargs, words', [
    (dict(head='shalow'), "'shalow'.*'shallow'"),
    (dict(head_pool='seperate'), "'seperate'.*'separate'"),
    (dict(head='deep', head_act='rellu'), "'rellu'.*'relu'"),
    (dict(head='deep', head_hidden=(8, 4)), r'head_hidden=\(8, 4\).*one integer'),
    (dict(head='deep', head_hidden=0), 'head_hidden=0'),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        nnx.eval_shape(lambda: build('small_cnn', 3, **kwargs))
