"""Convolutions, in the form that runs fastest on the platform that a program is lowered for.

XLA's CPU backend is slow at depthwise convolutions, at many channels on tiny grids, and at the
gradients of both. There a convolution is written as a sum of shifted images or as one matrix
product, which is the same arithmetic. On every machine a 1x1 convolution is a linear layer over
pixels, and one on patches that do not overlap (the stem of a ViT) is a linear layer over patches.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from models import batch_moments, depthwise, float32_sums, large_kernels, matrix_product, stored
from models.layers import normal

# A CPU computes an output of at most this many pixels as one matrix product. 512 channels on 2x2
# take 8 ms this way and 620 ms as a convolution; 256 channels on 4x4 take 7 ms as a convolution
# (batch 64, 2 cores). At 64 px the gradient of a resnet18 is 9 times as fast for it, that of an
# efficientnet_b0 5 times, that of a resnet50 4 times.
TINY_GRID = 9


class Conv(nnx.Conv):
    """nnx.Conv on [B, H, W, a]. It accepts `rngs` as `Linear` does, because its LoRA form does, and
    has the same `float32_sums`."""

    float32_sums = False

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        del rngs
        return self._in_best_form(self._by, x)

    def with_kernel(self, x: jax.Array, kernel: jax.Array, *, bias: bool) -> jax.Array:
        """This convolution with another kernel of the same shape, float32; with or without its
        bias."""
        return self._in_best_form(functools.partial(self._by_kernel, kernel, bias), x)

    def _in_best_form(self, by: Callable[[str, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        on_cpu, elsewhere = self._form(x, cpu=True), self._form(x, cpu=False)
        if on_cpu == elsewhere:
            return by(on_cpu, x)
        # Not by asking for the machine of this process: a program may be meant for another.
        return jax.lax.platform_dependent(x, cpu=functools.partial(by, on_cpu),
                                          default=functools.partial(by, elsewhere))

    def _by_kernel(self, kernel: jax.Array, bias: bool, form: str, x: jax.Array) -> jax.Array:
        dtype = self.dtype or jnp.result_type(x, kernel)
        summed = self.float32_sums and self.dtype is not None
        if summed:
            y = float32_sums.by(functools.partial(self._without_bias, form), x.astype(dtype),
                                kernel)
        else:
            y = self._without_bias(form, x.astype(dtype), kernel.astype(dtype))
        if self.bias is None or not bias:
            return y
        return (float32_sums.plus_bias(y, self.bias[...]) if summed else
                y + self.bias[...].astype(dtype))

    def _by(self, form: str, x: jax.Array) -> jax.Array:
        if form == 'convolution' and not (self.float32_sums and self.dtype is not None):
            return super().__call__(stored.value(x))
        return self._by_kernel(self.kernel[...], True, form, x)

    def _without_bias(self, form: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if form == 'convolution':  # its gradient would compute x anew in a transposed order
            x = stored.value(x)
            padding = self.padding if isinstance(self.padding, str) else self._padding(x)
            return jax.lax.conv_general_dilated(
                x, kernel, _pair(self.strides), padding, rhs_dilation=_pair(self.kernel_dilation),
                feature_group_count=self.feature_group_count,
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        if form == 'patchify':
            return self._patchify(x, kernel)
        if form == 'pointwise':
            return matrix_product.product(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(
                *x.shape[:-1], -1)
        if form == 'large':
            return large_kernels.depthwise(x, kernel, self._padding(x))
        if form == 'depthwise':
            return depthwise.convolve(x, kernel, _pair(self.strides), self._padding(x))
        y = jnp.concatenate(depthwise.shifted(x, self.kernel_size, _pair(self.strides),
                                              self._padding(x)), -1)
        return matrix_product.product(y.reshape(-1, y.shape[-1]), kernel.reshape(
            -1, kernel.shape[-1])).reshape(*y.shape[:-1], -1)

    def _form(self, x: jax.Array, *, cpu: bool) -> str:
        """The fastest form on a CPU, or on another platform."""
        strides, dilation = _pair(self.strides), _pair(self.kernel_dilation)
        groups, inputs = self.feature_group_count, x.shape[-1]
        if dilation != (1, 1) or (isinstance(self.padding, str) and self.padding not in (
                'SAME', 'VALID')):
            return 'convolution'
        if self.kernel_size == strides == (1, 1) and groups == 1 and \
                self._padding(x) == ((0, 0), (0, 0)):
            return 'pointwise'
        if self.padding == 'VALID' and strides == self.kernel_size and groups == 1:
            return 'patchify'
        if not cpu:
            return 'convolution'
        if groups == inputs == self.kernel.shape[-1] > 1:
            # Its loop over images would fetch those of other devices.
            large = strides == (1, 1) and min(self.kernel_size) >= large_kernels.SMALLEST \
                and all(max(pad) < side for pad, side in zip(self._padding(x), self.kernel_size)) \
                and batch_moments.devices_of(x) == 1
            return 'large' if large else 'depthwise'
        if groups == 1 and inputs >= 64 and self._pixels(x) <= TINY_GRID:
            return 'im2col'
        return 'convolution'

    def _patchify(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The image is cut into patches, as in a ViT, and multiplied by one matrix."""
        rows, columns = self.kernel_size
        height, width = x.shape[1] // rows, x.shape[2] // columns
        x = x[:, :height * rows, :width * columns]
        patches = x.reshape(x.shape[0], height, rows, width, columns, -1).swapaxes(2, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        return matrix_product.product(patches.reshape(-1, kernel.shape[0]), kernel).reshape(
            x.shape[0], height, width, -1)

    def _pixels(self, x: jax.Array) -> int:
        """Number of output pixels."""
        return math.prod(depthwise.output_sides(x, self.kernel_size, _pair(self.strides),
                                                self._padding(x)))

    def _padding(self, x: jax.Array) -> tuple[tuple[int, int], ...]:
        """Pixels (before, after) of height and width."""
        if isinstance(self.padding, str):
            return tuple(jax.lax.padtype_to_pads(x.shape[1:3], self.kernel_size,
                                                 _pair(self.strides), self.padding))
        return tuple(_pair(side) for side in _pair(self.padding))


def _pair(value) -> tuple[int, int]:
    value = 1 if value is None else value
    return (value, value) if isinstance(value, int) else tuple(value)


def conv2d(a: int, b: int, kernel: int | tuple[int, int], *, stride: int = 1, padding=None,
           groups: int = 1, dilation: int = 1, bias: bool = False, kernel_init=None, dtype=None,
           rngs: nnx.Rngs) -> Conv:
    """Convolution [B, H, W, a] -> [B, h, w, b], padded as in torch's models.

    `padding=None` pads (kernel - 1) / 2 pixels on each side for any stride, while the padding of
    XLA's 'SAME' depends on the stride. Give 'SAME' for TensorFlow's models, or numbers of pixels.
    """
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    if padding is None:
        padding = tuple((dilation * (side - 1) // 2,) * 2 for side in kernel)
    return Conv(a, b, kernel, strides=stride, padding=padding, feature_group_count=groups,
                kernel_dilation=dilation, use_bias=bias, dtype=dtype, rngs=rngs,
                kernel_init=normal() if kernel_init is None else kernel_init)
