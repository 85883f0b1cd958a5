"""Attention: the softmax, padding of odd sequences, and which form a platform gets."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

from models import ModelError, attention, create_model, eval_view, list_models, model_settings
from models.attention import Attention, attend, cudnn_attention, xla_attention
from models.target import Target

infer = jax.jit(lambda model, x: eval_view(model)(x))
FORWARD, BACKWARD = '__cudnn$fmhaSoftmax', '__cudnn$fmhaSoftmaxBackward'


def plain_attention(q, k, v):
    q, k, v = (np.asarray(a, np.float64).transpose(0, 2, 1, 3) for a in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def test_attention_equals_a_plain_softmax():
    q, k, v = (3 * jax.random.normal(jax.random.key(i), (2, 7, 3, 8)) for i in range(3))
    with jax.default_matmul_precision('highest'):
        assert np.allclose(jax.jit(attend)(q, k, v), plain_attention(q, k, v), atol=1e-5)


def test_the_written_out_softmax_of_attention_dropout_equals_the_fused_one():
    layer = Attention(16, 4, attn_drop=1e-9, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 9, 16))
    with jax.default_matmul_precision('highest'):
        with_drop = jax.jit(lambda layer, x: layer(x, nnx.Rngs(dropout=0)))(layer, x)
        without = infer(layer, x)
    assert np.allclose(with_drop, without, atol=1e-6)


def test_attention_mixes_tokens_within_a_head_only():
    layer = Attention(16, 4, rngs=nnx.Rngs(0))
    layer.proj.kernel[...] = jnp.eye(16)
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    kernel = layer.qkv.kernel[...]
    before = infer(layer, x)
    # Head 2 reads columns 8 to 11 of each of q, k and v.
    layer.qkv.kernel[...] = kernel.at[:, jnp.array([8, 24, 40])].add(1.0)
    changed = np.abs(np.asarray(infer(layer, x) - before)).max((0, 1)) > 1e-6
    assert set(np.flatnonzero(changed)) == {8, 9, 10, 11}


@pytest.mark.parametrize('tokens', [1, 2, 7, 8, 197])
def test_a_padded_sequence_has_the_values_and_gradients_of_the_unpadded_one(tokens):
    keys = jax.random.split(jax.random.key(0), 4)
    *arrays, weights = (jax.random.normal(key, (2, tokens, 3, 8)) for key in keys)

    def both(attention, **settings):
        def loss(*arrays):
            y = attention(*arrays, **settings)
            return (y * weights).sum(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)

    with jax.default_matmul_precision('highest'):
        (_, padded), gradients = both(cudnn_attention, implementation='xla')
        (_, plain), expected = both(xla_attention)
    assert padded.shape == (2, tokens, 3, 8)
    assert np.allclose(padded, plain, atol=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert np.abs(theirs).max() > 0.1 or tokens == 1
        assert np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize('tokens, padded', [(7, True), (8, False)])
def test_only_odd_sequences_are_padded(tokens, padded):
    x = jnp.zeros((2, tokens, 3, 8))
    program = jax.make_jaxpr(lambda x: cudnn_attention(x, x, x, implementation='xla'))(x)
    assert any(eqn.outvars[0].aval.shape == (2, tokens + 1, 3, 8)
               for eqn in program.eqns) == padded


@pytest.fixture
def no_cudnn(monkeypatch):
    """There is the plugin for CUDA, and JAX finds no cuDNN."""
    def fail():
        raise RuntimeError('cuDNN is not detected.')

    monkeypatch.setattr(jax_cudnn, 'check_cudnn_version', fail)
    attention._jax_refusal.cache_clear()
    yield
    attention._jax_refusal.cache_clear()


def calls(function, *arguments, platform='cuda'):
    """Names of cuDNN's calls in a function's program for a platform, which may be absent."""
    new = lambda *arguments: function(*arguments)  # JAX caches the traces of known functions
    lowered = jax.jit(new).trace(*arguments).lower(lowering_platforms=(platform,))
    return set(re.findall(r'__cudnn\$\w+', lowered.as_text()))


def training_and_inference(name, **settings):
    """(function for the gradients of a model's parameters, for its logits, their arguments)"""
    model = nnx.eval_shape(lambda: create_model(name, 10, rngs=nnx.Rngs(0), **settings))
    graphdef, params = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, *model.img_size, 3), jnp.float32)

    def loss(params, images):
        model = nnx.merge(graphdef, params)
        return jax.nn.log_softmax(model(images, rngs=nnx.Rngs(0)))[:, 0].sum()

    def logits(params, images):
        return eval_view(nnx.merge(graphdef, params))(images)

    return jax.grad(loss), logits, (params, images)


