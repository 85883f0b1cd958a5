"""Adapters of convolutions: any kernel, stride, dilation and groups, in every form and family."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import create_model, eval_view
from models.convolutions import conv2d
from models.lora import (
    AUTO,
    LoRAConv,
    _cheaper_apart,
    adaptable,
    add_lora,
    auto_layers,
    load_lora,
    lora_weights,
    merge_arrays,
    merge_lora,
    unmerge_lora,
)
from models.pretrained import load_timm, to_timm
from train_lib.run_dir.before import BEFORE

quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
call = quick(lambda layer, x: layer(x))
# name: (a, b, kernel, further arguments, side of the image)
CONVOLUTIONS = {
    '3x3': (8, 12, 3, {}, 9),
    '3x3, wide': (96, 96, 3, dict(bias=True), 5),
    '3x3 on a tiny grid': (96, 96, 3, {}, 3),
    'strided, as TensorFlow pads': (6, 10, 5, dict(stride=2, padding='SAME', bias=True), 8),
    'dilated': (6, 10, 3, dict(dilation=2), 9),
    '1x1, wide': (256, 96, 1, dict(bias=True), 3),
    'depthwise': (12, 12, 3, dict(groups=12, bias=True), 7),
    'depthwise 5x5, strided': (12, 12, 5, dict(groups=12, stride=2, padding='SAME'), 8),
    'depthwise with a multiplier': (6, 12, 3, dict(groups=6), 7),
    'grouped': (12, 8, 3, dict(groups=4), 7),
}
FORMS = pytest.mark.parametrize('form', CONVOLUTIONS)


def layer_of(form, rank=2, alpha=6.0, dropout=0.0, seed=0):
    """(plain layer, the same with a trained adapter, images)"""
    a, b, kernel, more, side = CONVOLUTIONS[form]
    plain, adapted = (nnx.Dict(conv=conv2d(a, b, kernel, rngs=nnx.Rngs(seed), **more))
                      for _ in range(2))
    add_lora(adapted, 'conv', rank=rank, alpha=alpha, dropout=dropout, rngs=nnx.Rngs(1))
    draw = np.random.default_rng(seed)
    adapted.conv.lora_b.set_value(jnp.asarray(
        0.1 * draw.standard_normal(adapted.conv.lora_b.shape), jnp.float32))
    return plain.conv, adapted.conv, jnp.asarray(draw.standard_normal((2, side, side, a)),
                                                 jnp.float32)


def with_change(plain, layer):
    """The convolution that the adapter stands for: kernel + (alpha / rank) x A B."""
    change = layer.lora_scale * np.einsum('hwcr,rb->hwcb', layer.lora_a[...], layer.lora_b[...])
    plain.kernel.set_value(plain.kernel[...] + change)
    return plain


@FORMS
def test_an_adapter_is_a_change_of_the_kernel(form):
    plain, layer, x = layer_of(form)
    before = call(plain, x)
    wanted = call(with_change(plain, layer), x)
    assert jnp.abs(wanted - before).max() > 1e-2
    np.testing.assert_allclose(call(layer, x), wanted, atol=2e-5)
    merged = nnx.Dict(conv=layer)
    undo = merge_lora(merged)
    np.testing.assert_allclose(call(layer, x), wanted, atol=2e-5)
    unmerge_lora(merged, undo)
    assert isinstance(layer, LoRAConv)


@FORMS
def test_a_new_adapter_leaves_the_output_bit_for_bit(form):
    plain, layer, x = layer_of(form)
    layer.lora_b.set_value(jnp.zeros_like(layer.lora_b[...]))
    assert np.array_equal(call(layer, x), call(plain, x))
    plain.dtype = layer.dtype = jnp.dtype('bfloat16')
    assert call(layer, x).dtype == jnp.bfloat16
    assert np.array_equal(call(layer, x), call(plain, x))


@pytest.mark.parametrize('summed', [False, True])
@FORMS
def test_gradients_are_those_of_the_changed_kernel(form, summed):
    """Also where gradients of bfloat16 products are float32 sums: to the precision of those."""
    plain, layer, x = layer_of(form)
    if summed:
        plain.dtype = layer.dtype = jnp.dtype('bfloat16')
        plain.float32_sums = layer.float32_sums = True
    graph, arrays = nnx.split(layer)
    plain_graph, plain_arrays = nnx.split(plain)
    arrays, plain_arrays = nnx.to_pure_dict(arrays), nnx.to_pure_dict(plain_arrays)
    a, b, scale = layer.lora_a[...], layer.lora_b[...], layer.lora_scale
    shape = jax.eval_shape(layer, x).shape
    weight = np.random.default_rng(2).standard_normal(shape).astype(np.float32)

    def ours(a, b, x):
        return jnp.sum(nnx.merge(graph, arrays | dict(lora_a=a, lora_b=b))(x) * weight)

    def wanted(a, b, x):
        kernel = plain_arrays['kernel'] + scale * jnp.einsum('hwcr,rb->hwcb', a, b)
        changed = nnx.merge(plain_graph, plain_arrays | dict(kernel=kernel))
        return jnp.sum(changed(x) * weight)

    for found, there in zip(quick(jax.grad(ours, (0, 1, 2)))(a, b, x),
                            quick(jax.grad(wanted, (0, 1, 2)))(a, b, x)):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, there, rtol=0,
                                   atol=float(jnp.abs(there).max()) * (2e-2 if summed else 2e-5))


def test_both_ways_to_compute_an_adapter_are_tested():
    ways = {form: _cheaper_apart(layer_of(form)[1]) for form in CONVOLUTIONS}
    assert [form for form, apart in ways.items() if apart] == [
        '3x3, wide', '3x3 on a tiny grid', '1x1, wide']


@FORMS
def test_dropout_is_on_the_input_of_the_adapter(form):
    plain, layer, x = layer_of(form, dropout=0.5)
    layer = nnx.view(layer, deterministic=False)
    rngs = lambda seed: nnx.Rngs(dropout=jax.random.key(seed))
    train = quick(lambda layer, x, seed: layer(x, rngs(seed)))
    once = train(layer, x, 0)
    assert np.array_equal(once, train(layer, x, 0))
    assert not np.array_equal(once, train(layer, x, 1))
    dropped = layer.lora_drop(x, rngs(0))
    rest = call(plain, x) - call(plain, dropped)
    before = call(plain, x)
    wanted = rest + call(with_change(plain, layer), dropped)
    np.testing.assert_allclose(once, wanted, atol=5e-5)
    still = nnx.view(layer, deterministic=True)
    np.testing.assert_allclose(call(still, x), call(plain, x), atol=2e-5)
    assert jnp.abs(once - before).max() > 1e-3


def test_an_adapter_of_a_depthwise_kernel_has_at_most_its_numbers():
    """Nine kernels of nine numbers span all of them; alpha is divided by what is left."""
    _, layer, _ = layer_of('depthwise', rank=16, alpha=18.0)
    assert layer.lora_a.shape == (3, 3, 1, 9) and layer.lora_b.shape == (9, 12)
    assert layer.lora_scale == 2.0
    _, dense, _ = layer_of('3x3', rank=16)
    assert dense.lora_a.shape == (3, 3, 8, 16)


LITE = dict(channel_multiplier=0.25, num_features=64)
# name: (settings, some layers that are adapted, some that are not)
FAMILIES = {
    'tf_efficientnet_lite0': (LITE, {'blocks/0/0/conv_dw', 'blocks/5/3/conv_pwl', 'conv_head'},
                              {'conv_stem'}),
    'resnet18': ({}, {'layer1/0/conv1', 'layer4/0/downsample/0'}, {'conv1', 'head'}),
    'small_cnn': (dict(stages=2), {'stages/1/0/conv1', 'stages/1/0/shortcut'}, {'conv1', 'head'}),
    'densenet121': (dict(block_config=(2, 1, 1, 1)), {'features/denseblock1/denselayer1/conv2'},
                    {'features/conv0'}),
    'cnn_basic': ({}, {'blocks/1/convs/0'}, {'blocks/0/convs/0', 'head'}),
    'resnet_inception': ({}, {'stages/0/0/column/conv'}, {'stem/0/conv', 'head'}),
    'mobilenetv3_large_100': ({}, {'blocks/0/0/conv_dw', 'blocks/2/0/se/conv_reduce'},
                              {'conv_stem'}),
    'vit_tiny_patch16_224': (dict(depth=1), {'blocks/0/attn/qkv', 'blocks/0/mlp/fc2'},
                             {'patch_embed/proj'}),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ('resnet_inception',
                                                            'mobilenetv3_large_100')))
    for name in FAMILIES])
def test_auto_adapts_the_layers_between_stem_and_heads(name):
    settings, wanted, unwanted = FAMILIES[name]

    def build():
        model = create_model(name, 3, rngs=nnx.Rngs(0), **settings)
        chosen.extend(add_lora(model, AUTO, rank=2, dropout=0.1, rngs=nnx.Rngs(1)))
        return model

    chosen: list[str] = []
    model = nnx.eval_shape(build)
    assert wanted <= set(chosen)
    assert not [path for path in chosen if path.split('/')[0] in ('head', 'heads')]
    assert not unwanted & set(chosen)
    # Every layer hands the random numbers down, so that dropout works.
    side = 224 if name.startswith('vit') else 64
    jax.eval_shape(lambda model, x: model(x, rngs=nnx.Rngs(dropout=jax.random.key(0))), model,
                   jnp.zeros((2, side, side, 3)))


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'eva02_tiny_patch14_224',
                                  'eva02_base_patch14_224', 'eva_giant_patch14_224'])
def test_auto_takes_the_layers_of_a_transformer_that_its_regex_took_before(name):
    there = list(adaptable(nnx.eval_shape(
        lambda: create_model(name, 3, rngs=nnx.Rngs(0), depth=1))))
    before = re.compile(BEFORE['finetune.lora.layers'])
    wanted = [path for path in there if before.fullmatch(path)]
    assert wanted and auto_layers(nnx.Dict(), there) == wanted


@pytest.fixture(scope='module')
def lite():
    """A small EfficientNet-Lite with trained adapters on all of its convolutions."""
    model = create_model('tf_efficientnet_lite0', 3, rngs=nnx.Rngs(0), **LITE)
    add_lora(model, AUTO, rank=4, rngs=nnx.Rngs(1))
    draw = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        variable.set_value(variable[...] + jnp.asarray(
            0.1 * draw.standard_normal(variable.shape), jnp.float32))
    return model


@pytest.mark.slow
def test_a_whole_network_merges_and_its_arrays_merge_alike(lite):
    x = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    infer = quick(lambda model, x: eval_view(model)(x))
    logits, scale = infer(lite, x), jnp.abs(infer(lite, x)).max()
    stored = {'/'.join(map(str, path)): np.asarray(variable[...])
              for path, variable in nnx.to_flat_state(nnx.state(lite))}
    adapters = lora_weights(lite)
    for_timm = to_timm(lite)
    plain = create_model('tf_efficientnet_lite0', 3, rngs=nnx.Rngs(5), **LITE)
    load_timm(plain, for_timm)
    assert jnp.abs(infer(plain, x) - logits).max() < 2e-5 * scale
    merged = merge_arrays(stored, alpha=16.0)
    for path, variable in nnx.to_flat_state(nnx.state(plain)):
        np.testing.assert_allclose(variable[...], merged['/'.join(map(str, path))], atol=1e-5)
    other = create_model('tf_efficientnet_lite0', 3, rngs=nnx.Rngs(0), **LITE)
    add_lora(other, AUTO, rank=4, rngs=nnx.Rngs(7))
    load_lora(other, adapters)
    assert np.array_equal(infer(other, x), logits)
