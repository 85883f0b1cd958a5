"""Layers that several families share.

No layer owns a random state: dropout takes its `rngs` when it is called, so a model is
nothing but parameters and batch statistics, and its randomness is an argument of the step.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.errors import ModelError, unknown

ACTIVATIONS = {
    'gelu': functools.partial(jax.nn.gelu, approximate=False),  # torch's default is the exact one
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'hard_swish': jax.nn.hard_swish,
    'relu': jax.nn.relu,
    'relu6': jax.nn.relu6,
    'silu': jax.nn.silu,
    'tanh': jnp.tanh,
}
WEIGHT_INITS = ('', 'jax')
ATTENTION = ('auto', 'xla', 'cudnn')


@functools.partial(jax.jit, static_argnums=2)
def _normal(key, stddev, size: int) -> jax.Array:
    return stddev * jax.random.normal(key, (size,), jnp.float32)


def normal(stddev: float | None = None):
    """Initialiser: a normal distribution, of deviation sqrt(2 / fan_out) where none is given.

    XLA takes one to ten seconds of a CPU to compile the random numbers of each new size, so
    they are drawn in a few sizes (powers of 4, then whole millions) and cut to what is asked.
    """
    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        count = math.prod(shape)
        size = 4096
        while size < min(count, 1 << 20):
            size *= 4
        size *= max(1, math.ceil(count / size))
        fan_out = math.prod(shape) // shape[-2] if len(shape) > 1 else count
        scale = math.sqrt(2 / fan_out) if stddev is None else stddev
        return _normal(key, scale, size)[:count].reshape(shape).astype(dtype)
    return init


# timm cuts its `trunc_normal_` at +-2, not at 2 deviations: with deviation .02 that cuts nothing.
timm_normal = normal(0.02)


def linear_init(weight_init: str, fan_in: int, fan_out: int):
    """Initialiser of a transformer's linear layer; the settings are named as in timm.

    '' is timm's default, a deviation of 0.02 whatever the width; 'jax' is Xavier's (Glorot and
    Bengio 2010), as in the original ViT, which gives narrow models a much quicker start.
    """
    if weight_init not in WEIGHT_INITS:
        raise unknown('weight_init', weight_init, WEIGHT_INITS)
    return timm_normal if not weight_init else normal((2 / (fan_in + fan_out)) ** 0.5)


def activation(name: str):
    """The activation function of that name; ModelError when there is none."""
    if name not in ACTIVATIONS:
        raise unknown('Activation', name, ACTIVATIONS)
    return ACTIVATIONS[name]


def compute_dtype(dtype) -> jnp.dtype:
    """The dtype of the heavy arithmetic: None means float32; names such as 'bfloat16' will do."""
    valid = ('float32', 'bfloat16', 'float16')
    name = 'float32' if dtype is None else getattr(dtype, '__name__', str(dtype))
    if name not in valid:
        raise unknown('dtype', name, valid)
    return jnp.dtype(name)


def layer_norm(dim: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm as in timm's transformers: eps 1e-6, computed and returned in float32.

    The variance is taken from centred values: E[x^2] - E[x]^2 loses its digits where
    the mean is much larger than the deviation.
    """
    return nnx.LayerNorm(dim, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


class BatchNorm(nnx.BatchNorm):
    """nnx.BatchNorm whose running variance moves, as torch's does, towards the unbiased variance
    of the batch (divided by n - 1); both normalise with the biased one (divided by n)."""

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        old = self.var[...]
        y = super().__call__(x, use_running_average)
        if not (self.use_running_average if use_running_average is None else use_running_average):
            moved = self.var[...] - self.momentum * old
            self.var[...] += moved / max(x.size // x.shape[-1] - 1, 1)
        return y


def batch_norm(dim: int, *, eps: float = 1e-5, rngs: nnx.Rngs) -> BatchNorm:
    """BatchNorm with torch's defaults (momentum .1 there is .9 here), in float32.

    Under jit with a sharded batch the statistics are those of the global batch.
    """
    return BatchNorm(dim, momentum=0.9, epsilon=eps, dtype=jnp.float32, use_fast_variance=False,
                     rngs=rngs)


class Dropout(nnx.Module):
    """Zeroes entries at random and scales the kept ones by 1 / (1 - rate).

    With `per_example` all entries of an example share one draw: on a residual branch
    this is drop path (stochastic depth, Huang et al., arXiv 1603.09382).

    Raises:
        ModelError: the rate is outside [0, 1); or, when called in training mode with a
            rate above 0, no `rngs` are given.
    """

    def __init__(self, rate: float, *, per_example: bool = False, what: str = 'drop_rate'):
        if not 0 <= rate < 1:
            raise ModelError(f'{what}={rate!r} is not a rate of dropout: use a number in [0, 1).')
        self.rate = float(rate)
        self.per_example = per_example
        self.deterministic = False

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None,
                 rate: jax.Array | None = None) -> jax.Array:
        """Drops with its own rate, or with one that is known only at run time (under a scan)."""
        if self.deterministic or (rate is None and not self.rate):
            return x
        if rngs is None:
            raise ModelError(
                f'This model drops activations at random (rate {self.rate:g}) and got no random '
                f'key: call model(x, rngs=nnx.Rngs(dropout=key)), or eval_view(model)(x) to infer.')
        shape = (len(x),) + (1,) * (x.ndim - 1) if self.per_example else x.shape
        kept = 1 - (self.rate if rate is None else rate)
        keep = jax.random.bernoulli(rngs.dropout(), kept, shape)
        return jnp.where(keep, x / kept, 0).astype(x.dtype)

    def set_view(self, deterministic: bool | None = None):
        """For `nnx.view`: `deterministic=True` makes the layer the identity."""
        if deterministic is not None:
            self.deterministic = deterministic


def drop_path_rates(last: float, depth: int) -> tuple[float, ...]:
    """Rates of the residual blocks: from 0 in equal steps to `last` in the deepest, as in timm."""
    return tuple(float(rate) for rate in np.linspace(0, last, depth))


class LayerScale(nnx.Module):
    """A learned factor a channel on a residual branch (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int, value: float):
        self.gamma = nnx.Param(jnp.full((dim,), value, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


class Linear(nnx.Linear):
    """nnx.Linear on the flattened leading axes: [..., a] -> [..., b].

    The gradient of the kernel is then a plain product of two matrices. Over tokens [B, N, a]
    it sums over two axes, which XLA's CPU backend makes a slow loop of: an MLP of width 128 on
    64 x 64 tokens took 138 ms forward and back, and takes 48 ms (2 cores, jax 0.10.2).
    """

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        del rngs  # only its LoRA form drops anything
        flat = super().__call__(x.reshape(-1, x.shape[-1]))
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


def run_block(block: nnx.Module, x: jax.Array, rngs: nnx.Rngs | None, *extras,
              remat: bool) -> jax.Array:
    """block(x, rngs, *extras).

    With `remat` its activations are not kept for the gradient but computed again there, which
    takes about a third more time and a fraction of the memory (Chen et al., arXiv 1604.06174).
    """
    call = nnx.remat(_call) if remat else _call
    return call(block, x, rngs, *extras)


def _call(block, *arguments):
    # nnx.remat refuses functions with keyword-only arguments, which some blocks have.
    return block(*arguments)


class Mlp(nnx.Module):
    """Linear, activation, Linear over the last axis: [..., dim] -> [..., dim]."""

    def __init__(self, dim: int, hidden: int, *, act: str = 'gelu', drop: float = 0.0,
                 weight_init: str = '', dtype=None, rngs: nnx.Rngs):
        init = linear_init(weight_init, dim, hidden)
        linear = functools.partial(Linear, kernel_init=init, dtype=dtype, rngs=rngs)
        self.fc1 = linear(dim, hidden)
        self.fc2 = linear(hidden, dim)
        self.act = activation(act)
        self.drop = Dropout(drop, what='proj_drop_rate')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.drop(self.act(self.fc1(x, rngs)), rngs)
        return self.drop(self.fc2(x, rngs), rngs)


def attend(query, key, value, *, impl: str = 'auto', drop: Dropout | None = None,
           rngs: nnx.Rngs | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v: three arrays [B, N, H, d] -> [B, N, H, d].

    The softmax is taken in float32. `impl='auto'` is cuDNN's flash attention where it can
    work (an NVIDIA GPU from Ampere on, half precision, d a multiple of 8 up to 128) and XLA's own
    elsewhere. Dropout
    of the weights needs the weights themselves: where `drop` is active the softmax is written
    out and `impl` has no effect.

    Raises:
        ModelError: `impl` is not known.
    """
    if impl not in ATTENTION:
        raise unknown('attn_impl', impl, ATTENTION)
    if drop is not None and drop.rate and not drop.deterministic:
        weights = attention_weights(query, key).astype(value.dtype)
        return jnp.einsum('bhqk,bkhd->bqhd', drop(weights, rngs), value)
    if impl == 'auto':
        dim = query.shape[-1]
        flash = query.dtype.itemsize == 2 and dim % 8 == 0 and dim <= 128
        impl = 'cudnn' if flash and _has_flash() else 'xla'
    return jax.nn.dot_product_attention(query, key, value, implementation=impl)


def attention_weights(query, key) -> jax.Array:
    """softmax(q k^T / sqrt(d)) in float32: two arrays [B, N, H, d] -> [B, H, N, N]."""
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * query.shape[-1] ** -0.5)


