"""EfficientNet (Tan and Le, arXiv 1905.11946), EfficientNet-Lite and EfficientNetV2 (arXiv
2104.00298), with timm's names. The MobileNets use these blocks too.

Paths of the parameters are those of timm's state_dict: `conv_stem`, `bn1`,
`blocks.<stage>.<i>.{conv_pw, bn1, conv_dw, bn2, se.conv_reduce, se.conv_expand, conv_pwl, bn3}`,
`conv_head`, `bn2`, `classifier`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import Conv, conv2d
from models.errors import ModelError, unknown
from models.heads import Classifier
from models.image_sizes import check_any_size
from models.layers import Dropout, activation, batch_norm, compute_dtype, normal, run_block

PADDINGS = {'': None, 'same': 'SAME'}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A row of equal blocks. A stage is a tuple of rows, and only its first block has a stride.

    Attributes:
        kind: a key of `BLOCKS`.
        repeats: number of blocks, before the depth multiplier is applied.
        kernel: side of the spatial convolution, in pixels.
        stride: of the first block, 1 or 2.
        expand: channels inside a block, as a multiple of its input channels.
        channels: output channels of each block, before the channel multiplier is applied.
        se: whether squeeze-and-excitation follows the spatial convolution.
        act: activation; '' means that of the model.
    """

    kind: str
    repeats: int
    kernel: int
    stride: int
    expand: float
    channels: int
    se: bool = False
    act: str = ''


def round_channels(channels: float) -> int:
    """The nearest multiple of 8, but never less than nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _depthwise(channels: int, kernel: int, stride: int, conv) -> Conv:
    # The fan-out of a depthwise kernel is its area: each input channel feeds one output channel.
    return conv(channels, channels, kernel, stride=stride, groups=channels,
                kernel_init=normal((2 / kernel ** 2) ** 0.5))


class SqueezeExcite(nnx.Module):
    """Scales each channel by a gate computed from the means of all channels: [B, h, w, C] -> same
    (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels: int, reduced: int, *, act, gate, conv):
        self.conv_reduce = conv(channels, reduced, 1, bias=True)
        self.conv_expand = conv(reduced, channels, 1, bias=True)
        self.act, self.gate = act, gate

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
        y = self.conv_expand(self.act(self.conv_reduce(y, rngs)), rngs)
        return x * self.gate(y)


