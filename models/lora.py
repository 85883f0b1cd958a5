"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) on chosen layers of any model.

An adapted layer adds (alpha / rank) x A B to its output; A has few columns and B has few rows. B
starts at zero, so nothing changes until it is trained. The layer keeps its name and its kernel,
bit for bit: published weights can be loaded before or after, and a checkpoint of the adapters
alone is small.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.convolutions import Conv
from models.errors import ModelError
from models.layers import Dropout, Linear, normal


class LoRALinear(Linear):
    """A linear layer with an adapter: `lora_a` [a, rank] and `lora_b` [rank, b], float32."""

    lora_a: nnx.LoRAParam
    lora_b: nnx.LoRAParam
    lora_scale: float
    lora_drop: Dropout

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = super().__call__(x)
        flat = self.lora_drop(x, rngs).astype(y.dtype).reshape(-1, x.shape[-1])
        low = flat @ self.lora_a[...].astype(y.dtype)
        return y + (low @ (self.lora_b[...] * self.lora_scale).astype(y.dtype)).reshape(y.shape)


class LoRAConv(Conv):
    """A 1x1 convolution or one on patches that do not overlap, with an adapter: `lora_a`
    [h, w, a, rank] and `lora_b` [rank, b], float32."""

    lora_a: nnx.LoRAParam
    lora_b: nnx.LoRAParam
    lora_scale: float
    lora_drop: Dropout

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = super().__call__(x)
        low = jax.lax.conv_general_dilated(
            self.lora_drop(x, rngs).astype(y.dtype), self.lora_a[...].astype(y.dtype),
            _strides(self), self._padding(x), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        return y + low @ (self.lora_b[...] * self.lora_scale).astype(y.dtype)


_ADAPTED: dict[type, type] = {Linear: LoRALinear, Conv: LoRAConv}
_PLAIN = {adapted: plain for plain, adapted in _ADAPTED.items()}
_STAGE = re.compile(r'^stages/\d+/(?=blocks/)')


def _strides(layer: nnx.Conv) -> tuple[int, ...]:
    strides = layer.strides or 1
    return (strides,) * 2 if isinstance(strides, int) else tuple(strides)


def adaptable(model: nnx.Module) -> dict[str, Linear | Conv]:
    """Layers that can get an adapter, by path ('blocks/0/attn/qkv'): linear layers, and
    convolutions that read each pixel at most once (1x1, or a kernel as large as its stride)."""
    layers: dict[str, Linear | Conv] = {}
    for path, layer in nnx.iter_modules(model):
        if type(layer) is Conv:
            once = layer.kernel_size in ((1, 1), _strides(layer))
            if not once or layer.feature_group_count != 1:
                continue
        elif type(layer) is not Linear:
            continue
        layers['/'.join(map(str, path))] = layer
    return layers


def add_lora(model: nnx.Module, layers: str, *, rank: int = 8, alpha: float = 16.0,
             dropout: float = 0.0, rngs: nnx.Rngs) -> list[str]:
    """Adds an adapter to every adaptable layer whose path matches, in place.

    Args:
        model: from `create_model`; blocks stacked under a scan get one adapter per block.
        layers: a regular expression that matches the whole path of a layer, such as
            r'blocks/.*/attn/(qkv|proj)'; where blocks lie in stages ('stages/2/blocks/0/mlp/fc1')
            also the path without its stage.
        rank: columns of A.
        alpha: the output of the adapter is multiplied by alpha / rank.
        dropout: on the adapter's input.
        rngs: for A, which starts normal with a standard deviation of 1 / sqrt(fan_in).

    Returns:
        The paths of the adapted layers.

    Raises:
        ModelError: the rank is below 1, the expression is invalid, or no layer matches; then the
            message names some layers of the model.
    """
    if rank < 1:
        raise ModelError(f'rank={rank!r} of LoRA must be at least 1.')
    Dropout(dropout, what='dropout of LoRA')  # refuses a wrong rate before anything changes
    try:
        pattern = re.compile(layers)
    except re.error as error:
        raise ModelError(f'layers={layers!r} of LoRA is not a valid regular expression ({error}): '
                         f'write one that matches the paths of layers.') from None
    there = adaptable(model)
    chosen = [path for path in there
              if pattern.fullmatch(path) or pattern.fullmatch(_STAGE.sub('', path))]
    if not chosen:
        examples = ', '.join([*list(there)[:6], *['...'] * (len(there) > 6)]) or 'none'
        raise ModelError(f'layers={layers!r} of LoRA matches no layer that can be adapted: the '
                         f'model has {len(there)} such layers ({examples}).')
    for path in chosen:
        layer: Any = there[path]  # its class changes below
        *lead, fan_out = layer.kernel.shape
        stacked = lead[:-1] if isinstance(layer, Linear) else []
        fan_in = int(np.prod(lead[len(stacked):]))
        # Only the class of the object changes, so other references to it see the adapter too.
        layer.__class__ = _ADAPTED[type(layer)]
        layer.lora_a = nnx.LoRAParam(normal(fan_in ** -0.5)(rngs.params(), (*lead, rank)))
        layer.lora_b = nnx.LoRAParam(jnp.zeros((*stacked, rank, fan_out)))
        layer.lora_scale = alpha / rank
        layer.lora_drop = Dropout(dropout)
    return chosen


def _adapted(model: nnx.Module) -> dict[str, Any]:
    return {'/'.join(map(str, path)): layer for path, layer in nnx.iter_modules(model)
            if type(layer) in _PLAIN}


def merge_lora(model: nnx.Module) -> dict[str, dict[str, Any]]:
    """Adds every adapter to its kernel and removes it: the same function at the old cost.

    Returns:
        What `unmerge_lora` needs: the kernels from before, and the adapters.
    """
    undo = {}
    for path, layer in _adapted(model).items():
        kernel, a, b = layer.kernel[...], layer.lora_a[...], layer.lora_b[...]
        undo[path] = dict(kernel=kernel, lora_a=a, lora_b=b, lora_scale=layer.lora_scale,
                          lora_drop=layer.lora_drop)
        with jax.default_matmul_precision('highest'):
            layer.kernel.set_value(kernel + layer.lora_scale * (a @ b))
        layer.__class__ = _PLAIN[type(layer)]
        for name in ('lora_a', 'lora_b', 'lora_scale', 'lora_drop'):
            delattr(layer, name)
    return undo


def merge_arrays(weights: Mapping[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """`merge_lora` for weights by path: each kernel plus (alpha / rank) x A B, without A and B.

    Args:
        weights: 'x/lora_a', 'x/lora_b' and 'x/kernel' of every adapted layer x, and others.
        alpha: that they were trained with.
    """
    merged = {name: value for name, value in weights.items()
              if not name.endswith(('/lora_a', '/lora_b'))}
    for name, a in weights.items():
        if name.endswith('/lora_a'):
            layer = name.removesuffix('/lora_a')
            kernel, b = weights[f'{layer}/kernel'], weights[f'{layer}/lora_b']
            low_rank = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
            merged[f'{layer}/kernel'] = (kernel + alpha / a.shape[-1] * low_rank).astype(
                kernel.dtype)
    return merged


def unmerge_lora(model: nnx.Module, undo: Mapping[str, Mapping]) -> None:
    """Undoes `merge_lora`: kernels and adapters are those from before, bit for bit."""
    layers = adaptable(model)
    for path, parts in undo.items():
        layer: Any = layers[path]  # its class changes below
        layer.kernel.set_value(parts['kernel'])
        layer.__class__ = _ADAPTED[type(layer)]
        layer.lora_a, layer.lora_b = (nnx.LoRAParam(parts[key]) for key in ('lora_a', 'lora_b'))
        layer.lora_scale, layer.lora_drop = parts['lora_scale'], parts['lora_drop']


def lora_weights(model: nnx.Module) -> dict[str, np.ndarray]:
    """The adapters alone, by path ('blocks/0/attn/qkv/lora_a'), float32."""
    return {f'{path}/{name}': np.asarray(getattr(layer, name)[...])
            for path, layer in _adapted(model).items() for name in ('lora_a', 'lora_b')}


def load_lora(model: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Fills the adapters of a model from `lora_weights` of another one.

    Raises:
        ModelError: paths are missing, unexpected or of another shape; the message lists all.
    """
    there = {f'{path}/{name}': getattr(layer, name)
             for path, layer in _adapted(model).items() for name in ('lora_a', 'lora_b')}
    problems = [f'{key} is missing' for key in there if key not in weights]
    problems += [f'{key} is unexpected' for key in weights if key not in there]
    problems += [f'{key} is {list(np.shape(weights[key]))} and should be {list(there[key].shape)}'
                 for key in there
                 if key in weights and np.shape(weights[key]) != there[key].shape]
    if problems:
        raise ModelError(f'The adapters do not fit this model: {"; ".join(problems[:20])} '
                         f'({len(problems)} in total); use the same model, layers and rank.')
    for key, variable in there.items():
        variable.set_value(jnp.asarray(weights[key], variable.dtype))
