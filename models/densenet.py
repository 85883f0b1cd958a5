"""Densely connected networks (Huang et al., arXiv 1608.06993), with timm's names and options.

Paths of the parameters are those of timm's state_dict: `features.{conv0, norm0, norm5}`,
`features.denseblock<i>.denselayer<j>.{norm1, conv1, norm2, conv2}`,
`features.transition<i>.{norm, conv}`, and `classifier` for the head.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import conv2d
from models.errors import ModelError
from models.heads import Classifier
from models.image_sizes import check_any_size
from models.layers import Dropout, batch_norm, compute_dtype, normal, run_block
from models.resnet import max_pool


def _conv(a: int, b: int, kernel: int, **settings) -> nnx.Module:
    """A convolution with He initialisation from the fan-in, as in timm."""
    return conv2d(a, b, kernel, kernel_init=normal((2 / (kernel ** 2 * a)) ** 0.5), **settings)


def _halve(x: jax.Array) -> jax.Array:
    """The mean of each 2x2 patch, without odd edges: [B, H, W, C] -> [B, H // 2, W // 2, C]."""
    batch, height, width, channels = x.shape
    x = x[:, :height // 2 * 2, :width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.mean((2, 4), dtype=jnp.float32).astype(x.dtype)


class DenseLayer(nnx.Module):
    """All feature maps so far -> `growth` new ones, by a 1x1 and a 3x3 convolution.

    It takes the maps [B, h, w, *] as a tuple and concatenates them itself, so that `remat` keeps
    each of them once and not one concatenated copy per layer.
    """

    def __init__(self, a: int, *, growth: int, bn_size: int, drop: float, dtype, rngs: nnx.Rngs):
        width = bn_size * growth
        self.norm1 = batch_norm(a, rngs=rngs)
        self.conv1 = _conv(a, width, 1, dtype=dtype, rngs=rngs)
        self.norm2 = batch_norm(width, rngs=rngs)
        self.conv2 = _conv(width, growth, 3, dtype=dtype, rngs=rngs)
        self.drop = Dropout(drop, what='proj_drop_rate')

    def __call__(self, maps: tuple[jax.Array, ...], rngs: nnx.Rngs | None = None) -> jax.Array:
        x = jnp.concatenate(maps, -1)
        y = self.conv1(jax.nn.relu(self.norm1(x)).astype(x.dtype), rngs)
        y = self.conv2(jax.nn.relu(self.norm2(y)).astype(x.dtype), rngs)
        return self.drop(y, rngs)


class DenseBlock(nnx.Module):
    """Layers that each see the input and the outputs of all earlier layers: [B, h, w, a] ->
    [B, h, w, b], b = a + depth * growth."""

    def __init__(self, a: int, *, depth: int, growth: int, remat: bool, **settings):
        self.depth, self.remat = depth, remat
        for i in range(depth):
            layer = DenseLayer(a + i * growth, growth=growth, **settings)
            setattr(self, f'denselayer{i + 1}', layer)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        maps: tuple[jax.Array, ...] = (x,)
        for i in range(self.depth):
            layer = getattr(self, f'denselayer{i + 1}')
            maps += (run_block(layer, maps, rngs, remat=self.remat),)
        return jnp.concatenate(maps, -1)


class Transition(nnx.Module):
    """A 1x1 convolution, then 2x2 means: [B, h, w, a] -> [B, h // 2, w // 2, b]."""

    def __init__(self, a: int, b: int, *, dtype, rngs: nnx.Rngs):
        self.norm = batch_norm(a, rngs=rngs)
        self.conv = _conv(a, b, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return _halve(self.conv(jax.nn.relu(self.norm(x)).astype(x.dtype), rngs))


class DenseNet(Classifier):
    """DenseNet-BC. Arguments are timm's; these differ or are new:

    Args:
        growth_rate: channels that each layer adds; the stem has twice as many.
        block_config: number of layers in each block.
        bn_size: channels of a layer's 1x1 convolution, as a multiple of the growth rate.
        proj_drop_rate: dropout after each layer.
        in_channels: channels of the images (timm: in_chans).
        remat: recompute the activations of each layer in the gradient, for less memory
            (timm: memory_efficient).
        dtype: of the convolutions; parameters, norms and logits stay float32.
    """

    timm_head = 'classifier'
    timm_stem = 'features.conv0'
    layer_groups = (r'features/(?:conv|norm)0/', r'features/(?:denseblock|transition)(\d+)/')
    layer_levels = (r'features/(?:conv|norm)0/',
                    r'features/(?:denseblock|transition)(\d+)/(?:denselayer(\d+)/)?')
    # Weights saved before torch 1.0 have a dot in `norm.1` and `conv.2`.
    timm_renames = ((r'(denselayer\d+\.(?:norm|conv))\.([12]\.)', r'\1\2'),)

    def __init__(self, *, growth_rate: int = 32, block_config: tuple[int, ...] = (6, 12, 24, 16),
                 bn_size: int = 4, proj_drop_rate: float = 0.0, in_channels: int = 3,
                 remat: bool = False, dtype=None, rngs: nnx.Rngs):
        if not block_config or min(growth_rate, bn_size, *block_config) < 1:
            raise ModelError(f'growth_rate={growth_rate}, bn_size={bn_size} and block_config='
                             f'{tuple(block_config)} must be positive integers.')
        self.in_channels, self.blocks = in_channels, len(block_config)
        self.dtype = dtype = compute_dtype(dtype)
        width = 2 * growth_rate
        block = functools.partial(DenseBlock, growth=growth_rate, bn_size=bn_size, remat=remat,
                                  drop=proj_drop_rate, dtype=dtype, rngs=rngs)
        features = {
            'conv0': _conv(in_channels, width, 7, stride=2, dtype=dtype, rngs=rngs),
            'norm0': batch_norm(width, rngs=rngs),
        }
        for i, depth in enumerate(block_config, 1):
            if i > 1:
                features[f'transition{i - 1}'] = Transition(width, width // 2, dtype=dtype,
                                                            rngs=rngs)
                width //= 2
            features[f'denseblock{i}'] = block(width, depth=depth)
            width += depth * growth_rate
        features['norm5'] = batch_norm(width, rngs=rngs)
        self.features = nnx.Dict(features)
        self.num_features = width

    @property
    def min_size(self) -> int:
        """Pixels per side that an image needs at least, so that the last block gets a pixel."""
        return 4 * (2 ** (self.blocks - 1) - 1) + 1

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, h, w, D], at 1/32 of the resolution with four
        blocks."""
        check_any_size(x, self.in_channels, self.min_size, fewer='blocks')
        layers = self.features
        x = layers.conv0(x.astype(self.dtype), rngs)
        x = max_pool(jax.nn.relu(layers.norm0(x)).astype(self.dtype))
        for i in range(1, self.blocks + 1):
            if i > 1:
                x = layers[f'transition{i - 1}'](x, rngs)
            x = layers[f'denseblock{i}'](x, rngs)
        return jax.nn.relu(layers.norm5(x)).astype(self.dtype)


VARIANTS = {
    'densenet121': {},
    'densenet169': dict(block_config=(6, 12, 32, 32)),
    'densenet201': dict(block_config=(6, 12, 48, 32)),
}
