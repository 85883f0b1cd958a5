"""Images that are not square and have other than three channels, in every family."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model
from models.eva import rotary_table
from models.image_sizes import height_and_width, patch_grid
from models.pretrained import adapt_channels, load_timm, resample_positions, to_timm
from models.vit import sincos2d

SIZE = (96, 192)
TINY = dict(patch_size=8, embed_dim=16, depth=1, num_heads=2)
FAMILIES = {
    'small_cnn': dict(width=8, stages=2), 'cnn_basic': dict(img_size=SIZE, widths=(4, 8)),
    'resnet18': dict(layers=(1, 1), channels=(8, 16)),
    'densenet121': dict(block_config=(1, 1), growth_rate=4),
    'resnet_inception': dict(width=8, depth=1), 'inception_resnet_v2': dict(depth=(1, 1, 1)),
    'vit_tiny_patch16_224': dict(TINY, img_size=SIZE),
    'eva02_tiny_patch14_224': dict(TINY, img_size=SIZE),
    'vit_tiny_patch16_dinov3_qkvb': dict(TINY, img_size=SIZE),
    'beit_base_patch16_224': dict(TINY, img_size=SIZE),
}


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_takes_grey_rectangles(name):
    def run(x):
        model = create_model(name, 3, rngs=nnx.Rngs(0), in_channels=1, **FAMILIES[name])
        with pytest.raises(ModelError, match='in_channels'):
            model.forward_features(jnp.zeros((2, *SIZE, 3)))
        if 'img_size' in FAMILIES[name]:
            with pytest.raises(ModelError, match=r'images \[B, 96, 192, 1\]'):
                model.forward_features(jnp.zeros((2, *SIZE[::-1], 1)))
        features = model.forward_features(x)
        return model.forward_head(features), model.maps(features)

    logits, maps = nnx.eval_shape(run, jax.ShapeDtypeStruct((2, *SIZE, 1), jnp.float32))
    assert logits.shape == (2, 3)
    rows, columns = maps.shape[1:3]
    assert columns == 2 * rows or (name == 'inception_resnet_v2' and columns > rows)  # unpadded


def test_a_size_is_a_side_or_a_pair():
    assert height_and_width(64) == (64, 64)
    assert height_and_width([96, 160]) == height_and_width((96, 160)) == (96, 160)
    assert patch_grid((96, 160), 16) == ((96, 160), (6, 10))
    for wrong in (0, True, 64.0, (64,), (64, 64, 3), (64, 0), 'ab', None):
        with pytest.raises(ModelError, match='img_size='):
            height_and_width(wrong)
    with pytest.raises(ModelError, match='multiples of patch_size=16'):
        patch_grid((96, 100), 16)


def test_positions_are_those_of_rows_and_columns():
    """2 x 8, 8 x 2 and 4 x 4 patches are as many, and lie elsewhere."""
    for table in (lambda grid: sincos2d(grid, 8), lambda grid: rotary_table(grid, 8)[0]):
        tables = [table(grid) for grid in ((2, 8), (8, 2), (4, 4))]
        assert len({one.shape for one in tables}) == 1
        assert all((a != b).any() for a, b in itertools.combinations(tables, 2))
    rows, columns = np.mgrid[:2, :8].reshape(2, -1)
    found = sincos2d((2, 8), 8)
    np.testing.assert_allclose(found[:, 0], np.sin(columns), atol=1e-6)
    np.testing.assert_allclose(found[:, 4], np.sin(rows), atol=1e-6)
    # RoPE scales each axis to 16 positions, as timm does by ref_feat_shape.
    sine = rotary_table((2, 8), 8)[0]
    np.testing.assert_allclose(sine[:, 0], np.sin(rows / 2 * 16), atol=1e-5)
    np.testing.assert_allclose(sine[:, 4], np.sin(columns / 8 * 16), atol=1e-5)


def vit(grid):
    size = (grid[0] * 8, grid[1] * 8)
    return create_model('vit_tiny_patch16_224', 3, rngs=nnx.Rngs(0), img_size=size, **TINY)


def table_of(grid):
    """Positions that say where they lie: the first channel the height, the second the width."""
    rows, columns = np.mgrid[:grid[0], :grid[1]].reshape(2, -1)
    table = np.zeros((1, 1 + len(rows), 16), np.float32)
    table[0, 1:, 0] = (rows + 0.5) / grid[0]
    table[0, 1:, 1] = (columns + 0.5) / grid[1]
    table[0, 0] = 7
    return table


@pytest.mark.parametrize('source', [(4, 4), (8, 2), (3, 5)])
@pytest.mark.parametrize('grid', [(4, 4), (2, 8), (5, 3)])
def test_tables_are_resampled_by_the_grid_and_not_by_the_count(source, grid):
    found = resample_positions(table_of(source), 1, grid, source)
    want = table_of(grid)
    np.testing.assert_array_equal(found[:, 0], want[:, 0])
    assert np.abs(found - want).max() < 0.15  # at the border the filter is cut off
    if source == grid:
        np.testing.assert_array_equal(found, want)
    if source == (4, 4):
        np.testing.assert_array_equal(found, resample_positions(table_of(source), 1, grid))


def test_published_weights_come_from_a_square():
    """As many positions as ours are not those of our grid."""
    model = vit((2, 8))
    weights = to_timm(model) | {'pos_embed': table_of((4, 4))}
    assert load_timm(model, weights) == ['pos_embed resampled from 4 x 4 to 2 x 8']
    found = to_timm(model)['pos_embed']
    assert np.abs(found - table_of((2, 8))).max() < 0.15
    assert load_timm(model, weights, grid=(2, 8)) == []
    np.testing.assert_array_equal(to_timm(model)['pos_embed'], weights['pos_embed'])
    assert load_timm(vit((4, 4)), weights) == []


def test_a_table_of_unknown_grid_is_refused():
    model = vit((3, 5))
    weights = to_timm(model)
    with pytest.raises(ModelError, match=r'15 patches are not a square: load_timm takes the grid'):
        load_timm(model, weights)
    with pytest.raises(ModelError, match=r'are not those of grid=\(4, 4\)'):
        load_timm(model, weights, grid=(4, 4))
    assert load_timm(model, weights, grid=(3, 5)) == []
    assert load_timm(model, weights, grid=(5, 3)) == ['pos_embed resampled from 5 x 3 to 3 x 5']


@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224'])
def test_a_stem_for_colours_sees_grey_as_three_equal_channels(name):
    kwargs = TINY | dict(img_size=(16, 24)) if name.startswith('vit') else dict(
        layers=(1,), channels=(8,))
    colour, grey = (create_model(name, 3, rngs=nnx.Rngs(seed), in_channels=channels, **kwargs)
                    for seed, channels in ((1, 3), (2, 1)))
    grid = (2, 3) if name.startswith('vit') else None
    notes = load_timm(grey, to_timm(colour), grid=grid)
    assert notes == [f'{grey.timm_stem}.weight adapted from 3 to 1 channels']
    x = jax.random.normal(jax.random.key(0), (2, 16, 24, 1))
    np.testing.assert_allclose(grey.forward_features(x),
                               colour.forward_features(jnp.repeat(x, 3, 3)), rtol=1e-4, atol=1e-4)
    assert math.isclose(adapt_channels(np.ones((1, 3, 1, 1), np.float32), 4).sum(), 3)
