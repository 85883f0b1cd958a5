"""Layers that several families share.

No layer owns a random state: dropout takes `rngs` when it is called. So the state of a model is
parameters and batch statistics only, and its randomness is an argument of the step.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import batch_moments, float32_sums, matrix_product, stored
from models.errors import ModelError, unknown


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function, exact and in the form of torch.

    jax.nn.gelu takes erfc, whose value and gradient need two polynomials and two exponentials per
    entry on a CPU; they differ from this form where it is below 1e-7 of |x|. In half precision it
    is taken all the same: there 1 + erf loses the small values of negative x.
    """
    x = jnp.asarray(x)
    if jnp.finfo(x.dtype).bits < 32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + jax.lax.erf(x * 2 ** -0.5))


ACTIVATIONS = {
    'gelu': gelu,
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'hard_swish': jax.nn.hard_swish,
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # of OpenAI's CLIP
    'relu': jax.nn.relu,
    'relu6': jax.nn.relu6,
    'silu': jax.nn.silu,
    'tanh': jnp.tanh,
}
WEIGHT_INITS = ('', 'jax')


@functools.partial(jax.jit, static_argnums=2)
def _normal(key, stddev, size: int) -> jax.Array:
    return stddev * jax.random.normal(key, (size,), jnp.float32)


