"""Plain convolutional networks for studies on small images: a baseline and its regularised form.

`cnn_basic` is a first baseline: convolution, ReLU and max-pooling a few times, a dense layer, the
classifier (LeCun et al. 1998). `cnn_final` is where such studies end: one more block, BatchNorm
(Ioffe and Szegedy, arXiv 1502.03167) and dropout (Srivastava et al. 2014). `small_cnn` is a
residual network of the same size without a dense layer.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import conv2d
from models.errors import ModelError
from models.heads import Classifier
from models.image_sizes import check_images, height_and_width
from models.layers import Dropout, Linear, activation, batch_norm, compute_dtype, normal, run_block


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling, without odd edges: [B, H, W, C] -> [B, H // 2, W // 2, C].

    It compares slices: their gradient takes 1.4 ms on a CPU for 32 images of 64 x 64 x 32, that of
    XLA's window reduction 38 ms (2 cores, jax 0.10.2). Equal pixels share the gradient.
    """
    batch, height, width, channels = x.shape
    x = x[:, :height // 2 * 2, :width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class Block(nnx.Module):
    """Convolutions with activations, max-pooling, dropout: [B, H, W, a] ->
    [B, H // 2, W // 2, b]."""

    def __init__(self, a: int, b: int, *, kernel: int, depth: int, norm: bool, act: str,
                 dropout: float, dtype, rngs: nnx.Rngs):
        # Initialising by the fan-in keeps the scale of activations: without BatchNorm nothing else
        # does.
        channels = [a, *[b] * (depth - 1)]
        self.convs = nnx.List(
            conv2d(c, b, kernel, bias=not norm, dtype=dtype, rngs=rngs,
                   kernel_init=normal((2 / (kernel ** 2 * c)) ** 0.5)) for c in channels)
        self.norms = nnx.List(batch_norm(b, rngs=rngs) for _ in channels) if norm else None
        self.act = activation(act)
        self.dropout = Dropout(dropout, what='block_dropout')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        for number, conv in enumerate(self.convs):
            y = conv(x, rngs)
            x = self.act(y if self.norms is None else self.norms[number](y)).astype(y.dtype)
        return self.dropout(max_pool(x), rngs)


class PlainCNN(Classifier):
    """Blocks of convolutions that end in 2x2 max-pooling, then a dense layer on all pixels of the
    last feature maps. The pooled features are the outputs of the dense layer, [B, dense].

    The dense layer fixes the size of the images. On a CPU most of the time goes into the first
    block, which sees all pixels: halving its width saves more than any other setting.

    Args:
        img_size: side of the images in pixels, or (height, width).
        in_channels: channels of the images.
        widths: channels of each block.
        kernel: side of the convolutions in pixels, odd.
        depth: convolutions per block.
        norm: BatchNorm after each convolution and after the dense layer.
        dense: width of the dense layer.
        block_dropout: dropout after each block.
        dense_dropout: dropout after the dense layer, besides the `drop_rate` of the heads.
        act: activation, a key of `layers.ACTIVATIONS`.
        remat: recompute the activations of each block in the gradient, for less memory.
        dtype: of the convolutions and the dense layer; parameters, norms and logits stay float32.
    """

    timm_stem = 'blocks.0.convs.0'
    layer_groups = (r'blocks/(\d+)/',)

    def __init__(self, *, img_size: int | tuple[int, int] = 64, in_channels: int = 3,
                 widths: tuple[int, ...] = (32, 64, 128), kernel: int = 3, depth: int = 1,
                 norm: bool = False, dense: int = 256, block_dropout: float = 0.0,
                 dense_dropout: float = 0.0, act: str = 'relu', remat: bool = False, dtype=None,
                 rngs: nnx.Rngs):
        size = height_and_width(img_size)
        widths = (widths,) if isinstance(widths, int) else tuple(widths)
        if not widths or min(widths) < 1:
            raise ModelError(f'widths={widths!r} of a plain CNN are not the channels of its '
                             f'blocks: give one positive integer per block.')
        for what, value in (('depth', depth), ('dense', dense)):
            if value < 1:
                raise ModelError(f'{what}={value!r} of a plain CNN must be at least 1.')
        if kernel < 1 or kernel % 2 == 0:
            raise ModelError(f'kernel={kernel!r} of a plain CNN is not odd and positive: use a '
                             f'number such as 3 or 5.')
        if min(size) < 2 ** len(widths):
            raise ModelError(f'img_size={img_size!r} cannot be halved {len(widths)} times: use at '
                             f'least {2 ** len(widths)} pixels, or fewer widths.')
        self.img_size, self.in_channels, self.remat = size, in_channels, remat
        self.num_features, self.map_features = dense, widths[-1]
        self.dtype = dtype = compute_dtype(dtype)
        self.dense_drop = Dropout(dense_dropout, what='dense_dropout')
        self.act = activation(act)
        self.blocks = nnx.List(
            Block(a, b, kernel=kernel, depth=depth, norm=norm, act=act, dropout=block_dropout,
                  dtype=dtype, rngs=rngs) for a, b in zip([in_channels, *widths], widths))
        flat = math.prod(side // 2 ** len(widths) for side in size) * widths[-1]
        self.dense = Linear(flat, dense, use_bias=not norm, dtype=dtype, rngs=rngs,
                            kernel_init=normal((2 / flat) ** 0.5))
        self.dense_norm = batch_norm(dense, rngs=rngs) if norm else None

    def add_heads(self, num_classes, **settings):
        """As in `Classifier`; the dropout after the dense layer is combined with `drop_rate`."""
        super().add_heads(num_classes, **settings)
        kept = (1 - self.dense_drop.rate) * (1 - self.head_drop.rate)
        self.head_drop = Dropout(1 - kept, what='drop_rate')

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, h, w, widths[-1]], halved by each block."""
        check_images(x, self.img_size, self.in_channels)
        x = x.astype(self.dtype)
        for block in self.blocks:
            x = run_block(block, x, rngs, remat=self.remat)
        return x

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Feature maps [B, h, w, D] -> the outputs of the dense layer, float32 [B, dense]."""
        y = self.dense(x.reshape(x.shape[0], -1), rngs).astype(jnp.float32)
        return self.act(y if self.dense_norm is None else self.dense_norm(y))


VARIANTS = {
    'cnn_basic': {},
    'cnn_final': dict(widths=(32, 64, 128, 256), norm=True, block_dropout=0.3, dense_dropout=0.5),
}
