"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929), with timm's names and options.

Its options also make the image towers of CLIP and SigLIP, DINOv2, TIPSv2 and DeiT-III;
vit_variants.py says which of them each name has.

Paths of the parameters are those of timm's state_dict: `patch_embed.proj`, `cls_token`,
`reg_token`, `pos_embed`, `norm_pre`, `blocks.<i>.{norm1, attn.qkv, attn.proj, ls1, norm2, mlp.fc1,
mlp.fc2, ls2}`, `norm` or `fc_norm`, `attn_pool`, `head`; only `weight` is called `kernel` (linear,
convolution) or `scale` (norms) here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.attention import Attention
from models.attention_pool import AttentionPool
from models.convolutions import conv2d
from models.errors import ModelError, unknown
from models.image_sizes import check_images, patch_grid
from models.layers import (
    Dropout,
    GluMlp,
    LayerScale,
    Mlp,
    batch_norm,
    compute_dtype,
    drop_path_rates,
    layer_norm,
    normal,
    timm_normal,
)
from models.scan_layers import stack_blocks
from models.transformer import Transformer

POOLS = ('token', 'avg', 'avgmax', 'map')
STEMS = ('patch', 'conv')
POSITIONS = ('learned', 'sincos2d')


def sincos2d(grid: tuple[int, int], dim: int, temperature: float = 10000.0) -> np.ndarray:
    """Fixed position embeddings, float32 [rows * columns, dim] (Chen et al., arXiv 2104.02057).

    The four quarters of the channels are sine and cosine of the column, sine and cosine of the row.
    """
    frequency = temperature ** (-np.arange(dim // 4) / (dim // 4))
    rows, columns = np.mgrid[:grid[0], :grid[1]].reshape(2, -1, 1) * frequency
    return np.concatenate(
        [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], 1).astype(np.float32)


class PatchEmbed(nnx.Module):
    """One linear map of each patch: [B, H, W, C] -> [B, H/p, W/p, dim]."""

    def __init__(self, patch: int, channels: int, dim: int, *, bias: bool = True, dtype,
                 rngs: nnx.Rngs):
        # The variance of torch's convolutions, which start uniform in +-1/sqrt(fan_in).
        stddev = (3 * channels * patch ** 2) ** -0.5
        self.proj = conv2d(channels, dim, patch, stride=patch, padding='VALID', bias=bias,
                           kernel_init=normal(stddev), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.proj(x, rngs)


class ConvStem(nnx.Module):
    """3x3 convolutions of stride 2 with BatchNorm and ReLU, then a 1x1: [B, H, W, C] -> the grid
    of PatchEmbed. It trains more stably and needs less data (Xiao et al., arXiv 2106.14881).

    The widths double from layer to layer and end at `dim`.
    """

    def __init__(self, patch: int, channels: int, dim: int, *, bias: bool = True, dtype,
                 rngs: nnx.Rngs):
        count = patch.bit_length() - 1
        if patch != 2 ** count or count < 1:
            raise ModelError(f"stem='conv' halves the image at each layer, and patch_size={patch} "
                             f"is not a power of 2: use 2, 4, 8, 16 or 32.")
        widths = [max(8, dim // 2 ** (count - 1 - i)) for i in range(count)]
        self.conv = nnx.List(
            conv2d(a, b, 3, stride=2, dtype=dtype, rngs=rngs)
            for a, b in zip([channels, *widths], widths))
        self.norm = nnx.List(batch_norm(width, rngs=rngs) for width in widths)
        self.proj = conv2d(widths[-1], dim, 1, bias=bias, kernel_init=timm_normal, dtype=dtype,
                           rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        for conv, norm in zip(self.conv, self.norm):
            x = jax.nn.relu(norm(conv(x, rngs))).astype(x.dtype)
        return self.proj(x, rngs)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each with a residual connection: [B, N, D] -> same."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, act: str, swiglu: bool,
                 qkv_bias: bool, norm_eps: float, init_values: float | None, attn_drop: float,
                 proj_drop: float, drop_path: float, attn_impl: str, weight_init: str, dtype,
                 rngs: nnx.Rngs):
        self.norm1 = layer_norm(dim, eps=norm_eps, rngs=rngs)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop,
                              proj_drop=proj_drop, impl=attn_impl, weight_init=weight_init,
                              dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, eps=norm_eps, rngs=rngs)
        self.mlp = (GluMlp if swiglu else Mlp)(
            dim, int(dim * mlp_ratio), act=act, drop=proj_drop, weight_init=weight_init,
            dtype=dtype, rngs=rngs)
        self.scaled = init_values is not None
        if init_values is not None:
            self.ls1 = LayerScale(dim, init_values)
            self.ls2 = LayerScale(dim, init_values)
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, *,
                 drop_path: jax.Array | None = None) -> jax.Array:
        y = self.attn(self.norm1(x).astype(x.dtype), rngs)
        x = x + self.drop_path(self.ls1(y) if self.scaled else y, rngs, drop_path)
        y = self.mlp(self.norm2(x).astype(x.dtype), rngs)
        return x + self.drop_path(self.ls2(y) if self.scaled else y, rngs, drop_path)


class VisionTransformer(Transformer):
    """ViT. Arguments are timm's; these differ or are new:

    Args:
        img_size: side of the images in pixels, or (height, width).
        in_channels: channels of the images (timm: in_chans).
        drop_path: rate of stochastic depth in the last block, 0 in the first (timm:
            drop_path_rate).
        init_values: initial value of the layer scale; None for no layer scale.
        stem: 'patch', or 'conv' for a convolutional stem with the same total stride.
        pos_embed: 'learned', or 'sincos2d' for a fixed table (none for the class token).
        global_pool: 'token' (the class token); of the patches 'avg', their mean, 'avgmax', half
            that and half their largest values, or 'map', attention pooling (`attn_pool`).
        no_embed_class: no position embeddings for the class token and the registers.
        reg_tokens: number of registers (Darcet et al., arXiv 2309.16588), further learned tokens
            between the class token and the patches.
        pre_norm: a LayerNorm before the first block, and no bias in the patch embedding (CLIP).
        final_norm: a LayerNorm behind the last block.
        fc_norm: that norm comes behind the pooling instead of before it; None: where the pooling
            is 'avg' or 'avgmax'.
        norm_eps: eps of every LayerNorm (timm: norm_layer).
        act: activation of the MLP, a key of `layers.ACTIVATIONS` (timm: act_layer).
        swiglu: gated MLPs, whose gate has that activation (timm: mlp_layer=SwiGLUPacked).
        weight_init: '' (timm's) or 'jax' (Xavier's); see `layers.linear_init`.
        dtype: of matrix products; parameters, norms, softmax and logits stay float32.
        attn_impl: 'auto', 'xla' or 'cudnn'; see `attention.attend`.
        scan: stack all blocks under one scan, so that the compile time does not grow with depth.
        remat: recompute the activations of each block in the gradient, for less memory.
        token_multiple: pad the tokens in the blocks to a multiple of this; see
            `Transformer.pad_tokens`.
    """

    timm_renames = ((r'\.gamma_(\d)$', r'.ls\1.gamma'),)  # files of DeiT-III itself
    layer_groups = (r'patch_embed/|cls_token|reg_token|pos_embed|norm_pre/', r'blocks/(\d+)/')
    layer_levels = (layer_groups[0], r'blocks/(\d+)/|norm/')
    norm: nnx.LayerNorm  # one of the two, or none
    fc_norm: nnx.LayerNorm

    def __init__(self, *, img_size: int | tuple[int, int] = 224, patch_size: int = 16,
                 in_channels: int = 3, embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
                 mlp_ratio: float = 4.0, act: str = 'gelu', swiglu: bool = False,
                 qkv_bias: bool = True, norm_eps: float = 1e-6, init_values: float | None = None,
                 class_token: bool = True, no_embed_class: bool = False, reg_tokens: int = 0,
                 pre_norm: bool = False, final_norm: bool = True, fc_norm: bool | None = None,
                 global_pool: str = 'token', stem: str = 'patch',
                 pos_embed: str = 'learned', pos_drop_rate: float = 0.0,
                 proj_drop_rate: float = 0.0, attn_drop_rate: float = 0.0, drop_path: float = 0.0,
                 weight_init: str = '', dtype=None, attn_impl: str = 'auto', scan: bool = False,
                 remat: bool = False, token_multiple: int = 1, rngs: nnx.Rngs):
        for what, value, valid in (('global_pool', global_pool, POOLS), ('stem', stem, STEMS),
                                   ('pos_embed', pos_embed, POSITIONS)):
            if value not in valid:
                raise unknown(what, value, valid)
        if global_pool == 'token' and not class_token:
            raise ModelError("global_pool='token' needs the class token: set class_token=True or "
                             "global_pool='avg'.")
        if type(reg_tokens) is not int or reg_tokens < 0:
            raise ModelError(f'reg_tokens={reg_tokens!r} is not a number of registers: use a whole '
                             f'number from 0.')
        if fc_norm and not final_norm:
            raise ModelError('fc_norm=True moves the last norm, and final_norm=False leaves it '
                             'out: set only one of them.')
        if pos_embed == 'sincos2d' and embed_dim % 4:
            raise ModelError(f"pos_embed='sincos2d' needs an embed_dim divisible by 4, and "
                             f"embed_dim is {embed_dim}: use another width.")
        self.img_size, self.grid = patch_grid(img_size, patch_size)
        self.in_channels = in_channels
        self.num_features = embed_dim
        self.global_pool, self.class_token, self.positions = global_pool, class_token, pos_embed
        self.prefix = class_token + reg_tokens  # tokens before those of the patches
        self.no_embed_class, self.pre_norm = no_embed_class, pre_norm
        # Where the last norm is: '' if nowhere.
        pooled = global_pool in ('avg', 'avgmax') if fc_norm is None else fc_norm
        self.last_norm = ('fc_norm' if pooled else 'norm') if final_norm else ''
        self.dtype = dtype = compute_dtype(dtype)

        embed = {'patch': PatchEmbed, 'conv': ConvStem}[stem]
        self.patch_embed = embed(patch_size, in_channels, embed_dim, bias=not pre_norm,
                                 dtype=dtype, rngs=rngs)
        if class_token:
            self.cls_token = nnx.Param(
                normal(1e-6)(rngs.params(), (1, 1, embed_dim)))
        if reg_tokens:
            self.reg_token = nnx.Param(
                normal(1e-6)(rngs.params(), (1, reg_tokens, embed_dim)))
        patches = self.grid[0] * self.grid[1]
        if pos_embed == 'learned':
            tokens = patches if no_embed_class else self.prefix + patches
            self.pos_embed = nnx.Param(
                timm_normal(rngs.params(), (1, tokens, embed_dim)))
        self.pos_drop = Dropout(pos_drop_rate, what='pos_drop_rate')
        if pre_norm:
            self.norm_pre = layer_norm(embed_dim, eps=norm_eps, rngs=rngs)
        block = functools.partial(
            Block, embed_dim, num_heads, mlp_ratio=mlp_ratio, act=act, swiglu=swiglu,
            qkv_bias=qkv_bias, norm_eps=norm_eps, init_values=init_values, attn_drop=attn_drop_rate,
            proj_drop=proj_drop_rate, attn_impl=attn_impl, weight_init=weight_init, dtype=dtype,
            rngs=rngs)
        self.rates = drop_path_rates(drop_path, depth)
        self.blocks = nnx.List(block(drop_path=rate) for rate in self.rates)
        self.pad_tokens(self.prefix + patches, token_multiple)
        self.scan, self.remat = scan, remat
        if scan:
            self.blocks = stack_blocks(self.blocks)
        if self.last_norm:
            setattr(self, self.last_norm, layer_norm(embed_dim, eps=norm_eps, rngs=rngs))
        if global_pool != 'map':
            self.timm_unused = r'attn_pool\.'  # files of SigLIP have it, also for the mean
        else:
            self.attn_pool = AttentionPool(
                embed_dim, num_heads, mlp_ratio=mlp_ratio, act=act, norm_eps=norm_eps,
                weight_init=weight_init, dtype=dtype, rngs=rngs)

    def embed(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, N, D] for the blocks: the class token (if any), the
        registers (if any), the patches."""
        check_images(x, self.img_size, self.in_channels)
        x = self.patch_embed(x.astype(self.dtype), rngs)
        x = x.reshape(x.shape[0], -1, self.num_features)
        if self.positions == 'sincos2d':
            x = x + jnp.asarray(sincos2d(self.grid, self.num_features), x.dtype)
        elif self.no_embed_class:
            x = x + self.pos_embed[...].astype(x.dtype)
        first = [getattr(self, name)[...] for name in ('cls_token', 'reg_token')
                 if hasattr(self, name)]
        if first:
            first = [jnp.broadcast_to(token, (x.shape[0], *token.shape[1:])).astype(x.dtype)
                     for token in first]
            x = jnp.concatenate([*first, x], 1)
        if self.positions == 'learned' and not self.no_embed_class:
            x = x + self.pos_embed[...].astype(x.dtype)
        x = self.pos_drop(x, rngs)
        return self.norm_pre(x).astype(x.dtype) if self.pre_norm else x

    def finish(self, x: jax.Array) -> jax.Array:
        """Tokens [B, N, D] of the last block -> tokens to pool, same shape."""
        return self.norm(x).astype(x.dtype) if self.last_norm == 'norm' else x

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Tokens [B, N, D] -> [B, D]: the class token, or what `global_pool` makes of the
        patches; normalised here if that is the place of the last norm."""
        patches = x[:, self.prefix:]
        if self.global_pool == 'token':
            y = x[:, 0]
        elif self.global_pool == 'map':
            y = self.attn_pool(patches, rngs)
        else:
            y = jnp.mean(patches, 1, dtype=jnp.float32)
            if self.global_pool == 'avgmax':
                # Not `max`: where XLA rounds its argument differently in the gradient, no entry
                # equals it, and the gradient is NaN.
                largest = jnp.take_along_axis(patches, patches.argmax(1, keepdims=True), 1)
                y = (y + largest[:, 0]) / 2
        return self.fc_norm(y) if self.last_norm == 'fc_norm' else y