@functools.cache
def _has_flash() -> bool:
    device = jax.devices()[0]
    capability = str(getattr(device, 'compute_capability', ''))
    return device.platform == 'gpu' and capability[:1].isdigit() and float(capability) >= 8.0


class Attention(nnx.Module):
    """Self-attention over tokens, [B, N, dim] -> same, with one projection for q, k and v."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, attn_drop: float = 0.0,
                 proj_drop: float = 0.0, impl: str = 'auto', weight_init: str = '', dtype=None,
                 rngs: nnx.Rngs):
        if dim % num_heads:
            raise ModelError(f'embed_dim={dim} cannot be split over num_heads={num_heads}: '
                             f'choose a number of heads that divides it.')
        if impl not in ATTENTION:
            raise unknown('attn_impl', impl, ATTENTION)
        init = linear_init(weight_init, dim, dim)  # q, k and v are three layers side by side
        linear = functools.partial(Linear, kernel_init=init, dtype=dtype, rngs=rngs)
        self.qkv = linear(dim, 3 * dim, use_bias=qkv_bias)
        self.proj = linear(dim, dim)
        self.attn_drop = Dropout(attn_drop, what='attn_drop_rate')
        self.proj_drop = Dropout(proj_drop, what='proj_drop_rate')
        self.num_heads = num_heads
        self.impl = impl

    def project(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, ...]:
        """Query, key and value, each [B, N, H, d]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x, rngs).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = attend(*self.project(x, rngs), impl=self.impl, drop=self.attn_drop, rngs=rngs)
        return self.proj_drop(self.proj(y.reshape(x.shape), rngs), rngs)
