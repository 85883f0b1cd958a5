"""Residual networks (He et al., arXiv 1512.03385), with timm's names and options.

Paths of the parameters are those of timm's state_dict: `conv1`, `bn1`,
`layer<1..>.<i>.{conv1, bn1, conv2, bn2, conv3, bn3, downsample.0, downsample.1}`, and `fc` for
the head.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import conv2d
from models.errors import ModelError, unknown
from models.heads import Classifier
from models.image_sizes import check_any_size
from models.layers import (
    BatchNorm,
    Dropout,
    batch_norm,
    compute_dtype,
    drop_path_rates,
    run_block,
)

STEMS = ('7x7', '3x3')
SHORTCUTS = ('A', 'B')


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max-pooling at stride 2, padded by 1: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    It compares slices, rows first: the gradient of XLA's window reduction takes three to four times
    as long on a CPU (184 against 52 ms for [16, 112, 112, 64]).
    """
    for axis in (1, 2):
        padding = [(int(i == axis), int(i == axis)) for i in range(4)]
        size = (x.shape[axis] + 1) // 2
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        x = functools.reduce(jnp.maximum, (
            jax.lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis) for i in range(3)))
    return x


def _zero_scale(norm: BatchNorm) -> None:
    norm.scale[...] = jnp.zeros_like(norm.scale[...])


class _Residual(nnx.Module):
    """What both kinds of blocks share: the shortcut, drop path, the sum and its ReLU."""

    expansion: int
    downsample: nnx.List | None

    def add_shortcut(self, a: int, b: int, *, stride: int, shortcut: str, drop_path: float, dtype,
                     rngs: nnx.Rngs):
        self.stride, self.extra_channels = stride, b - a
        if shortcut == 'B' and (stride != 1 or a != b):
            self.downsample = nnx.List([
                conv2d(a, b, 1, stride=stride, dtype=dtype, rngs=rngs), batch_norm(b, rngs=rngs)])
        else:
            self.downsample = None
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')

    def shortcut(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if self.downsample is not None:
            conv, norm = self.downsample
            return norm(conv(x, rngs)).astype(x.dtype)
        if self.stride == 1 and not self.extra_channels:
            return x
        # Option A: every other pixel, and zeros for the new channels, half of them on each side as
        # in the CIFAR models of the papers on long tails.
        before = self.extra_channels // 2
        return jnp.pad(x[:, ::self.stride, ::self.stride],
                       [(0, 0)] * 3 + [(before, self.extra_channels - before)])

    def residual(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        raise NotImplementedError

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.drop_path(self.residual(x, rngs), rngs)
        return jax.nn.relu(y + self.shortcut(x, rngs))


class BasicBlock(_Residual):
    """Two 3x3 convolutions: [B, h, w, a] -> [B, h / stride, w / stride, planes]."""

    expansion = 1

    def __init__(self, a: int, planes: int, *, stride: int, base_width: int, shortcut: str,
                 zero_init_last: bool, drop_path: float, dtype, rngs: nnx.Rngs):
        if base_width != 64:
            raise ModelError(f"base_width={base_width} has no effect on a 'basic' block: leave it "
                             f"at 64, or set block='bottleneck'.")
        conv = functools.partial(conv2d, dtype=dtype, rngs=rngs)
        self.conv1, self.bn1 = conv(a, planes, 3, stride=stride), batch_norm(planes, rngs=rngs)
        self.conv2, self.bn2 = conv(planes, planes, 3), batch_norm(planes, rngs=rngs)
        if zero_init_last:
            _zero_scale(self.bn2)
        self.add_shortcut(a, planes, stride=stride, shortcut=shortcut, drop_path=drop_path,
                          dtype=dtype, rngs=rngs)

    def residual(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x, rngs))).astype(x.dtype)
        return self.bn2(self.conv2(y, rngs)).astype(x.dtype)


class Bottleneck(_Residual):
    """1x1, 3x3 and 1x1 convolutions: [B, h, w, a] -> [B, h / stride, w / stride, 4 planes].

    The 3x3 convolution has the stride, as in all published weights; in the paper the first has it.
    """

    expansion = 4

    def __init__(self, a: int, planes: int, *, stride: int, base_width: int, shortcut: str,
                 zero_init_last: bool, drop_path: float, dtype, rngs: nnx.Rngs):
        conv = functools.partial(conv2d, dtype=dtype, rngs=rngs)
        width, b = planes * base_width // 64, planes * self.expansion
        self.conv1, self.bn1 = conv(a, width, 1), batch_norm(width, rngs=rngs)
        self.conv2, self.bn2 = conv(width, width, 3, stride=stride), batch_norm(width, rngs=rngs)
        self.conv3, self.bn3 = conv(width, b, 1), batch_norm(b, rngs=rngs)
        if zero_init_last:
            _zero_scale(self.bn3)
        self.add_shortcut(a, b, stride=stride, shortcut=shortcut, drop_path=drop_path, dtype=dtype,
                          rngs=rngs)

    def residual(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x, rngs))).astype(x.dtype)
        y = jax.nn.relu(self.bn2(self.conv2(y, rngs))).astype(x.dtype)
        return self.bn3(self.conv3(y, rngs)).astype(x.dtype)


