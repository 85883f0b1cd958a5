"""The names of ViTs in timm 1.0.31 and the settings of each, from tables of sizes and families."""

from collections.abc import Iterator, Mapping
from typing import Any

_SIZES = {  # width, depth, heads; ratio of the MLP where it is not 4
    'tiny': (192, 12, 3),
    'xsmall': (256, 10, 4),
    'wee': (256, 14, 4, 5.0),
    'little': (320, 14, 5, 5.6),
    'small': (384, 12, 6),
    'medium': (512, 12, 8),
    'mediumd': (512, 20, 8),
    'betwixt': (640, 12, 10),
    'base': (768, 12, 12),
    'so150m2': (832, 21, 13, 34 / 13),
    'base+': (896, 12, 14),
    'so150m': (896, 18, 14, 2.572),
    'large': (1024, 24, 16),
    'so400m': (1152, 27, 16, 3.7362),
    'huge': (1280, 32, 16),
    'giant': (1408, 40, 16, 48 / 11),
    'giantopt': (1536, 40, 16),
    'gigantic': (1664, 48, 16, 64 / 13),
}
_CLIP = dict(pre_norm=True, norm_eps=1e-5)
_SIGLIP = dict(class_token=False, global_pool='map')
_GAP = dict(class_token=False, global_pool='avg', fc_norm=False)
_DINOV2 = dict(init_values=1e-5)
_TIPSV2 = dict(init_values=1.0, reg_tokens=1, no_embed_class=True)
_REGISTERS = dict(reg_tokens=4, no_embed_class=True)
_GIANT_DINOV2 = dict(embed_dim=1536, num_heads=24, mlp_ratio=2.66667 * 2, swiglu=True, act='silu')
# Of timm's own recipe: the mean of the patches, with registers.
_REG_GAP = dict(class_token=False, no_embed_class=True, global_pool='avg', init_values=1e-5)
_SO150M = dict(class_token=False, global_pool='avg')
_TANH = dict(act='gelu_tanh')