MODELS = {  # name: (tokens, channels per head), as in the full model
    'vit_base_patch16_224': (197, 64),
    'eva02_large_patch14_224': (257, 64),
    'eva02_large_patch14_448': (1025, 64),
    'eva_giant_patch14_224': (257, 88),
}


@pytest.mark.parametrize('impl', ['auto', 'cudnn'])
@pytest.mark.parametrize('name', MODELS)
def test_models_with_an_odd_number_of_tokens_train_with_cudnn(name, impl, monkeypatch):
    seen = set()

    def spy(query, *others, **settings):
        seen.add((query.shape[1], query.shape[-1]))
        return attend(query, *others, **settings)

    for module in ('attention', 'eva'):
        monkeypatch.setattr(f'models.{module}.attend', spy)
    train, logits, arguments = training_and_inference(
        name, depth=1, dtype='bfloat16', attn_impl=impl)
    # Without `Bias` in the names: no mask [N, N] is stored.
    assert calls(train, *arguments) == {FORWARD, BACKWARD}
    assert calls(logits, *arguments) == {FORWARD}
    assert seen == {MODELS[name]}


EVEN = {  # (name, settings): tokens
    ('vit_base_patch16_224', (('class_token', False), ('global_pool', 'avg'))): 196,
    ('vit_base_patch16_224', (('img_size', 240),)): 226,
    ('eva02_tiny_patch14_224', (('img_size', 210),)): 226,
    ('eva02_large_patch14_224', (('img_size', 210),)): 226,
    ('eva_giant_patch14_224', (('img_size', 210),)): 226,
}


@pytest.mark.parametrize('name, settings', EVEN)
def test_models_with_an_even_number_of_tokens_train_with_cudnn(name, settings):
    train, logits, arguments = training_and_inference(
        name, depth=1, dtype='bfloat16', **dict(settings))
    assert calls(train, *arguments) == {FORWARD, BACKWARD}
    assert calls(logits, *arguments) == {FORWARD}
    inside = str(jax.make_jaxpr(logits)(*arguments))
    assert f'[2,{EVEN[name, settings]},' in inside
    assert f'[2,{EVEN[name, settings] + 1},' not in inside  # nothing is padded


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('tokens', [196, 197])
def test_cudnn_takes_every_model_with_attention_on_all_gpus_since_ampere(tokens, dtype):
    seen = set()
    for name in list_models():
        settings = model_settings(name)
        if 'attn_impl' in settings:
            heads, dim = settings['num_heads'], settings['embed_dim'] // settings['num_heads']
            for capability in ('8.0', '8.9', '9.0', '10.0', '10.3', '12.0'):
                query = jax.ShapeDtypeStruct((2, tokens, heads, dim), dtype)
                assert attention.cudnn_refusal(query, Target('cuda', capability)) == '', name
            seen.add((settings['attn_impl'], dim))
    assert seen == {('auto', 64), ('auto', 80), ('auto', 88), ('auto', 128)}


def test_dropout_of_the_attention_weights_writes_them_out_in_training_only():
    train, logits, arguments = training_and_inference(
        'vit_tiny_patch16_224', depth=1, dtype='bfloat16', attn_drop_rate=0.1)
    assert not calls(train, *arguments)
    assert calls(logits, *arguments) == {FORWARD}