BLOCKS = {'basic': BasicBlock, 'bottleneck': Bottleneck}


class ResNet(Classifier):
    """ResNet, for images of any size. Arguments are timm's; these differ or are new:

    Args:
        block: 'basic' or 'bottleneck'.
        layers: number of blocks in each stage; each stage but the first halves the resolution.
        channels: `planes` of each stage; a bottleneck has four times as many output channels. The
            stem has as many channels as the first stage has planes.
        base_width: channels of a bottleneck's 3x3 convolution per 64 planes.
        stem: '7x7' (stride 2, then max-pooling), or '3x3' (stride 1, no pooling) for images of
            about 32 pixels.
        shortcut: where shapes change: 'B' (1x1 convolution and BatchNorm) or 'A' (no parameters:
            every other pixel, zeros for new channels), as in the paper.
        zero_init_last: start each block as its shortcut (Goyal et al., arXiv 1706.02677).
        in_channels: channels of the images (timm: in_chans).
        drop_path: rate of stochastic depth in the last block, 0 in the first (timm:
            drop_path_rate).
        remat: recompute the activations of each block in the gradient, for less memory.
        dtype: of the convolutions; parameters, norms and logits stay float32.
    """

    timm_head = 'fc'
    timm_stem = 'conv1'
    layer_groups = (r'conv1/|bn1/', r'layer(\d+)/(\d+)/')

    def __init__(self, *, block: str = 'basic', layers: tuple[int, ...] = (2, 2, 2, 2),
                 channels: tuple[int, ...] = (64, 128, 256, 512), base_width: int = 64,
                 stem: str = '7x7', shortcut: str = 'B', zero_init_last: bool = True,
                 in_channels: int = 3, drop_path: float = 0.0, remat: bool = False, dtype=None,
                 rngs: nnx.Rngs):
        for what, value, valid in (('block', block, BLOCKS), ('stem', stem, STEMS),
                                   ('shortcut', shortcut, SHORTCUTS)):
            if value not in valid:
                raise unknown(what, value, valid)
        if len(layers) != len(channels) or not layers or min(*layers, *channels) < 1:
            raise ModelError(f'layers={tuple(layers)} and channels={tuple(channels)} do not '
                             f'describe the same stages: give two lists of the same length, of '
                             f'positive integers.')
        self.in_channels, self.stem, self.remat = in_channels, stem, remat
        self.dtype = dtype = compute_dtype(dtype)
        width = channels[0]
        large = stem == '7x7'
        self.conv1 = conv2d(in_channels, width, 7 if large else 3, stride=2 if large else 1,
                            dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        rates = iter(drop_path_rates(drop_path, sum(layers)))
        build = functools.partial(BLOCKS[block], base_width=base_width, shortcut=shortcut,
                                  zero_init_last=zero_init_last, dtype=dtype, rngs=rngs)
        self.stages = len(layers)
        for stage, (depth, planes) in enumerate(zip(layers, channels)):
            blocks = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(build(width, planes, stride=stride, drop_path=next(rates)))
                width = planes * BLOCKS[block].expansion
            setattr(self, f'layer{stage + 1}', nnx.List(blocks))
        self.num_features = width

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, h, w, D], at 1/32 of the resolution with four
        stages and the 7x7 stem."""
        check_any_size(x, self.in_channels)
        x = self.conv1(x.astype(self.dtype), rngs)
        x = jax.nn.relu(self.bn1(x)).astype(self.dtype)
        if self.stem == '7x7':
            x = max_pool(x)
        for stage in range(1, self.stages + 1):
            for block in getattr(self, f'layer{stage}'):
                x = run_block(block, x, rngs, remat=self.remat)
        return x


def _cifar(blocks: int) -> dict[str, object]:
    """The paper's networks for CIFAR, with 6 * blocks + 2 layers."""
    return dict(layers=(blocks,) * 3, channels=(16, 32, 64), stem='3x3', shortcut='A',
                zero_init_last=False)


VARIANTS: dict[str, dict] = {
    'resnet18': {},
    'resnet34': dict(layers=(3, 4, 6, 3)),
    'resnet50': dict(block='bottleneck', layers=(3, 4, 6, 3)),
    'resnet101': dict(block='bottleneck', layers=(3, 4, 23, 3)),
    'wide_resnet50_2': dict(block='bottleneck', layers=(3, 4, 6, 3), base_width=128),
    'resnet20': _cifar(3),
    'resnet20_cifar': _cifar(3),
    'resnet32': _cifar(5),
    'resnet32_cifar': _cifar(5),
}