class Block(nnx.Module):
    """A branch, added to its input if the shapes agree: [B, h, w, a] -> [B, h', w', b].

    Args:
        a, b: channels of the input and of the output.
        row: its row of the table.
        stride: of the spatial convolution.
        act: the activation function.
        squeeze: (input channels, channels) -> SqueezeExcite, or None.
        drop_path: rate of stochastic depth.
        conv, norm: build convolutions and norms.
    """

    se: SqueezeExcite | None

    def __init__(self, a: int, b: int, row: Blocks, *, stride: int, act, squeeze,
                 drop_path: float, conv, norm):
        self.act = act
        self.skip = stride == 1 and a == b
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')
        self.build(a, b, row, stride=stride, squeeze=squeeze, conv=conv, norm=norm)

    def build(self, a: int, b: int, row: Blocks, *, stride: int, squeeze, conv, norm):
        """Adds the layers of the branch."""
        raise NotImplementedError

    def branch(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """[B, h, w, a] -> [B, h', w', b]."""
        raise NotImplementedError

    def excite(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Squeeze-and-excitation if the block has it: [B, h, w, C] -> same."""
        return x if self.se is None else self.se(x, rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.branch(x, rngs)
        return x + self.drop_path(y, rngs) if self.skip else y


class ConvBlock(Block):
    """Convolution, norm, activation."""

    def build(self, a, b, row, *, stride, squeeze, conv, norm):
        del squeeze
        self.conv, self.bn1 = conv(a, b, row.kernel, stride=stride), norm(b)

    def branch(self, x, rngs):
        return self.act(self.bn1(self.conv(x, rngs))).astype(x.dtype)


class DepthwiseSeparable(Block):
    """Depthwise convolution, then 1x1 (Howard et al., arXiv 1704.04861)."""

    def build(self, a, b, row, *, stride, squeeze, conv, norm):
        self.conv_dw, self.bn1 = _depthwise(a, row.kernel, stride, conv), norm(a)
        self.se = squeeze and squeeze(a, a)
        self.conv_pw, self.bn2 = conv(a, b, 1), norm(b)

    def branch(self, x, rngs):
        y = self.act(self.bn1(self.conv_dw(x, rngs))).astype(x.dtype)
        return self.bn2(self.conv_pw(self.excite(y, rngs), rngs)).astype(x.dtype)


class InvertedResidual(Block):
    """1x1 to more channels, depthwise convolution, 1x1 to fewer; no activation at the end
    (Sandler et al., arXiv 1801.04381)."""

    def build(self, a, b, row, *, stride, squeeze, conv, norm):
        middle = round_channels(a * row.expand)
        self.conv_pw, self.bn1 = conv(a, middle, 1), norm(middle)
        self.conv_dw, self.bn2 = _depthwise(middle, row.kernel, stride, conv), norm(middle)
        self.se = squeeze and squeeze(a, middle)
        self.conv_pwl, self.bn3 = conv(middle, b, 1), norm(b)

    def branch(self, x, rngs):
        y = self.act(self.bn1(self.conv_pw(x, rngs))).astype(x.dtype)
        y = self.act(self.bn2(self.conv_dw(y, rngs))).astype(x.dtype)
        return self.bn3(self.conv_pwl(self.excite(y, rngs), rngs)).astype(x.dtype)


class FusedInvertedResidual(Block):
    """InvertedResidual with one dense convolution in place of its first two (arXiv 2104.00298)."""

    def build(self, a, b, row, *, stride, squeeze, conv, norm):
        middle = round_channels(a * row.expand)
        self.conv_exp, self.bn1 = conv(a, middle, row.kernel, stride=stride), norm(middle)
        self.se = squeeze and squeeze(a, middle)
        self.conv_pwl, self.bn2 = conv(middle, b, 1), norm(b)

    def branch(self, x, rngs):
        y = self.act(self.bn1(self.conv_exp(x, rngs))).astype(x.dtype)
        return self.bn2(self.conv_pwl(self.excite(y, rngs), rngs)).astype(x.dtype)


BLOCKS = {
    'conv': ConvBlock,
    'separable': DepthwiseSeparable,
    'inverted': InvertedResidual,
    'fused': FusedInvertedResidual,
}

B0 = (
    (Blocks('separable', 1, 3, 1, 1, 16, se=True),),
    (Blocks('inverted', 2, 3, 2, 6, 24, se=True),),
    (Blocks('inverted', 2, 5, 2, 6, 40, se=True),),
    (Blocks('inverted', 3, 3, 2, 6, 80, se=True),),
    (Blocks('inverted', 3, 5, 1, 6, 112, se=True),),
    (Blocks('inverted', 4, 5, 2, 6, 192, se=True),),
    (Blocks('inverted', 1, 3, 1, 6, 320, se=True),),
)
LITE = (  # no squeeze-and-excitation, which some phones compute slowly
    (Blocks('separable', 1, 3, 1, 1, 16),),
    (Blocks('inverted', 2, 3, 2, 6, 24),),
    (Blocks('inverted', 2, 5, 2, 6, 40),),
    (Blocks('inverted', 3, 3, 2, 6, 80),),
    (Blocks('inverted', 3, 5, 1, 6, 112),),
    (Blocks('inverted', 4, 5, 2, 6, 192),),
    (Blocks('inverted', 1, 3, 1, 6, 320),),
)
V2_S = (
    (Blocks('conv', 2, 3, 1, 1, 24),),
    (Blocks('fused', 4, 3, 2, 4, 48),),
    (Blocks('fused', 4, 3, 2, 4, 64),),
    (Blocks('inverted', 6, 3, 2, 4, 128, se=True),),
    (Blocks('inverted', 9, 3, 1, 6, 160, se=True),),
    (Blocks('inverted', 15, 3, 2, 6, 256, se=True),),
)


class EfficientNet(Classifier):
    """A stem of stride 2, stages of blocks and a 1x1 convolution, for images of any size.

    Args:
        stages: the table: a tuple of stages, each a tuple of `Blocks`.
        stem_size: channels of the stem, before the multiplier is applied.
        num_features: channels of the last convolution.
        channel_multiplier: scales the channels of the stem and of the blocks, which are rounded
            to multiples of 8.
        depth_multiplier: scales the number of blocks in each row, rounded up.
        fix_first_last: the multipliers leave the stem's channels and the number of blocks in the
            first and the last stage as they are.
        act: activation, a key of `layers.ACTIVATIONS`.
        bn_eps: epsilon of BatchNorm.
        pad_type: '' pads as torch does, 'same' as TensorFlow does.
        in_channels: channels of the images (timm: in_chans).
        drop_path: rate of stochastic depth; block i of n has the rate drop_path * i / n (timm:
            drop_path_rate).
        remat: recompute the activations of each block in the gradient, for less memory.
        dtype: of the convolutions; parameters, norms and logits stay float32.

    Raises:
        ModelError: a value is unknown or out of range.
    """

    timm_head = 'classifier'
    timm_stem = 'conv_stem'
    layer_groups = (r'conv_stem/|bn1/', r'blocks/(\d+)/(\d+)/')
    layer_levels = (r'conv_stem/|bn1/', r'blocks/(\d+)/(\d+)/|conv_head/|bn2/')

    def __init__(self, *, stages: tuple[tuple[Blocks, ...], ...] = B0, stem_size: int = 32,
                 num_features: int = 1280, channel_multiplier: float = 1.0,
                 depth_multiplier: float = 1.0, fix_first_last: bool = False, act: str = 'silu',
                 bn_eps: float = 1e-5, pad_type: str = '', in_channels: int = 3,
                 drop_path: float = 0.0, remat: bool = False, dtype=None, rngs: nnx.Rngs):
        for what, value in (('channel_multiplier', channel_multiplier),
                            ('depth_multiplier', depth_multiplier)):
            if value <= 0:
                raise ModelError(f'{what}={value!r} is not positive: use a number above 0.')
        if pad_type not in PADDINGS:
            raise unknown('pad_type', pad_type, PADDINGS)
        self.in_channels, self.num_features = in_channels, num_features
        self.act, self.remat = activation(act), remat
        self.dtype = dtype = compute_dtype(dtype)
        conv = functools.partial(conv2d, padding=PADDINGS[pad_type], dtype=dtype, rngs=rngs)
        norm = functools.partial(batch_norm, eps=bn_eps, rngs=rngs)

        channels = stem_size if fix_first_last else round_channels(stem_size * channel_multiplier)
        self.conv_stem, self.bn1 = conv(in_channels, channels, 3, stride=2), norm(channels)
        depths = [depth_multiplier] * len(stages)
        if fix_first_last:
            depths[0] = depths[-1] = 1
        plan = [[(row, row.stride if i == j == 0 else 1) for i, row in enumerate(rows)
                 for j in range(math.ceil(row.repeats * depth))]
                for rows, depth in zip(stages, depths)]
        total, index = sum(map(len, plan)), 0
        blocks: list[nnx.List] = []
        for stage in plan:
            blocks.append(nnx.List())
            for row, stride in stage:
                if row.kind not in BLOCKS:
                    raise unknown('Kind of blocks', row.kind, BLOCKS)
                block_act = activation(row.act or act)
                squeeze = functools.partial(self.squeeze, act=block_act, conv=conv)
                width = round_channels(row.channels * channel_multiplier)
                blocks[-1].append(BLOCKS[row.kind](
                    channels, width, row, stride=stride, act=block_act,
                    squeeze=squeeze if row.se else None, drop_path=drop_path * index / total,
                    conv=conv, norm=norm))
                channels, index = width, index + 1
        self.blocks = nnx.List(blocks)
        self.add_last(channels, conv=conv, norm=norm)

    @staticmethod
    def squeeze(inputs: int, channels: int, *, act, conv) -> SqueezeExcite:
        """Squeeze-and-excitation over `channels`, reduced to a quarter of the block's inputs."""
        return SqueezeExcite(channels, inputs // 4, act=act, gate=jax.nn.sigmoid, conv=conv)

    def add_last(self, channels: int, *, conv, norm):
        """Adds what follows the blocks."""
        self.conv_head = conv(channels, self.num_features, 1)
        self.bn2 = norm(self.num_features)

    def forward_blocks(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps of the last block."""
        check_any_size(x, self.in_channels)
        x = self.conv_stem(x.astype(self.dtype), rngs)
        x = self.act(self.bn1(x)).astype(self.dtype)
        for stage in self.blocks:
            for block in stage:
                x = run_block(block, x, rngs, remat=self.remat)
        return x

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, H/32, W/32, D], the sides rounded up."""
        x = self.conv_head(self.forward_blocks(x, rngs), rngs)
        return self.act(self.bn2(x)).astype(self.dtype)


_TENSORFLOW = {'pad_type': 'same', 'bn_eps': 1e-3}
_SCALES = {  # multipliers of channels and depth
    'b0': (1.0, 1.0), 'b1': (1.0, 1.1), 'b2': (1.1, 1.2), 'b3': (1.2, 1.4), 'b4': (1.4, 1.8),
}
VARIANTS = {
    f'{prefix}efficientnet_{name}': {
        'channel_multiplier': channels, 'depth_multiplier': depth,
        'num_features': round_channels(1280 * channels), **settings}
    for prefix, settings in (('', {}), ('tf_', _TENSORFLOW))
    for name, (channels, depth) in _SCALES.items()
}
VARIANTS |= {  # EfficientNet-Lite, made for phones by the same authors
    f'{prefix}efficientnet_lite{name[1]}': {
        'stages': LITE, 'fix_first_last': True, 'act': 'relu6', 'channel_multiplier': channels,
        'depth_multiplier': depth, **settings}
    for prefix, settings in (('', {}), ('tf_', _TENSORFLOW))
    for name, (channels, depth) in _SCALES.items()
}
VARIANTS['tf_efficientnetv2_s'] = {'stages': V2_S, 'stem_size': 24, **_TENSORFLOW}
