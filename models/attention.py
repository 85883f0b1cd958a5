"""Self-attention by XLA, or on NVIDIA GPUs by cuDNN's flash attention.

JAX (0.10 to 0.12) passes an odd number of tokens to cuDNN in inference but refuses it in the
gradient, and most Vision Transformers have an odd number: a class token and an even number of
patches. So odd sequences are padded by one masked token here, in training and inference alike.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models import plain_attention
from models.cudnn import ANY_GPU, flash_attention
from models.errors import ModelError, unknown
from models.layers import Dropout, Linear, linear_init
from models.target import Target

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn')
# JAX passes more channels per head to cuDNN on some GPUs; this many work on all since Ampere.
_SURE_DIM = 128


def attend(query, key, value, *, impl: str = 'auto', target: Target | None = None,
           drop: Dropout | None = None, rngs: nnx.Rngs | None = None, tokens: int = 0,
           bias: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d) + bias) v: three arrays [B, N, H, d] -> [B, N, H, d].

    The softmax is computed in float32. Dropout of the weights needs the weights themselves: where
    `drop` is active the softmax is written out and `impl` has no effect.

    Args:
        query, key, value: of one shape and floating-point dtype.
        impl: 'xla'; 'cudnn', which runs on NVIDIA GPUs only and never falls back to XLA; or 'auto',
            which is cuDNN in programs for NVIDIA GPUs since Ampere if it takes such arrays (half
            precision, d a multiple of 8 up to 128) and XLA otherwise. A single program for several
            platforms needs 'xla'.
        target: what the program is for; None: the platform that it is lowered for, and any GPU
            since Ampere. The devices of this process do not matter.
        drop: dropout of the attention weights.
        rngs: for `drop`.
        tokens: how many of the N are tokens, 0 for all; those behind them are padding, which no
            query attends to. With padding 'auto' is XLA.
        bias: added to the scores, [H, N, N] (queries, keys), or None. With a bias 'auto' is XLA;
            cuDNN's attention with a learned bias has not been tried here.

    Raises:
        ModelError: `impl` is not known; or it is 'cudnn' and cuDNN does not take such arrays, or
            there is padding or a bias.
    """
    if impl not in IMPLEMENTATIONS:
        raise unknown('attn_impl', impl, IMPLEMENTATIONS)
    if drop is not None and drop.rate and not drop.deterministic:
        weights = attention_weights(query, key, tokens, bias).astype(value.dtype)
        return jnp.einsum('bhqk,bkhd->bqhd', drop(weights, rngs), value)
    if bias is not None:
        if impl == 'cudnn':
            raise ModelError("attn_impl='cudnn' takes no bias of the scores, which this model has: "
                             "use attn_impl='auto'.")
        return xla_attention(query, key, value, target=target, tokens=tokens, bias=bias)
    if 0 < tokens < key.shape[1]:
        if impl == 'cudnn':
            raise ModelError("attn_impl='cudnn' takes no padded tokens: leave out token_multiple, "
                             "which is for TPUs.")
        return xla_attention(query, key, value, target=target, tokens=tokens)
    if impl == 'xla':
        return _by_platform(query, key, value, default=functools.partial(
            xla_attention, target=target))
    refusal = cudnn_refusal(query, target or ANY_GPU)
    if impl == 'cudnn' and refusal:
        raise ModelError(f"attn_impl='cudnn' cannot work here ({refusal}): use attn_impl='auto', "
                         f"which takes cuDNN where it can.")
    by_cudnn = functools.partial(cudnn_attention, target=target or ANY_GPU)
    if impl == 'cudnn':
        return by_cudnn(query, key, value)
    if refusal or query.shape[-1] > _SURE_DIM:
        return _by_platform(query, key, value, default=functools.partial(
            xla_attention, target=target))
    return _by_platform(query, key, value, cuda=by_cudnn, default=xla_attention)


def _by_platform(query, key, value, **forms) -> jax.Array:
    """By the form of the platform that the program is lowered for; a CPU has its own in float32."""
    # Of any size: an evaluation and its export, whose batch has no number yet, give equal bits.
    if query.dtype == jnp.float32:
        forms['cpu'] = plain_attention.attention
    return jax.lax.platform_dependent(query, key, value, **forms)


