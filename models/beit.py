"""BEiT (Bao et al., arXiv 2106.08254) and BEiT v2 (Peng et al., 2208.06366), with timm's names.

A ViT without position embeddings: attention adds a learned bias to its scores, by the offset
between two patches, in each block anew. Only queries and values have biases, residual branches have
a layer scale, and the mean of the patches goes through `fc_norm` to the head.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.errors import ModelError
from models.eva import EvaAttention, EvaBlock, make_mlp
from models.image_sizes import check_images, patch_grid
from models.layers import Dropout, compute_dtype, drop_path_rates, layer_norm, timm_normal
from models.relative_positions import relative_bias, table_entries
from models.scan_layers import keep_whole, stack_blocks
from models.transformer import Transformer
from models.vit import PatchEmbed


class BeitAttention(EvaAttention):
    """`EvaAttention` with a bias by offset: [B, 1 + rows * columns, dim] -> same."""

    def __init__(self, dim: int, num_heads: int, *, grid: tuple[int, int], **settings):
        super().__init__(dim, num_heads, fused=True, **settings)
        self.grid = grid
        self.relative_position_bias_table = nnx.Param(
            jnp.zeros((num_heads, table_entries(grid)), jnp.float32))

    def bias(self, tokens: int) -> jax.Array:
        """What is added to the scores of so many tokens, float32 [H, N, N]; 0 for padding."""
        bias = relative_bias(keep_whole(self.relative_position_bias_table[...]), self.grid)
        padding = tokens - bias.shape[-1]
        return jnp.pad(bias, [(0, 0), (0, padding), (0, padding)]) if padding else bias


class Beit(Transformer):
    """BEiT and BEiT v2. Arguments are timm's; these differ or are new:

    Args:
        img_size: side of the images in pixels, or (height, width).
        in_channels: channels of the images (timm: in_chans).
        init_values: initial value of the layer scale; None or 0 for no layer scale.
        drop_path: rate of stochastic depth in the last block, 0 in the first.
        dtype: of matrix products; parameters, norms, softmax and logits stay float32.
        attn_impl: 'auto' or 'xla', which are the same here; see `attention.attend`.
        scan: stack all blocks under one scan, so that the compile time does not grow with depth.
        remat: recompute the activations of each block in the gradient, for less memory.
        token_multiple: pad the tokens in the blocks to a multiple of this; see
            `Transformer.pad_tokens`.
    """

    def __init__(self, *, img_size: int | tuple[int, int] = 224, patch_size: int = 16,
                 in_channels: int = 3, embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
                 mlp_ratio: float = 4.0, init_values: float | None = 1e-5,
                 pos_drop_rate: float = 0.0, proj_drop_rate: float = 0.0,
                 attn_drop_rate: float = 0.0, drop_path: float = 0.0, dtype=None,
                 attn_impl: str = 'auto', scan: bool = False, remat: bool = False,
                 token_multiple: int = 1, rngs: nnx.Rngs):
        if attn_impl == 'cudnn':
            raise ModelError("attn_impl='cudnn' takes no bias of the scores, which BEiT has: use "
                             "attn_impl='auto'.")
        self.img_size, self.grid = patch_grid(img_size, patch_size)
        self.in_channels, self.num_features = in_channels, embed_dim
        self.dtype = dtype = compute_dtype(dtype)
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, dtype=dtype, rngs=rngs)
        self.cls_token = nnx.Param(timm_normal(rngs.params(), (1, 1, embed_dim)))
        self.pos_drop = Dropout(pos_drop_rate, what='pos_drop_rate')
        self.rates = drop_path_rates(drop_path, depth)

        def block(layer: int, rate: float) -> EvaBlock:
            scale = (2 * layer) ** -0.5  # deeper residual branches start smaller
            return EvaBlock(
                embed_dim, drop_path=rate, init_values=init_values or None, rngs=rngs,
                make_attn=lambda: BeitAttention(
                    embed_dim, num_heads, grid=self.grid, attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate, proj_scale=scale, impl=attn_impl, dtype=dtype,
                    rngs=rngs),
                make_mlp=lambda: make_mlp(
                    embed_dim, int(embed_dim * mlp_ratio), kind='gelu', norm=False,
                    drop=proj_drop_rate, out_scale=scale, dtype=dtype, rngs=rngs))

        self.blocks = nnx.List(block(layer, rate) for layer, rate in enumerate(self.rates, 1))
        self.pad_tokens(1 + self.grid[0] * self.grid[1], token_multiple)
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
        return self.pos_drop(jnp.concatenate([token.astype(x.dtype), x], 1), rngs)

    def bias_of(self, block: EvaBlock) -> jax.Array | None:
        """What a block adds to the scores of its attention, float32 [heads, N, N]."""
        return block.attn.bias(1 + self.grid[0] * self.grid[1])

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Tokens [B, 1 + N, D] -> the normalised mean of the patches, float32 [B, D]."""
        return self.fc_norm(jnp.mean(x[:, 1:], 1, dtype=jnp.float32))


_LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
VARIANTS: dict[str, dict] = {
    **{f'beit_base_patch16_{side}': dict(img_size=side, init_values=0.1) for side in (224, 384)},
    **{f'beit_large_patch16_{side}': dict(_LARGE, img_size=side) for side in (224, 384, 512)},
    'beitv2_base_patch16_224': {},
    'beitv2_large_patch16_224': _LARGE,
}
