"""EVA and EVA-02: rotations, options, other resolutions. Parity with timm is in test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view, model_settings
from models.eva import rotary_table, rotate
from models.pretrained import load_timm, resample_positions, to_timm

TINY = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4)
infer = jax.jit(lambda model, x: eval_view(model)(x))
rotated = jax.jit(rotate)


def tiny(name='eva02_base_patch14_224', num_classes=5, **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(0), **{**TINY, **kwargs})


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


grids = pytest.mark.parametrize('grid', [(4, 4), (3, 5), (1, 7)])


@grids
def test_rotations_keep_norms_and_do_not_change_the_class_token(grid):
    x = images(2, 1 + grid[0] * grid[1], 3, 8)
    y = np.asarray(rotated(x, rotary_table(grid, 8)))
    assert np.array_equal(y[:, 0], x[:, 0])
    assert np.array_equal(y[:, 1], x[:, 1])  # the corner is the origin
    assert np.allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    assert np.abs(y[:, 2:] - x[:, 2:]).max(-1).min() > 1e-3


@grids
def test_products_of_query_and_key_depend_only_on_their_offset(grid):
    table = rotary_table(grid, 8)
    query, key = images(2, 1, 1, 1, 8)
    query, key = (np.asarray(rotated(np.broadcast_to(z, (1, table.shape[1], 1, 8)), table))[0, :, 0]
                  for z in (query, key))
    products = np.asarray(query @ key.T, np.float64)
    place = np.stack(np.unravel_index(np.arange(len(query)), grid), -1)
    offsets = {}
    for i, j in np.ndindex(products.shape):
        offsets.setdefault(tuple(place[i] - place[j]), []).append(products[i, j])
    assert max(np.ptp(values) for values in offsets.values()) < 1e-4
    assert len({round(values[0], 5) for values in offsets.values()}) == len(offsets)


def test_positions_are_scaled_to_the_grid_of_pretraining():
    coarse = rotary_table((8, 8), 16).reshape(2, 8, 8, 16)
    fine = rotary_table((16, 16), 16).reshape(2, 16, 16, 16)
    assert np.allclose(coarse, fine[:, ::2, ::2], atol=1e-6)
    # The first half rotates with the row; on a grid of 16 the first pair by 1 radian per row.
    assert np.allclose(fine[0, 3, :, :2], np.sin(3), atol=1e-6)
    assert np.allclose(fine[1, :, 5, 8:10], np.cos(5), atol=1e-6)


def test_rotated_attention_depends_on_positions_without_position_embeddings():
    x = images(2, 32, 32, 3)
    swapped = np.concatenate([x[:, 16:], x[:, :16]], 1)
    for rotates in (True, False):
        model = tiny(use_rot_pos_emb=rotates, depth=1)
        model.pos_embed[...] = jnp.asarray(np.zeros((1, 5, 32), np.float32))
        for block in model.blocks:  # larger scores, so that attention is not almost uniform
            for layer in (block.attn.q_proj, block.attn.k_proj):
                layer.kernel[...] = jnp.asarray(20 * np.asarray(layer.kernel[...]))
        logits = np.asarray(infer(model, np.concatenate([x, swapped])))
        change = np.abs(logits[:2] - logits[2:]).max()
        assert change > 1e-4 if rotates else change < 1e-5


@pytest.mark.parametrize('kwargs', [
    dict(name='eva02_tiny_patch14_224'),  # packed SwiGLU, fused projections
    dict(name='eva_giant_patch14_224', img_size=(32, 48), in_channels=1),  # GELU, no rotations
])
def test_the_other_variants_return_finite_logits(kwargs):
    model = tiny(**kwargs)
    logits = infer(model, images(2, *model.img_size, model.in_channels))
    assert logits.shape == (2, 5)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 0


def test_only_queries_and_values_have_biases_and_only_large_models_have_an_inner_norm():
    def names(name):
        model = nnx.eval_shape(lambda: tiny(name, 0))
        return {'.'.join(map(str, path)).removeprefix('blocks.0.')
                for path, _ in nnx.to_flat_state(nnx.state(model)) if path[:2] == ('blocks', 0)}

    base, small, giant = map(names, ('eva02_base_patch14_448', 'eva02_small_patch14_224',
                                     'eva_giant_patch14_336'))
    assert {'attn.q_proj.bias', 'attn.v_proj.bias', 'mlp.norm.scale'} <= base
    assert 'attn.k_proj.bias' not in base
    assert {'attn.q_bias', 'attn.v_bias', 'mlp.fc1.kernel'} <= small & giant
    assert not {'attn.qkv.bias', 'mlp.norm.scale'} & (small | giant)


def test_deeper_residual_branches_start_smaller():
    for name, first in (('eva02_base_patch14_224', 'fc1_g'), ('eva_giant_patch14_224', 'fc1')):
        for layer, block in enumerate(tiny(name, 0, embed_dim=64, depth=3).blocks, 1):
            for last in (block.attn.proj, block.mlp.fc2):
                assert np.std(last.kernel[...]) == pytest.approx(0.02 * (2 * layer) ** -0.5, rel=.1)
            assert np.std(getattr(block.mlp, first).kernel[...]) == pytest.approx(0.02, rel=0.1)


def test_weights_for_224_pixels_fit_another_size():
    draw = np.random.default_rng(0)
    weights = {key: draw.standard_normal(value.shape).astype(np.float32)
               for key, value in to_timm(tiny(img_size=224, depth=1)).items()}
    for size, grid in ((448, (28, 28)), ((96, 160), (6, 10))):
        large = nnx.eval_shape(lambda size=size: tiny(img_size=size, depth=1))
        notes = load_timm(large, weights)
        assert notes == [f'pos_embed resampled from 14 x 14 to {grid[0]} x {grid[1]}']
        loaded = to_timm(large)
        expected = resample_positions(weights['pos_embed'], 1, grid)
        assert np.array_equal(loaded.pop('pos_embed'), expected)
        assert np.array_equal(expected[:, 0], weights['pos_embed'][:, 0])
        assert all(np.array_equal(value, weights[key]) for key, value in loaded.items())


def test_the_class_token_is_not_pooled():
    tokens = np.concatenate([images(2, 5, 32)] * 2)
    tokens[:2, 0] = 100
    pooled = np.asarray(jax.jit(lambda model, x: model.pool(x))(tiny(depth=1), tokens))
    assert np.array_equal(pooled[:2], pooled[2:])
    assert np.abs(pooled.mean(-1)).max() < 1e-5


def test_bfloat16_computes_in_half_and_keeps_parameters_in_float32():
    x = images(4, 32, 32, 3)
    for scan in (False, True):
        model = nnx.eval_shape(lambda scan=scan: tiny(dtype='bfloat16', scan=scan, depth=1))
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype('float32')}
        assert jax.eval_shape(lambda m, x: m.forward_features(x), model, x).dtype == jnp.bfloat16
    logits, exact = (np.asarray(infer(tiny(dtype=dtype, depth=1), x))
                     for dtype in ('bfloat16', 'float32'))
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.std(exact)


@pytest.mark.parametrize('what', ['pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path'])
def test_every_dropout_acts_in_training_only(what):
    model = nnx.eval_shape(lambda: tiny(**{what: 0.25}))
    x = images(2, 32, 32, 3)
    with pytest.raises(ModelError, match=r'rate 0\.25'):
        jax.eval_shape(lambda m, x: m(x), model, x)
    assert jax.eval_shape(lambda m, x: m(x, rngs=nnx.Rngs(dropout=0)), model, x).shape == (2, 5)
    assert jax.eval_shape(lambda m, x: eval_view(m)(x), model, x).shape == (2, 5)


def test_settings_of_the_large_model():
    settings = model_settings('eva02_large_patch14_448')
    assert [settings[key] for key in ('embed_dim', 'depth', 'num_heads', 'img_size')] == [
        1024, 24, 16, 448]


@pytest.mark.parametrize('kwargs, words', [
    (dict(mlp='swiglu_pack'), ["'swiglu_pack'", "'swiglu_packed'"]),
    (dict(img_size=40), ['img_size=40', 'patch_size=16']),
    (dict(num_heads=5, use_rot_pos_emb=False), ['embed_dim=32', 'num_heads=5']),
    (dict(embed_dim=24), ['embed_dim=24', 'num_heads=4', 'multiple of 4']),
    (dict(dtype='float8'), ["'float8'"]),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError) as error:
        nnx.eval_shape(lambda: tiny(**kwargs))
    for word in words:
        assert word in str(error.value)


def test_images_of_another_size_are_refused():
    model = nnx.eval_shape(tiny)
    with pytest.raises(ModelError, match=r'32, 32, 3\] and got \[2, 48, 32, 3\]'):
        jax.eval_shape(lambda m, x: m(x), model, images(2, 48, 32, 3))
