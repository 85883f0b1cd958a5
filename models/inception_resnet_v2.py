"""Inception-ResNet-v2 (Szegedy et al., arXiv 1602.07261), with timm's names.

Paths of the parameters are those of timm's state_dict: `conv2d_1a.{conv, bn}`, ...,
`mixed_5b.branch1.0.conv`, `repeat.<i>.{branch0, branch1, branch2, conv2d}`, `repeat_1`,
`repeat_2`, `block8`, `conv2d_7b`; only `weight` is called `kernel` or `scale` here.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import conv2d
from models.errors import ModelError
from models.heads import Classifier
from models.image_sizes import check_any_size
from models.layers import Dropout, activation, batch_norm, compute_dtype, drop_path_rates, run_block

# Branches are tuples of convolutions (width, kernel) or (width, kernel, stride), as in the
# paper's figures: those of stride 1 keep the size of the maps, those of stride 2 are not padded.
MIXED_5B = (((96, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)))
MIXED_6A = (((384, 3, 2),), ((256, 1), (256, 3), (384, 3, 2)))
MIXED_7A = (((256, 1), (384, 3, 2)), ((256, 1), (288, 3, 2)), ((256, 1), (288, 3), (320, 3, 2)))
BLOCK35 = (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))
BLOCK17 = (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1))))
BLOCK8 = (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))


class ConvNormAct(nnx.Module):
    """Convolution, BatchNorm, activation: [B, H, W, a] -> [B, h, w, b]."""

    def __init__(self, a: int, b: int, kernel: int | tuple[int, int], stride: int = 1, *,
                 padding=None, dilation: int = 1, act: str = 'relu', eps: float = 1e-3, dtype,
                 rngs: nnx.Rngs):
        self.conv = conv2d(a, b, kernel, stride=stride, padding=padding, dilation=dilation,
                           dtype=dtype, rngs=rngs)
        self.bn = batch_norm(b, eps=eps, rngs=rngs)
        self.act = activation(act)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.conv(x, rngs)
        return self.act(self.bn(y)).astype(y.dtype)


class AvgPool(nnx.Module):
    """3x3 average pooling that does not count padding: [B, H, W, C] -> [B, h, w, C]."""

    def __init__(self, stride: int = 1):
        self.stride = stride

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        del rngs
        y = nnx.avg_pool(x.astype(jnp.float32), (3, 3), (self.stride,) * 2, ((1, 1), (1, 1)),
                         count_include_pad=False)
        return y.astype(x.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max-pooling at stride 2, not padded: [B, H, W, C] -> [B, (H-1)//2, (W-1)//2, C].

    It compares slices, because the gradient of XLA's window reduction is several times slower on
    a CPU.
    """
    for axis in (1, 2):
        span = (x.shape[axis] - 1) // 2 * 2 - 1
        x = functools.reduce(jnp.maximum, (
            jax.lax.slice_in_dim(x, i, i + span, 2, axis) for i in range(3)))
    return x


def _convolution(a: int, b: int, kernel, stride: int = 1, *, dtype, rngs: nnx.Rngs) -> ConvNormAct:
    return ConvNormAct(a, b, kernel, stride, padding='VALID' if stride > 1 else None, dtype=dtype,
                       rngs=rngs)


class Branches(nnx.Module):
    """Parallel chains of convolutions whose outputs are concatenated: [B, H, W, a] ->
    [B, h, w, b]. A chain of one convolution has timm's key `branch<i>`, others `branch<i>.<j>`.
    """

    def add(self, channels: int, branches, *, dtype, rngs: nnx.Rngs) -> int:
        """Creates the branches for inputs of `channels` channels; returns b."""
        self.count = len(branches)
        for number, specs in enumerate(branches):
            widths = [channels, *(spec[0] for spec in specs)]
            chain = [_convolution(a, *spec, dtype=dtype, rngs=rngs)
                     for a, spec in zip(widths, specs)]
            setattr(self, f'branch{number}', nnx.List(chain) if len(chain) > 1 else chain[0])
        return sum(specs[-1][0] for specs in branches)

    def concatenate(self, x: jax.Array, rngs: nnx.Rngs | None, *more: jax.Array) -> jax.Array:
        """The outputs of the branches and the feature maps `more`, concatenated."""
        outputs = []
        for number in range(self.count):
            branch, y = getattr(self, f'branch{number}'), x
            for layer in branch if isinstance(branch, nnx.List) else (branch,):
                y = layer(y, rngs)
            outputs.append(y)
        return jnp.concatenate([*outputs, *more], -1)


class Mixed5b(Branches):
    """The first inception module, with average pooling in its last branch: 192 -> 320 channels."""

    def __init__(self, *, dtype, rngs: nnx.Rngs):
        self.add(192, MIXED_5B, dtype=dtype, rngs=rngs)
        self.branch3 = nnx.List([AvgPool(), _convolution(192, 64, 1, dtype=dtype, rngs=rngs)])

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        pool, conv = self.branch3
        return self.concatenate(x, rngs, conv(pool(x), rngs))