def attention_weights(query, key, tokens: int = 0, bias: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d) + bias) in float32: two arrays [B, N, H, d] -> [B, H, N, N]. `tokens`
    and `bias` as in `attend`."""
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    if 0 < tokens < key.shape[1]:
        scores = jnp.where(jnp.arange(key.shape[1]) < tokens, scores, -jnp.inf)
    return jax.nn.softmax(scores)


def xla_attention(query, key, value, *, target: Target | None = None, tokens: int = 0,
                  bias: jax.Array | None = None) -> jax.Array:
    """Attention by XLA, [B, N, H, d] -> same; `tokens` and `bias` as in `attend`.

    JAX's form names an algorithm for the product of bfloat16 queries and keys, which the compiler
    refuses for GPUs before Ampere (a T4): they multiply no bfloat16, and without a name XLA
    multiplies in float32.
    """
    if query.dtype == jnp.bfloat16 and target is not None and target.platform == 'cuda' and (
            target.numbers < ANY_GPU.numbers):
        weights = attention_weights(query, key, tokens, bias).astype(value.dtype)
        return jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    mask = None
    if 0 < tokens < key.shape[1]:
        mask = (jnp.arange(key.shape[1]) < tokens)[None, None, None]
    return jax.nn.dot_product_attention(query, key, value, None if bias is None else bias[None],
                                        mask=mask, implementation='xla')


def cudnn_attention(query, key, value, *, target: Target = ANY_GPU, implementation: str = 'cudnn'
                    ) -> jax.Array:
    """Attention by cuDNN, [B, N, H, d] -> same; an odd N is padded by one token and cut again.

    Values and gradients are those of the N tokens. As a key the padding is masked by the length
    of the sequences, which needs no [N, N] mask. As a query it is computed like any other, since
    cuDNN would leave a masked row undefined; its output is cut off, so its gradient is zero.

    `implementation='xla'` computes the same on any platform, for tests.
    """
    attention = functools.partial(flash_attention, target=target, implementation=implementation)
    tokens = query.shape[1]
    if tokens % 2 == 0:
        return attention(query, key, value)
    query, key, value = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (query, key, value))
    return attention(query, key, value, length=tokens)[:, :tokens]


def cudnn_refusal(query: jax.Array, target: Target) -> str:
    """Why cuDNN does not take arrays like `query` [B, N, H, d] on the target, in training and
    inference; '' if it does."""
    refusal = target_refusal(target)
    if refusal:
        return refusal
    _, tokens, heads, dim = query.shape
    return _jax_refusal((1, tokens, heads, dim), query.dtype, target)


def target_refusal(target: Target) -> str:
    """Why a target has no flash attention of cuDNN at all, or ''."""
    if target.platform != 'cuda':
        return f'it needs an NVIDIA GPU, and the program is for {target.platform}'
    if target.numbers < ANY_GPU.numbers:  # JAX finds out when it compiles
        return (f'flash attention needs a GPU of compute capability {ANY_GPU.capability} or more, '
                f'and the program is for one of {target.capability}')
    return ''


@functools.lru_cache(maxsize=64)
def _jax_refusal(shape: tuple[int, ...], dtype, target: Target) -> str:
    """The error of JAX when it traces the gradient, or ''.

    The limits depend on the versions of JAX and cuDNN and on the GPU, so we ask JAX instead of
    repeating them. Nothing is computed.
    """
    def loss(*arrays):
        return cudnn_attention(*arrays, target=target).sum()

    try:
        jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), *[jax.ShapeDtypeStruct(shape, dtype)] * 3)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return ' '.join(str(error).split()).rstrip('.')
    return ''


class Attention(nnx.Module):
    """Self-attention over tokens, [B, N, dim] -> same, with one projection for q, k and v."""

    target: Target | None = None  # see `target.aim`
    tokens = 0  # without the padding, see `attend`

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, attn_drop: float = 0.0,
                 proj_drop: float = 0.0, impl: str = 'auto', weight_init: str = '', dtype=None,
                 rngs: nnx.Rngs):
        if dim % num_heads:
            raise ModelError(f'embed_dim={dim} cannot be split over num_heads={num_heads}: '
                             f'choose a number of heads that divides it.')
        if impl not in IMPLEMENTATIONS:
            raise unknown('attn_impl', impl, IMPLEMENTATIONS)
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
        # Not by slices, whose gradient is a sum of three padded arrays.
        return tuple(part.reshape(batch, tokens, self.num_heads, dim // self.num_heads)
                     for part in jnp.split(self.qkv(x, rngs), 3, axis=-1))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = attend(*self.project(x, rngs), impl=self.impl, target=self.target,
                   drop=self.attn_drop, rngs=rngs, tokens=self.tokens)
        return self.proj_drop(self.proj(y.reshape(x.shape), rngs), rngs)
