"""cuDNN's flash attention, traced for a GPU that need not be here.

JAX checks what cuDNN takes while it traces, and asks this process for the version of cuDNN and for
the compute capability of its GPU: on a laptop, for a GPU elsewhere, it gets no answer or a wrong
one. Here the target answers. JAX has no argument for it, so three of its functions are replaced;
outside of `flash_attention` they do what they did.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from models.target import Target

try:
    from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn
except ImportError:  # a later JAX has moved it: then it answers itself, and the tests say so
    jax_cudnn = None  # type: ignore[assignment]

ANY_GPU = Target('cuda', '8.0')  # what cuDNN takes there, it takes on all GPUs since Ampere
# For a program that is lowered where no plugin for CUDA is installed: 9.12, the oldest that the
# plugin of JAX 0.10 accepts. It decides what may be asked for, and is not in the program.
ASSUMED_VERSION = 91200

_TARGET: contextvars.ContextVar[Target | None] = contextvars.ContextVar('target', default=None)


def flash_attention(query, key, value, *, target: Target, length: int | None = None,
                    implementation: str = 'cudnn') -> jax.Array:
    """Attention by cuDNN: [B, N, H, d] -> same, in half precision.

    Args:
        query, key, value: of one shape.
        target: the NVIDIA GPU that the program is for.
        length: the number of tokens, from the first on, that are attended to; None: all.
        implementation: as of `jax.nn.dot_product_attention`; another than 'cudnn' for tests.

    Raises:
        NotImplementedError, RuntimeError, ValueError: cuDNN does not take such arrays there, in
            this function or in its gradient; of JAX.
    """
    return _attend(query, key, value, target, length, implementation)


def _plain(target, length, implementation, query, key, value):
    # Where the batch is split over devices, each may still get all lengths: they are equal, so it
    # does not matter which of them cuDNN reads.
    lengths = None if length is None else jnp.full(len(query), length, jnp.int32)
    with _answers_of(target):
        return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths,
                                            implementation=implementation)


# JAX has a rule of its own, but asks in it too, and traces it after this function has returned if
# it stands in a scan.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(query, key, value, target, length, implementation):
    return _plain(target, length, implementation, query, key, value)


def _forward(query, key, value, target, length, implementation):
    with _answers_of(target):
        return jax.vjp(functools.partial(_plain, target, length, implementation),
                       query, key, value)


def _backward(target, length, implementation, pull, gradient):
    with _answers_of(target):
        return pull(gradient)


_attend.defvjp(_forward, _backward)


@contextlib.contextmanager
def _answers_of(target: Target) -> Iterator[None]:
    before = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(before)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split('.')))


# What JAX asks: the answer for a target, where `own` is that of this process.
_QUESTIONS: dict[str, Callable] = {
    'check_cudnn_version': lambda own, target: own() if _has_plugin() else ASSUMED_VERSION,
    'check_compute_capability': lambda own, target, least: target.numbers >= _numbers(least),
    'is_cuda_compute_capability_equal': lambda own, target, one: target.numbers == _numbers(one),
}


def _has_plugin() -> bool:
    return jax_cudnn.cuda_versions is not None


def _ask_target(question: str) -> None:
    own, answer = getattr(jax_cudnn, question), _QUESTIONS[question]

    @functools.wraps(own)
    def ask(*args):
        target = _TARGET.get()
        return own(*args) if target is None else answer(own, target, *args)

    setattr(jax_cudnn, question, ask)


for _question in _QUESTIONS:
    if hasattr(jax_cudnn, _question):  # likewise
        _ask_target(_question)