@pytest.mark.parametrize('heads', [16, 1])  # of 12 channels, and of 192
def test_heads_that_cudnn_does_not_take_train_with_xla(heads):
    train, logits, arguments = training_and_inference(
        'vit_tiny_patch16_224', depth=1, dtype='bfloat16', num_heads=heads)
    assert not calls(train, *arguments) and not calls(logits, *arguments)


@pytest.mark.parametrize('settings', [dict(scan=True), dict(remat=True),
                                      dict(scan=True, remat=True)])
def test_cudnn_serves_stacked_and_recomputed_blocks(settings):
    train, _, arguments = training_and_inference(
        'vit_tiny_patch16_224', depth=2, dtype='float16', **settings)
    assert calls(train, *arguments) == {FORWARD, BACKWARD}


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_other_platforms_get_the_attention_of_xla(platform):
    train, logits, arguments = training_and_inference(
        'vit_tiny_patch16_224', depth=1, dtype='bfloat16')
    assert not calls(train, *arguments, platform=platform)
    assert not calls(logits, *arguments, platform=platform)


def test_the_choice_of_a_platform_changes_no_bit_on_a_cpu():
    arrays = [jax.random.normal(jax.random.key(i), (2, 7, 3, 8), jnp.bfloat16) for i in range(3)]
    gradients = [jax.jit(jax.grad(lambda *arrays, impl=impl: attend(
        *arrays, impl=impl).astype(jnp.float32).std(), argnums=(0, 1, 2)))(*arrays)
        for impl in ('auto', 'xla')]
    for ours, theirs in zip(*gradients, strict=True):
        assert np.array_equal(ours, theirs)


def arrays(dim=64, dtype='bfloat16'):
    return [jnp.zeros((2, 5, 3, dim), dtype)] * 3


@pytest.mark.parametrize('settings, words', [
    (dict(dtype='float32'), 'float32'),
    (dict(dim=20), 'multiple of 8'),
    (dict(dim=264), 'got 264'),
])
def test_what_cudnn_does_not_take_goes_to_xla_or_is_refused(settings, words):
    assert not calls(attend, *arrays(**settings))
    with pytest.raises(ModelError, match=f"attn_impl='cudnn' cannot work here .*{words}.*'auto'"):
        attend(*arrays(**settings), impl='cudnn')


def test_without_cudnn_attention_is_xla_s_and_cudnn_by_name_is_refused(no_cudnn):
    assert not calls(attend, *arrays())
    with pytest.raises(ModelError, match=r"attn_impl='cudnn'.*cuDNN is not detected"):
        attend(*arrays(), impl='cudnn')




@pytest.mark.parametrize('capability, named', [('7.0', False), ('7.5', False), ('8.0', True)])
def test_gpus_before_ampere_are_asked_for_no_product_of_bfloat16(capability, named):
    target = Target('cuda', capability)

    def loss(*arrays):
        return attend(*arrays, impl='xla', target=target).astype('float32').sum()

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = grad.trace(*arrays()).lower(lowering_platforms=('cuda',)).as_text()
    assert ('algorithm = <' in text) == named


def test_attention_before_ampere_has_the_values_and_gradients_of_the_other_form():
    q, k, v = (jax.random.normal(key, (2, 17, 3, 8), jnp.bfloat16)
               for key in jax.random.split(jax.random.key(0), 3))
    mix = jax.random.normal(jax.random.key(1), q.shape)
    both = [jax.value_and_grad(lambda *arrays, target=target: (
        mix * attend(*arrays, impl='xla', target=target)).sum(), argnums=(0, 1, 2))(q, k, v)
        for target in (Target('cuda', '7.5'), Target('cpu'))]
    for old, new in zip(*map(jax.tree.leaves, both)):
        assert old.dtype == new.dtype
        np.testing.assert_allclose(np.float32(old), np.float32(new), atol=0.05, rtol=0.02)
