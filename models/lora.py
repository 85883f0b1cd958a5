"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) on chosen layers of any model.

An adapted layer adds (alpha / rank) x A B to its kernel; A has few columns and B has few rows. B
starts at zero, so nothing changes until it is trained. The layer keeps its name and its kernel,
bit for bit: published weights can be loaded before or after, and a checkpoint of the adapters
alone is small. Linear layers and convolutions of any kind can have one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import float32_sums
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
    """A convolution with an adapter: `lora_a` [h, w, a / groups, rank] and `lora_b` [rank, b],
    float32. A B has the shape of the kernel and is added to it: without groups that is a
    convolution to `rank` channels and a 1x1 convolution, as in LoCon (Yeh et al., arXiv
    2309.14859); with groups the kernel of each output channel gets a mixture of `rank` kernels.
    """

    lora_a: nnx.LoRAParam
    lora_b: nnx.LoRAParam
    lora_scale: float
    lora_drop: Dropout

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        dropped = bool(self.lora_drop.rate) and not self.lora_drop.deterministic
        if _cheaper_apart(self):
            y = super().__call__(x)
            low = self.with_kernel(self.lora_drop(x, rngs).astype(y.dtype), self.lora_a[...],
                                   bias=False).reshape(-1, self.lora_a.shape[-1])
            b = self.lora_b[...] * self.lora_scale
            low = float32_sums.product(low, b) if self.float32_sums else low @ b.astype(low.dtype)
            return y + low.reshape(y.shape)
        change = _low_rank(self.lora_a[...], self.lora_b[...], self.lora_scale)
        if not dropped:
            return self.with_kernel(x, self.kernel[...] + change, bias=True)
        return super().__call__(x) + self.with_kernel(self.lora_drop(x, rngs), change, bias=False)


def _cheaper_apart(layer: LoRAConv) -> bool:
    """Whether to convolve with A and B rather than to add A B to the kernel, which needs the
    gradient of a whole kernel. Measured on two cores, gradients of batches of 32, rank 8: 3x3 from
    64 to 64 channels on 16x16 pixels take 40 ms against 92, 1x1 from 32 to 192 on 32x32 take 148
    against 66, and where A and B have a sixth of the kernel's numbers both take about as long."""
    low = layer.lora_a.size + layer.lora_b.size
    return layer.feature_group_count == 1 and layer.kernel.size > 6 * low


def _low_rank(a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """scale x A B, as precise as in `merge_lora`."""
    with jax.default_matmul_precision('highest'):
        return scale * (a @ b)


_ADAPTED: dict[type, type] = {Linear: LoRALinear, Conv: LoRAConv}
_PLAIN = {adapted: plain for plain, adapted in _ADAPTED.items()}
AUTO = 'auto'
_OF_TRANSFORMERS = re.compile(
    r'(.*/)?blocks/.*/(qkv|q_proj|k_proj|v_proj|proj|fc1|fc1_g|fc1_x|fc2)')


def adaptable(model: nnx.Module) -> dict[str, Linear | Conv]:
    """Layers that can get an adapter, by path ('blocks/0/attn/qkv'): linear layers and
    convolutions."""
    return {'/'.join(map(str, path)): layer for path, layer in nnx.iter_modules(model)
            if isinstance(layer, Linear | Conv) and type(layer) in _ADAPTED}


def auto_layers(model: nnx.Module, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that layers='auto' adapts: in a model with attention the linear layers of
    its blocks, in others every layer except those of the stem and the heads."""
    paths = list(paths)
    if any('/attn/' in path for path in paths):
        return [path for path in paths if _OF_TRANSFORMERS.fullmatch(path)]
    stem = getattr(model, 'timm_stem', '').replace('.', '/')
    groups = getattr(model, 'layer_groups', ())
    # A first group without numbers is that of the stem.
    first = re.compile(groups[0] if groups and not re.compile(groups[0]).groups else '(?!)')
    return [path for path in paths if path != stem and not first.match(f'{path}/')
            and path.split('/')[0] not in ('head', 'heads')]


def add_lora(model: nnx.Module, layers: str, *, rank: int = 8, alpha: float = 16.0,
             dropout: float = 0.0, rngs: nnx.Rngs) -> list[str]:
    """Adds an adapter to every adaptable layer whose path matches, in place.

    Args:
        model: from `create_model`; blocks stacked under a scan get one adapter per block.
        layers: a regular expression that matches the whole path of a layer, such as
            r'blocks/.*/attn/(qkv|proj)'; or 'auto', see `auto_layers`.
        rank: columns of A; in a convolution with groups at most the numbers of one kernel, such as
            9 of a depthwise 3x3 convolution, which can then change in any way.
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
    chosen = (auto_layers(model, there) if layers == AUTO else
              [path for path in there if pattern.fullmatch(path)])
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
        grouped = isinstance(layer, Conv) and layer.feature_group_count > 1
        width = min(rank, fan_in) if grouped else rank
        layer.lora_a = nnx.LoRAParam(normal(fan_in ** -0.5)(rngs.params(), (*lead, width)))
        layer.lora_b = nnx.LoRAParam(jnp.zeros((*stacked, width, fan_out)))
        layer.lora_scale = alpha / width
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
        layer.kernel.set_value(kernel + _low_rank(a, b, layer.lora_scale))
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