Row = tuple[str, int, tuple[int, ...], dict[str, Any]]  # size, patch, sides of images, settings
# The name of each model, with places for what a row says, and what all of its rows share.
_FAMILIES: tuple[tuple[str, dict[str, Any], tuple[Row, ...]], ...] = (
    ('vit_{size}_patch{patch}_{side}', {}, (
        ('tiny', 16, (224, 384), {}),
        ('small', 8, (224,), {}), ('small', 16, (224, 384), {}), ('small', 32, (224, 384), {}),
        ('base', 8, (224,), {}), ('base', 16, (224, 384), {}), ('base', 32, (224, 384), {}),
        ('large', 14, (224,), {}), ('large', 16, (224, 384), {}), ('large', 32, (224, 384), {}),
        ('huge', 14, (224,), {}))),
    ('vit_{size}_patch{patch}_{side}_miil', dict(qkv_bias=False), (('base', 16, (224,), {}),)),
    ('deit_{size}_patch{patch}_{side}', {}, (
        ('tiny', 16, (224,), {}), ('small', 16, (224,), {}), ('base', 16, (224, 384), {}))),
    ('deit3_{size}_patch{patch}_{side}', dict(no_embed_class=True, init_values=1e-6), (
        ('small', 16, (224, 384), {}), ('medium', 16, (224,), {}), ('base', 16, (224, 384), {}),
        ('large', 16, (224, 384), {}), ('huge', 14, (224,), {}))),
    ('flexivit_{size}', dict(no_embed_class=True), (
        ('small', 16, (240,), {}), ('base', 16, (240,), {}), ('large', 16, (240,), {}))),
    ('eva_{size}_patch{patch}_{side}', dict(global_pool='avg'), (('large', 14, (196, 336), {}),)),
    ('vit_{size}_patch{patch}_clip_{side}', _CLIP, (
        ('xsmall', 16, (224,), {}), ('medium', 32, (224,), {}), ('medium', 16, (224,), {}),
        ('betwixt', 32, (224,), {}), ('base', 32, (224, 256, 384, 448), {}),
        ('base', 16, (224, 384), {}), ('large', 14, (224, 336), {}),
        ('huge', 14, (224, 336, 378), {}), ('giant', 14, (224,), {}),
        ('gigantic', 14, (224, 378), {}))),
    ('vit_base_patch{patch}_plus_clip_{side}', _CLIP, (('base+', 16, (240,), {}),)),
    ('vit_{size}_patch{patch}_clip_quickgelu_{side}', dict(_CLIP, act='quick_gelu'), (
        ('base', 32, (224,), {}), ('base', 16, (224,), {}), ('large', 14, (224, 336), {}),
        ('huge', 14, (224, 378), {}), ('gigantic', 14, (224,), {}))),
    *((f'vit_{{size}}_patch{{patch}}_siglip{name}_{{side}}', settings, (
        ('base', 32, (256,), _TANH), ('base', 16, (224, 256, 384, 512), {}),
        ('large', 16, (256, 384), {}), ('large', 16, (512,), _TANH),
        ('so400m', 14, (224, 378, *more), {}), ('so400m', 16, (256, 384, 512), _TANH),
        ('giantopt', 16, (256, 384), _TANH)))
      for name, settings, more in (('', _SIGLIP, ()), ('_gap', _GAP, (448, 896)))),
    ('vit_{size}_patch{patch}_dinov2', _DINOV2, (
        ('small', 14, (518,), {}), ('base', 14, (518,), {}), ('large', 14, (518,), {}),
        ('giant', 14, (518,), _GIANT_DINOV2))),
    ('vit_{size}_patch{patch}_reg4_dinov2', _DINOV2 | _REGISTERS, (
        ('small', 14, (518,), {}), ('base', 14, (518,), {}), ('large', 14, (518,), {}),
        ('giant', 14, (518,), _GIANT_DINOV2))),
    ('vit_{size}_patch{patch}_reg1_tipsv2', _TIPSV2, (
        ('base', 14, (448,), {}), ('large', 14, (448,), {}),
        ('so400m', 14, (448,), dict(mlp_ratio=4304 / 1152)), ('giant', 14, (448,), _GIANT_DINOV2))),
    ('vit_{size}_patch{patch}_gap_{side}', dict(_GAP, qkv_bias=False, init_values=1e-6), (
        ('medium', 16, (240, 256, 384), {}),)),
    ('vit_{size}_patch{patch}_reg1_gap_{side}', dict(_REG_GAP, reg_tokens=1), (
        ('wee', 16, (256,), {}), ('little', 16, (256,), {}), ('medium', 16, (256,), {}),
        ('betwixt', 16, (256,), {}))),
    ('vit_{size}_patch{patch}_reg4_gap_{side}', dict(_REG_GAP, reg_tokens=4), (
        ('little', 16, (256,), {}), ('medium', 16, (256,), {}), ('mediumd', 16, (256, 384), {}),
        ('betwixt', 16, (256, 384), {}))),
    ('vit_{size}_patch{patch}_reg4_gap_{side}', dict(_SO150M, reg_tokens=4, fc_norm=False), (
        ('so150m', 16, (256, 384), {}),)),
    ('vit_{size}_patch{patch}_reg1_gap_{side}',
     dict(_SO150M, reg_tokens=1, qkv_bias=False, init_values=1e-5), (
        ('so150m2', 16, (256, 384, 448), {}),)),
    ('vit_intern300m_patch{patch}_{side}', dict(init_values=0.1, final_norm=False), (
        ('large', 14, (448,), {}),)),
)


def _variants(name: str, shared: Mapping[str, Any], rows: tuple[Row, ...]
              ) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, settings) of every model of a family."""
    for size, patch, sides, own in rows:
        width, depth, heads, *ratio = _SIZES[size]
        for side in sides:
            yield name.format(size=size, patch=patch, side=side), {
                'patch_size': patch, 'img_size': side, 'embed_dim': width, 'depth': depth,
                'num_heads': heads, 'mlp_ratio': ratio[0] if ratio else 4.0, **shared, **own}


VARIANTS = {name: settings for family in _FAMILIES for name, settings in _variants(*family)}
