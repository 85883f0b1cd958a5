"""DINOv3: rotations, registers, sizes. Parity with timm is in test_parity.py."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from models import ModelError, create_model, eval_view, list_models, model_settings
from models.costs import costs
from models.dinov3 import centred_table
from models.eva import rotate
from models.lora import adaptable, auto_layers
from models.pretrained import load_timm, timm_targets, to_timm, to_torch

TINY = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4)
infer = jax.jit(lambda model, x: eval_view(model)(x))


def tiny(num_classes=5, name='vit_small_patch16_dinov3', **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(0), **{**TINY, **kwargs})


def abstract(**kwargs):
    return nnx.eval_shape(lambda: tiny(**kwargs))


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_patches_lie_between_minus_one_and_one_whatever_the_size():
    table = centred_table((2, 4), 16).reshape(2, 2, 4, 16)
    # The first half of each half of the channels rotates with the row: 2 pi / period x place.
    for half in (0, 8):
        for i, period in enumerate(100 ** (np.arange(4) / 4)):
            for row, place in enumerate((-0.5, 0.5)):
                angle = 2 * np.pi * place / period
                np.testing.assert_allclose(table[0, row, :, half + i], np.sin(angle), atol=1e-6)
                np.testing.assert_allclose(table[1, row, :, half + i], np.cos(angle), atol=1e-6)
            for column, place in enumerate((-0.75, -0.25, 0.25, 0.75)):
                angle = 2 * np.pi * place / period
                np.testing.assert_allclose(table[0, :, column, half + 4 + i], np.sin(angle),
                                           atol=1e-6)
    middle = centred_table((1, 1), 8)
    np.testing.assert_allclose(middle, [np.zeros((1, 8)), np.ones((1, 8))])


def test_products_of_query_and_key_depend_only_on_their_offset():
    grid = (3, 5)
    table = centred_table(grid, 8)
    turn = jax.jit(lambda x: rotate(x, table, 2, halves=True))
    query, key = values(2, 1, 1, 1, 8)
    first, second = (np.asarray(turn(np.broadcast_to(z, (1, 5 + 15 + 2, 1, 8))))[0, :, 0]
                     for z in (query, key))
    for outside in (slice(0, 5), slice(20, 22)):  # class token and registers; padding
        np.testing.assert_array_equal(first[outside], np.broadcast_to(query[0, 0], (
            outside.stop - outside.start, 8)))
    products = np.float64(first[5:20] @ second[5:20].T)
    place = np.stack(np.unravel_index(np.arange(15), grid), -1)
    offsets = {}
    for i, j in np.ndindex(products.shape):
        offsets.setdefault(tuple(place[i] - place[j]), []).append(products[i, j])
    assert max(np.ptp(same) for same in offsets.values()) < 1e-4
    assert len({round(same[0], 5) for same in offsets.values()}) == len(offsets)
    apart = jax.jit(lambda x: rotate(x, table, 2))(np.broadcast_to(query, (1, 22, 1, 8)))
    assert np.abs(apart[0, 5:20, 0] - first[5:20]).max() > 0.1  # pairs side by side are others


def test_neither_class_token_nor_registers_are_in_the_mean():
    tokens = np.concatenate([values(2, 9, 32)] * 2)
    tokens[:2, :5] = 100
    mean = abstract()
    assert jax.eval_shape(lambda m, x: m.forward_features(x), mean,
                          jnp.zeros((2, 32, 32, 3))).shape == (2, 9, 32)
    pooled = np.asarray(mean.pool(jnp.asarray(tokens)))
    np.testing.assert_array_equal(pooled[:2], pooled[2:])
    np.testing.assert_allclose(pooled, tokens[:, 5:].mean(1), atol=1e-6)
    np.testing.assert_array_equal(abstract(global_pool='token').pool(tokens), tokens[:, 0])
    np.testing.assert_array_equal(mean.maps(jnp.asarray(tokens)),
                                  tokens[:, 5:].reshape(4, 2, 2, 32))


def keys(**kwargs):
    return {key: to_torch(target.variable.shape) for target in timm_targets(abstract(**kwargs))
            for key in target.keys}


def test_names_of_the_parameters_are_timm_s():
    plain, biased = keys(), keys(name='vit_small_patch16_dinov3_qkvb')
    assert set(biased) - set(plain) == {
        f'blocks.{i}.attn.{which}_bias' for i in range(2) for which in 'qv'}
    assert not {'pos_embed', 'fc_norm.weight', 'blocks.0.attn.qkv.bias'} & set(biased)
    assert {'cls_token', 'reg_token', 'norm.weight', 'blocks.1.gamma_2'} <= set(plain)
    assert plain['reg_token'] == (1, 4, 32)
    assert not {'reg_token'} & set(keys(num_reg_tokens=0))
    assert not {'blocks.0.gamma_1'} & set(keys(init_values=None))
    gated = keys(name='vit_small_plus_patch16_dinov3', mlp_ratio=2.3)
    assert gated['blocks.0.mlp.fc1_g.weight'] == gated['blocks.0.mlp.fc1_x.weight'] == (80, 32)
    assert gated['blocks.0.mlp.fc2.weight'] == (32, 80)  # 73 are rounded up to a multiple of 8
    packed = keys(name='vit_small_plus_patch16_dinov3', swiglu_align_to=0)
    assert packed['blocks.0.mlp.fc1.weight'] == (256, 32)


def test_weights_fit_every_size_of_image():
    weights = {key: values(*shape, seed=i) for i, (key, shape) in enumerate(keys().items())}
    for size in ((48, 96), 64):
        model = abstract(img_size=size, scan=True)
        assert load_timm(model, weights) == []
        assert all(np.array_equal(value, weights[key]) for key, value in to_timm(model).items())
    grey = abstract(in_channels=1)
    assert load_timm(grey, weights) == ['patch_embed.proj.weight adapted from 3 to 1 channels']


@pytest.mark.parametrize('name', ['vit_small_plus_patch16_dinov3', 'beit_base_patch16_224'])
def test_adapters_go_by_the_default_names(name):
    model = abstract(name=name)
    mlp = ['fc1', 'fc2'] if name.startswith('beit') else ['fc1_g', 'fc1_x', 'fc2']
    assert common.get_config().finetune.lora.layers == 'auto'
    assert set(auto_layers(model, adaptable(model))) == {
        f'blocks/{i}/{layer}' for i in range(2)
        for layer in ['attn/qkv', 'attn/proj', *(f'mlp/{layer}' for layer in mlp)]}


def test_norms_have_the_epsilon_of_dinov3():
    model = abstract()
    block = model.blocks[0]
    assert {norm.epsilon for norm in (model.norm, block.norm1, block.norm2)} == {1e-5}


def test_bfloat16_computes_in_half_and_keeps_parameters_in_float32():
    model, x = abstract(dtype='bfloat16'), values(4, 32, 32, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype('float32')}
    assert jax.eval_shape(lambda m, x: m.forward_features(x), model, x).dtype == jnp.bfloat16


@pytest.mark.slow  # two compilations
def test_bfloat16_is_close():
    x = values(4, 32, 32, 3)
    half, whole = (np.asarray(infer(tiny(dtype=dtype, depth=1, init_values=0.5), x))
                   for dtype in ('bfloat16', 'float32'))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - whole).max() < 0.05 * np.std(whole)


@pytest.mark.parametrize('what', ['pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path'])
def test_every_dropout_acts_in_training_only(what):
    model, x = abstract(**{what: 0.25}), values(2, 32, 32, 3)
    with pytest.raises(ModelError, match=r'rate 0\.25'):
        jax.eval_shape(lambda m, x: m(x), model, x)
    assert jax.eval_shape(lambda m, x: eval_view(m)(x), model, x).shape == (2, 5)


@pytest.mark.parametrize('kwargs, words', [
    (dict(global_pool='mean'), ["global_pool", "'mean'"]),
    (dict(img_size=40), ['img_size=40', 'patch_size=16']),
    (dict(num_heads=5), ['embed_dim=32', 'num_heads=5', '6 channels per head']),
    (dict(embed_dim=24), ['embed_dim=24', 'num_heads=4', 'multiple of 4']),
    (dict(num_reg_tokens=-1), ['num_reg_tokens=-1']),
    (dict(swiglu_align_to=-8), ['swiglu_align_to=-8']),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError) as error:
        abstract(**kwargs)
    assert all(word in str(error.value) for word in words)


def test_all_names_have_the_shapes_of_their_authors():
    """Parameters without a classifier, in millions, as the model cards say."""
    sizes = {'small': 21, 'small_plus': 29, 'base': 86, 'large': 300, 'huge_plus': 840, '7b': 6716}
    for size, millions in sizes.items():
        for name in list_models(f'vit_{size}_patch16_dinov3*'):
            head = 1000 * (model_settings(name)['embed_dim'] + 1)
            assert (costs()[name].parameters - head) / 1e6 == pytest.approx(millions, rel=0.03)
