"""Settings of `create_model` as arguments of `timm.create_model`, where timm has the same network.

The names of models are timm's, so only settings that differ from the model's defaults are said.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

from models.beit import Beit
from models.densenet import DenseNet
from models.dinov3 import Dinov3
from models.efficientnet import EfficientNet
from models.errors import ModelError
from models.eva import Eva
from models.inception_resnet_v2 import InceptionResnetV2
from models.mobilenet import MobileNetV3
from models.registry import MODELS, model_settings
from models.resnet import ResNet
from models.vit import VisionTransformer

# They change how a network trains or is computed, or its first values, but not its function.
_WITHOUT_EFFECT = {
    'attn_drop_rate', 'attn_impl', 'drop_path', 'drop_rate', 'dtype', 'head_act', 'head_dropout',
    'head_hidden', 'head_init', 'pos_drop_rate', 'proj_drop_rate', 'remat', 'scan',
    'token_multiple', 'weight_init',
    'zero_init_last'}
_TOKENS = {'img_size': 'img_size', 'patch_size': 'patch_size', 'in_channels': 'in_chans',
           'embed_dim': 'embed_dim', 'depth': 'depth', 'num_heads': 'num_heads',
           'mlp_ratio': 'mlp_ratio'}
_BLOCKS = {'in_channels': 'in_chans', 'act': 'act_layer', 'bn_eps': 'bn_eps',
           'pad_type': 'pad_type'}
# Of each family: our settings and timm's names of them.
_NAMES: dict[type, dict[str, str]] = {
    VisionTransformer: _TOKENS | {
        'act': 'act_layer', 'qkv_bias': 'qkv_bias', 'init_values': 'init_values',
        'class_token': 'class_token', 'global_pool': 'global_pool'},
    Eva: _TOKENS | {'mlp': 'swiglu_mlp', 'scale_mlp': 'scale_mlp', 'qkv_fused': 'qkv_fused',
                    'use_rot_pos_emb': 'use_rot_pos_emb'},
    Dinov3: _TOKENS | {key: key for key in (
        'swiglu_mlp', 'swiglu_align_to', 'qkv_bias', 'init_values', 'num_reg_tokens',
        'rope_temperature', 'global_pool')},
    Beit: _TOKENS | {'init_values': 'init_values'},
    EfficientNet: _BLOCKS,
    MobileNetV3: _BLOCKS,
    ResNet: {'block': 'block', 'layers': 'layers', 'channels': 'channels',
             'base_width': 'base_width', 'in_channels': 'in_chans'},
    DenseNet: {'growth_rate': 'growth_rate', 'block_config': 'block_config', 'bn_size': 'bn_size',
               'in_channels': 'in_chans'},
    InceptionResnetV2: {'in_channels': 'in_chans'},
}
_ONLY_OURS = {'resnet20', 'resnet20_cifar', 'resnet32', 'resnet32_cifar'}
_BASIC, _BOTTLENECK = 'resnet18', 'resnet50'  # timm's models with these blocks


def in_timm(name: str) -> bool:
    """Whether timm has the model of this name."""
    return name in MODELS and MODELS[name][0] in _NAMES and name not in _ONLY_OURS


def timm_arguments(name: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What `timm.create_model` takes for the network of `create_model(name, **settings)`.

    Args:
        name: a name of `list_models()`.
        settings: as given to `create_model`, without the number of classes.

    Returns:
        (timm's name, the arguments that differ from its defaults, as JSON can hold them)

    Raises:
        ModelError: timm has no such model, or no such setting of it.
    """
    if not in_timm(name):
        raise ModelError(f'timm has no model {name!r}, which is one of this project.')
    defaults, names = model_settings(name), _NAMES[MODELS[name][0]]
    whole = defaults | dict(settings)
    if whole.get('mlp') == 'gelu':
        whole['scale_mlp'] = False  # it stands for the norm inside a gated MLP
    changed = {key: value for key, value in whole.items()
               if key not in _WITHOUT_EFFECT and not _equal(value, defaults[key])}
    for key, value in changed.items():
        if key not in names:
            said = textwrap.shorten(repr(value), 60, placeholder=' ...')
            raise ModelError(f'timm has no setting for {key}={said} of {name}.')
    _check(name, whole)
    architecture = name
    if 'block' in changed:  # a class, which JSON cannot hold: the name of a model that has it
        architecture = _BOTTLENECK if changed.pop('block') == 'bottleneck' else _BASIC
        changed |= {key: whole[key] for key in ('layers', 'base_width')}
    arguments = {names[key]: _plain(value) for key, value in changed.items()}
    if 'mlp' in changed:
        arguments['swiglu_mlp'] = whole['mlp'] != 'gelu'
    if changed.get('use_rot_pos_emb'):
        arguments['ref_feat_shape'] = [16, 16]  # the grid that positions are scaled to
    return architecture, arguments


def _check(name: str, whole: Mapping[str, Any]) -> None:
    """Refuses values of settings that timm takes but would build into another network."""
    def refuse(what: str, why: str) -> ModelError:
        return ModelError(f'{what} of {name} cannot be built by timm, {why}.')

    if 'layers' in whole and 'channels' in whole:
        if len(whole['layers']) != 4:
            raise refuse(f'layers={tuple(whole["layers"])}', 'whose ResNets have four stages')
        if whole['channels'][0] != 64:
            raise refuse(f'channels={tuple(whole["channels"])}', 'whose stem has 64 channels')
    if whole.get('mlp', 'gelu') != 'gelu' and (whole['mlp'] == 'swiglu') != whole['scale_mlp']:
        raise refuse(f'mlp={whole["mlp"]!r} with scale_mlp={whole["scale_mlp"]}',
                     'which packs a gated MLP if, and only if, it has no norm inside')


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, tuple):
        a = (a,) * len(b)
    if isinstance(b, int) and isinstance(a, (tuple, list)) and set(a) == {b}:
        return True  # (64, 64) pixels and 64
    return _plain(a) == _plain(b)
