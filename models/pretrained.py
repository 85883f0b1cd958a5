"""Weights from timm: the keys and layouts of its state_dict, and resampling where sizes differ.

All families name their modules as timm does, so one rule serves all: timm's `weight` is `kernel`
(linear, convolution) or `scale` (norms) here, `running_mean` and `running_var` are `mean` and
`var`, and torch's [out, in, h, w] is [h, w, in, out].
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.errors import ModelError, unknown
from models.heads import Classifier
from models.lora import merge_lora, unmerge_lora
from models.relative_positions import CLASS_TOKEN, resize_table, table_entries
from models.weight_files import open_weights

HEAD_MODES = ('keep', 'reset', 'resize')
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
_IGNORED = re.compile(r'(^|\.)(num_batches_tracked|relative_position_index)$')


@dataclasses.dataclass(frozen=True)
class Target:
    """A variable of a model and the keys of timm that fill it: one, or one per stacked block."""

    variable: nnx.Variable
    keys: tuple[str, ...]
    stacked: bool


def load_timm(model: Classifier, source: Mapping[str, np.ndarray] | str | Path, *,
              head: str = 'keep', grid: tuple[int, int] | None = None) -> list[str]:
    """Fills a model in place with weights under timm's names.

    Position embeddings and tables of relative positions are resampled to the model's grid, also to
    one of another shape and as many positions, and a stem for 3 channels is adapted to another
    number of channels, all as timm does. Adapters (LoRA) keep their values.

    Args:
        model: from `create_model`.
        source: a dict of arrays with the keys of timm's state_dict; the path of a .safetensors
            file, or (if torch is installed) of a .pth file, read without unpickling; or a
            Hugging Face repository such as 'timm/resnet18.a1_in1k'.
        head: 'keep' loads the classifier too (a model without a head ignores it); 'reset' leaves
            the model's heads as they are; 'resize' loads the first rows if the number of classes
            differs.
        grid: (rows, columns) of patches of the model that the weights are from, which they do not
            tell; None for a square, as those of timm's published weights.

    Returns:
        What was adapted, one line each, for the log.

    Raises:
        ModelError: the source cannot be read; or keys are missing, unexpected or of another
            shape, which one message lists.
    """
    if head not in HEAD_MODES:
        raise unknown('head', head, HEAD_MODES)
    if isinstance(source, Mapping):
        shapes, read, name = {key: np.shape(value) for key, value in source.items()}, \
            source.__getitem__, 'the given dict'
    else:
        shapes, read, name = open_weights(source)
    found = {_rename(key, model.timm_renames): key for key in shapes if not _IGNORED.search(key)}
    of_head = {key for key in found if key.split('.')[0] == model.timm_head}
    targets = [target for target in timm_targets(model)
               if head != 'reset' or target.keys[0].split('.')[0] not in (model.timm_head, 'heads')]

    missing: list[str] = []
    misshaped: list[str] = []
    notes: list[str] = []
    adapters: dict[str, Any] = {}  # None where nothing fits, which `misshaped` has then
    for target in targets:
        shape = to_torch(target.variable.shape[int(target.stacked):])
        for key in target.keys:
            if key not in found:
                missing.append(f'{key} is missing')
                continue
            adapters[key], note = _adapter(model, key, shape, shapes[found[key]], head, grid)
            if adapters[key] is None:
                misshaped.append(f'{key} is {list(shapes[found[key]])} and should be '
                                 f'{list(shape)}{note}')
            elif note and note not in notes:  # that of all blocks once
                notes.append(note)
    wanted = {key for target in targets for key in target.keys}
    headless = not hasattr(model, 'head') and not hasattr(model, 'heads')
    ignored = of_head if head == 'reset' or headless else set()
    unexpected = [f'{key} is unexpected' for key in sorted(set(found) - wanted - ignored)]
    if missing or misshaped or unexpected:
        raise ModelError(_all_problems(name, model, (missing, misshaped, unexpected)))
    for target in targets:
        _assign(target, (adapters[key](np.asarray(read(found[key]))) for key in target.keys))
    return notes


def to_timm(model: Classifier) -> dict[str, np.ndarray]:
    """The model's weights as float32 arrays under timm's names and in torch's layout. Adapters
    (LoRA) are merged into the kernels; the model stays as it is."""
    weights = {}
    undo = merge_lora(model)
    try:
        for target in timm_targets(model):
            value = np.asarray(target.variable[...])
            for key, part in zip(target.keys, value if target.stacked else [value]):
                weights[key] = np.ascontiguousarray(_to_torch_layout(part))
    finally:
        unmerge_lora(model, undo)
    return weights


def timm_targets(model: Classifier) -> list[Target]:
    """All variables that timm has too, with their keys; adapters are not among them."""
    targets = []
    depth = len(model.rates) if getattr(model, 'scan', False) else 0
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        if isinstance(variable, nnx.LoRAParam):
            continue
        parts = [str(part) for part in path]
        parts[-1] = _LEAVES.get(parts[-1], parts[-1])
        if parts[0] == 'head':
            parts[0] = model.timm_head
        stacked = bool(depth) and parts[0] == 'blocks'
        keys = tuple('.'.join(['blocks', str(i), *parts[1:]]) for i in range(depth)) if stacked \
            else ('.'.join(parts),)
        targets.append(Target(variable, keys, stacked))
    return targets


def resample_positions(table: np.ndarray, prefix: int, grid: tuple[int, int],
                       source: tuple[int, int] | None = None) -> np.ndarray:
    """Position embeddings [1, prefix + h * w, D] for another grid: [1, prefix + h' * w', D].

    The first `prefix` tokens stay. The grid of the others is resized by antialiased bicubic
    interpolation, as by timm's `resample_abs_pos_embed`.

    Args:
        table: the embeddings, rows of patches one after another.
        prefix: tokens before those of the patches.
        grid: (h', w'), rows and columns of patches.
        source: (h, w) of the table; None for a square.
    """
    rows, columns = source or (math.isqrt(table.shape[1] - prefix),) * 2
    if (rows, columns) == tuple(grid):
        return table
    patches = jnp.asarray(table[:, prefix:], jnp.float32).reshape(rows, columns, -1)
    resized = jax.image.resize(patches, (*grid, patches.shape[-1]), 'cubic', antialias=True)
    return np.concatenate([table[:, :prefix], np.asarray(resized).reshape(1, -1, table.shape[2])],
                          axis=1)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first kernel [out, n, h, w] for another number of input channels, as in timm, where n
    is 3.

    One channel gets the sum over the colours. More channels get the colours in turn, scaled by
    n / channels, so that the output for a grey image stays the same.
    """
    colours = kernel.shape[1]
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / colours), 1, 1))[:, :channels]
    return repeated * np.float32(colours / channels)


