"""The best weights of another workdir in a new model: config.init.from.

Weights are taken over with what belongs to them, and the log says what became of each part:

    adapters    stay adapters if this run has adapters on the same layers with the same rank and
                alpha; otherwise they are added to the kernels that they belong to
    heads       class by class, by the names of the classes; see head_classes.py
    positions   learned tables of positions are resampled if the grid of patches is another one
    stem        is adapted to another number of input channels

How pictures are prepared is taken over as well; see preprocess_spec.py.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import models
from models.lora import merge_arrays
from models.pretrained import adapt_channels, resample_positions
from models.relative_positions import resize_table
from train_lib.predictions.store import open_member
from train_lib.run_dir import checkpoints, workdirs
from train_lib.run_dir.checkpoints import BATCH_STATS, PARAMS
from train_lib.run_dir.frozen_weights import read_frozen
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import place
from train_lib.runtime.trees import by_path, path_name
from train_lib.training.head_classes import Classes, is_head, map_heads
from train_lib.training.network import model_settings_of
from train_lib.training.state import Weights

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]  # by path, such as 'blocks/0/attn/qkv/kernel'
_ADAPTERS = ('/lora_a', '/lora_b')


@dataclasses.dataclass(frozen=True)
class Target:
    """What the weights of another run go into.

    Attributes:
        config: of this run.
        classes: {head: class names}; {} for a model without a head.
        head: config.init.head.
    """

    config: ConfigDict
    classes: Classes
    head: str


def read_weights(checkpoint: Path) -> Arrays:
    """Every weight of a checkpoint, trained there or not.

    Raises:
        CheckpointError: it is damaged.
    """
    stored = checkpoints.read_weights(checkpoint)
    return {**read_frozen(checkpoint.parent), **by_path(stored.get(PARAMS, {})),
            **by_path(stored.get(BATCH_STATS, {}))}


def adopt(ours: Weights, target: Target, checkpoint: Path) -> Weights:
    """The weights of a checkpoint of another run, laid out like `ours`.

    What trained there may be frozen here, and the other way round. Parts that the other run does
    not have stay as they are in `ours`: new adapters, new classes, and with init.head='reset' all
    heads.

    Raises:
        ConfigError: they don't fit. CheckpointError: the checkpoint is damaged.
    """
    workdir = checkpoint.parent.parent
    theirs = workdirs.saved_config(workdir)
    here = {path_name(path[1:]): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(ours)[0]}
    stored = _settle_adapters(read_weights(checkpoint), here, target.config, theirs)
    if target.head == 'reset' or not target.classes:
        stored = {name: value for name, value in stored.items() if not is_head(name)}
    else:
        stored = map_heads(stored, {name: leaf for name, leaf in here.items() if is_head(name)},
                           target.classes, _classes_of(workdir), by_name=target.head == 'auto')
    stored = _resample(stored, here, target.config, theirs)
    return _fill(ours, stored, checkpoint, keep_heads=target.head == 'keep')


def _fill(ours: Weights, stored: Arrays, source: Path, *, keep_heads: bool) -> Weights:
    """The stored weights in the layout of `ours`; heads and adapters that do not fit, or are not
    stored, stay as they are."""
    theirs, problems, new = dict(stored), [], []

    def fill(path, leaf):
        name = path_name(path[1:])
        value = theirs.pop(name, None)
        if value is not None and value.shape == leaf.shape:
            return place(np.asarray(value, leaf.dtype), leaf.sharding)
        if _is_new(name) and not (keep_heads and value is not None):
            new.append(name)
        else:
            problems.append(f'{name} is missing' if value is None else
                            f'{name} is {value.shape} there and {leaf.shape} here')
        return leaf

    filled = jax.tree_util.tree_map_with_path(fill, ours)
    problems += [f'{name} is unknown here' for name in theirs if not _is_new(name)]
    if problems:
        raise ConfigError(f'The weights of {source} do not fit this model: '
                          f'{"; ".join(problems[:20])} ({len(problems)} in total); choose the same '
                          f'config.model.')
    if new:
        log.info('init     %s start%s anew', ', '.join(new) if len(new) < 3 else
                 f'{new[0]} and {len(new) - 1} more', 's' * (len(new) == 1))
    return filled


def _is_new(name: str) -> bool:
    return is_head(name) or name.endswith(_ADAPTERS)


def _settle_adapters(stored: Arrays, here: Mapping[str, jax.Array], config: ConfigDict,
                     theirs: ConfigDict) -> Arrays:
    """The stored weights, whose adapters are merged unless this run has the same ones."""
    shapes = [{name: leaf.shape for name, leaf in one.items() if name.endswith(_ADAPTERS)}
              for one in (stored, here)]
    if not shapes[0]:
        return stored
    alpha, layers = theirs.finetune.lora.alpha, len(shapes[0]) // 2
    if shapes[0] == shapes[1] and alpha == config.finetune.lora.alpha:
        log.info('init     the adapters of %d layers go on as adapters', layers)
        return stored
    log.info('init     the adapters of %d layers are merged into their kernels', layers)
    return merge_arrays(stored, alpha)


def _classes_of(workdir: Path) -> Classes | None:
    """{head: class names} of a run; None if an older, unfinished one does not say."""
    known = workdirs.start_facts(workdir).get('classes')
    if known is None:
        paths = [workdir / 'predictions' / f'{split}.npz' for split in ('val', 'test', 'train')]
        known = next((open_member(path).classes for path in paths if path.exists()), None)
    return None if known is None else {head: tuple(names) for head, names in known.items()}


def _resample(stored: Arrays, here: Mapping[str, jax.Array], config: ConfigDict,
              theirs: ConfigDict) -> Arrays:
    """The stored weights, with positions and stem as the shapes of this model need them."""
    if (config.model.to_dict(), config.image.size) == (theirs.model.to_dict(), theirs.image.size):
        return stored
    new, old = _without_arrays(config), _without_arrays(theirs)
    found = dict(stored)
    name = 'pos_embed'
    if name in here and name in stored and new.grid != old.grid:
        prefix = stored[name].shape[1] - old.grid[0] * old.grid[1]
        if here[name].shape[1] == prefix + new.grid[0] * new.grid[1]:
            found[name] = resample_positions(stored[name], prefix, new.grid, old.grid)
            log.info('init     positions resampled from %d x %d to %d x %d patches', *old.grid,
                     *new.grid)
    tables = [name for name in stored if name.endswith('relative_position_bias_table')
              and name in here and new.grid != old.grid]
    for name in tables:
        found[name] = resize_table(stored[name], new.grid, old.grid)
    if tables:
        log.info('init     relative positions resampled from %d x %d to %d x %d patches',
                 *old.grid, *new.grid)
    name = f'{new.timm_stem.replace(".", "/")}/kernel'
    if name in stored and new.in_channels != old.in_channels and old.in_channels in (1, 3):
        found[name] = _adapt_stem(stored[name], old.in_channels, new.in_channels)
        log.info('init     %s adapted from %d to %d channels', name, old.in_channels,
                 new.in_channels)
    return found


def _adapt_stem(kernel: np.ndarray, before: int, after: int) -> np.ndarray:
    """[h, w, n x before, out] -> [h, w, n x after, out]; a model that reads n pixels at once, as
    small_cnn does, has n > 1."""
    pixels = kernel.reshape(*kernel.shape[:2], -1, before, kernel.shape[3])
    parts = [adapt_channels(pixels[:, :, i].transpose(3, 2, 0, 1), after).transpose(2, 3, 1, 0)
             for i in range(pixels.shape[2])]  # each [h, w, after, out]
    return np.concatenate(parts, axis=2)


def _without_arrays(config: ConfigDict) -> Any:
    """The model of a config without a head, and without arrays."""
    settings = {key: value for key, value in model_settings_of(config).items()
                if not key.startswith('head')}
    return nnx.eval_shape(lambda: models.create_model(config.model.name, num_classes=0,
                                                      rngs=nnx.Rngs(0), **settings))
