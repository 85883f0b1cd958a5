"""ConvNeXt (Liu et al., arXiv 2201.03545) and ConvNeXt V2 (Woo et al., arXiv 2301.00808), with
timm's names and options. DINOv3's ConvNeXts and those of CLIP are weights of the same networks.

Paths of the parameters are those of timm's state_dict: `stem.<0..>`,
`stages.<s>.downsample.{0, 1}`, `stages.<s>.blocks.<i>.{conv_dw, norm, mlp.fc1, mlp.grn, mlp.fc2,
gamma}`, and `norm_pre` where the last norm precedes pooling. Where it follows, timm has it in its
head, with the layer after it: the `norm`, `pre_logits` and `head` of this file are `head.norm`,
`head.pre_logits` and `head.fc` there.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolutions import conv2d
from models.errors import ModelError, unknown
from models.heads import Classifier
from models.image_sizes import check_any_size
from models.layers import (
    Dropout,
    Linear,
    activation,
    compute_dtype,
    drop_path_rates,
    layer_norm,
    run_block,
    timm_normal,
)

STEMS = ('patch', 'overlap', 'overlap_tiered')
LARGEST_PATCH = 7  # from 8 on, timm dilates the last stage in place of halving the resolution


class GlobalResponseNorm(nnx.Module):
    """Scales each channel by its norm over all pixels relative to the mean of these norms over the
    channels, and adds the input (arXiv 2301.00808): [B, h, w, D] -> same. Computed in float32."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        del rngs  # as in the paper it starts as the identity
        self.scale = nnx.Param(jnp.zeros((dim,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        squares = jnp.sum(y * y, (1, 2), keepdims=True)
        # The square root has no gradient at 0. A channel that is 0 everywhere gets 0, as in torch.
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        factor = norms / (jnp.mean(norms, -1, keepdims=True) + 1e-6)
        return (y + (self.scale[...] * (y * factor) + self.bias[...])).astype(x.dtype)


class Mlp(nnx.Module):
    """Linear, activation, global response norm if asked for, Linear: [B, h, w, D] -> same. With
    `conv` the linear layers are 1x1 convolutions, which differ in the shape of their kernels."""

    def __init__(self, dim: int, hidden: int, *, act: str, conv: bool, use_grn: bool, dtype,
                 rngs: nnx.Rngs):
        def linear(a: int, b: int) -> nnx.Module:
            if conv:
                return conv2d(a, b, 1, bias=True, kernel_init=timm_normal, dtype=dtype, rngs=rngs)
            return Linear(a, b, kernel_init=timm_normal, dtype=dtype, rngs=rngs)

        self.fc1 = linear(dim, hidden)
        self.grn = GlobalResponseNorm(hidden, rngs=rngs) if use_grn else None
        self.fc2 = linear(hidden, dim)
        self.act = activation(act)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.act(self.fc1(x, rngs))
        return self.fc2(x if self.grn is None else self.grn(x), rngs)


class Block(nnx.Module):
    """A depthwise convolution, LayerNorm and an MLP, added to the input: [B, h, w, D] -> same."""

    def __init__(self, dim: int, *, kernel: int, ls_init_value: float | None, drop_path: float,
                 norm, mlp, conv):
        self.conv_dw = conv(dim, dim, kernel, groups=dim)
        self.norm = norm(dim)
        self.mlp = mlp(dim, 4 * dim)
        self.gamma = None if ls_init_value is None else \
            nnx.Param(jnp.full((dim,), ls_init_value, jnp.float32))
        self.drop_path = Dropout(drop_path, per_example=True, what='drop_path')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.norm(self.conv_dw(x, rngs)).astype(x.dtype)
        y = self.mlp(y, rngs)
        if self.gamma is not None:
            y = y * self.gamma[...].astype(x.dtype)
        return x + self.drop_path(y, rngs)


class Stage(nnx.Module):
    """LayerNorm and a convolution that halves the resolution, if the shape changes, then blocks:
    [B, h, w, a] -> [B, h / stride, w / stride, b], rounded down."""

    def __init__(self, a: int, b: int, *, stride: int, rates: tuple[float, ...], block, norm, conv):
        self.downsample = None if stride == 1 and a == b else nnx.List([
            norm(a), conv(a, b, stride, stride=stride, padding='VALID')])
        self.blocks = nnx.List(block(b, drop_path=rate) for rate in rates)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None, *, remat: bool) -> jax.Array:
        if self.downsample is not None:
            norm, conv = self.downsample
            x = conv(norm(x).astype(x.dtype), rngs)
        for block in self.blocks:
            x = run_block(block, x, rngs, remat=remat)
        return x


class PreLogits(nnx.Module):
    """A linear layer and GELU on the pooled features, in float32: [B, D] -> [B, hidden]."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc = Linear(dim, hidden, kernel_init=timm_normal, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return activation('gelu')(self.fc(x, rngs))


class ConvNeXt(Classifier):
    """ConvNeXt, for images of any size. Arguments are timm's; these differ or are new:

    Args:
        depths: number of blocks in each of the four stages; each stage but the first halves the
            resolution.
        dims: channels of each stage.
        kernel_sizes: side of the depthwise kernels in pixels: one for all stages or one for each.
        ls_init_value: initial value of the layer scale; None for no layer scale.
        stem_type: 'patch' (one convolution on patches), or two 3x3 convolutions of stride 2, of
            which the first has all channels ('overlap') or half of them ('overlap_tiered').
        patch_size: of the stem 'patch', in pixels. With 2 the first stage halves the resolution
            too, as in timm.
        head_norm_first: normalise the feature maps, not their mean.
        head_hidden_size: width of a layer with GELU behind the last norm; None for no such layer.
            It belongs to the backbone and to its pooled features, as in timm; `head_hidden` is
            about a new head.
        conv_mlp: keep the weights of the MLPs as those of 1x1 convolutions.
        use_grn: global response norm in the MLPs (ConvNeXt V2).
        act: activation of the MLPs, a key of `layers.ACTIVATIONS`.
        norm_eps: epsilon of every LayerNorm.
        in_channels: channels of the images (timm: in_chans).
        drop_path: rate of stochastic depth in the last block, 0 in the first (timm:
            drop_path_rate).
        remat: recompute the activations of each block in the gradient, for less memory.
        dtype: of convolutions and matrix products; parameters, norms and logits stay float32.

    Raises:
        ModelError: a value is unknown or out of range.
    """

    timm_head = 'head.fc'
    timm_stem = 'stem.0'
    timm_modules: Mapping[str, str] = {'norm': 'head.norm', 'pre_logits': 'head.pre_logits'}
    timm_optional = ('head.norm.',)  # weights pre-trained on masked images (fcmae) have no head
    # A stage's `downsample` shares the level of its first block; the empty group counts as 0.
    layer_groups = (r'stem/', r'stages/(\d+)/\w+/((?<=blocks/)\d+|)|norm_pre/')
    timm_renames = (  # keys of the weights that the authors published
        (r'^downsample_layers\.0\.', 'stem.'),
        (r'^downsample_layers\.(\d+)\.', r'stages.\1.downsample.'),
        (r'^(stages\.\d+)\.(\d+)\.', r'\1.blocks.\2.'),
        (r'\.dwconv\.', '.conv_dw.'),
        (r'\.pwconv([12])\.', r'.mlp.fc\1.'),
        (r'^norm\.', 'head.norm.'),
        (r'^head\.(weight|bias)$', r'head.fc.\1'),
    )

    def __init__(self, *, depths: tuple[int, ...] = (3, 3, 9, 3),
                 dims: tuple[int, ...] = (96, 192, 384, 768),
                 kernel_sizes: int | tuple[int, ...] = 7, ls_init_value: float | None = 1e-6,
                 stem_type: str = 'patch', patch_size: int = 4, head_norm_first: bool = False,
                 head_hidden_size: int | None = None, conv_mlp: bool = False,
                 use_grn: bool = False, act: str = 'gelu', norm_eps: float = 1e-6,
                 in_channels: int = 3, drop_path: float = 0.0, remat: bool = False, dtype=None,
                 rngs: nnx.Rngs):
        kernels = (kernel_sizes,) * 4 if isinstance(kernel_sizes, int) else tuple(kernel_sizes)
        _check(depths, dims, kernels, stem_type, patch_size)
        if head_norm_first and head_hidden_size:
            raise ModelError(f'head_hidden_size={head_hidden_size} is a layer behind the norm of '
                             f'the pooled features: it needs head_norm_first=False.')
        self.in_channels, self.remat = in_channels, remat
        self.dtype = dtype = compute_dtype(dtype)
        norm = functools.partial(layer_norm, eps=norm_eps, rngs=rngs)
        conv = functools.partial(conv2d, bias=True, kernel_init=timm_normal, dtype=dtype, rngs=rngs)

        if stem_type == 'patch':
            self.stem = nnx.List([conv(in_channels, dims[0], patch_size, stride=patch_size,
                                       padding='VALID'), norm(dims[0])])
            stride = patch_size
        else:
            middle = _tier(dims[0]) if stem_type == 'overlap_tiered' else dims[0]
            self.stem = nnx.List([conv(in_channels, middle, 3, stride=2),
                                  conv(middle, dims[0], 3, stride=2), norm(dims[0])])
            stride = 4
        strides = (2 if stride == 2 else 1, 2, 2, 2)
        pixels = strides[0] * 8  # of the stem's output, for one of the last stage
        self.least = pixels * stride if stem_type == 'patch' else 4 * pixels - 3
        mlp = functools.partial(Mlp, act=act, conv=conv_mlp, use_grn=use_grn, dtype=dtype,
                                rngs=rngs)
        block = functools.partial(Block, ls_init_value=ls_init_value, norm=norm, mlp=mlp, conv=conv)
        rates, width = drop_path_rates(drop_path, sum(depths)), dims[0]
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims)):
            first = sum(depths[:i])
            stages.append(Stage(
                width, dim, stride=strides[i], rates=rates[first:first + depth],
                block=functools.partial(block, kernel=kernels[i]), norm=norm, conv=conv))
            width = dim
        self.stages = nnx.List(stages)

        self.map_features, self.num_features = width, head_hidden_size or width
        self.norm_pre = norm(width) if head_norm_first else None
        self.norm = None if head_norm_first else norm(width)
        self.pre_logits = None if not head_hidden_size else \
            PreLogits(width, head_hidden_size, rngs=rngs)

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> feature maps [B, H/32, W/32, D], the sides rounded down (a stem
        that overlaps rounds up)."""
        check_any_size(x, self.in_channels, self.least)
        *convs, norm = self.stem
        x = x.astype(self.dtype)
        for conv in convs:
            x = conv(x, rngs)
        x = norm(x).astype(self.dtype)
        for stage in self.stages:
            x = stage(x, rngs, remat=self.remat)
        return x if self.norm_pre is None else self.norm_pre(x).astype(x.dtype)

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Feature maps [B, h, w, D] -> [B, num_features], float32: their mean, normalised unless
        the maps are, and through the layer behind the norm, if there is one."""
        x = super().pool(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.pre_logits is None else self.pre_logits(x, rngs)


def _check(depths, dims, kernels, stem_type: str, patch_size: int) -> None:
    if stem_type not in STEMS:
        raise unknown('stem_type', stem_type, STEMS)
    for what, values in (('depths', depths), ('dims', dims), ('kernel_sizes', kernels)):
        if len(values) != 4 or min(values) < 1:
            raise ModelError(f'{what}={tuple(values)} is not valid: give four positive integers, '
                             f'one for each stage.')
    even = [kernel for kernel in kernels if kernel % 2 == 0]
    if even:
        raise ModelError(f'kernel_sizes has {even[0]}: use odd sides, which have a middle.')
    if not 1 <= patch_size <= LARGEST_PATCH:
        raise ModelError(f'patch_size={patch_size!r} is not valid: use 1 to {LARGEST_PATCH} '
                         f'pixels.')


def _tier(dim: int) -> int:
    """Half of the channels, rounded to a multiple of 8."""
    half = dim // 2
    rounded = max(8, (half + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * half else rounded


_SIZES: dict[str, dict] = {
    'atto': dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True),
    'femto': dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True),
    'pico': dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True),
    'nano': dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True),
    'tiny': {},
    'small': dict(depths=(3, 3, 27, 3)),
    'base': dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    'large': dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    'xlarge': dict(depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048)),
    'xxlarge': dict(depths=(3, 4, 30, 3), dims=(384, 768, 1536, 3072), norm_eps=1e-5),
    'huge': dict(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816)),
}
_V2 = dict(use_grn=True, ls_init_value=None)
VARIANTS: dict[str, dict] = {
    **{f'convnext_{name}': size for name, size in _SIZES.items() if name != 'huge'},
    **{f'convnext_{name}_ols': dict(_SIZES[name], stem_type='overlap_tiered')
       for name in ('atto', 'femto', 'pico')},
    'convnext_nano_ols': dict(_SIZES['nano'], stem_type='overlap'),
    'convnext_tiny_hnf': dict(head_norm_first=True, conv_mlp=True),
    'convnext_large_mlp': dict(_SIZES['large'], head_hidden_size=1536),
    **{f'convnextv2_{name}': dict(size, **_V2) for name, size in _SIZES.items()
       if not name.startswith('x')},
}
