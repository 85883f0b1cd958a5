"""Attention pooling, as in SigLIP: a learned query collects from the patches what is classified."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models.attention import attention_weights
from models.layers import Linear, Mlp, layer_norm, linear_init, normal


class AttentionPool(nnx.Module):
    """Attention of one learned query to all tokens, then an MLP with a residual connection:
    [B, N, dim] -> float32 [B, dim] (Zhai et al., arXiv 2106.04560; timm: AttentionPoolLatent)."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, act: str, norm_eps: float,
                 weight_init: str, dtype, rngs: nnx.Rngs):
        init = linear_init(weight_init, dim, dim)  # key and value are two layers side by side
        linear = functools.partial(Linear, kernel_init=init, dtype=dtype, rngs=rngs)
        self.latent = nnx.Param(normal(dim ** -0.5)(rngs.params(), (1, 1, dim)))
        self.q, self.kv = linear(dim, dim), linear(dim, 2 * dim)
        self.proj = linear(dim, dim)
        self.norm = layer_norm(dim, eps=norm_eps, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act=act, weight_init=weight_init, dtype=dtype,
                       rngs=rngs)
        self.num_heads = num_heads

    def _attend(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array]:
        """(attention weights float32 [B, H, 1, N], values [B, N, H, d])"""
        batch, tokens, dim = x.shape
        heads = self.num_heads, dim // self.num_heads
        query = self.q(self.latent[...].astype(x.dtype), rngs).reshape(1, 1, *heads)
        pairs = self.kv(x, rngs).reshape(batch, tokens, 2, *heads)
        query = jnp.broadcast_to(query, (batch, 1, *heads))
        return attention_weights(query, pairs[:, :, 0]), pairs[:, :, 1]

    def weights(self, x: jax.Array) -> jax.Array:
        """How much of each token is collected, the mean over the heads: [B, N, dim] -> float32
        [B, N]; rows sum to one."""
        return self._attend(x, None)[0].mean(1)[:, 0]

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        weights, values = self._attend(x, rngs)
        y = jnp.einsum('bhqk,bkhd->bqhd', weights.astype(values.dtype), values)
        y = self.proj(y.reshape(y.shape[0], y.shape[-2] * y.shape[-1]), rngs)
        more = self.mlp(self.norm(y).astype(y.dtype), rngs)
        return y.astype(jnp.float32) + more
