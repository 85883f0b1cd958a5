"""The options of the ViT that CLIP, SigLIP, DINOv2, TIPSv2 and DeiT-III need, on small models.

Parity of the names is in test_parity.py; with timm at hand, every option in test_vit_and_timm.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view, list_models
from models.attention_pool import AttentionPool
from models.costs import costs
from models.layers import ACTIVATIONS, GluMlp
from models.lora import adaptable, add_lora, merge_lora
from models.pretrained import load_timm, timm_targets, to_timm, to_torch
from models.tags import find_tag, tags_of

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0)
SIGLIP, REGISTERS = 'vit_base_patch16_siglip_224', 'vit_giant_patch14_reg4_dinov2'
X = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)


def tiny(name='vit_tiny_patch16_224', num_classes=5, **settings):
    return create_model(name, num_classes, rngs=nnx.Rngs(0), **{**TINY, **settings})


@functools.cache
def _graph(name, num_classes, settings):
    return nnx.split(nnx.eval_shape(lambda: tiny(name, num_classes, **dict(settings))))


def abstract(name='vit_tiny_patch16_224', num_classes=5, **settings):
    """A model with shapes in place of arrays."""
    return nnx.merge(*_graph(name, num_classes, tuple(settings.items())), copy=True)


def random_weights(model, seed=0):
    """A state_dict that fits the model, of which nothing is near zero."""
    draw = np.random.default_rng(seed)
    return {key: (draw.standard_normal(to_torch(target.variable.shape[int(target.stacked):])) / 4
                  ).astype(np.float32) for target in timm_targets(model) for key in target.keys}


def keys_of(model):
    return {key for target in timm_targets(model) for key in target.keys}


def embedded(**settings):
    """(tokens of X, patches without positions) of a model without further norms."""
    model = abstract(depth=1, **settings)
    weights = random_weights(model)
    load_timm(model, weights)
    patches = model.patch_embed(jnp.asarray(X)).reshape(2, 16, 32)
    return np.asarray(model.embed(jnp.asarray(X))), np.asarray(patches), weights


def test_the_order_of_tokens_is_class_registers_patches_and_all_have_positions():
    tokens, patches, weights = embedded(reg_tokens=3)
    first = np.concatenate([weights['cls_token'], weights['reg_token']], 1).repeat(2, 0)
    assert weights['pos_embed'].shape == (1, 20, 32)
    expected = np.concatenate([first, patches], 1) + weights['pos_embed']
    np.testing.assert_allclose(tokens, expected, atol=1e-6)


@pytest.mark.parametrize('prefix', [
    dict(), dict(reg_tokens=3), dict(reg_tokens=1, class_token=False, global_pool='avg')])
def test_without_embed_class_only_patches_have_positions(prefix):
    tokens, patches, weights = embedded(no_embed_class=True, **prefix)
    assert weights['pos_embed'].shape == (1, 16, 32)
    np.testing.assert_allclose(tokens[:, -16:], patches + weights['pos_embed'], atol=1e-6)
    first = [weights[key] for key in ('cls_token', 'reg_token') if key in weights]
    np.testing.assert_array_equal(tokens[:, :-16], np.concatenate(first, 1).repeat(2, 0))


def test_the_norm_before_the_blocks_follows_the_positions_and_has_no_bias_before_it():
    model = abstract(pre_norm=True, norm_eps=0.3)
    assert 'patch_embed.proj.bias' not in keys_of(model)
    weights = random_weights(model)
    load_timm(model, weights)
    found = model.embed(jnp.asarray(X))
    model.pre_norm = False
    x = np.asarray(model.embed(jnp.asarray(X)), np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.3)
    expected = x * weights['norm_pre.weight'] + weights['norm_pre.bias']
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_averages_leave_out_class_token_and_registers():
    tokens = np.random.default_rng(1).standard_normal((2, 19, 32)).astype(np.float32)
    patches = tokens[:, 3:]
    for pool, expected in (('avg', patches.mean(1)),
                           ('avgmax', (patches.mean(1) + patches.max(1)) / 2)):
        model = tiny(global_pool=pool, reg_tokens=2, fc_norm=False)
        np.testing.assert_allclose(model.pool(jnp.asarray(tokens)), expected, atol=1e-6)


@pytest.mark.parametrize('settings, norm', [
    ({}, 'norm'), (dict(global_pool='map'), 'norm'), (dict(global_pool='avg'), 'fc_norm'),
    (dict(global_pool='avgmax'), 'fc_norm'), (dict(global_pool='avg', fc_norm=False), 'norm'),
    (dict(fc_norm=True), 'fc_norm'), (dict(global_pool='map', fc_norm=True), 'fc_norm'),
    (dict(final_norm=False), ''), (dict(final_norm=False, global_pool='avg'), '')])
def test_where_the_last_norm_is(settings, norm):
    keys = {key.split('.')[0] for key in keys_of(abstract(**settings))}
    assert keys & {'norm', 'fc_norm'} == ({norm} if norm else set())


def test_attention_pooling_in_closed_form():
    rng = np.random.default_rng(2)
    pool = AttentionPool(8, 2, mlp_ratio=2.0, act='gelu_tanh', norm_eps=1e-3, weight_init='',
                         dtype=None, rngs=nnx.Rngs(0))
    for _, variable in nnx.to_flat_state(nnx.state(pool)):
        variable.set_value(jnp.asarray(rng.standard_normal(variable.shape), jnp.float32))
    w = {'/'.join(map(str, path)): np.asarray(variable[...], np.float64)
         for path, variable in nnx.to_flat_state(nnx.state(pool))}
    x = rng.standard_normal((3, 5, 8))
    layer = lambda name, x: x @ w[f'{name}/kernel'] + w[f'{name}/bias']
    query, (key, value) = layer('q', w['latent'][0, 0]), np.split(layer('kv', x), 2, -1)
    mixed, weights = np.empty((3, 8)), np.zeros((3, 5))
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(key[..., head] @ query[head] / 2)
        scores /= scores.sum(-1, keepdims=True)
        mixed[:, head] = (scores[..., None] * value[..., head]).sum(1)
        weights += scores / 2
    y = layer('proj', mixed)
    normed = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-3)
    hidden = layer('mlp/fc1', normed * w['norm/scale'] + w['norm/bias'])
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden ** 3)))
    with jax.default_matmul_precision('highest'):
        np.testing.assert_allclose(pool(jnp.asarray(x, jnp.float32)),
                                   y + layer('mlp/fc2', hidden), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(pool.weights(jnp.asarray(x, jnp.float32)), weights, atol=1e-5)


def test_quick_gelu():
    x = np.linspace(-6, 6, 41)
    np.testing.assert_allclose(ACTIVATIONS['quick_gelu'](x), x / (1 + np.exp(-1.702 * x)),
                               atol=1e-5)


def test_a_gated_mlp_in_closed_form_and_how_it_starts():
    mlp = GluMlp(4, 12, act='silu', rngs=nnx.Rngs(0))
    kernel, bias = np.asarray(mlp.fc1.kernel[...]), np.asarray(mlp.fc1.bias[...])
    assert np.abs(kernel[:, 6:]).max() < 1e-5 < np.abs(kernel[:, :6]).max()
    assert np.array_equal(bias, [0] * 6 + [1] * 6)
    x = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
    gate, value = np.split(x @ kernel + bias, 2, -1)
    expected = gate / (1 + np.exp(-gate)) * value @ np.asarray(mlp.fc2.kernel[...])
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize('kwargs, words', [
    (dict(reg_tokens=-1), 'reg_tokens=-1'), (dict(reg_tokens=True), 'reg_tokens=True'),
    (dict(fc_norm=True, final_norm=False), 'fc_norm=True.*final_norm=False'),
    (dict(swiglu=True, mlp_ratio=1.04), '33 channels.*mlp_ratio'),
    (dict(global_pool='mapp'), "'mapp'.*'map'"), (dict(act='quickgelu'), "'quick_gelu'")])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        tiny(**kwargs)


NAMES = (  # and the eps of all their norms, the activation, whether the MLP is gated
    ('vit_base_patch16_clip_224', 1e-5, 'gelu', False),
    ('vit_huge_patch14_clip_quickgelu_378', 1e-5, 'quick_gelu', False),
    ('vit_large_patch16_siglip_384', 1e-6, 'gelu', False),
    ('vit_large_patch16_siglip_512', 1e-6, 'gelu_tanh', False),
    ('vit_so400m_patch14_siglip_gap_378', 1e-6, 'gelu', False),
    ('vit_giant_patch14_dinov2', 1e-6, 'silu', True))


@pytest.mark.parametrize('name, eps, act, gated', NAMES)
def test_every_norm_and_every_mlp_is_that_of_the_name(name, eps, act, gated):
    model = nnx.eval_shape(lambda: create_model(name, 0, rngs=nnx.Rngs(0), depth=2))
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.LayerNorm)]
    assert len(norms) >= 5 and {norm.epsilon for norm in norms} == {eps}
    assert model.blocks[1].mlp.act is ACTIVATIONS[act]
    assert isinstance(model.blocks[0].mlp, GluMlp) == gated


def test_quick_gelu_has_the_repositories_of_the_names_without_it():
    tag = find_tag('vit_large_patch14_clip_quickgelu_336', 'default')
    assert tag.repository == 'timm/vit_large_patch14_clip_336.openai'
    for source in (tag.repository, 'openai', '/weights/vit_large_patch14_clip_336.openai.bin'):
        assert find_tag(tag.model, source) == tag
    # Weights that were trained with it are not offered under the name that computes another GELU.
    for name in list_models('*_quickgelu_*'):
        others = {tag.tag for tag in tags_of(name.replace('_quickgelu', ''))}
        assert tags_of(name) and not others & {tag.tag for tag in tags_of(name)}


@pytest.mark.parametrize('settings, prefix', [
    (dict(reg_tokens=2), 3), (dict(reg_tokens=2, no_embed_class=True), 0),
    (dict(class_token=False, global_pool='avg'), 0),
    (dict(class_token=False, global_pool='map', reg_tokens=1), 1)])
def test_positions_are_resampled_behind_those_of_the_prefix(settings, prefix):
    weights = random_weights(abstract(**settings))
    weights['pos_embed'][0, prefix:] = np.arange(4).repeat(4)[:, None]  # rows 0..3
    model = abstract(**settings, img_size=(32, 48))
    assert load_timm(model, weights) == ['pos_embed resampled from 4 x 4 to 4 x 6']
    loaded = to_timm(model)['pos_embed']
    assert loaded.shape == (1, prefix + 24, 32)
    np.testing.assert_array_equal(loaded[:, :prefix], weights['pos_embed'][:, :prefix])
    np.testing.assert_allclose(loaded[0, prefix:].reshape(4, 6, 32),
                               np.broadcast_to(np.arange(4)[:, None, None], (4, 6, 32)), atol=1e-5)


def test_weights_without_a_classifier():
    """Those of SigLIP and DINOv2: they fill a model without one, or all but a new one."""
    weights = random_weights(abstract(SIGLIP, 0))
    model = abstract(SIGLIP, 0)
    assert load_timm(model, weights) == []
    model = tiny(SIGLIP, 3)
    head = np.asarray(model.head.kernel[...])
    assert load_timm(model, weights, head='reset') == []
    assert np.array_equal(model.head.kernel[...], head)
    assert np.array_equal(to_timm(model)['attn_pool.latent'], weights['attn_pool.latent'])
    with pytest.raises(ModelError, match=r'head\.bias is missing; head\.weight is missing .*'
                                         r'head="reset"'):
        load_timm(abstract(SIGLIP, 3), weights)


def test_attention_pooling_of_a_file_is_left_out_where_the_mean_is_taken_and_said():
    weights = random_weights(abstract(SIGLIP, 0))
    model = abstract('vit_base_patch16_siglip_gap_224', 0)
    count = sum(key.startswith('attn_pool.') for key in weights)
    assert load_timm(model, weights) == [
        f'{count} arrays are not used here, such as attn_pool.kv.bias']
    with pytest.raises(ModelError, match=r'attn_pools\.x is unexpected'):
        load_timm(model, weights | {'attn_pools.x': np.zeros(1, np.float32)})


def test_files_of_deit3_have_other_names_of_the_layer_scale():
    model = abstract('deit3_small_patch16_224')
    weights = random_weights(model)
    old = {key.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): value
           for key, value in weights.items()}
    assert 'blocks.1.gamma_2' in old
    load_timm(model, old)
    assert all(np.array_equal(value, weights[key]) for key, value in to_timm(model).items())


ALL = {  # every new option is in one of them
    'clip': ('vit_base_patch16_clip_quickgelu_224', {}),
    'siglip': (SIGLIP, dict(reg_tokens=1, init_values=0.1, pre_norm=True)),
    'dinov2': (REGISTERS, dict(act='gelu_tanh')),
    'avgmax': ('vit_tiny_patch16_224', dict(global_pool='avgmax', reg_tokens=2, fc_norm=False)),
}


@functools.cache
def outcome(kind, **settings):
    """(logits, gradients by key of timm) with the same weights."""
    name, own = ALL[kind]
    model = abstract(name, **own, **settings)
    load_timm(model, random_weights(abstract(name, **own)))
    graphdef, params = nnx.split(model)

    def loss(params):
        logits = nnx.merge(graphdef, params)(jnp.asarray(X))
        return (jax.nn.log_softmax(logits) * jnp.arange(5)).sum(), logits

    with jax.default_matmul_precision('highest'):
        (_, logits), gradients = jax.jit(
            jax.value_and_grad(loss, has_aux=True),
            compiler_options={'xla_backend_optimization_level': 0})(params)
    return np.asarray(logits), to_timm(nnx.merge(graphdef, gradients))


@pytest.mark.parametrize('kind', [
    'siglip', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ALL if kind != 'siglip')])
def test_stacked_recomputed_and_padded_blocks_change_nothing_but_the_rounding(kind):
    logits, gradients = outcome(kind)
    others, found = outcome(kind, scan=True, remat=True, token_multiple=8)
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(others, logits, rtol=1e-4, atol=1e-4)
    assert found.keys() == gradients.keys()
    for key, value in gradients.items():
        largest = np.abs(value).max()
        assert largest > 1e-6, key  # everything takes part
        assert np.abs(found[key] - value).max() <= 1e-4 * largest + 1e-5, key


@pytest.mark.parametrize('kind', ['clip', 'siglip'])
def test_bfloat16_is_close_and_leaves_features_in_float32(kind):
    name, own = ALL[kind]
    weights = random_weights(abstract(name, 0, **own))
    found = []
    for dtype in ('float32', 'bfloat16'):
        model = abstract(name, 0, **own, dtype=dtype)
        load_timm(model, weights)
        found.append(jax.jit(lambda model, x: eval_view(model)(x))(model, X))
    assert found[1].dtype == jnp.float32 and {leaf.dtype for leaf in jax.tree.leaves(
        nnx.state(model))} == {jnp.dtype('float32')}
    assert 0 < np.abs(found[1] - found[0]).max() < 0.2 * np.std(found[0])


def test_adapters_reach_the_attention_pooling_if_they_are_told_to():
    model = tiny(SIGLIP)
    assert {f'attn_pool/{layer}' for layer in ('q', 'kv', 'proj', 'mlp/fc1', 'mlp/fc2')} <= set(
        adaptable(model))
    assert not [path for path in add_lora(tiny(SIGLIP), 'blocks/.*/(qkv|proj)', rngs=nnx.Rngs(1))
                if path.startswith('attn_pool')]
    chosen = add_lora(model, 'attn_pool/(q|kv|proj)', rank=2, rngs=nnx.Rngs(1))
    assert chosen == ['attn_pool/kv', 'attn_pool/proj', 'attn_pool/q']
    for layer in (model.attn_pool.q, model.attn_pool.kv, model.attn_pool.proj):
        layer.lora_b[...] = jnp.ones_like(layer.lora_b[...]) / 10
    plain = tiny(SIGLIP)(X)
    adapted = model(X)
    merge_lora(model)
    np.testing.assert_allclose(model(X), adapted, atol=1e-5)
    assert np.abs(adapted - plain).max() > 1e-4


def test_maps_are_those_of_the_patches():
    model = tiny(reg_tokens=3, img_size=(32, 16))
    tokens = jnp.arange(1 + 3 + 8.0)[None, :, None] * jnp.ones(32)
    assert np.array_equal(model.maps(tokens)[0, :, :, 0], np.arange(4, 12).reshape(4, 2))


def test_large_names_have_the_number_of_parameters_that_timm_counts():
    table = costs()  # with a head for 1000 classes
    assert table['vit_gigantic_patch14_clip_224'].parameters == 1_842_777_344 + 1665 * 1000
    assert table['vit_so400m_patch14_siglip_378'].parameters == 428_225_600 + 1153 * 1000
    assert table['vit_giant_patch14_reg4_dinov2'].parameters == 1_136_483_840 + 1537 * 1000
