"""Weights that do not train: written at the first save, shared by all checkpoints of a run.

    checkpoints/frozen/weights.safetensors      by path, such as 'blocks/0/attn/qkv/kernel'
    checkpoints/frozen/digests.json             see digests.py
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from train_lib.run_dir.digests import FROZEN, damage, write_digests
from train_lib.runtime import distributed
from train_lib.runtime.errors import CheckpointError
from train_lib.runtime.sharding import gather, place
from train_lib.runtime.trees import by_path, path_name

Tree = Any  # a nested dict of arrays


def write_frozen(folder: Path, frozen: Tree) -> None:
    """Writes the weights that do not train.

    Args:
        folder: `checkpoints` of a workdir, which has none yet.
        frozen: arrays, perhaps spread over the devices of several processes.
    """
    weights = {}
    for name, leaf in by_path(frozen).items():
        value = gather(leaf)
        if distributed.is_first():
            weights[name] = value
    if not distributed.is_first():
        return
    writing = folder / f'writing-{FROZEN}'
    writing.mkdir(parents=True)
    save_file(weights, writing / 'weights.safetensors')
    write_digests(writing)
    os.rename(writing, folder / FROZEN)


def read_frozen(folder: Path) -> dict[str, np.ndarray]:
    """The weights of `write_frozen` by path; {} if every weight trained.

    Raises:
        CheckpointError: they are damaged.
    """
    if not (folder / FROZEN).exists():
        return {}
    reason = damage(folder / FROZEN)
    if reason:
        raise CheckpointError(f'{folder / FROZEN} is damaged ({reason}), and every checkpoint '
                              f'there needs it: restore it from a backup, or start in a new '
                              f'workdir.')
    return load_file(folder / FROZEN / 'weights.safetensors')


def place_frozen(folder: Path, like: Tree) -> Tree:
    """The weights of `write_frozen` as a tree with the shapes and shardings of `like`; {} for {}.

    Raises:
        CheckpointError: they are damaged or missing, or have other names or shapes than `like`.
    """
    stored = read_frozen(folder) if like else {}
    if {name: leaf.shape for name, leaf in by_path(like).items()} != {
            name: leaf.shape for name, leaf in stored.items()}:
        raise CheckpointError(f'{folder / FROZEN} does not hold the frozen weights of this model: '
                              f'restore it, or start in a new workdir.')
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: place(stored[path_name(path)], leaf.sharding), like)
