"""Low-rank adapters: what they add, what they do not change, merging, weights, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view
from models.convolutions import conv2d
from models.layers import Linear
from models.lora import (
    adaptable,
    add_lora,
    load_lora,
    lora_weights,
    merge_arrays,
    merge_lora,
    unmerge_lora,
)
from models.pretrained import load_timm, to_timm

TINY = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4)
LAYERS = r'blocks/.*(qkv|proj|fc1)|patch_embed/proj'
X = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
infer = quick(lambda model, x: eval_view(model)(x))
train = quick(lambda model, x, seed: model(x, rngs=nnx.Rngs(dropout=jax.random.key(seed))))


def tiny(seed=0, **kwargs):
    return create_model('vit_tiny_patch16_224', 5, rngs=nnx.Rngs(seed), **{**TINY, **kwargs})


def adapted(model, layers=LAYERS, seed=1, **kwargs):
    add_lora(model, layers, rngs=nnx.Rngs(seed), **{'rank': 3, 'alpha': 6.0, **kwargs})
    return model


def trained(model, seed=2):
    """The model with changed adapters, as after training."""
    draw = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        variable.set_value(variable[...] + jnp.asarray(
            0.2 * draw.standard_normal(variable.shape), jnp.float32))
    return model


def variables(model):
    return {'/'.join(map(str, path)): np.asarray(variable[...])
            for path, variable in nnx.to_flat_state(nnx.state(model))}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


class Layers(nnx.Module):
    """One layer of each kind."""

    def __init__(self):
        rngs = nnx.Rngs(5)
        self.linear = Linear(6, 4, rngs=rngs)
        self.pointwise = conv2d(6, 4, 1, bias=True, rngs=rngs)
        self.strided = conv2d(6, 4, 1, stride=2, rngs=rngs)
        self.patches = conv2d(6, 4, (2, 3), stride=(2, 3), padding='VALID', rngs=rngs)
        self.padded = conv2d(6, 4, 3, stride=3, rngs=rngs)
        self.wide = conv2d(6, 4, 3, rngs=rngs)
        self.grouped = conv2d(6, 4, 1, groups=2, rngs=rngs)


@pytest.mark.parametrize('scan', [False, True])
def test_new_adapters_change_no_output_and_trained_ones_no_kernel(scan):
    model = tiny(scan=scan)
    before, logits = variables(model), infer(model, X)
    adapted(model)
    assert np.abs(infer(model, X) - logits).max() < 1e-6
    trained(model)
    after = variables(model)
    assert same(before, {key: after[key] for key in before})
    added = set(after) - set(before)
    assert {key.rpartition('/')[2] for key in added} == {'lora_a', 'lora_b'}
    assert len(added) == 2 * (3 + 1 if scan else 2 * 3 + 1)
    assert np.abs(infer(model, X) - logits).max() > 1e-2


@pytest.mark.parametrize('scan', [False, True])
def test_merged_kernels_compute_the_same_and_unmerging_is_exact(scan):
    model = trained(adapted(tiny(scan=scan)))
    before, graph, logits = variables(model), nnx.graphdef(model), infer(model, X)
    undo = merge_lora(model)
    assert variables(model).keys() == variables(tiny(scan=scan)).keys()
    merged = infer(model, X)
    assert np.abs(merged - logits).max() < 1e-5 * max(1, np.abs(logits).max())
    unmerge_lora(model, undo)
    assert same(variables(model), before)
    assert nnx.graphdef(model) == graph
    assert np.array_equal(infer(model, X), logits)


def test_the_adapter_adds_alpha_over_rank_times_x_a_b():
    x = np.random.default_rng(3).standard_normal((2, 6, 6, 6)).astype(np.float32)
    windows = {'linear': (1, 1), 'pointwise': (1, 1), 'strided': (1, 1), 'patches': (2, 3),
               'padded': (3, 3)}
    call = quick(lambda layers, x: {name: getattr(layers, name)(x) for name in windows})
    plain, model = Layers(), trained(adapted(Layers(), '.*', rank=2, alpha=5.0))
    merged = trained(adapted(Layers(), '.*', rank=2, alpha=5.0))
    merge_lora(merged)
    before, after, folded = (call(layers, x) for layers in (plain, model, merged))
    for name, (height, width) in windows.items():
        layer = getattr(model, name)
        a, b = np.asarray(layer.lora_a[...]), np.asarray(layer.lora_b[...])
        pixels = x[:, ::2, ::2] if name == 'strided' else x
        if name == 'padded':  # 6x6 padded to 8x8, of which the 3x3 windows cover 6x6
            pixels = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, :6, :6]
        batch, rows, columns, channels = pixels.shape
        cut = pixels.reshape(batch, rows // height, height, columns // width, width, channels)
        low = np.einsum('bihjwc,hwcr->bijr', cut, a.reshape(height, width, channels, 2))
        assert np.allclose(after[name] - before[name], 2.5 * low @ b, atol=1e-5), name
        assert np.allclose(folded[name], after[name], atol=1e-5), name


def test_linear_layers_and_convolutions_can_have_an_adapter():
    names = {'linear', 'pointwise', 'strided', 'patches', 'padded', 'wide', 'grouped'}
    assert set(adaptable(Layers())) == names
    chosen = add_lora(model := Layers(), 'p.*', rngs=nnx.Rngs(0))
    assert sorted(chosen) == ['padded', 'patches', 'pointwise']
    assert set(adaptable(model)) == names - set(chosen)
    assert add_lora(model, 'linear', rngs=nnx.Rngs(0)) == ['linear']


def test_in_new_adapters_b_is_zero_and_a_is_scaled_by_the_fan_in():
    model = adapted(tiny(scan=True, embed_dim=64), 'blocks/.*|patch_embed/.*', rank=8)
    weights = lora_weights(model)
    assert weights['blocks/attn/qkv/lora_a'].shape == (2, 64, 8)
    assert weights['blocks/attn/qkv/lora_b'].shape == (2, 8, 192)
    assert weights['patch_embed/proj/lora_a'].shape == (16, 16, 3, 8)
    assert not any(value.any() for key, value in weights.items() if key.endswith('lora_b'))
    for key, fan_in in (('blocks/attn/qkv', 64), ('blocks/mlp/fc2', 256),
                        ('patch_embed/proj', 768)):
        assert np.std(weights[f'{key}/lora_a']) == pytest.approx(fan_in ** -0.5, rel=0.1)
    assert not np.array_equal(*weights['blocks/attn/qkv/lora_a'])  # one draw per block


def test_only_adapters_are_saved_and_another_model_loads_them():
    source = trained(adapted(tiny()))
    weights = lora_weights(source)
    assert set(weights) == set(variables(source)) - set(variables(tiny()))
    target = adapted(tiny(), seed=9)
    kernels = {key: value for key, value in variables(target).items() if 'lora' not in key}
    load_lora(target, weights)
    assert same(lora_weights(target), weights)
    assert same(kernels, {key: variables(target)[key] for key in kernels})
    assert np.array_equal(infer(target, X), infer(source, X))


def test_adapters_that_do_not_fit_are_all_listed_at_once():
    model = adapted(tiny())
    before, weights = variables(model), lora_weights(model)
    del weights['blocks/0/attn/qkv/lora_a']
    weights['blocks/7/attn/qkv/lora_a'] = np.zeros((32, 3), np.float32)
    weights['patch_embed/proj/lora_b'] = np.zeros((4, 32), np.float32)
    weights['blocks/1/mlp/fc1/lora_b'] = weights['blocks/1/mlp/fc1/lora_b'] + 1
    with pytest.raises(ModelError) as error:
        load_lora(model, weights)
    for words in ('blocks/0/attn/qkv/lora_a is missing', 'blocks/7/attn/qkv/lora_a is unexpected',
                  'patch_embed/proj/lora_b is [4, 32] and should be [3, 32]', '3 in total'):
        assert words in str(error.value)
    assert same(variables(model), before)


def test_dropout_of_the_adapter_acts_in_training_only():
    model = trained(adapted(tiny(scan=True), 'blocks/attn/qkv', dropout=0.5))
    plain = trained(adapted(tiny(scan=True), 'blocks/attn/qkv'))
    once = train(model, X, 1)
    assert np.array_equal(once, train(model, X, 1))
    assert not np.array_equal(once, train(model, X, 2))
    assert np.array_equal(infer(model, X), infer(plain, X))
    with pytest.raises(ModelError, match='no random key'):
        jax.eval_shape(lambda model: model(X), model)
    # Dropout is on the adapter's input only: where the adapter adds nothing, nothing changes.
    new = adapted(tiny(scan=True), 'blocks/attn/qkv', dropout=0.5)
    assert np.allclose(train(new, X, 1), infer(new, X), atol=1e-6)


@pytest.mark.parametrize('scan', [False, True])
def test_half_precision_stays_half(scan):
    model = nnx.eval_shape(lambda: adapted(tiny(dtype='bfloat16', scan=scan)))
    assert jax.eval_shape(lambda m: m.forward_features(X), model).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype('float32')}
    layers = adapted(Layers(), '.*')
    for name in adaptable(Layers()):
        layer = getattr(layers, name)
        layer.dtype = jnp.dtype('bfloat16')
        assert jax.eval_shape(layer, jnp.zeros((1, 6, 6, 6))).dtype == jnp.bfloat16


def test_published_weights_can_be_loaded_after_adapters_are_added():
    weights = to_timm(tiny(seed=4))
    model = trained(adapted(tiny()))
    adapters = lora_weights(model)
    load_timm(model, weights)
    assert same(lora_weights(model), adapters)
    plain = variables(tiny(seed=4))
    found = variables(model)
    assert same({name: found[name] for name in plain}, plain)


@pytest.mark.parametrize('scan', [False, True])
def test_weights_for_timm_have_the_adapters_in_their_kernels(scan):
    """They would be lost otherwise; the model itself keeps them."""
    model = trained(adapted(tiny(scan=scan)))
    before, logits = variables(model), infer(model, X)
    there = tiny(seed=9)
    load_timm(there, to_timm(model))
    assert np.abs(infer(there, X) - logits).max() < 1e-5 * max(1, np.abs(logits).max())
    assert same(variables(model), before)


@pytest.mark.parametrize('scan', [False, True])
def test_arrays_are_merged_as_models_are(scan):
    model = trained(adapted(tiny(scan=scan), rank=3, alpha=6.0))
    found = merge_arrays(variables(model), alpha=6.0)
    merge_lora(model)
    wanted = variables(model)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.allclose(found[name], value, atol=1e-6), name
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize('layers, kwargs, words', [
    ('blocks/.*/mlq', {}, ["layers='blocks/.*/mlq'", 'has 9 such layers (blocks/0/attn/proj, ']),
    ('attn/qkv', {}, ['no layer']),  # it has to match the whole path
    ('blocks/(', {}, ["'blocks/('", 'regular expression']),
    ('.*', dict(rank=0), ['rank=0', 'at least 1']),
    ('.*', dict(dropout=1.0), ['dropout of LoRA=1.0']),
])
def test_a_wrong_value_is_named_and_nothing_is_adapted(layers, kwargs, words):
    model = tiny()
    before = nnx.graphdef(model)
    with pytest.raises(ModelError) as error:
        add_lora(model, layers, rngs=nnx.Rngs(0), **kwargs)
    for word in words:
        assert word in str(error.value)
    assert nnx.graphdef(model) == before
