"""The ViT: logits against timm's, options, errors."""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view
from models.vit import sincos2d

REFERENCE = pathlib.Path(__file__).parent / 'reference'
infer = jax.jit(lambda model, x: eval_view(model)(x))
TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)


def tiny(num_classes=5, **kwargs):
    return create_model('vit_tiny_patch16_224', num_classes, rngs=nnx.Rngs(0), **{**TINY, **kwargs})


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def by_recipe(key: str, shape: list[int], seed: int) -> np.ndarray:
    """The weight that the reference was computed with, from key, shape and seed."""
    draw = np.random.default_rng(zlib.crc32(key.encode()) + seed)
    normal = draw.standard_normal(shape).astype(np.float32)
    if key.endswith('.weight'):
        return normal / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1 + 0.1 * normal
    return (0.1 if key.endswith('.bias') else 0.02) * normal


def fill_from_recipe(model, state_dict: dict[str, list[int]], seed: int):
    """Loads the weights of the reference; every key and every parameter has to be used."""
    params = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for key, shape in state_dict.items():
        path = tuple(int(part) if part.isdigit() else part for part in key.split('.'))
        value = by_recipe(key, shape, seed)
        if path[-1] == 'weight':
            path = (*path[:-1], 'scale' if value.ndim == 1 else 'kernel')
            value = value.transpose({1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[value.ndim])
        param = params.pop(path)
        assert param.shape == value.shape, key
        param[...] = jnp.asarray(value, jnp.float32)
    assert not params


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_tiny_patch16_224-img_size160'])
def test_logits_equal_those_of_timm(name):
    meta = json.loads((REFERENCE / f'{name}.json').read_text())
    logits = np.load(REFERENCE / f'{name}.npz', allow_pickle=False)['logits']
    model = create_model(meta['model'], rngs=nnx.Rngs(1), **meta['kwargs'])
    fill_from_recipe(model, meta['state_dict'], meta['seed'])
    x = np.random.default_rng(meta['seed'] + 1).standard_normal(meta['input']).astype(np.float32)
    with jax.default_matmul_precision('highest'):
        ours = infer(model, jnp.asarray(x.transpose(0, 2, 3, 1)))
    assert np.abs(ours - logits).max() <= 2e-5 * logits.std()


def test_number_of_parameters_is_that_of_timm():
    shapes = nnx.eval_shape(lambda: create_model('vit_base_patch16_224', rngs=nnx.Rngs(0)))
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param))]
    assert sum(sizes) == 86_567_656


@pytest.mark.parametrize('kwargs', [
    {},
    dict(class_token=False, global_pool='avg'),
    dict(global_pool='avg'),
    dict(pos_embed='sincos2d'),
    dict(init_values=1e-5, qkv_bias=False, in_channels=1),
    dict(stem='conv'),
    dict(img_size=(32, 48)),
])
def test_options_return_finite_logits_of_the_right_shape(kwargs):
    model = tiny(**kwargs)
    x = images(2, *model.img_size, model.in_channels)
    logits = infer(model, x)
    assert logits.shape == (2, 5)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 0


def test_token_pools_the_class_token_and_avg_leaves_it_out():
    tokens = images(2, 17, 32)
    assert np.array_equal(tiny().pool(tokens), tokens[:, 0])
    mean = tiny(global_pool='avg').pool(tokens.at[:, 0].set(100.0))
    assert np.allclose(mean.mean(-1), 0, atol=1e-5)
    assert np.allclose(mean, tiny(global_pool='avg').pool(tokens), atol=1e-6)


def test_conv_stem_has_the_grid_of_the_patches():
    for patch in (4, 8, 16):
        model = tiny(stem='conv', patch_size=patch)
        grid = jax.eval_shape(lambda stem, x: stem(x), model.patch_embed, images(1, 32, 32, 3))
        assert grid.shape == (1, 32 // patch, 32 // patch, 32)


def test_the_order_of_patches_matters_only_with_position_embeddings():
    model = tiny(class_token=False, global_pool='avg')
    x = images(1, 32, 32, 3)
    swapped = jnp.concatenate([x[:, 16:], x[:, :16]], 1)
    assert np.abs(infer(model, x) - infer(model, swapped)).max() > 1e-5
    model.pos_embed[...] = jnp.zeros_like(model.pos_embed[...])
    assert np.allclose(infer(model, x), infer(model, swapped), atol=1e-5)


def test_sincos_table_is_bounded_and_has_distinct_rows():
    table = sincos2d((3, 5), 16)
    assert table.shape == (15, 16)
    assert np.abs(table).max() <= 1
    assert len(np.unique(table.round(5), axis=0)) == 15
    assert np.allclose(table[0], [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4)


def test_patches_are_ordered_by_rows_then_by_columns():
    # The first row of patches differs from the second only in the channels of the row.
    table = sincos2d((2, 2), 8)
    assert np.array_equal(table[0, :4], table[2, :4])
    assert np.array_equal(table[0, 4:], table[1, 4:])


def test_bfloat16_computes_in_half_and_keeps_parameters_in_float32():
    model, full = tiny(dtype='bfloat16'), tiny()
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype('float32')}
    x = images(4, 32, 32, 3)
    assert jax.eval_shape(lambda m, x: m.forward_features(x), model, x).dtype == jnp.bfloat16
    logits, exact = infer(model, x), infer(full, x)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.std(exact)


@pytest.mark.parametrize('kwargs, words', [
    (dict(img_size=30), ['img_size=30', 'patch_size=8']),
    (dict(num_heads=5), ['embed_dim=32', 'num_heads=5']),
    (dict(class_token=False), ['class_token', "global_pool='avg'"]),
    (dict(global_pool='tokens'), ["'tokens'", "'token'"]),
    (dict(stem='convs'), ["'convs'", "'conv'"]),
    (dict(stem='conv', patch_size=12, img_size=48), ['patch_size=12', 'power of 2']),
    (dict(pos_embed='sincos2d', embed_dim=30, num_heads=3), ['embed_dim is 30']),
    (dict(attn_impl='flash'), ["'flash'", "'xla'"]),
    (dict(dtype='float8'), ["'float8'", "'float16'"]),
    (dict(drop_path=1.0), ['drop_path=1.0']),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError) as error:
        tiny(**kwargs)
    for word in words:
        assert word in str(error.value)


def test_images_of_another_size_are_refused():
    with pytest.raises(ModelError, match=r'32, 32, 3\] and got \[2, 40, 32, 3\]'):
        tiny()(images(2, 40, 32, 3))
