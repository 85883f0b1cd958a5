"""The Vision Transformers of DINOv3 (Siméoni et al., arXiv 2508.10104), with timm's names.

Queries and keys of the patches are rotated by their place in the image (RoPE); there are no other
positions. Registers, learned tokens without a meaning of their own (Darcet et al., arXiv
2309.16588), follow the class token. Residual branches have a layer scale. The weights of EUPE go by
names with `_qkvb`, whose queries and values have biases.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.errors import ModelError, unknown
from models.eva import EvaAttention, EvaBlock, make_mlp
from models.image_sizes import check_images, patch_grid
from models.layers import Dropout, compute_dtype, drop_path_rates, layer_norm, timm_normal
from models.scan_layers import stack_blocks
from models.transformer import Transformer
from models.vit import PatchEmbed

POOLS = ('avg', 'token')
_EPS = 1e-5  # of all norms


@functools.lru_cache(maxsize=8)
def centred_table(grid: tuple[int, int], dim: int, temperature: float = 100.0) -> np.ndarray:
    """Sine and cosine of the rotations, float32 [2, rows * columns, dim].

    A patch lies where its centre does, from -1 to 1 along each side of the image whatever its shape
    and size. Of each half of the channels, the first half rotates with the row and the second
    with the column, at dim / 4 periods from 1 to almost `temperature`.
    """
    periods = temperature ** (np.arange(dim // 4, dtype=np.float32) / np.float32(dim // 4))
    axes = [2 * ((np.arange(side, dtype=np.float32) + 0.5) / side) - 1 for side in grid]
    places = np.stack(np.meshgrid(*axes, indexing='ij'), -1)[..., None]
    angles = (2 * np.pi * places / periods).reshape(grid[0] * grid[1], dim // 2)
    angles = np.tile(angles, 2)
    return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)


class Dinov3Attention(EvaAttention):
    """`EvaAttention` whose pairs of channels are halves apart."""

    halves = True


class Dinov3(Transformer):
    """DINOv3. Arguments are timm's; these differ or are new:

    Args:
        img_size: side of the images in pixels, or (height, width).
        in_channels: channels of the images (timm: in_chans).
        swiglu_mlp: a gated MLP, in one layer `fc1` for gate and value with `swiglu_align_to=0`.
        swiglu_align_to: the hidden width of a gated MLP is rounded up to a multiple of this.
        qkv_bias: biases for queries and values; keys never have one.
        init_values: initial value of the layer scale; None for no layer scale.
        global_pool: 'avg' (the mean of the patches, timm's default) or 'token' (the class token, as
            its authors use it).
        drop_path: rate of stochastic depth in the last block, 0 in the first.
        dtype: of matrix products; parameters, norms, softmax and logits stay float32.
        attn_impl: 'auto', 'xla' or 'cudnn'; see `attention.attend`.
        scan: stack all blocks under one scan, so that the compile time does not grow with depth.
        remat: recompute the activations of each block in the gradient, for less memory.
        token_multiple: pad the tokens in the blocks to a multiple of this; see
            `Transformer.pad_tokens`.
    """

    layer_groups = (r'patch_embed/|cls_token|reg_token', r'blocks/(\d+)/')
    layer_levels = (r'patch_embed/|cls_token|reg_token', r'blocks/(\d+)/|norm/')

    def __init__(self, *, img_size: int | tuple[int, int] = 256, patch_size: int = 16,
                 in_channels: int = 3, embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
                 mlp_ratio: float = 4.0, swiglu_mlp: bool = False, swiglu_align_to: int = 0,
                 qkv_bias: bool = False, init_values: float | None = 1e-5,
                 num_reg_tokens: int = 4, rope_temperature: float = 100.0,
                 global_pool: str = 'avg', pos_drop_rate: float = 0.0,
                 proj_drop_rate: float = 0.0, attn_drop_rate: float = 0.0, drop_path: float = 0.0,
                 dtype=None, attn_impl: str = 'auto', scan: bool = False, remat: bool = False,
                 token_multiple: int = 1, rngs: nnx.Rngs):
        if global_pool not in POOLS:
            raise unknown('global_pool', global_pool, POOLS)
        for what, value in (('num_reg_tokens', num_reg_tokens),
                            ('swiglu_align_to', swiglu_align_to)):
            if type(value) is not int or value < 0:
                raise ModelError(f'{what}={value!r} is not a whole number of at least 0: use 4 '
                                 f'registers, and 8 or 0 to align a gated MLP.')
        if embed_dim // num_heads % 4:
            raise ModelError(f'embed_dim={embed_dim} over num_heads={num_heads} leaves '
                             f'{embed_dim // num_heads} channels per head, and RoPE needs a '
                             f'multiple of 4: choose another number of heads.')
        self.img_size, self.grid = patch_grid(img_size, patch_size)
        self.in_channels, self.num_features = in_channels, embed_dim
        self.head_dim, self.temperature = embed_dim // num_heads, rope_temperature
        self.global_pool = global_pool
        self.dtype = dtype = compute_dtype(dtype)
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(timm_normal(rngs.params(), (1, 1, embed_dim)))
        self.registers = num_reg_tokens
        if num_reg_tokens:
            self.reg_token = nnx.Param(
                timm_normal(rngs.params(), (1, num_reg_tokens, embed_dim)))
        self.pos_drop = Dropout(pos_drop_rate, what='pos_drop_rate')
        self.rates = drop_path_rates(drop_path, depth)
        hidden = int(embed_dim * mlp_ratio)
        kind = ('swiglu' if swiglu_align_to else 'swiglu_packed') if swiglu_mlp else 'gelu'
        if kind == 'swiglu':
            hidden += -hidden % swiglu_align_to

        def block(layer: int, rate: float) -> EvaBlock:
            scale = (2 * layer) ** -0.5  # deeper residual branches start smaller
            return EvaBlock(
                embed_dim, drop_path=rate, init_values=init_values, eps=_EPS, rngs=rngs,
                make_attn=lambda: Dinov3Attention(
                    embed_dim, num_heads, fused=True, qkv_bias=qkv_bias, attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate, proj_scale=scale, impl=attn_impl, dtype=dtype,
                    rngs=rngs),
                make_mlp=lambda: make_mlp(
                    embed_dim, hidden, kind=kind, norm=False, drop=proj_drop_rate,
                    out_scale=scale, dtype=dtype, rngs=rngs))

        self.blocks = nnx.List(block(layer, rate) for layer, rate in enumerate(self.rates, 1))
        self.pad_tokens(1 + num_reg_tokens + self.grid[0] * self.grid[1], token_multiple)
        self.scan, self.remat = scan, remat
        if scan:
            self.blocks = stack_blocks(self.blocks)
        self.norm = layer_norm(embed_dim, eps=_EPS, rngs=rngs)

    def embed(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, 1 + registers + N, D] for the blocks: the class token,
        the registers, the patches."""
        check_images(x, self.img_size, self.in_channels)
        x = self.patch_embed(x.astype(self.dtype), rngs)
        x = x.reshape(x.shape[0], -1, self.num_features)
        first = [self.cls_token[...]] + ([self.reg_token[...]] if self.registers else [])
        tokens = [jnp.broadcast_to(one, (x.shape[0], *one.shape[1:])).astype(x.dtype)
                  for one in first]
        return self.pos_drop(jnp.concatenate([*tokens, x], 1), rngs)

    def block_inputs(self) -> tuple[jax.Array, ...]:
        """What each block gets besides its tokens: the table of rotations."""
        return (jnp.asarray(centred_table(self.grid, self.head_dim, self.temperature)),)

    def finish(self, x: jax.Array) -> jax.Array:
        """Tokens [B, N, D] of the last block -> normalised tokens, same shape."""
        return self.norm(x).astype(x.dtype)

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Normalised tokens -> the class token, or the mean of the patches, [B, D]."""
        if self.global_pool == 'token':
            return x[:, 0]
        return jnp.mean(x[:, 1 + self.registers:], 1, dtype=jnp.float32)


_GATED = dict(swiglu_mlp=True, swiglu_align_to=8)
_SIZES: dict[str, dict] = {
    'tiny': dict(embed_dim=192, num_heads=3),
    'small': dict(embed_dim=384, num_heads=6),
    'small_plus': dict(embed_dim=384, num_heads=6, **_GATED),
    'base': dict(embed_dim=768, num_heads=12),
    'large': dict(embed_dim=1024, depth=24, num_heads=16),
    'huge_plus': dict(embed_dim=1280, depth=32, num_heads=20, **_GATED),
    '7b': dict(embed_dim=4096, depth=40, num_heads=32, mlp_ratio=2.0, swiglu_mlp=True,
               swiglu_align_to=64),
}
VARIANTS: dict[str, dict] = {
    **{f'vit_{size}_patch16_dinov3': settings for size, settings in _SIZES.items()
       if size != 'tiny'},
    **{f'vit_{size}_patch16_dinov3_qkvb': dict(settings, qkv_bias=True)
       for size, settings in _SIZES.items() if size != '7b'},
}
