"""What the transformers share: tokens, equal blocks, and the attention weights of these."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.attention import attention_weights
from models.errors import ModelError
from models.heads import Classifier
from models.scan_layers import run_blocks, unstack_blocks


class Transformer(Classifier):
    """Families implement `embed` and `pool`, and set `blocks`, `rates`, `scan`, `remat`, `grid`."""

    timm_stem = 'patch_embed.proj'
    layer_groups = (r'patch_embed/|cls_token|pos_embed', r'blocks/(\d+)/')
    layer_levels = (r'patch_embed/|cls_token|pos_embed', r'blocks/(\d+)/|norm/')
    blocks: Any  # nnx.List of blocks; under a scan the result of `stack_blocks`
    remat: bool
    saved = 'all'  # see `scan_layers.SAVED`
    token_multiple = 1

    def pad_tokens(self, tokens: int, multiple: int) -> None:
        """Lets the blocks, not stacked yet, compute on `tokens` padded to a multiple.

        The padding is masked in attention and cut off behind the blocks: outputs and gradients stay
        the same up to rounding. A TPU holds arrays in tiles of 8 rows, and where their number is
        not a multiple of 8 each change between [B, N, D] and [B * N, D] copies the array. Attention
        is XLA's then, on GPUs too.

        Raises:
            ModelError: the multiple is not a whole number from 1 to 128.
        """
        if type(multiple) is not int or not 1 <= multiple <= 128:
            raise ModelError(f'token_multiple={multiple!r} is not a whole number from 1 to 128: '
                             f'8 suits TPUs, 1 pads nothing.')
        self.token_multiple = multiple
        if tokens % multiple:
            for block in self.blocks:
                block.attn.tokens = tokens

    def embed(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, N, D] for the blocks, the class token (if any)
        first."""
        raise NotImplementedError

    def block_inputs(self) -> tuple[jax.Array, ...]:
        """What each block gets besides its tokens."""
        return ()

    def bias_of(self, block: Any) -> jax.Array | None:
        """What a block adds to the scores of its attention, float32 [heads, N, N], or None."""
        return None

    def finish(self, x: jax.Array) -> jax.Array:
        """Tokens [B, N, D] of the last block -> tokens to pool, same shape."""
        return x

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, N, D], the class token (if any) first."""
        x = self.embed(x, rngs=rngs)
        tokens, more = x.shape[1], -x.shape[1] % self.token_multiple
        if more:
            x = jnp.pad(x, [(0, 0), (0, more), (0, 0)])
        x = run_blocks(self.blocks, x, rngs, *self.block_inputs(), rates=self.rates, scan=self.scan,
                       remat=self.remat, saved=self.saved)
        return self.finish(x[:, :tokens] if more else x)

    def each_block(self) -> list[Any]:
        """The blocks as a list, even if they are stacked under a scan."""
        return unstack_blocks(self.blocks, len(self.rates)) if self.scan else list(self.blocks)

    def attention(self, x: jax.Array) -> Iterator[jax.Array]:
        """Images [B, H, W, C] -> attention weights of each block, float32 [B, heads, N, N].

        Rows belong to queries and sum to one. Blocks come one at a time, because the
        weights of all blocks of a large model take gigabytes.
        """
        x, inputs = self.embed(x), self.block_inputs()
        for block in self.each_block():
            query, key, _ = block.attn.project(block.norm1(x).astype(x.dtype), None, *inputs)
            yield attention_weights(query, key, bias=self.bias_of(block))
            x = block(x, None, *inputs)
