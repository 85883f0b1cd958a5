"""Heads on feature maps: branches of convolutional blocks, and heads with their own pooling.

They serve several labels of one image that depend on different parts of it (mask, age, gender):
the labels share the backbone and nothing after it.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import conv2d
from models.layers import Dropout, activation, batch_norm

BRANCHES = {'shallow': 1, 'deep': 3}  # number of blocks


class BranchBlock(nnx.Module):
    """Two 3x3 convolutions with BatchNorm, added to the input: [B, h, w, D] -> same.

    The last BatchNorm starts with scale 0, so a new block on trained features starts as its
    activation alone.
    """

    def __init__(self, dim: int, *, act: str, rngs: nnx.Rngs):
        self.conv1, self.bn1 = conv2d(dim, dim, 3, rngs=rngs), batch_norm(dim, rngs=rngs)
        self.conv2, self.bn2 = conv2d(dim, dim, 3, rngs=rngs), batch_norm(dim, rngs=rngs)
        self.bn2.scale[...] = jnp.zeros_like(self.bn2.scale[...])
        self.act = act

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        act = activation(self.act)
        y = act(self.bn1(self.conv1(x, rngs)))
        return act(x + self.bn2(self.conv2(y, rngs)))


class BranchHead(nnx.Module):
    """A 1x1 convolution to `width` channels, blocks, mean pooling and a linear layer, in float32:
    feature maps [B, h, w, D] -> [B, C]. `make_out(width)` builds the last layer, which follows
    dropout."""

    takes_maps = True

    def __init__(self, features: int, *, blocks: int, width: int, act: str, drop_rate: float,
                 make_out, rngs: nnx.Rngs):
        activation(act)  # refuses an unknown name
        self.conv, self.bn = conv2d(features, width, 1, rngs=rngs), batch_norm(width, rngs=rngs)
        self.blocks = nnx.List(BranchBlock(width, act=act, rngs=rngs) for _ in range(blocks))
        self.out = make_out(width)
        self.drop = Dropout(drop_rate)
        self.act = act

    def __call__(self, maps: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = activation(self.act)(self.bn(self.conv(maps.astype(jnp.float32), rngs)))
        for block in self.blocks:
            x = block(x, rngs)
        return self.out(self.drop(x.mean((1, 2)), rngs), rngs)


class PooledHead(nnx.Module):
    """A head with its own attention pooling: feature maps [B, h, w, D] -> [B, C].

    It pools by a weighted mean over positions. The weights are the softmax of the products with a
    learned query, which starts at zero, so the head starts with the plain mean.
    """

    takes_maps = True

    def __init__(self, features: int, *, drop_rate: float, make_out):
        self.query = nnx.Param(jnp.zeros(features))
        self.out = make_out(features)
        self.drop = Dropout(drop_rate)

    def __call__(self, maps: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = maps.reshape(maps.shape[0], -1, maps.shape[-1]).astype(jnp.float32)
        weights = jax.nn.softmax((x * self.query[...]).sum(-1) * x.shape[-1] ** -0.5, axis=-1)
        return self.out(self.drop((weights[..., None] * x).sum(1), rngs), rngs)
