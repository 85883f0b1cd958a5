"""Tokens that are padded to a multiple within the blocks change nothing but the rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view
from models.attention import attend, xla_attention

FAMILIES = {
    'vit': ('vit_tiny_patch16_224', dict()),
    'vit without class token': ('vit_tiny_patch16_224', dict(
        class_token=False, global_pool='avg')),
    'eva02': ('eva02_tiny_patch14_224', dict(patch_size=16)),
    'eva giant': ('eva_giant_patch14_224', dict(patch_size=16, mlp_ratio=2.0)),
    'dinov3': ('vit_tiny_patch16_dinov3_qkvb', dict(init_values=0.5)),
    'beit': ('beit_base_patch16_224', dict(init_values=0.5)),
}


def both(family, size, multiple, **settings):
    """(logits, gradients) of a small model with that `token_multiple`."""
    name, own = FAMILIES[family]
    model = create_model(name, 5, rngs=nnx.Rngs(0), img_size=size, token_multiple=multiple,
                         **dict(embed_dim=48, num_heads=3, depth=2) | own | settings)
    graphdef, params = nnx.split(model)
    images = jax.random.normal(jax.random.key(1), (2, *model.img_size, 3))

    def loss(params):
        logits = nnx.merge(graphdef, params)(images, rngs=nnx.Rngs(dropout=0))
        return jax.nn.log_softmax(logits)[:, 0].sum(), logits

    with jax.default_matmul_precision('highest'):
        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, gradients


@pytest.mark.parametrize('family, settings', [
    *((family, dict(depth=1)) for family in FAMILIES), ('eva02', dict(scan=True, remat=True)),
    pytest.param('dinov3', dict(scan=True, remat=True), marks=pytest.mark.slow),
    pytest.param('beit', dict(scan=True, remat=True), marks=pytest.mark.slow)])
def test_values_and_gradients_stay_those_of_the_tokens(family, settings):
    plain, expected = both(family, (48, 80), 1, **settings)  # 15 or 16 tokens
    padded, found = both(family, (48, 80), 11, **settings)   # 22
    assert np.allclose(plain, padded, atol=1e-5)
    largest = 0.0
    for theirs, ours in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        largest = max(largest, float(np.abs(theirs).max()))
    assert largest > 0.1


@pytest.mark.parametrize('tokens, padded', [(197, 200), (256, 256), (257, 264), (1025, 1032)])
@pytest.mark.parametrize('dim, dtype, close', [(88, 'float32', 2e-5), (64, 'bfloat16', 2e-2)])
def test_attention_with_padding(tokens, padded, dim, dtype, close):
    keys = jax.random.split(jax.random.key(0), 4)
    *arrays, weights = (jax.random.normal(key, (1, tokens, 1, dim), dtype) for key in keys)

    def with_padding(*arrays):
        more = [(0, 0), (0, padded - tokens), (0, 0), (0, 0)]
        # What lies in the padding must not matter.
        arrays = [jnp.pad(x, more, constant_values=7) for x in arrays]
        return attend(*arrays, tokens=tokens)[:, :tokens]

    def loss(attention, *arrays):
        return (attention(*arrays) * weights).sum().astype(jnp.float32)

    with jax.default_matmul_precision('highest'):
        assert np.allclose(with_padding(*arrays), xla_attention(*arrays), atol=close)
        ours, theirs = (jax.jit(jax.grad(lambda *a, f=f: loss(f, *a), argnums=(0, 1, 2)))(*arrays)
                        for f in (with_padding, xla_attention))
    for a, b in zip(ours, theirs, strict=True):
        assert np.allclose(np.float32(a), np.float32(b), rtol=close, atol=close)
        assert np.abs(np.float32(b)).max() > 0.05


@pytest.mark.slow
def test_attention_dropout_and_heat_maps_see_no_padding():
    settings = dict(attn_drop_rate=1e-9, depth=1)
    plain, _ = both('vit', (48, 80), 1, **settings)
    padded, _ = both('vit', (48, 80), 11, **settings)
    assert np.allclose(plain, padded, atol=1e-5)
    model = create_model('eva02_tiny_patch14_224', 5, rngs=nnx.Rngs(0), img_size=28, depth=1,
                         embed_dim=48, num_heads=3, token_multiple=8)
    assert [x.shape for x in eval_view(model).attention(jnp.ones((1, 28, 28, 3)))] == (
        [(1, 3, 5, 5)])


def test_the_blocks_compute_on_the_multiple():
    model = nnx.eval_shape(lambda: create_model(
        'eva_giant_patch14_224', 5, rngs=nnx.Rngs(0), depth=1, token_multiple=8))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    program = str(jax.make_jaxpr(lambda model, x: model(x))(model, images))
    assert 'f32[1,264,1408]' in program and 'f32[264,6144]' in program
    assert model.num_features == 1408


@pytest.mark.parametrize('value', [0, 129, 1.5, True, '8'])
def test_a_wrong_multiple_is_refused(value):
    with pytest.raises(ModelError, match=r'token_multiple=.*8 suits TPUs'):
        create_model('vit_tiny_patch16_224', 5, rngs=nnx.Rngs(0), depth=1, token_multiple=value)


def test_cudnn_by_name_is_refused():
    with pytest.raises(ModelError, match="takes no padded tokens: leave out token_multiple"):
        attend(*[jnp.zeros((1, 8, 1, 8), jnp.bfloat16)] * 3, impl='cudnn', tokens=5)