def normal(stddev: float | None = None):
    """Initialiser: normal, with a standard deviation of sqrt(2 / fan_out) unless one is given.

    XLA needs one to ten seconds on a CPU to compile the random numbers of each new size. So they
    are drawn in few sizes (powers of 4, then whole multiples of 2^20) and cut to the right one.
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


# timm truncates `trunc_normal_` at +-2, not at two standard deviations: for .02 that is never.
timm_normal = normal(0.02)


def linear_init(weight_init: str, fan_in: int, fan_out: int):
    """Initialiser of a transformer's linear layer; `weight_init` has timm's names.

    '' is timm's default, a standard deviation of 0.02 for any width. 'jax' is Xavier's (Glorot and
    Bengio 2010), as in the original ViT, with which narrow models learn much faster at first.
    """
    if weight_init not in WEIGHT_INITS:
        raise unknown('weight_init', weight_init, WEIGHT_INITS)
    return timm_normal if not weight_init else normal((2 / (fan_in + fan_out)) ** 0.5)


def activation(name: str):
    """The activation function of that name; ModelError if there is none."""
    if name not in ACTIVATIONS:
        raise unknown('Activation', name, ACTIVATIONS)
    return ACTIVATIONS[name]


def compute_dtype(dtype) -> jnp.dtype:
    """The dtype of matrix products and convolutions, from itself or its name; None is float32."""
    valid = ('float32', 'bfloat16', 'float16')
    name = 'float32' if dtype is None else getattr(dtype, '__name__', str(dtype))
    if name not in valid:
        raise unknown('dtype', name, valid)
    return jnp.dtype(name)


def layer_norm(dim: int, *, eps: float = 1e-6, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the eps of timm's transformers, computed and returned in float32.

    The variance is computed from centred values: E[x^2] - E[x]^2 loses precision where the mean is
    much larger than the standard deviation.
    """
    return nnx.LayerNorm(dim, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


class BatchNorm(nnx.BatchNorm):
    """nnx.BatchNorm whose running variance follows, as in torch, the unbiased variance of the batch
    (divided by n - 1). Both normalise with the biased one (divided by n). For a batch that is split
    over devices see batch_moments.py."""

    scale: nnx.Param  # ours always have both
    bias: nnx.Param

    # No mask: the correction below would have to know it.
    def __call__(self, x: jax.Array,  # type: ignore[override]
                 use_running_average: bool | None = None) -> jax.Array:
        old = self.var[...]
        running = self.use_running_average if use_running_average is None else use_running_average
        devices = 1 if running else batch_moments.devices_of(x)
        if devices > 1:
            y, mean, var = batch_moments.normalise(x, self.scale[...], self.bias[...],
                                                   self.epsilon, devices)
            self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
            self.var[...] = self.momentum * old + (1 - self.momentum) * var
        else:
            y = super().__call__(x, running)
        if not running:
            moved = self.var[...] - self.momentum * old
            self.var[...] += moved / max(x.size // x.shape[-1] - 1, 1)
        return y


def batch_norm(dim: int, *, eps: float = 1e-5, rngs: nnx.Rngs) -> BatchNorm:
    """BatchNorm with torch's defaults (its momentum .1 is .9 here), in float32.

    Under jit with a sharded batch the statistics are those of the global batch.
    """
    return BatchNorm(dim, momentum=0.9, epsilon=eps, dtype=jnp.float32, use_fast_variance=False,
                     rngs=rngs)


class Dropout(nnx.Module):
    """Sets entries to zero at random and scales the others by 1 / (1 - rate).

    With `per_example` an example is dropped as a whole: on a residual branch this is drop path
    (stochastic depth, Huang et al., arXiv 1603.09382).

    Raises:
        ModelError: the rate is outside [0, 1); or the layer is called in training mode with a
            rate above 0 and without `rngs`.
    """

    def __init__(self, rate: float, *, per_example: bool = False, what: str = 'drop_rate'):
        if not 0 <= rate < 1:
            raise ModelError(f'{what}={rate!r} is not a valid dropout rate: use a number '
                             f'in [0, 1).')
        self.rate = float(rate)
        self.per_example = per_example
        self.deterministic = False

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None,
                 rate: jax.Array | None = None) -> jax.Array:
        """[B, ...] -> same. `rate` replaces the layer's own; under a scan it is traced."""
        if self.deterministic or (rate is None and not self.rate):
            return x
        if rngs is None:
            raise ModelError(
                f'This model uses dropout (rate {self.rate:g}) and got no random key: call '
                f'model(x, rngs=nnx.Rngs(dropout=key)), or eval_view(model)(x) for inference.')
        shape = (x.shape[0],) + (1,) * (x.ndim - 1) if self.per_example else x.shape
        kept = 1 - (self.rate if rate is None else rate)
        keep = jax.random.bernoulli(rngs.dropout(), kept, shape)
        return jnp.where(keep, x / kept, 0).astype(x.dtype)

    def set_view(self, deterministic: bool | None = None):
        """For `nnx.view`: `deterministic=True` makes the layer the identity."""
        if deterministic is not None:
            self.deterministic = deterministic


def drop_path_rates(last: float, depth: int) -> tuple[float, ...]:
    """Rates of the residual blocks, from 0 to `last` in equal steps, as in timm."""
    return tuple(float(rate) for rate in np.linspace(0, last, depth))


class LayerScale(nnx.Module):
    """One learned factor per channel, on a residual branch (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int, value: float):
        self.gamma = nnx.Param(jnp.full((dim,), value, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


class Linear(nnx.Linear):
    """nnx.Linear on the flattened leading axes: [..., a] -> [..., b].

    The gradient of the kernel is then a product of two matrices. Over tokens [B, N, a] it sums
    over two axes, which XLA's CPU backend turns into a slow loop: an MLP of width 128 on 64 x 64
    tokens took 138 ms forward and backward, and takes 48 ms (2 cores, jax 0.10.2).

    With `float32_sums` the gradients of its parameters are float32 sums, see float32_sums.py.
    """

    float32_sums = False

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        del rngs  # only its LoRA form has dropout
        kernel, bias = self.kernel[...], self.bias
        dtype = self.dtype or jnp.result_type(x, kernel)
        flat = x.reshape(-1, x.shape[-1]).astype(dtype)
        if self.float32_sums and self.dtype is not None:
            flat = float32_sums.product(flat, kernel)
            if bias is not None:
                flat = float32_sums.plus_bias(flat, bias[...])
        else:
            flat = matrix_product.product(flat, kernel.astype(dtype))
            if bias is not None:
                flat = flat + bias[...].astype(dtype)
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


def run_block(block: Callable[..., jax.Array], x, rngs: nnx.Rngs | None, *extras,
              remat: bool) -> jax.Array:
    """block(x, rngs, *extras).

    With `remat` its activations are not stored but recomputed in the gradient, which takes about a
    third more time and a fraction of the memory (Chen et al., arXiv 1604.06174).
    """
    call = nnx.remat(_call) if remat else _call
    # A DenseNet passes several arrays, each of which is read by all later blocks.
    x = stored.gradient(x) if isinstance(x, jax.Array) else x
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


class GluMlp(nnx.Module):
    """Gated MLP (Shazeer, arXiv 2002.05202): fc2(act(a) * b) where fc1 computes a and b side by
    side, [..., dim] -> same. With SiLU it is SwiGLU. `hidden` is the width of fc1, as in timm.

    As in timm b starts near one, so the layer starts as an MLP without a gate.

    Raises:
        ModelError: `hidden` is odd.
    """

    def __init__(self, dim: int, hidden: int, *, act: str = 'silu', drop: float = 0.0,
                 weight_init: str = '', dtype=None, rngs: nnx.Rngs):
        if hidden % 2:
            raise ModelError(f'A gated MLP of {hidden} channels cannot be halved: choose an '
                             f'mlp_ratio that makes them even.')
        init, half = linear_init(weight_init, dim, hidden), hidden // 2
        linear = functools.partial(Linear, kernel_init=init, dtype=dtype, rngs=rngs)
        self.fc1, self.fc2 = linear(dim, hidden), linear(half, dim)
        near_zero = normal(1e-6)(rngs.params(), (dim, half))
        self.fc1.kernel.set_value(self.fc1.kernel[...].at[:, half:].set(near_zero))
        self.fc1.bias = nnx.Param(jnp.zeros(hidden).at[half:].set(1.0))
        self.act = activation(act)
        self.drop = Dropout(drop, what='proj_drop_rate')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        gate, value = jnp.split(self.fc1(x, rngs), 2, axis=-1)
        x = self.drop(self.act(gate) * value, rngs)
        return self.drop(self.fc2(x, rngs), rngs)
