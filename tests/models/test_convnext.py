"""ConvNeXts: sizes, options, weights, adapters, errors. Parity with timm is in test_parity.py, a
training step against torch in test_train_step.py."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from timm_reference import by_recipe

from configs import common
from models import ModelError, create_model, eval_view
from models.convnext import GlobalResponseNorm
from models.lora import add_lora
from models.pretrained import load_timm, timm_targets, to_timm, to_torch
from train_lib.optim import param_groups

TINY = dict(depths=(1, 2, 1, 1), dims=(4, 8, 8, 12))
QUICK = {'xla_backend_optimization_level': 0}  # most of the time is compilation
SMALL = dict(depths=(1, 1, 1, 1), kernel_sizes=1)  # the same
infer = jax.jit(lambda model, x: eval_view(model)(x), compiler_options=QUICK)


def tiny(name='convnext_tiny', num_classes=5, seed=0, **kwargs):
    return create_model(name, num_classes, rngs=nnx.Rngs(seed), **{**TINY, **kwargs})


def abstract(*args, **kwargs):
    return nnx.eval_shape(lambda: tiny(*args, **kwargs))


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights_for(model, seed=0):
    draw = np.random.default_rng(seed)
    return {key: draw.standard_normal(to_torch(target.variable.shape)).astype(np.float32)
            for target in timm_targets(model) for key in target.keys}


def loads(model, weights, **kwargs):
    """The model's weights under timm's names after loading, and what was said."""
    notes = load_timm(model, weights, **kwargs)
    return to_timm(model), notes


@functools.partial(jax.jit, compiler_options=QUICK)
def gradients(model, x):
    graph, params = nnx.split(model)

    def loss(params):
        y = nnx.merge(graph, params, copy=True)(x, rngs=nnx.Rngs(dropout=1))
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    return jax.grad(loss)(params)


def test_the_response_norm_scales_channels_by_their_share():
    norm, x = GlobalResponseNorm(3, rngs=nnx.Rngs(0)), jnp.asarray(images(2, 3, 5, 3))
    assert np.array_equal(norm(x), x)
    norm.scale[...], norm.bias[...] = jnp.array([1., 2., 3.]), jnp.array([.1, .2, .3])
    exact = np.asarray(x, np.float64)
    norms = np.sqrt((exact ** 2).sum((1, 2), keepdims=True))
    wanted = exact + [1, 2, 3] * exact * norms / norms.mean(-1, keepdims=True) + [.1, .2, .3]
    assert np.allclose(norm(x), wanted, atol=1e-5)
    # Statistics are float32: in float16 the squares of these would be infinite.
    norm.bias[...] = jnp.zeros(3)
    half = norm(jnp.asarray(300 * x, jnp.float16))
    assert half.dtype == jnp.float16
    assert np.allclose(half / 300, wanted - [.1, .2, .3], rtol=.01, atol=.01)


def test_a_channel_that_is_zero_everywhere_has_a_gradient():
    norm = GlobalResponseNorm(3, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.ones(3)
    x = jnp.asarray(images(2, 4, 4, 3)).at[..., 1].set(0)
    gradient = jax.grad(lambda x: norm(x).sum())(x)
    assert np.array_equal(gradient[..., 1], np.ones((2, 4, 4)))  # of the identity, as in torch
    assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(lambda x: norm(x).sum())(jnp.zeros_like(x))).all()


@pytest.mark.parametrize('name, kwargs, shape, maps', [
    ('convnext_tiny', {}, (32, 32, 3), (1, 1)),
    ('convnext_tiny', dict(in_channels=1), (63, 100, 1), (1, 3)),
    ('convnext_tiny', dict(patch_size=2, in_channels=4), (65, 32, 4), (2, 1)),
    ('convnext_tiny', dict(patch_size=1), (32, 8, 3), (4, 1)),
    ('convnext_nano_ols', {}, (29, 93, 3), (1, 3)),
    ('convnext_pico_ols', dict(dims=(40, 8, 8, 12)), (33, 61, 3), (1, 2)),
])
def test_sides_are_rounded_as_in_timm(name, kwargs, shape, maps):
    model = abstract(name, 0, **kwargs)
    x = jnp.zeros((2, *shape))
    assert jax.eval_shape(lambda m, x: m.forward_features(x), model, x).shape == (2, *maps, 12)
    assert jax.eval_shape(lambda m, x: m(x), model, x).shape == (2, 12)
    smaller = x[:, :model.least - 1]
    with pytest.raises(ModelError, match=f'at least {model.least} pixels'):
        jax.eval_shape(lambda m, x: m(x), model, smaller)


def test_the_norm_of_the_pooled_features_belongs_to_the_backbone():
    settings = dict(SMALL, name='convnext_large_mlp', head_hidden_size=6)
    model, x = tiny(**settings), images(3, 32, 64, 3)
    weights = weights_for(model)
    assert {key.rsplit('.', 1)[0] for key in weights if key.startswith('head.')} == {
        'head.norm', 'head.pre_logits.fc', 'head.fc'}
    bare = tiny(num_classes=0, **settings)
    found, notes = loads(bare, weights)
    assert notes == [] and bare.num_features == 6
    assert set(weights) - set(found) == {'head.fc.weight', 'head.fc.bias'}
    load_timm(model, weights)
    pooled = infer(bare, x)
    again = jax.jit(lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
                    compiler_options=QUICK)(eval_view(model), x)
    assert pooled.shape == (3, 6) and np.allclose(pooled, again, rtol=1e-4, atol=1e-4)
    logits = pooled @ weights['head.fc.weight'].T + weights['head.fc.bias']
    assert np.allclose(infer(model, x), logits, rtol=1e-3, atol=1e-3 * np.abs(logits).max())


@pytest.mark.parametrize('head', ['reset', 'keep', 'resize'])
def test_the_classifier_alone_is_reset_kept_or_cut(head):
    weights = weights_for(abstract(num_classes=5))
    model = tiny(num_classes=5 if head == 'keep' else 3)
    before = to_timm(model)
    found, notes = loads(model, weights, head=head)
    of_head = {'head.fc.weight', 'head.fc.bias'}
    for key in set(found) - of_head:  # the norm too
        assert np.array_equal(found[key], weights[key]), key
    for key in of_head:
        wanted = {'reset': before, 'keep': weights}.get(head, {key: weights[key][:3]})
        assert np.array_equal(found[key], wanted[key])
    assert len(notes) == (2 if head == 'resize' else 0)


def test_weights_without_a_head_start_its_norm_anew_and_say_so():
    weights = weights_for(abstract())
    stages = {key: value for key, value in weights.items() if not key.startswith('head.')}
    found, notes = loads(abstract(num_classes=0), stages)
    assert notes == [f'head.norm.{what} is not in the weights and starts anew'
                     for what in ('bias', 'weight')]
    assert (found['head.norm.weight'] == 1).all() and (found['head.norm.bias'] == 0).all()
    loads(tiny(), stages, head='reset')
    with pytest.raises(ModelError, match=r'head\.fc\.bias is missing'):
        load_timm(tiny(), stages)
    for key in ('head.norm.bias', 'stages.0.blocks.0.norm.bias'):  # a part of a head, or none of it
        with pytest.raises(ModelError, match=f'{key} is missing'):
            load_timm(tiny(), {other: weights[other] for other in weights if other != key})
    mlp = abstract('convnext_large_mlp', 0, head_hidden_size=6)
    with pytest.raises(ModelError, match=r'head\.pre_logits\.fc\.bias is missing'):
        load_timm(mlp, stages)


def test_keys_of_the_authors_are_read():
    weights = weights_for(abstract())
    theirs = {}
    for key, value in weights.items():
        for ours, other in (('stem.', 'downsample_layers.0.'), ('head.fc.', 'head.'),
                            ('head.norm.', 'norm.'), ('.blocks.', '.'), ('conv_dw', 'dwconv'),
                            ('mlp.fc', 'pwconv')):
            key = key.replace(ours, other)
        if '.downsample.' in key:
            key = f'downsample_layers.{key.removeprefix("stages.").replace("downsample.", "")}'
        theirs[key] = value
    assert {'downsample_layers.3.1.weight', 'stages.1.1.pwconv2.bias', 'norm.weight',
            'head.bias', 'stages.0.0.gamma'} < set(theirs)
    found, _ = loads(abstract(), theirs)
    assert all(np.array_equal(found[key], value) for key, value in weights.items())


@pytest.mark.parametrize('conv', [False, True])
def test_adapters_go_where_the_default_puts_them_and_merge(conv):
    settings = dict(depths=(1, 2, 1, 1), kernel_sizes=1, conv_mlp=conv)
    model, x = tiny(**settings, ls_init_value=1.0), images(2, 32, 32, 3)
    paths = add_lora(model, common.get_config().finetune.lora.layers, rank=2, rngs=nnx.Rngs(1))
    assert sorted(paths) == sorted([*(
        f'stages/{stage}/blocks/{i}/{layer}' for stage, depth in enumerate(settings['depths'])
        for i in range(depth) for layer in ('conv_dw', 'mlp/fc1', 'mlp/fc2')),
        *(f'stages/{stage}/downsample/1' for stage in (1, 2, 3))])
    model.stages[1].blocks[0].mlp.fc2.lora_b[...] += 1
    whole = tiny(**settings, seed=2)
    load_timm(whole, to_timm(model))
    a, b = infer(model, x), infer(whole, x)
    assert np.allclose(a, b, atol=1e-4 * np.abs(b).max())
    with pytest.raises(ModelError, match='matches no layer'):
        add_lora(tiny(), 'stages/1/mlp/.*', rngs=nnx.Rngs(1))


def test_only_kernels_decay():
    model = abstract('convnextv2_atto', ls_init_value=0.1)
    rules = param_groups.plan(model, common.get_config().finetune.to_dict())
    _, params, *_ = param_groups.split(model, rules)
    decays = {'/'.join(str(part.key) for part in path): value for path, value in
              jax.tree_util.tree_leaves_with_path(param_groups.factors(params, rules)[1])}
    assert {path for path, value in decays.items() if value} == {
        path for path in decays if path.endswith('kernel')}
    block = 'stages/0/blocks/0'
    assert {decays[f'{block}/{name}'] for name in (
        'gamma', 'mlp/grn/scale', 'mlp/grn/bias', 'norm/scale', 'conv_dw/bias')} == {0.0}


def test_remat_changes_no_gradient_and_every_parameter_has_one():
    settings = dict(SMALL, use_grn=True, drop_path=0.2)
    x = images(4, 64, 64, 3)
    plain, again = (gradients(tiny(remat=remat, **settings), x) for remat in (False, True))
    for (path, a), b in zip(nnx.to_flat_state(plain), jax.tree.leaves(again), strict=True):
        assert np.abs(a[...]).max() > 0, path
        assert np.allclose(a[...], b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_drop_path_grows_over_all_blocks():
    model = abstract(drop_path=0.4)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert np.allclose(rates, [0, .1, .2, .3, .4])


def test_half_precision_keeps_parameters_norms_and_logits_in_float32():
    settings = dict(SMALL, name='convnextv2_atto', in_channels=1)
    x = images(4, 32, 32, 1)
    full, half = (tiny(**settings, dtype=dtype) for dtype in (None, 'bfloat16'))
    assert jax.eval_shape(lambda m, x: m.forward_features(x), half, x).dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(half))} == {'float32'}
    a, b = infer(full, x), infer(half, x)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_branches_and_heat_maps_get_the_maps_of_the_last_stage():
    model = abstract('convnext_large_mlp', head_hidden_size=6, head='shallow')
    assert model.head.conv.kernel.shape == (1, 1, 12, 8)
    maps = jax.eval_shape(lambda m, x: m.maps(m.forward_features(x)), model,
                          jnp.zeros((2, 64, 96, 3)))
    assert maps.shape == (2, 2, 3, 12)


@pytest.mark.parametrize('name, settings', [
    ('convnext_large_mlp', dict(head_hidden_size=20, in_chans=1)),
    ('convnextv2_atto', dict(num_classes=0, kernel_sizes=(7, 5, 3, 3))),
    ('convnext_tiny_hnf', dict(patch_size=2, in_chans=4)),
    ('convnext_atto_ols', dict(norm_eps=1e-3)),
])
def test_timm_computes_the_same_with_new_weights(name, settings):
    """Weights and sides of the images differ from time to time."""
    timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
    seed = int.from_bytes(os.urandom(4), 'little')
    small = dict(depths=(1, 2, 1, 1), dims=(16, 24, 40, 48))
    theirs = timm.create_model(name, **small, **settings).eval()
    weights = {key: by_recipe(key, list(value.shape), seed)
               for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: torch.from_numpy(np.asarray(value))
                            for key, value in weights.items()})
    ours = dict(settings, in_channels=settings.get('in_chans', 3))
    ours.pop('in_chans', None)
    model = abstract(name, ours.pop('num_classes', 1000), **{**small, **ours})
    load_timm(model, weights)
    x = images(2, 32 + seed % 33, 32 + seed // 33 % 33, model.in_channels, seed=seed)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    with jax.default_matmul_precision('highest'):
        found = infer(model, x)
    assert np.abs(found - expected).max() <= 2e-5 * expected.std(), (seed, x.shape)


@pytest.mark.parametrize('kwargs, words', [
    (dict(stem_type='overlaps'), "'overlaps'.*'overlap'"),
    (dict(depths=(1, 1, 1)), r'depths=\(1, 1, 1\)'),
    (dict(dims=(8, 8, 8, 0)), r'dims=\(8, 8, 8, 0\)'),
    (dict(kernel_sizes=(7, 7)), r'kernel_sizes=\(7, 7\)'),
    (dict(kernel_sizes=6), 'kernel_sizes has 6'),
    (dict(patch_size=8), 'patch_size=8 is not valid: use 1 to 7'),
    (dict(act='geluu'), "'geluu'"),
    (dict(drop_path=1.0), 'drop_path='),
    (dict(head_norm_first=True, head_hidden_size=8), 'head_hidden_size=8'),
])
def test_a_wrong_value_is_named(kwargs, words):
    with pytest.raises(ModelError, match=words):
        abstract(**kwargs)
