"""The ViT beside an installed timm: what the names mean, and every option with fresh weights."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from timm_reference import by_recipe

from models import create_model, eval_view, model_settings
from models.pretrained import load_timm, timm_targets, to_timm, to_torch
from models.timm_settings import timm_arguments
from models.vit_variants import VARIANTS
from train_lib.optim.param_groups import plan

torch = pytest.importorskip('torch', reason='needs torch and timm, which are optional peers')
timm = pytest.importorskip('timm', reason='needs torch and timm, which are optional peers')

BOUND = 2e-5  # in standard deviations of timm's results
TINY = dict(img_size=(32, 48), patch_size=8, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2.0)
FAMILIES = {  # a name whose norms, activations and MLPs timm builds, and other options
    'clip': ('vit_base_patch32_clip_quickgelu_224', dict(reg_tokens=2)),
    'clip, mean': ('vit_base_patch16_clip_224', dict(global_pool='avgmax', act='gelu_tanh')),
    'siglip': ('vit_base_patch32_siglip_256', dict(pre_norm=True, init_values=0.5, fc_norm=True)),
    'siglip, registers': ('vit_base_patch16_siglip_224', dict(
        reg_tokens=3, no_embed_class=True, class_token=True, qkv_bias=False)),
    'siglip, gap': ('vit_so400m_patch16_siglip_gap_256', dict(mlp_ratio=3.7362)),
    'dinov2': ('vit_giant_patch14_reg4_dinov2', dict(global_pool='avg', fc_norm=False)),
    'dinov2, map': ('vit_giant_patch14_dinov2', dict(global_pool='map', final_norm=False)),
    'tips': ('vit_base_patch14_reg1_tipsv2', dict(fc_norm=True)),
    'deit3': ('deit3_base_patch16_224', dict(global_pool='avg')),
    'no norm': ('vit_intern300m_patch14_448', dict(class_token=False, global_pool='avg')),
    'gap': ('vit_so150m2_patch16_reg1_gap_256', dict(pre_norm=True)),
}


def both(name, settings, classes=7, seed=0):
    """(our model, timm's) with the same weights."""
    ours = nnx.eval_shape(lambda: create_model(name, classes, rngs=nnx.Rngs(0), **settings))
    weights = {key: by_recipe(key, to_torch(target.variable.shape), seed)
               for target in timm_targets(ours) for key in target.keys}
    load_timm(ours, weights, grid=ours.grid)
    architecture, arguments = timm_arguments(name, settings)
    theirs = timm.create_model(architecture, num_classes=classes, **arguments).eval()
    theirs.load_state_dict({key: torch.from_numpy(np.array(value))
                            for key, value in weights.items()})
    return ours, theirs


@pytest.mark.parametrize('kind', FAMILIES)
def test_logits_features_and_gradients_with_a_fresh_seed(kind):
    name, own = FAMILIES[kind]
    seed = int.from_bytes(os.urandom(3), 'big')
    ours, theirs = both(name, TINY | own, seed=seed)
    images = np.random.default_rng(seed).standard_normal((3, 32, 48, 3)).astype(np.float32)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    graphdef, params = nnx.split(ours)

    def results(params):
        model = eval_view(nnx.merge(graphdef, params))
        features = model.forward_features(images)
        return (model.forward_head(features), features,
                model.forward_head(features, pre_logits=True))

    def loss(params):
        return (jax.nn.log_softmax(results(params)[0]) * jnp.arange(7)).sum()

    with jax.default_matmul_precision('highest'):
        found = jax.jit(results)(params)
        gradients = to_timm(nnx.merge(graphdef, jax.jit(jax.grad(loss))(params)))
    tokens = theirs.forward_features(tensor)
    logits = theirs.forward_head(tokens)
    pooled = theirs.forward_head(tokens, pre_logits=True)
    for ours, reference in zip(found, (logits, tokens, pooled), strict=True):
        reference = reference.detach().numpy()
        assert np.abs(ours - reference).max() <= BOUND * reference.std(), f'seed {seed}'
    (torch.log_softmax(logits, 1) * torch.arange(7)).sum().backward()
    for key, tensor in theirs.named_parameters():
        reference = tensor.grad.numpy()
        # The bias of keys moves nothing: its gradient is rounding.
        assert np.abs(gradients[key] - reference).max() <= 1e-4 * np.abs(reference).max() + 1e-4, (
            f'{key}, seed {seed}')


def test_a_model_without_classes_returns_the_features():
    ours, theirs = both('vit_base_patch16_siglip_224', TINY, classes=0)
    images = np.random.default_rng(0).standard_normal((2, 32, 48, 3)).astype(np.float32)
    with jax.default_matmul_precision('highest'):
        found = jax.jit(lambda model, x: eval_view(model)(x))(ours, images)
    with torch.no_grad():
        reference = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert found.shape == (2, 48)
    assert np.abs(found - reference).max() <= BOUND * reference.std()


@pytest.mark.slow  # a tenth of a second for each name
def test_every_name_has_the_parameters_and_settings_of_timm():
    for name in VARIANTS:
        settings = model_settings(name)
        with torch.device('meta'):
            theirs = timm.create_model(name, num_classes=3)
        ours = nnx.eval_shape(lambda name=name: create_model(name, 3, rngs=nnx.Rngs(0), depth=1))
        shapes = {key: tuple(to_torch(target.variable.shape))
                  for target in timm_targets(ours) for key in target.keys}
        assert shapes == {key: tuple(value.shape) for key, value in theirs.state_dict().items()
                          if key.startswith('blocks.0.') or not key.startswith('blocks.')}, name
        assert (len(theirs.blocks), theirs.blocks[0].attn.num_heads) == (
            settings['depth'], settings['num_heads']), name
        assert timm.get_pretrained_cfg(name).input_size[1] == settings['img_size'], name
        assert theirs.global_pool == settings['global_pool'], name
        block = theirs.blocks[0]
        assert block.norm1.eps == settings['norm_eps'], name
        act = {'GELU': 'gelu', 'GELUTanh': 'gelu_tanh', 'QuickGELU': 'quick_gelu', 'SiLU': 'silu'}
        assert act[type(block.mlp.act).__name__] == settings['act'], name
        assert getattr(block.ls1, 'init_values', None) == settings['init_values'], name


@pytest.mark.parametrize('name', [
    'vit_base_patch16_clip_224', 'vit_base_patch16_siglip_224', 'vit_small_patch14_reg4_dinov2',
    'vit_medium_patch16_reg4_gap_256'])
def test_levels_of_layer_decay_are_those_of_timm(name):
    from timm.models import group_parameters

    from configs import common
    ours = nnx.eval_shape(lambda: create_model(name, 3, rngs=nnx.Rngs(0), depth=3))
    config = common.get_config().finetune.to_dict() | dict(layer_decay=0.5)
    levels = {path: -np.log2(rule.rate) for path, rule in plan(ours, config).items()}
    with torch.device('meta'):
        theirs = timm.create_model(name, num_classes=3, depth=3)
    groups = group_parameters(theirs, theirs.group_matcher(), reverse=True)
    paths = {'.'.join(map(str, path)): '/'.join(map(str, path))
             for path, _ in nnx.to_flat_state(nnx.state(ours))}
    assert len(paths) == len(groups)
    top = max(groups.values())
    for dotted, path in paths.items():
        words = dotted.split('.')
        words[-1] = {'kernel': 'weight', 'scale': 'weight'}.get(words[-1], words[-1])
        assert levels[path] == top - groups['.'.join(words)], path
