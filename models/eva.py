"""EVA-02 (Fang et al., arXiv 2303.11331) and EVA giant (arXiv 2211.07636), with timm's names.

A ViT with other blocks. EVA-02 rotates queries and keys by their position (RoPE), except those of
the class token, and has gated MLPs (SwiGLU), in the larger models with a norm inside. Only queries
and values have biases. The mean of the patches goes through `fc_norm` to the head.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.attention import attend
from models.errors import ModelError, unknown
from models.image_sizes import check_images, patch_grid
from models.layers import (
    Dropout,
    Linear,
    Mlp,
    compute_dtype,
    drop_path_rates,
    layer_norm,
    normal,
    timm_normal,
)
from models.scan_layers import keep_whole, stack_blocks
from models.target import Target
from models.transformer import Transformer
from models.vit import PatchEmbed

MLPS = ('gelu', 'swiglu', 'swiglu_packed')


@functools.lru_cache(maxsize=8)
def rotary_table(grid: tuple[int, int], dim: int, reference: int = 16,
                 temperature: float = 10000.0) -> np.ndarray:
    """Sine and cosine of the rotations, float32 [2, rows * columns, dim].

    Half of the channels rotate with the row, half with the column, in pairs (2i, 2i + 1) at
    dim / 4 frequencies. Positions are scaled to a grid of `reference` rows and columns, so that
    the same place in the image has the same angles at every resolution.
    """
    bands = 1.0 / temperature ** (np.arange(dim // 4, dtype=np.float32) / (dim // 4))
    axes = [np.arange(side, dtype=np.float32) / side * reference for side in grid]
    angles = np.stack(np.meshgrid(*axes, indexing='ij'), -1)[..., None] * bands
    angles = np.repeat(angles.reshape(grid[0] * grid[1], dim // 2), 2, axis=1)
    return np.stack([np.sin(angles), np.cos(angles)]).astype(np.float32)


def rotate(x: jax.Array, table: jax.Array, padding: int = 0, *, halves: bool = False) -> jax.Array:
    """Rotates the pairs of channels of the patches: [B, N, H, d] -> same. The tokens before them
    (class token, registers) and the padding behind them, so many tokens, stay as they are.

    Pairs are (2i, 2i + 1), or with `halves` (i, i + d / 2)."""
    end = x.shape[1] - padding
    start = end - table.shape[1]
    patches = x[:, start:end].astype(jnp.float32)
    if halves:
        first, second = jnp.split(patches, 2, -1)
        turned = jnp.concatenate([-second, first], -1)
    else:
        pairs = patches.reshape(*patches.shape[:-1], -1, 2)
        turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(patches.shape)
    sine, cosine = table[:, :, None]
    patches = (patches * cosine + turned * sine).astype(x.dtype)
    return jnp.concatenate([x[:, :start], patches, x[:, end:]], 1)


class EvaAttention(nnx.Module):
    """Self-attention [B, N, dim] -> same, with biases for q and v only (none with `qkv_bias=False`)
    and optional RoPE."""

    target: Target | None = None  # see `target.aim`
    tokens = 0  # without the padding, see `attend`
    halves = False  # see `rotate`

    def __init__(self, dim: int, num_heads: int, *, fused: bool, attn_drop: float,
                 proj_drop: float, proj_scale: float, impl: str, qkv_bias: bool = True, dtype,
                 rngs: nnx.Rngs):
        if dim % num_heads:
            raise ModelError(f'embed_dim={dim} cannot be split over num_heads={num_heads}: '
                             f'choose a number of heads that divides it.')
        linear = functools.partial(Linear, kernel_init=timm_normal, dtype=dtype, rngs=rngs)
        self.fused, self.qkv_bias = fused, qkv_bias
        if fused:
            self.qkv = linear(dim, 3 * dim, use_bias=False)
            if qkv_bias:
                self.q_bias = nnx.Param(jnp.zeros(dim))
                self.v_bias = nnx.Param(jnp.zeros(dim))
        else:
            self.q_proj, self.v_proj = (linear(dim, dim, use_bias=qkv_bias) for _ in 'qv')
            self.k_proj = linear(dim, dim, use_bias=False)
        self.proj = linear(dim, dim, kernel_init=normal(0.02 * proj_scale))
        self.attn_drop = Dropout(attn_drop, what='attn_drop_rate')
        self.proj_drop = Dropout(proj_drop, what='proj_drop_rate')
        self.num_heads, self.impl = num_heads, impl

    def project(self, x: jax.Array, rngs: nnx.Rngs | None = None, table=None
                ) -> tuple[jax.Array, ...]:
        """Query, key and value, each [B, N, H, d]; query and key are rotated by the table."""
        batch, tokens, dim = x.shape
        parts: Sequence[jax.Array]
        if self.fused:
            qkv = self.qkv(x, rngs)
            if self.qkv_bias:
                bias = jnp.concatenate([keep_whole(self.q_bias[...]), jnp.zeros(dim),
                                        keep_whole(self.v_bias[...])])
                qkv = qkv + bias.astype(x.dtype)
            parts = jnp.split(qkv, 3, axis=-1)
        else:
            parts = self.q_proj(x, rngs), self.k_proj(x, rngs), self.v_proj(x, rngs)
        query, key, value = (part.reshape(batch, tokens, self.num_heads, -1) for part in parts)
        if table is not None:
            padding = tokens - (self.tokens or tokens)
            query, key = (rotate(part, table, padding, halves=self.halves)
                          for part in (query, key))
        return query, key, value

    def bias(self, tokens: int) -> jax.Array | None:
        """What is added to the scores of so many tokens, float32 [H, N, N], or None."""
        return None

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, table=None) -> jax.Array:
        y = attend(*self.project(x, rngs, table), impl=self.impl, target=self.target,
                   drop=self.attn_drop, rngs=rngs, tokens=self.tokens, bias=self.bias(x.shape[1]))
        return self.proj_drop(self.proj(y.reshape(x.shape), rngs), rngs)


class SwiGlu(nnx.Module):
    """Gated MLP (Shazeer, arXiv 2002.05202): fc2(norm(silu(gate) * value)), [B, N, dim] -> same.

    With `packed` one layer `fc1` computes gate and value; otherwise `fc1_g` and `fc1_x` do.
    """

    def __init__(self, dim: int, hidden: int, *, packed: bool, norm: bool, drop: float,
                 out_scale: float, dtype, rngs: nnx.Rngs):
        linear = functools.partial(Linear, kernel_init=timm_normal, dtype=dtype, rngs=rngs)
        self.packed, self.normed = packed, norm
        if packed:
            self.fc1 = linear(dim, 2 * hidden)
        else:
            self.fc1_g, self.fc1_x = linear(dim, hidden), linear(dim, hidden)
        if norm:
            self.norm = layer_norm(hidden, rngs=rngs)
        self.fc2 = linear(hidden, dim, kernel_init=normal(0.02 * out_scale))
        self.drop = Dropout(drop, what='proj_drop_rate')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        if self.packed:
            gate, value = jnp.split(self.fc1(x, rngs), 2, axis=-1)
        else:
            gate, value = self.fc1_g(x, rngs), self.fc1_x(x, rngs)
        y = self.drop(jax.nn.silu(gate) * value, rngs)
        y = self.norm(y).astype(x.dtype) if self.normed else y
        return self.drop(self.fc2(y, rngs), rngs)


def make_mlp(dim: int, hidden: int, *, kind: str, norm: bool, drop: float, out_scale: float,
             dtype, rngs: nnx.Rngs) -> Mlp | SwiGlu:
    """The MLP of a block, of a kind in MLPS; its last layer starts smaller by `out_scale`."""
    if kind != 'gelu':
        return SwiGlu(dim, hidden, packed=kind == 'swiglu_packed', norm=norm, drop=drop,
                      out_scale=out_scale, dtype=dtype, rngs=rngs)
    mlp = Mlp(dim, hidden, drop=drop, dtype=dtype, rngs=rngs)
    mlp.fc2.kernel.set_value(mlp.fc2.kernel[...] * out_scale)
    return mlp


class EvaBlock(nnx.Module):
    """Pre-norm attention and MLP, each with a residual connection and, unless `init_values` is
    None, a learned factor per channel on it (layer scale): [B, N, D] -> same.

    `make_attn` and `make_mlp` () -> module are called in turn with the norms, because the random
    numbers of each layer follow from its place.
    """

    def __init__(self, dim: int, *, make_attn: Callable, make_mlp: Callable, drop_path: float,
                 init_values: float | None = None, eps: float = 1e-6, rngs: nnx.Rngs):
        self.norm1 = layer_norm(dim, eps=eps, rngs=rngs)
        self.attn = make_attn()
        self.norm2 = layer_norm(dim, eps=eps, rngs=rngs)
        self.mlp = make_mlp()
        self.scaled = init_values is not None
        if init_values is not None:
            self.gamma_1, self.gamma_2 = (
                nnx.Param(jnp.full(dim, init_values, jnp.float32)) for _ in range(2))
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None, table=None, *,
                 drop_path: jax.Array | None = None) -> jax.Array:
        y = self.attn(self.norm1(x).astype(x.dtype), rngs, table)
        y = y * self.gamma_1[...].astype(y.dtype) if self.scaled else y
        x = x + self.drop_path(y, rngs, drop_path)
        y = self.mlp(self.norm2(x).astype(x.dtype), rngs)
        y = y * self.gamma_2[...].astype(y.dtype) if self.scaled else y
        return x + self.drop_path(y, rngs, drop_path)


class Eva(Transformer):
    """EVA and EVA-02. Arguments are timm's; these differ or are new:

    Args:
        img_size: side of the images in pixels, or (height, width).
        in_channels: channels of the images (timm: in_chans).
        mlp: 'gelu', 'swiglu' or 'swiglu_packed' (timm: swiglu_mlp, and packed where qkv_fused).
        scale_mlp: a LayerNorm inside the gated MLP.
        use_rot_pos_emb: rotate queries and keys (RoPE), besides the learned positions.
        drop_path: rate of stochastic depth in the last block, 0 in the first.
        dtype: of matrix products; parameters, norms, softmax and logits stay float32.
        attn_impl: 'auto', 'xla' or 'cudnn'; see `attention.attend`.
        scan: stack all blocks under one scan, so that the compile time does not grow with depth.
        remat: recompute the activations of each block in the gradient, for less memory.
        token_multiple: pad the tokens in the blocks to a multiple of this; see
            `Transformer.pad_tokens`.
    """

    def __init__(self, *, img_size: int | tuple[int, int] = 224, patch_size: int = 14,
                 in_channels: int = 3, embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
                 mlp_ratio: float = 8 / 3, mlp: str = 'swiglu', scale_mlp: bool = False,
                 qkv_fused: bool = True, use_rot_pos_emb: bool = True, pos_drop_rate: float = 0.0,
                 proj_drop_rate: float = 0.0, attn_drop_rate: float = 0.0, drop_path: float = 0.0,
                 dtype=None, attn_impl: str = 'auto', scan: bool = False, remat: bool = False,
                 token_multiple: int = 1, rngs: nnx.Rngs):
        if mlp not in MLPS:
            raise unknown('mlp', mlp, MLPS)
        if use_rot_pos_emb and embed_dim // num_heads % 4:
            raise ModelError(f'embed_dim={embed_dim} over num_heads={num_heads} leaves '
                             f'{embed_dim // num_heads} channels per head, and RoPE needs a '
                             f'multiple of 4: choose another number of heads.')
        self.img_size, self.grid = patch_grid(img_size, patch_size)
        self.in_channels = in_channels
        self.num_features, self.head_dim = embed_dim, embed_dim // num_heads
        self.rotary = use_rot_pos_emb
        self.dtype = dtype = compute_dtype(dtype)
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(timm_normal(rngs.params(), (1, 1, embed_dim)))
        tokens = 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nnx.Param(timm_normal(rngs.params(), (1, tokens, embed_dim)))
        self.pos_drop = Dropout(pos_drop_rate, what='pos_drop_rate')
        self.rates = drop_path_rates(drop_path, depth)

        def block(layer: int, rate: float) -> EvaBlock:
            scale = (2 * layer) ** -0.5  # deeper residual branches start smaller
            return EvaBlock(
                embed_dim, drop_path=rate, rngs=rngs,
                make_attn=lambda: EvaAttention(
                    embed_dim, num_heads, fused=qkv_fused, attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate, proj_scale=scale, impl=attn_impl, dtype=dtype,
                    rngs=rngs),
                make_mlp=lambda: make_mlp(
                    embed_dim, int(embed_dim * mlp_ratio), kind=mlp, norm=scale_mlp,
                    drop=proj_drop_rate, out_scale=scale, dtype=dtype, rngs=rngs))

        self.blocks = nnx.List(block(layer, rate) for layer, rate in enumerate(self.rates, 1))
        self.pad_tokens(tokens, token_multiple)
        self.scan, self.remat = scan, remat
        if scan:
            self.blocks = stack_blocks(self.blocks)
        self.fc_norm = layer_norm(embed_dim, rngs=rngs)

    def embed(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, 1 + N, D] for the blocks, the class token first."""
        check_images(x, self.img_size, self.in_channels)
        x = self.patch_embed(x.astype(self.dtype), rngs)
        x = x.reshape(x.shape[0], -1, self.num_features)
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, self.num_features))
        x = jnp.concatenate([token.astype(x.dtype), x], 1)
        return self.pos_drop(x + self.pos_embed[...].astype(x.dtype), rngs)

    def block_inputs(self) -> tuple[jax.Array, ...]:
        """What each block gets besides its tokens: the table of rotations, if it uses RoPE."""
        return (jnp.asarray(rotary_table(self.grid, self.head_dim)),) if self.rotary else ()

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Tokens [B, 1 + N, D] -> the normalised mean of the patches, float32 [B, D]."""
        return self.fc_norm(jnp.mean(x[:, 1:], 1, dtype=jnp.float32))


_SIZES: dict[str, dict] = {
    'tiny': dict(embed_dim=192, depth=12, num_heads=3, mlp='swiglu_packed'),
    'small': dict(embed_dim=384, depth=12, num_heads=6, mlp='swiglu_packed'),
    'base': dict(embed_dim=768, depth=12, num_heads=12, qkv_fused=False, scale_mlp=True),
    'large': dict(embed_dim=1024, depth=24, num_heads=16, qkv_fused=False, scale_mlp=True),
}
_IMAGE_SIZES = {'tiny': (224, 336), 'small': (224, 336), 'base': (224, 448), 'large': (224, 448)}
_GIANT = dict(embed_dim=1408, depth=40, num_heads=16, mlp='gelu', mlp_ratio=6144 / 1408,
              use_rot_pos_emb=False)
VARIANTS = {
    **{f'eva02_{name}_patch14_{side}': dict(_SIZES[name], img_size=side)
       for name, sides in _IMAGE_SIZES.items() for side in sides},
    **{f'eva_giant_patch14_{side}': dict(_GIANT, img_size=side) for side in (224, 336)},
}
