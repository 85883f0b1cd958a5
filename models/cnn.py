"""A small residual network for small images, which trains within minutes on a CPU."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import conv2d
from models.errors import ModelError
from models.heads import Classifier
from models.image_sizes import check_any_size
from models.layers import Dropout, batch_norm, compute_dtype, drop_path_rates


def _crop_to_even(x: jax.Array) -> jax.Array:
    return x[:, :x.shape[1] // 2 * 2, :x.shape[2] // 2 * 2]


def _space_to_depth(x: jax.Array) -> jax.Array:
    """The pixels of each 2x2 patch become channels: [B, H, W, C] -> [B, H/2, W/2, 4C]."""
    x = _crop_to_even(x)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _halve(x: jax.Array) -> jax.Array:
    """The mean of each 2x2 patch: [B, H, W, C] -> [B, H/2, W/2, C]."""
    x = _crop_to_even(x)
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4), dtype=x.dtype)


class Block(nnx.Module):
    """Two 3x3 convolutions with BatchNorm, added to the input: [B, h, w, a] -> [B, h, w, b].

    The last BatchNorm starts with scale 0, so the block starts as the identity
    (Goyal et al., arXiv 1706.02677).
    """

    def __init__(self, a: int, b: int, *, drop_path: float, dtype, rngs: nnx.Rngs):
        conv = functools.partial(conv2d, dtype=dtype, rngs=rngs)
        self.conv1, self.bn1 = conv(a, b, 3), batch_norm(b, rngs=rngs)
        self.conv2, self.bn2 = conv(b, b, 3), batch_norm(b, rngs=rngs)
        self.bn2.scale[...] = jnp.zeros_like(self.bn2.scale[...])
        self.shortcut = conv(a, b, 1) if a != b else None
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x, rngs))).astype(x.dtype)
        y = self.drop_path(self.bn2(self.conv2(y, rngs)).astype(x.dtype), rngs)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, rngs)))


class SmallCNN(Classifier):
    """A convolution on 2x2 patches, then stages of residual blocks, each at half the resolution of
    the one before; the head gets the mean of the last feature maps.

    Images need at least 2 ** stages pixels per side. The network suits XLA on a CPU, which is slow
    with few channels at many pixels (hence no layer at full resolution), at max-pooling (hence
    means), and with many channels on tiny grids (keep the last grid at 3x3 or more).

    Args:
        width: channels of the first stage; each further stage has twice as many.
        stages: number of stages.
        depth: residual blocks per stage.
        in_channels: channels of the images.
        drop_path: rate of stochastic depth in the last block, 0 in the first.
        dtype: of the convolutions; parameters, norms and logits stay float32.
    """

    timm_stem = 'conv1'  # on 2x2 pixels at once
    layer_groups = (r'conv1/|bn1/', r'stages/(\d+)/(\d+)/')

    def __init__(self, *, width: int = 32, stages: int = 4, depth: int = 1, in_channels: int = 3,
                 drop_path: float = 0.0, dtype=None, rngs: nnx.Rngs):
        for what, value in (('width', width), ('stages', stages), ('depth', depth)):
            if value < 1:
                raise ModelError(f'{what}={value!r} of small_cnn must be at least 1.')
        self.in_channels = in_channels
        self.dtype = dtype = compute_dtype(dtype)
        widths = [width * 2 ** i for i in range(stages)]
        self.num_features = widths[-1]
        self.conv1 = conv2d(4 * in_channels, width, 3, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        rates = iter(drop_path_rates(drop_path, stages * depth))
        self.stages = nnx.List(
            nnx.List(Block(a if i == 0 else b, b, drop_path=next(rates), dtype=dtype, rngs=rngs)
                     for i in range(depth))
            for a, b in zip([width, *widths], widths))

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, H / 2**stages, W / 2**stages, D]."""
        check_any_size(x, self.in_channels, self.min_size, fewer='stages')
        x = self.conv1(_space_to_depth(x.astype(self.dtype)), rngs)
        x = jax.nn.relu(self.bn1(x)).astype(self.dtype)
        for number, stage in enumerate(self.stages):
            x = _halve(x) if number else x
            for block in stage:
                x = block(x, rngs)
        return x

    @property
    def min_size(self) -> int:
        """Pixels per side that an image needs at least, so that the last stage gets a pixel."""
        return 2 ** len(self.stages)


VARIANTS: dict[str, dict] = {'small_cnn': {}}
