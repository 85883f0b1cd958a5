"""MobileNetV2 (Sandler et al., arXiv 1801.04381) and V3 (Howard et al., arXiv 1905.02244), with
timm's names. Both are tables for the blocks of `models.efficientnet`.

Where EfficientNet has `conv_head` and `bn2`, MobileNetV3 has one `conv_head` with a bias, after
the pooling.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.efficientnet import Blocks, EfficientNet, SqueezeExcite, round_channels

V2 = (
    (Blocks('separable', 1, 3, 1, 1, 16),),
    (Blocks('inverted', 2, 3, 2, 6, 24),),
    (Blocks('inverted', 3, 3, 2, 6, 32),),
    (Blocks('inverted', 4, 3, 2, 6, 64),),
    (Blocks('inverted', 3, 3, 1, 6, 96),),
    (Blocks('inverted', 3, 3, 2, 6, 160),),
    (Blocks('inverted', 1, 3, 1, 6, 320),),
)
V3_LARGE = (
    (Blocks('separable', 1, 3, 1, 1, 16, act='relu'),),
    (Blocks('inverted', 1, 3, 2, 4, 24, act='relu'),
     Blocks('inverted', 1, 3, 1, 3, 24, act='relu')),
    (Blocks('inverted', 3, 5, 2, 3, 40, se=True, act='relu'),),
    (Blocks('inverted', 1, 3, 2, 6, 80),
     Blocks('inverted', 1, 3, 1, 2.5, 80),
     Blocks('inverted', 2, 3, 1, 2.3, 80)),
    (Blocks('inverted', 2, 3, 1, 6, 112, se=True),),
    (Blocks('inverted', 3, 5, 2, 6, 160, se=True),),
    (Blocks('conv', 1, 1, 1, 1, 960),),
)


class MobileNetV3(EfficientNet):
    """MobileNetV3, with the settings of EfficientNet."""

    layer_levels = EfficientNet.layer_groups  # to timm its conv_head is part of the classifier

    @staticmethod
    def squeeze(inputs: int, channels: int, *, act, conv) -> SqueezeExcite:
        """Squeeze-and-excitation over `channels`, reduced to a quarter of them."""
        del inputs, act
        return SqueezeExcite(channels, round_channels(channels / 4), act=jax.nn.relu,
                             gate=jax.nn.hard_sigmoid, conv=conv)

    def add_last(self, channels: int, *, conv, norm):
        """Adds the convolution that follows the pooling."""
        del norm
        self.map_features = channels
        self.conv_head = conv(channels, self.num_features, 1, bias=True)

    def forward_features(self, x, *, rngs=None):
        """Images [B, H, W, C] -> feature maps of the last block, [B, H/32, W/32, 960]."""
        return self.forward_blocks(x, rngs)

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Feature maps [B, h, w, 960] -> conv_head of their means, float32 [B, D]."""
        x = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
        return self.act(self.conv_head(x, rngs))[:, 0, 0].astype(jnp.float32)


V2_VARIANTS = {'mobilenetv2_100': {'stages': V2, 'act': 'relu6'}}
V3_VARIANTS = {'mobilenetv3_large_100': {'stages': V3_LARGE, 'stem_size': 16,
                                         'act': 'hard_swish'}}