class Reduction(Branches):
    """Strided branches beside a max-pool: [B, H, W, a] -> [B, (H - 1) // 2, (W - 1) // 2, b]."""

    def __init__(self, channels: int, branches, *, dtype, rngs: nnx.Rngs):
        self.add(channels, branches, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.concatenate(x, rngs, max_pool(x))


class Residual(Branches):
    """x + scale * projected branches, then ReLU: [B, H, W, C] -> the same shape.

    The paper scales the residuals by .1 to .3 because training of wide blocks failed without it.
    """

    def __init__(self, channels: int, branches, *, scale: float, relu: bool = True,
                 drop_path: float, dtype, rngs: nnx.Rngs):
        width = self.add(channels, branches, dtype=dtype, rngs=rngs)
        self.conv2d = conv2d(width, channels, 1, bias=True, dtype=dtype, rngs=rngs)
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')
        self.scale, self.relu = scale, relu

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.conv2d(self.concatenate(x, rngs), rngs)
        x = x + self.drop_path(y * self.scale, rngs)
        return jax.nn.relu(x) if self.relu else x


def stage_depths(name: str, depth: int | tuple[int, ...], stages: int) -> tuple[int, ...]:
    """The number of blocks in each stage; an integer `depth` means the same number in all.

    Raises:
        ModelError: `depth` is not one positive integer, or one per stage.
    """
    depths = (depth,) * stages if isinstance(depth, int) else tuple(depth)
    if len(depths) != stages or any(not isinstance(d, int) or d < 1 for d in depths):
        raise ModelError(f'depth={depth!r} of {name} is not a valid number of blocks for its '
                         f'{stages} stages: give one positive integer, or {stages} of them.')
    return depths


class InceptionResnetV2(Classifier):
    """Inception-ResNet-v2, for images of 299 x 299 or any other size from 75 x 75.

    Args:
        in_channels: channels of the images.
        depth: numbers of residual blocks at 1/8, 1/16 and 1/32 of the resolution, (10, 20, 9) in
            timm. The last block, `block8`, is not counted.
        drop_path: rate of stochastic depth in the last block, 0 in the first (timm has none).
        remat: recompute the activations of each block in the gradient, for less memory.
        dtype: of the convolutions; parameters, norms and logits stay float32.
    """

    timm_head = 'classif'
    timm_stem = 'conv2d_1a.conv'
    layer_groups = (
        r'conv2d_[1-4]', r'mixed_5b/', r'repeat/(\d+)/', r'mixed_6a/', r'repeat_1/(\d+)/',
        r'mixed_7a/', r'repeat_2/(\d+)/', r'block8/')
    layer_levels = (r'conv2d_[12]', r'conv2d_[34]', *layer_groups[1:-1], r'block8/|conv2d_7b/')
    min_size = 75

    def __init__(self, *, in_channels: int = 3, depth: int | tuple[int, int, int] = (10, 20, 9),
                 drop_path: float = 0.0, remat: bool = False, dtype=None, rngs: nnx.Rngs):
        depths = stage_depths('inception_resnet_v2', depth, 3)
        self.in_channels, self.num_features, self.remat = in_channels, 1536, remat
        self.dtype = dtype = compute_dtype(dtype)
        rates = iter(drop_path_rates(drop_path, sum(depths) + 1))
        conv = functools.partial(ConvNormAct, dtype=dtype, rngs=rngs)

        def residual(channels: int, branches, scale: float, relu: bool = True) -> Residual:
            return Residual(channels, branches, scale=scale, relu=relu, drop_path=next(rates),
                            dtype=dtype, rngs=rngs)

        self.conv2d_1a = conv(in_channels, 32, 3, 2, padding='VALID')
        self.conv2d_2a = conv(32, 32, 3, padding='VALID')
        self.conv2d_2b = conv(32, 64, 3)
        self.conv2d_3b = conv(64, 80, 1)
        self.conv2d_4a = conv(80, 192, 3, padding='VALID')
        self.mixed_5b = Mixed5b(dtype=dtype, rngs=rngs)
        self.repeat = nnx.List(residual(320, BLOCK35, 0.17) for _ in range(depths[0]))
        self.mixed_6a = Reduction(320, MIXED_6A, dtype=dtype, rngs=rngs)
        self.repeat_1 = nnx.List(residual(1088, BLOCK17, 0.10) for _ in range(depths[1]))
        self.mixed_7a = Reduction(1088, MIXED_7A, dtype=dtype, rngs=rngs)
        self.repeat_2 = nnx.List(residual(2080, BLOCK8, 0.20) for _ in range(depths[2]))
        # timm's last block is not scaled, and no ReLU follows it.
        self.block8 = residual(2080, BLOCK8, 1.0, relu=False)
        self.conv2d_7b = conv(2080, self.num_features, 1)

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, h, w, 1536], 8 x 8 for images of 299 x 299."""
        check_any_size(x, self.in_channels, self.min_size)
        x = self.conv2d_1a(x.astype(self.dtype), rngs)
        x = self.conv2d_2b(self.conv2d_2a(x, rngs), rngs)
        x = self.conv2d_3b(max_pool(x), rngs)
        x = max_pool(self.conv2d_4a(x, rngs))
        for block in (self.mixed_5b, *self.repeat, self.mixed_6a, *self.repeat_1, self.mixed_7a,
                      *self.repeat_2, self.block8):
            x = run_block(block, x, rngs, remat=self.remat)
        return self.conv2d_7b(x, rngs)


VARIANTS: dict[str, dict] = {'inception_resnet_v2': {}}
