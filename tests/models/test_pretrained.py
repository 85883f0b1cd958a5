"""Weights under timm's keys: what fits, what is adapted, and one error for all that does not.

Parity with timm is in test_parity.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model
from models.pretrained import load_timm, timm_targets, to_timm, to_torch

TINY = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4)
SMALL = dict(layers=(1, 1), channels=(8, 16), zero_init_last=False)
CLASSES = 5


splits = {}


def abstract(name, num_classes, kwargs):
    """A new model with shapes in place of arrays, which loading fills in."""
    key = repr((name, num_classes, kwargs))
    if key not in splits:
        splits[key] = nnx.split(nnx.eval_shape(lambda: create_model(
            name, num_classes, rngs=nnx.Rngs(0), **kwargs)))
    return nnx.merge(*splits[key], copy=True)


def vit(num_classes=CLASSES, **kwargs):
    return abstract('vit_tiny_patch16_224', num_classes, {**TINY, **kwargs})


def resnet(num_classes=CLASSES, **kwargs):
    return abstract('resnet18', num_classes, {**SMALL, **kwargs})


def weights_for(model, seed=0):
    """A state_dict that fits the model."""
    draw = np.random.default_rng(seed)
    return {key: draw.standard_normal(to_torch(
                target.variable.shape[int(target.stacked):])).astype(np.float32)
            for target in timm_targets(model) for key in target.keys}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def message(model, weights, **kwargs):
    with pytest.raises(ModelError) as error:
        load_timm(model, weights, **kwargs)
    return str(error.value)


@pytest.mark.parametrize('build', [vit, resnet])
def test_a_model_without_a_head_loads_everything_else(build):
    whole = build()
    weights, bare = weights_for(whole), build(0)
    load_timm(bare, weights)
    found = to_timm(bare)
    assert found and all(np.array_equal(found[key], weights[key]) for key in found)
    assert not any(key.startswith(whole.timm_head + '.') for key in found)


@pytest.mark.parametrize('build', [vit, resnet])
def test_loading_and_exporting_changes_no_bit(build):
    model = build()
    weights = weights_for(model)
    counters = {'bn1.num_batches_tracked': np.zeros((), np.int64)}
    assert load_timm(model, weights | counters) == []
    assert same(to_timm(model), weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype('float32')}


def test_names_and_layouts_are_those_of_torch():
    model = resnet()
    weights = weights_for(model)
    load_timm(model, weights)
    conv, norm = model.layer2[0].downsample
    assert np.array_equal(conv.kernel[...].transpose(3, 2, 0, 1),
                          weights['layer2.0.downsample.0.weight'])
    for ours, theirs in (('scale', 'weight'), ('bias', 'bias'), ('mean', 'running_mean'),
                         ('var', 'running_var')):
        assert np.array_equal(getattr(norm, ours)[...], weights[f'layer2.0.downsample.1.{theirs}'])
    assert np.array_equal(model.head.kernel[...].T, weights['fc.weight'])


def test_half_precision_weights_become_float32():
    model = vit()
    weights = {key: value.astype(np.float16) for key, value in weights_for(model).items()}
    load_timm(model, weights)
    loaded = to_timm(model)
    assert all(value.dtype == np.float32 for value in loaded.values())
    assert same(loaded, weights)


def test_the_model_does_not_share_memory_with_the_given_arrays():
    def aligned(value):  # like arrays of a mapped file, which JAX can use without a copy
        memory = np.empty(value.size + 16, np.float32)
        start = -memory.ctypes.data % 64 // 4
        memory[start:start + value.size] = value.ravel()
        return memory[start:start + value.size].reshape(value.shape)

    model = vit()
    weights = {key: aligned(value) for key, value in weights_for(model).items()}
    load_timm(model, weights)
    before = {key: value.copy() for key, value in weights.items()}
    for value in weights.values():
        value[...] = 0
    assert same(to_timm(model), before)


def test_one_error_lists_missing_unexpected_and_misshaped_keys_and_nothing_is_loaded():
    model = vit()
    load_timm(model, weights_for(model))
    before, weights = to_timm(model), weights_for(model, seed=1)
    del weights['norm.bias']
    weights['blocks.0.mlp.fc1.weight'] = np.zeros((128, 31), np.float32)
    weights['fc_norm.weight'] = np.zeros(32, np.float32)
    text = message(model, weights)
    for words in ('the given dict', 'VisionTransformer', 'norm.bias is missing',
                  'blocks.0.mlp.fc1.weight is [128, 31] and should be [128, 32]',
                  'fc_norm.weight is unexpected', '3 in total'):
        assert words in text
    assert '\n' not in text
    assert same(to_timm(model), before)


def test_each_kind_of_problem_alone_is_an_error():
    weights = weights_for(vit())
    missing = {key: value for key, value in weights.items() if key != 'norm.bias'}
    for change, words in ((missing, 'norm.bias is missing'),
                          ({**weights, 'extra': np.zeros(1)}, 'extra is unexpected'),
                          ({**weights, 'norm.bias': np.zeros(31)}, 'is [31] and should be [32]')):
        assert f'{words} (1 in total)' in message(vit(), change)


def test_weights_of_another_model_give_examples_of_each_kind_of_problem():
    text = message(vit(depth=12), weights_for(resnet()) | {'cls_token': np.zeros((1, 1, 8))})
    assert 'blocks.0.attn.proj.bias is missing' in text
    assert 'cls_token is [1, 1, 8] and should be [1, 1, 32]' in text
    assert 'bn1.bias is unexpected' in text
    expected = len(weights_for(vit(depth=12))) + len(weights_for(resnet()))
    assert f'({expected} in total)' in text
    assert len(text) < 2000


def test_another_number_of_classes_is_an_error_that_names_both_keys():
    text = message(vit(), weights_for(vit(7)))
    assert 'head.weight is [7, 32] and should be [5, 32]' in text
    assert 'head.bias is [7] and should be [5]' in text
    assert 'head="reset"' in text
    assert 'fc.weight is [7, 16]' in message(resnet(), weights_for(resnet(7)))


@pytest.mark.parametrize('build, fc', [(vit, 'head'), (resnet, 'fc')])
@pytest.mark.parametrize('theirs', [0, 7, CLASSES])
def test_reset_keeps_the_head_and_loads_everything_else(build, fc, theirs):
    model = build()
    load_timm(model, weights_for(model))
    ours, weights = to_timm(model), weights_for(build(theirs), seed=1)
    load_timm(model, weights, head='reset')
    expected = weights | {key: ours[key] for key in (f'{fc}.weight', f'{fc}.bias')}
    assert same(to_timm(model), expected)


def test_reset_keeps_named_heads_and_branches_too():
    for kwargs in (dict(head='shallow'), dict(head='mlp'), dict(head_pool='separate')):
        for classes in (3, {'age': 3, 'mask': 2}):
            model = vit(classes, **kwargs)
            load_timm(model, weights_for(model))
            ours, weights = to_timm(model), weights_for(vit(7), seed=1)
            load_timm(model, weights, head='reset')
            loaded = to_timm(model)
            for key, value in loaded.items():
                of_head = key.partition('.')[0] in ('head', 'heads')
                assert np.array_equal(value, (ours if of_head else weights)[key]), key
    assert 'heads.age.weight is missing' in message(vit({'age': 3}), weights_for(vit(7)))


def test_resize_loads_the_first_classes():
    for theirs, fc, build in ((7, 'head', vit), (3, 'fc', resnet)):
        model = build()
        load_timm(model, weights_for(model))
        ours, weights = to_timm(model), weights_for(build(theirs), seed=1)
        notes = load_timm(model, weights, head='resize')
        rows = min(theirs, CLASSES)
        assert notes == [f'{fc}.{part}: the first {rows} of {theirs} classes'
                         for part in ('bias', 'weight')]
        loaded = to_timm(model)
        for part in ('weight', 'bias'):
            key = f'{fc}.{part}'
            assert np.array_equal(loaded[key],
                                  np.concatenate([weights[key][:rows], ours[key][rows:]]))
            assert len(loaded[key]) == CLASSES


@pytest.mark.parametrize('build, stem', [(vit, 'patch_embed.proj.weight'),
                                         (resnet, 'conv1.weight')])
@pytest.mark.parametrize('channels', [1, 2, 4, 7])
def test_a_stem_for_colours_is_adapted_to_another_number_of_channels(build, stem, channels):
    model, weights = build(in_channels=channels), weights_for(build())
    notes = load_timm(model, weights)
    assert notes == [f'{stem} adapted from 3 to {channels} channels']
    kernel = weights[stem]
    if channels == 1:
        expected = kernel[:, 0:1] + kernel[:, 1:2] + kernel[:, 2:3]
    else:  # the colours in turn; the sum for a grey image stays the same
        expected = np.stack([kernel[:, i % 3] for i in range(channels)], 1) * 3 / channels
    assert np.allclose(to_timm(model)[stem], expected, rtol=1e-6, atol=1e-6)
    if channels == 7:
        assert 'is [8, 7, ' in message(resnet(), {**weights_for(resnet()), 'conv1.weight':
                                                  np.zeros((8, 7, 7, 7), np.float32)})


def test_positions_are_resampled_except_that_of_the_class_token():
    weights = weights_for(vit(img_size=64))
    weights['pos_embed'][0, 1:] = np.arange(4).repeat(4)[:, None]  # rows 0..3
    model = vit(img_size=(64, 96))
    assert load_timm(model, weights) == ['pos_embed resampled from 4 x 4 to 4 x 6']
    loaded = to_timm(model)['pos_embed']
    assert np.array_equal(loaded[:, 0], weights['pos_embed'][:, 0])
    assert np.allclose(loaded[0, 1:].reshape(4, 6, 32), np.arange(4)[:, None, None], atol=1e-5)
    # A table that is not square, without the class token, cannot be resampled.
    bad = {**weights, 'pos_embed': np.zeros((1, 7, 32), np.float32)}
    assert 'pos_embed is [1, 7, 32] and should be [1, 25, 32]' in message(model, bad)


def test_an_unknown_head_mode_suggests_the_closest():
    assert "'resset' is not known: did you mean 'reset'" in message(vit(), {}, head='resset')
