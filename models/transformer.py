"""What ViT and EVA have in common: tokens, equal blocks, and a look at what these attend to."""

from collections.abc import Iterator

import jax
from flax import nnx

from models.heads import Classifier
from models.layers import attention_weights
from models.stacking import run_blocks, unstacked


class Transformer(Classifier):
    """Families write `embed` and `pool`, and set `blocks`, `rates`, `scan`, `remat` and `grid`."""

    timm_stem = 'patch_embed.proj'
    layer_groups = (r'patch_embed/|cls_token|pos_embed', r'blocks/(\d+)/')

    def embed(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, N, D] of the first block, the class token (if any)
        first."""
        raise NotImplementedError

    def block_inputs(self) -> tuple[jax.Array, ...]:
        """What every block gets besides its tokens."""
        return ()

    def finish(self, x: jax.Array) -> jax.Array:
        """Tokens [B, N, D] after the last block -> those that are pooled."""
        return x

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, N, D], the class token (if any) first."""
        return self.finish(run_blocks(
            self.blocks, self.embed(x, rngs=rngs), rngs, *self.block_inputs(), rates=self.rates,
            scan=self.scan, remat=self.remat))

    def each_block(self) -> list[nnx.Module]:
        """The blocks one by one, also where they are stacked under a scan."""
        return unstacked(self.blocks, len(self.rates)) if self.scan else list(self.blocks)

    def attention(self, x: jax.Array) -> Iterator[jax.Array]:
        """Images -> what the heads of each block attend to, float32 [B, heads, N, N]: rows ask and
        sum to one. One block at a time, since all of a large model fill gigabytes."""
        x, inputs = self.embed(x), self.block_inputs()
        for block in self.each_block():
            query, key, _ = block.attn.project(block.norm1(x).astype(x.dtype), None, *inputs)
            yield attention_weights(query, key)
            x = block(x, None, *inputs)
