"""BEiT: the bias by offset, its tables at other sizes. Parity with timm is in test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_reference
from flax import nnx

from models import ModelError, create_model, eval_view
from models.attention import attend, attention_weights
from models.pretrained import load_timm, timm_targets, to_timm, to_torch
from models.relative_positions import relative_bias, resize_table, table_entries

TINY = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4)
infer = jax.jit(lambda model, x: eval_view(model)(x))


def tiny(num_classes=5, name='beit_base_patch16_224', **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(0), **{**TINY, **kwargs})


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def expected_bias(table, grid):
    """The definition, pair by pair: [heads, entries] -> [heads, N, N]."""
    rows, columns = grid
    places = [(r, c) for r in range(rows) for c in range(columns)]
    bias = np.zeros((len(table), len(places) + 1, len(places) + 1), table.dtype)
    bias[:, 0, 1:], bias[:, 1:, 0] = table[:, -3, None], table[:, -2, None]
    bias[:, 0, 0] = table[:, -1]
    for i, (r, c) in enumerate(places):
        for j, (to_r, to_c) in enumerate(places):
            entry = (r - to_r + rows - 1) * (2 * columns - 1) + c - to_c + columns - 1
            bias[:, i + 1, j + 1] = table[:, entry]
    return bias


@pytest.mark.parametrize('grid', [(3, 4), (1, 5)])
def test_each_pair_of_tokens_has_the_bias_of_its_offset(grid):
    @jax.jit
    def both(table, mix):
        bias, pull = jax.vjp(lambda table: relative_bias(table, grid), table)
        return bias, pull(mix)[0]

    table, tokens = values(2, table_entries(grid)), 1 + grid[0] * grid[1]
    mix = values(2, tokens, tokens, seed=1)
    bias, pulled = both(table, mix)
    np.testing.assert_array_equal(bias, expected_bias(table, grid))
    gradient = np.zeros_like(table)
    index = expected_bias(np.arange(table.shape[1])[None], grid)[0]
    for head in range(2):
        np.add.at(gradient[head], index, mix[head])
    np.testing.assert_allclose(pulled, gradient, atol=1e-4)


def test_the_program_does_not_hold_the_index():
    program = jax.jit(lambda table: relative_bias(table, (32, 32))).lower(
        jnp.zeros((16, table_entries((32, 32))))).as_text()
    assert len(program) < 20_000


def test_tables_are_resized_as_in_timm():
    stored = np.load(timm_reference.FOLDER / 'relative_position_resize.npz', allow_pickle=False)
    source = stored['source']
    for key in stored.files:
        if key != 'source':
            grid = tuple(map(int, key.split('-')[1].split('x')))
            found = resize_table(source.T, grid, (5, 5)).T
            assert found.shape == stored[key].shape
            assert np.abs(found - stored[key]).max() <= 1e-5, key
            assert np.array_equal(found[-3:], source[-3:])
            stacked = resize_table(np.stack([source.T] * 2), grid, (5, 5))
            assert np.array_equal(stacked[1].T, found)


def weights_of(grid):
    model = nnx.eval_shape(lambda: tiny(img_size=tuple(16 * side for side in grid)))
    return {key: values(*to_torch(target.variable.shape), seed=i)
            for i, target in enumerate(timm_targets(model)) for key in target.keys}


@pytest.mark.parametrize('scan', [False, True])
def test_published_weights_fit_other_sizes(scan):
    weights = weights_of((4, 4))
    model = nnx.eval_shape(lambda: tiny(img_size=(48, 128), scan=scan))
    extra = {'blocks.0.attn.relative_position_index': np.zeros((17, 17), np.int64)}  # older files
    assert load_timm(model, weights | extra) == [
        'relative_position_bias_table resampled from 4 x 4 to 3 x 8']  # of all blocks, once
    loaded = to_timm(model)
    assert set(loaded) == set(weights)
    for key, value in weights.items():
        if key.endswith('relative_position_bias_table'):
            value = resize_table(value.T, (3, 8), (4, 4)).T
        np.testing.assert_array_equal(loaded[key], value)


def test_the_grid_of_a_table_is_a_square_or_given():
    weights = weights_of((2, 4))
    model = nnx.eval_shape(lambda: tiny(img_size=(32, 64)))
    with pytest.raises(ModelError, match=r'24 entries are not those of a square of patches'):
        load_timm(model, weights)
    with pytest.raises(ModelError, match=r'24 entries are not those of grid=\(3, 3\)'):
        load_timm(model, weights, grid=(3, 3))
    assert load_timm(model, weights, grid=(2, 4)) == []
    for key, value in to_timm(model).items():
        np.testing.assert_array_equal(value, weights[key])


@pytest.mark.parametrize('settings', [dict(tokens=5), dict(tokens=0)])
def test_attention_adds_the_bias_before_the_softmax(settings):
    query, key, value = values(3, 2, 8, 3, 4)
    bias, tokens = values(3, 8, 8, seed=1), settings['tokens'] or 8
    scores = np.einsum('bqhd,bkhd->bhqk', query, key) / 2 + bias
    weights = np.exp(scores[..., :tokens])
    weights /= weights.sum(-1, keepdims=True)
    found = jax.jit(lambda *arrays: attend(*arrays[:3], bias=arrays[3], **settings))(
        query, key, value, bias)
    np.testing.assert_allclose(
        found, np.einsum('bhqk,bkhd->bqhd', weights, value[:, :tokens]), atol=1e-5)
    found = jax.jit(attention_weights, static_argnums=2)(query, key, tokens, bias)
    np.testing.assert_allclose(found[..., :tokens], weights, atol=1e-5)


def test_cudnn_by_name_is_refused():
    with pytest.raises(ModelError, match=r"takes no bias of the scores.*use attn_impl='auto'"):
        tiny(attn_impl='cudnn')
    arrays = [jnp.zeros((1, 8, 1, 8), jnp.bfloat16)] * 3
    with pytest.raises(ModelError, match=r"takes no bias of the scores.*use attn_impl='auto'"):
        attend(*arrays, impl='cudnn', bias=jnp.zeros((1, 8, 8)))
    with pytest.raises(ModelError, match='attn_impl'):
        attend(*arrays, impl='auro', bias=jnp.zeros((1, 8, 8)))


def test_names_of_the_parameters_and_first_values():
    model = tiny(embed_dim=64)
    block = {key.removeprefix('blocks.1.'): value for key, value in to_timm(model).items()
             if key.startswith('blocks.1.')}
    assert set(block) == {
        'norm1.weight', 'norm1.bias', 'attn.qkv.weight', 'attn.q_bias', 'attn.v_bias',
        'attn.relative_position_bias_table', 'attn.proj.weight', 'attn.proj.bias', 'gamma_1',
        'norm2.weight', 'norm2.bias', 'mlp.fc1.weight', 'mlp.fc1.bias', 'mlp.fc2.weight',
        'mlp.fc2.bias', 'gamma_2'}
    assert block['attn.relative_position_bias_table'].shape == (12, 4)  # as timm has it
    assert not block['attn.relative_position_bias_table'].any()
    assert (block['gamma_1'] == np.float32(0.1)).all()
    for last in ('attn.proj.weight', 'mlp.fc2.weight'):  # deeper branches start smaller
        assert np.std(block[last]) == pytest.approx(0.02 / 2, rel=0.1)
    for nothing in (None, 0):
        plain = nnx.eval_shape(lambda nothing=nothing: tiny(init_values=nothing))
        assert not hasattr(plain.blocks[0], 'gamma_1')


def test_bfloat16_computes_in_half_and_keeps_parameters_in_float32():
    model, x = nnx.eval_shape(lambda: tiny(dtype='bfloat16')), values(4, 32, 32, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype('float32')}
    assert jax.eval_shape(lambda m, x: m.forward_features(x), model, x).dtype == jnp.bfloat16


@pytest.mark.slow  # two compilations
def test_bfloat16_is_close():
    x = values(4, 32, 32, 3)
    half, whole = (np.asarray(infer(tiny(dtype=dtype, depth=1), x))
                   for dtype in ('bfloat16', 'float32'))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - whole).max() < 0.05 * np.std(whole)


@pytest.mark.parametrize('what', ['pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path'])
def test_every_dropout_acts_in_training_only(what):
    model = nnx.eval_shape(lambda: tiny(**{what: 0.25}))
    x = values(2, 32, 32, 3)
    with pytest.raises(ModelError, match=r'rate 0\.25'):
        jax.eval_shape(lambda m, x: m(x), model, x)
    assert jax.eval_shape(lambda m, x: eval_view(m)(x), model, x).shape == (2, 5)