def to_torch(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in torch of a parameter that has this shape here."""
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    return shape[::-1] if len(shape) == 2 else tuple(shape)


def _to_torch_layout(value: np.ndarray) -> np.ndarray:
    return value.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, range(value.ndim)))


def _from_torch_layout(value: np.ndarray) -> np.ndarray:
    return value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, range(value.ndim)))


def _rename(key: str, renames) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _adapter(model: Classifier, key: str, ours: tuple[int, ...], theirs: tuple[int, ...],
             head: str, grid: tuple[int, int] | None) -> tuple[Callable | None, str]:
    """(function that adapts the stored array, or None if it cannot fit; what the function does, or
    in parentheses why nothing fits where the shapes do not tell)"""
    ours, theirs = tuple(ours), tuple(theirs)
    if key == 'pos_embed' and len(theirs) == 3 and theirs[2] == ours[2]:
        # Before the shapes are compared: 2 x 8 and 4 x 4 patches have as many positions.
        return _adapter_of_positions(ours[1] - math.prod(model.grid), theirs[1], model.grid, grid)
    if key.endswith('relative_position_bias_table') and theirs[1:] == ours[1:]:
        return _adapter_of_offsets(theirs[0], model.grid, grid)
    if ours == theirs:
        return lambda value: value, ''
    if key == f'{model.timm_stem}.weight' and len(theirs) == 4 and theirs[1] == 3 \
            and ours[:1] + ours[2:] == theirs[:1] + theirs[2:]:
        return (lambda value: adapt_channels(value, ours[1]),
                f'{key} adapted from 3 to {ours[1]} channels')
    if head == 'resize' and key.split('.')[0] == model.timm_head and ours[1:] == theirs[1:]:
        rows = min(ours[0], theirs[0])
        return lambda value: value[:rows], f'{key}: the first {rows} of {theirs[0]} classes'
    return None, ''


def _adapter_of_positions(prefix: int, tokens: int, grid: tuple[int, int],
                          source: tuple[int, int] | None) -> tuple[Callable | None, str]:
    """As `_adapter`, for position embeddings of so many tokens, of which `prefix` come first."""
    patches = tokens - prefix
    if source is None:
        source = (math.isqrt(max(patches, 0)),) * 2
        if math.prod(source) != patches or not patches:
            return None, (f' (its {patches} patches are not a square: load_timm takes the grid='
                          f'(rows, columns) of that model)')
    if math.prod(source) != patches:
        return None, f' (its {patches} patches are not those of grid={tuple(source)})'
    note = f'pos_embed resampled from {source[0]} x {source[1]} to {grid[0]} x {grid[1]}'
    return (lambda value: resample_positions(value, prefix, grid, source),
            '' if tuple(source) == tuple(grid) else note)


def _adapter_of_offsets(entries: int, grid: tuple[int, int], source: tuple[int, int] | None
                        ) -> tuple[Callable | None, str]:
    """As `_adapter`, for a table [entries, heads] of relative positions."""
    if source is None:
        source = ((math.isqrt(max(entries - CLASS_TOKEN, 0)) + 1) // 2,) * 2
        if table_entries(source) != entries:
            return None, (f' (its {entries} entries are not those of a square of patches: '
                          f'load_timm takes the grid=(rows, columns) of that model)')
    if table_entries(source) != entries:
        return None, f' (its {entries} entries are not those of grid={tuple(source)})'
    note = (f'relative_position_bias_table resampled from {source[0]} x {source[1]} to {grid[0]} x '
            f'{grid[1]}')
    return (lambda value: resize_table(value.T, grid, source).T,
            '' if tuple(source) == tuple(grid) else note)


def _assign(target: Target, values: Iterable[np.ndarray]) -> None:
    """Writes timm's arrays, one or one per stacked block, into their variable."""
    variable, values = target.variable, map(_from_torch_layout, values)
    whole: Any  # of NumPy, or of JAX where it is made for a sharded variable
    if target.stacked:
        whole = np.empty(variable.shape, variable.dtype)
        for i, value in enumerate(values):
            whole[i] = value
    else:
        whole, = values
    old = variable.get_value()  # of an abstract model only a shape
    if whole.shape != variable.shape:  # a resized head: its first classes
        whole = old.at[..., :whole.shape[-1]].set(whole)
    elif isinstance(old, jax.Array) and len(old.sharding.device_set) > 1:
        whole = whole.astype(variable.dtype)  # each device reads its own part
        whole = jax.make_array_from_callback(whole.shape, old.sharding, lambda part: whole[part])
    # A copy: jnp.asarray would share the memory of the caller's arrays, or of a mapped file.
    variable.set_value(jnp.array(whole, variable.dtype))


def _all_problems(name: str, model: Classifier, kinds: Iterable[list[str]]) -> str:
    kinds = list(kinds)
    shown = '; '.join(text for problems in kinds for text in (
        problems[:8] + [f'and {len(problems) - 8} more like this'] * (len(problems) > 8)))
    return (f'The weights of {name} do not fit this {type(model).__name__}: {shown} '
            f'({sum(map(len, kinds))} in total); give the weights of the same model, or '
            f'head="reset" if only the classifier differs.')
