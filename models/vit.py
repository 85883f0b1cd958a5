"""Vision Transformer (Dosovitskiy et al., arXiv 2010.11929), with timm's names and options.

Paths of the parameters are those of timm's state_dict: `patch_embed.proj`, `cls_token`,
`pos_embed`, `blocks.<i>.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}`, `norm` or
`fc_norm`, `head`; only `weight` is called `kernel` (linear, convolution) or `scale` (norms) here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.attention import Attention
from models.convolutions import conv2d
from models.errors import ModelError, unknown
from models.image_sizes import check_images, patch_grid
from models.layers import (
    Dropout,
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

POOLS = ('token', 'avg')
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

    def __init__(self, patch: int, channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        # The variance of torch's convolutions, which start uniform in +-1/sqrt(fan_in).
        stddev = (3 * channels * patch ** 2) ** -0.5
        self.proj = conv2d(channels, dim, patch, stride=patch, padding='VALID', bias=True,
                           kernel_init=normal(stddev), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.proj(x, rngs)


class ConvStem(nnx.Module):
    """3x3 convolutions of stride 2 with BatchNorm and ReLU, then a 1x1: [B, H, W, C] -> the grid
    of PatchEmbed. It trains more stably and needs less data (Xiao et al., arXiv 2106.14881).

    The widths double from layer to layer and end at `dim`.
    """

    def __init__(self, patch: int, channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        count = patch.bit_length() - 1
        if patch != 2 ** count or count < 1:
            raise ModelError(f"stem='conv' halves the image at each layer, and patch_size={patch} "
                             f"is not a power of 2: use 2, 4, 8, 16 or 32.")
        widths = [max(8, dim // 2 ** (count - 1 - i)) for i in range(count)]
        self.conv = nnx.List(
            conv2d(a, b, 3, stride=2, dtype=dtype, rngs=rngs)
            for a, b in zip([channels, *widths], widths))
        self.norm = nnx.List(batch_norm(width, rngs=rngs) for width in widths)
        self.proj = conv2d(widths[-1], dim, 1, bias=True, kernel_init=timm_normal, dtype=dtype,
                           rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        for conv, norm in zip(self.conv, self.norm):
            x = jax.nn.relu(norm(conv(x, rngs))).astype(x.dtype)
        return self.proj(x, rngs)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each with a residual connection: [B, N, D] -> same."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, act: str, qkv_bias: bool,
                 init_values: float | None, attn_drop: float, proj_drop: float, drop_path: float,
                 attn_impl: str, weight_init: str, dtype, rngs: nnx.Rngs):
        self.norm1 = layer_norm(dim, rngs=rngs)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop,
                              proj_drop=proj_drop, impl=attn_impl, weight_init=weight_init,
                              dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act=act, drop=proj_drop,
                       weight_init=weight_init, dtype=dtype, rngs=rngs)
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
        global_pool: 'token' (the class token) or 'avg' (the mean of the patches, then fc_norm).
        act: activation of the MLP, a key of `layers.ACTIVATIONS`.
        weight_init: '' (timm's) or 'jax' (Xavier's); see `layers.linear_init`.
        dtype: of matrix products; parameters, norms, softmax and logits stay float32.
        attn_impl: 'auto', 'xla' or 'cudnn'; see `attention.attend`.
        scan: stack all blocks under one scan, so that the compile time does not grow with depth.
        remat: recompute the activations of each block in the gradient, for less memory.
        token_multiple: pad the tokens in the blocks to a multiple of this; see
            `Transformer.pad_tokens`.
    """

    def __init__(self, *, img_size: int | tuple[int, int] = 224, patch_size: int = 16,
                 in_channels: int = 3, embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
                 mlp_ratio: float = 4.0, act: str = 'gelu', qkv_bias: bool = True,
                 init_values: float | None = None,
                 class_token: bool = True, global_pool: str = 'token', stem: str = 'patch',
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
        if pos_embed == 'sincos2d' and embed_dim % 4:
            raise ModelError(f"pos_embed='sincos2d' needs an embed_dim divisible by 4, and "
                             f"embed_dim is {embed_dim}: use another width.")
        self.img_size, self.grid = patch_grid(img_size, patch_size)
        self.in_channels = in_channels
        self.num_features = embed_dim
        self.global_pool, self.class_token, self.positions = global_pool, class_token, pos_embed
        self.dtype = dtype = compute_dtype(dtype)

        embed = {'patch': PatchEmbed, 'conv': ConvStem}[stem]
        self.patch_embed = embed(patch_size, in_channels, embed_dim, dtype=dtype, rngs=rngs)
        if class_token:
            self.cls_token = nnx.Param(
                normal(1e-6)(rngs.params(), (1, 1, embed_dim)))
        if pos_embed == 'learned':
            tokens = class_token + self.grid[0] * self.grid[1]
            self.pos_embed = nnx.Param(
                timm_normal(rngs.params(), (1, tokens, embed_dim)))
        self.pos_drop = Dropout(pos_drop_rate, what='pos_drop_rate')
        block = functools.partial(
            Block, embed_dim, num_heads, mlp_ratio=mlp_ratio, act=act, qkv_bias=qkv_bias,
            init_values=init_values, attn_drop=attn_drop_rate, proj_drop=proj_drop_rate,
            attn_impl=attn_impl, weight_init=weight_init, dtype=dtype, rngs=rngs)
        self.rates = drop_path_rates(drop_path, depth)
        self.blocks = nnx.List(block(drop_path=rate) for rate in self.rates)
        self.pad_tokens(class_token + self.grid[0] * self.grid[1], token_multiple)
        self.scan, self.remat = scan, remat
        if scan:
            self.blocks = stack_blocks(self.blocks)
        # As in timm, the last norm comes before the class token is taken but after the mean.
        if global_pool == 'token':
            self.norm = layer_norm(embed_dim, rngs=rngs)
        else:
            self.fc_norm = layer_norm(embed_dim, rngs=rngs)

    def embed(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, N, D] for the blocks, the class token (if any)
        first."""
        check_images(x, self.img_size, self.in_channels)
        x = self.patch_embed(x.astype(self.dtype), rngs)
        x = x.reshape(x.shape[0], -1, self.num_features)
        if self.positions == 'sincos2d':
            x = x + jnp.asarray(sincos2d(self.grid, self.num_features), x.dtype)
        if self.class_token:
            token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, self.num_features))
            x = jnp.concatenate([token.astype(x.dtype), x], 1)
        if self.positions == 'learned':
            x = x + self.pos_embed[...].astype(x.dtype)
        return self.pos_drop(x, rngs)

    def finish(self, x: jax.Array) -> jax.Array:
        """Tokens [B, N, D] of the last block -> tokens to pool, same shape."""
        return self.norm(x).astype(x.dtype) if self.global_pool == 'token' else x

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Tokens [B, N, D] -> [B, D]: the class token, or the normalised mean of the patches."""
        if self.global_pool == 'token':
            return x[:, 0]
        return self.fc_norm(jnp.mean(x[:, int(self.class_token):], 1, dtype=jnp.float32))


_SIZES = {  # width, depth, heads
    'tiny': (192, 12, 3),
    'small': (384, 12, 6),
    'base': (768, 12, 12),
    'large': (1024, 24, 16),
    'huge': (1280, 32, 16),
}
_VARIANTS = {  # (patch size, image size) of timm's models
    'tiny': ((16, 224), (16, 384)),
    'small': ((8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    'base': ((8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    'large': ((14, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
    'huge': ((14, 224),),
}
VARIANTS = {
    f'vit_{size}_patch{patch}_{side}': {
        'patch_size': patch, 'img_size': side,
        **dict(zip(('embed_dim', 'depth', 'num_heads'), _SIZES[size]))}
    for size, variants in _VARIANTS.items() for patch, side in variants
}
