"""A light ResNet whose residual branches are inception modules.

It is designed for a few dozen classes of illustrations or sketches, trained from scratch at 128 to
224 pixels on one GPU or a CPU. Such images have strokes and figures of all scales, so each block
has windows of several sizes. Residual learning is from He et al. (arXiv 1512.03385), parallel
branches with residual connections are from Szegedy et al. (arXiv 1602.07261), and the dilated
branch follows Yu and Koltun (arXiv 1511.07122).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models.errors import ModelError
from models.heads import Classifier
from models.image_sizes import check_any_size
from models.inception_resnet_v2 import AvgPool, ConvNormAct, stage_depths
from models.layers import (
    Dropout,
    Linear,
    activation,
    batch_norm,
    compute_dtype,
    drop_path_rates,
    normal,
    run_block,
)

STAGES = 4
_LONG = (7, 7, 7, 3)  # length of the factorised branch's window in each stage


class InceptionBlock(nnx.Module):
    """x + inception module, then the activation: [B, h, w, D] -> the same shape.

    A 1x1 convolution feeds four branches of D/4 channels: the identity; a 3x3; a 1xn and an nx1; a
    3x3 with dilation 2. A 1x1 convolution joins them. The 1x1 convolutions are linear layers,
    whose gradient takes XLA a third of the time on a CPU. The last BatchNorm starts with scale 0,
    so the block starts as its activation (Goyal et al., arXiv 1706.02677).
    """

    def __init__(self, dim: int, *, long: int, act: str, drop_path: float, dtype, rngs: nnx.Rngs):
        linear = functools.partial(Linear, dim, dim, use_bias=False, kernel_init=normal(),
                                   dtype=dtype, rngs=rngs)
        conv = functools.partial(ConvNormAct, dim // 4, dim // 4, act=act, eps=1e-5, dtype=dtype,
                                 rngs=rngs)
        self.reduce, self.reduce_bn = linear(), batch_norm(dim, rngs=rngs)
        self.square = conv(3)
        self.row, self.column = conv((1, long)), conv((long, 1))
        self.dilated = conv(3, dilation=2)
        self.project, self.project_bn = linear(), batch_norm(dim, rngs=rngs)
        self.project_bn.scale[...] = jnp.zeros_like(self.project_bn.scale[...])
        self.act = activation(act)
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.act(self.reduce_bn(self.reduce(x, rngs))).astype(x.dtype)
        point, square, long, dilated = jnp.split(y, 4, -1)
        y = jnp.concatenate([point, self.square(square, rngs),
                             self.column(self.row(long, rngs), rngs),
                             self.dilated(dilated, rngs)], -1)
        y = self.project_bn(self.project(y, rngs)).astype(x.dtype)
        return self.act(x + self.drop_path(y, rngs))


class Reduction(nnx.Module):
    """A strided convolution and average pooling, concatenated, so that no shortcut is needed where
    the width doubles: [B, h, w, D] -> [B, ceil(h / 2), ceil(w / 2), 2 D]."""

    def __init__(self, dim: int, *, act: str, dtype, rngs: nnx.Rngs):
        self.conv = ConvNormAct(dim, dim, 3, 2, act=act, eps=1e-5, dtype=dtype, rngs=rngs)
        self.mean = AvgPool(stride=2)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return jnp.concatenate([self.conv(x, rngs), self.mean(x)], -1)


class ResnetInception(Classifier):
    """Two strided convolutions, then four stages of InceptionBlocks at 1/4, 1/8, 1/16 and 1/32 of
    the resolution. The head gets the mean of the last feature maps. Images need 32 pixels per side.

    Args:
        width: channels of the first stage, a multiple of 4; each further stage has twice as many.
        depth: number of blocks in each stage, or one number for all.
        in_channels: channels of the images.
        drop_path: rate of stochastic depth in the last block, 0 in the first.
        act: activation, a key of `layers.ACTIVATIONS`.
        remat: recompute the activations of each block in the gradient, for less memory.
        dtype: of the convolutions; parameters, norms and logits stay float32.
    """

    timm_stem = 'stem.0.conv'
    layer_groups = (r'stem/', r'(?:stages|reductions)/(\d+)/')
    min_size = 32

    def __init__(self, *, width: int = 64, depth: int | tuple[int, ...] = (2, 2, 3, 2),
                 in_channels: int = 3, drop_path: float = 0.0, act: str = 'relu',
                 remat: bool = False, dtype=None, rngs: nnx.Rngs):
        depths = stage_depths('resnet_inception', depth, STAGES)
        if width < 4 or width % 4:
            raise ModelError(f'width={width!r} of resnet_inception cannot be split over its four '
                             f'branches: use a positive multiple of 4.')
        self.in_channels, self.remat = in_channels, remat
        self.dtype = dtype = compute_dtype(dtype)
        settings = dict(act=act, dtype=dtype, rngs=rngs)
        widths = [width * 2 ** i for i in range(STAGES)]
        self.num_features = widths[-1]
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.stem = nnx.List([ConvNormAct(in_channels, width // 2, 3, 2, eps=1e-5, **settings),
                              ConvNormAct(width // 2, width, 3, 2, eps=1e-5, **settings)])
        self.stages = nnx.List(
            nnx.List(InceptionBlock(dim, long=long, drop_path=next(rates), **settings)
                     for _ in range(blocks))
            for dim, long, blocks in zip(widths, _LONG, depths))
        self.reductions = nnx.List(Reduction(dim, **settings) for dim in widths[:-1])

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, ceil(H / 32), ceil(W / 32), 8 * width]."""
        check_any_size(x, self.in_channels, self.min_size)
        x = x.astype(self.dtype)
        for layer in self.stem:
            x = layer(x, rngs)
        for number, stage in enumerate(self.stages):
            x = self.reductions[number - 1](x, rngs) if number else x
            for block in stage:
                x = run_block(block, x, rngs, remat=self.remat)
        return x


VARIANTS: dict[str, dict] = {'resnet_inception': {}}
