"""A soup on disk: weights read from trained runs, and a run written around averaged weights.

    <folder>/   config.json, split.csv, checkpoints/0

The folder is a run like any other to the verb predict, to config.init.from and to further votes.
Every row that one of its members trained on is a training row of the soup.
"""

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from input_pipeline.atomic_files import write_json
from models.lora import merge_arrays
from train_lib.predictions.run_folders import config_json
from train_lib.predictions.store import Member
from train_lib.run_dir import ancestors, checkpoints, starting_weights
from train_lib.run_dir.checkpoints import PARAMS
from train_lib.run_dir.frozen_weights import read_frozen, write_frozen
from train_lib.run_dir.run_config import config_of_run
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path, path_name
from train_lib.training import init
from train_lib.training.preprocess_spec import input_size
from train_lib.training.state import HostState


def start_of(member: Member) -> str:
    """The weights that the run was fine-tuned from, with its model; also the size of its pictures
    if they are not square, as position embeddings of 2 x 8 and 4 x 4 patches have one shape.

    Raises:
        ConfigError: it started from random weights.
    """
    config = config_of_run(member.workdir)
    origin = ancestors.source_of(config) or config.init.pretrained  # of a k-fold run, one fold
    if not origin:
        raise ConfigError(f'A soup needs members that were fine-tuned from the same weights, and '
                          f'{member.name} started from random ones: give config.init.from or '
                          f'config.init.pretrained in training, or leave it out.')
    size = input_size(config)
    at = '' if isinstance(size, int) else f' at {size[0]} x {size[1]} pixels'
    return f'{origin} with {json.dumps(config.model.to_dict(), sort_keys=True, default=str)}{at}'


def weights_of(member: Member) -> dict[str, np.ndarray]:
    """All weights of the best checkpoint: 'params/<path>', whether they train or not, and
    'rest/<path>' of the statistics.

    Adapters are merged into their kernels: the mean of products is not the product of the means.

    Raises:
        ConfigError: there is no checkpoint. CheckpointError: it is damaged.
    """
    best = _best_checkpoint(member)
    flat = {name: np.asarray(value)
            for name, value in by_path(checkpoints.read_weights(best)).items()}
    flat |= {f'{PARAMS}/{name}': value for name, value in read_frozen(best.parent).items()}
    return merge_arrays(flat, config_of_run(member.workdir).finetune.lora.alpha)


def write_run(folder: Path, soup: Mapping[str, np.ndarray], members: Sequence[Member]) -> None:
    """Writes a run with these weights, which replaces an older one.

    Args:
        folder: its workdir.
        soup: weights by path, as in `weights_of`.
        members: whose average they are; the config is that of the first, without its adapters.
    """
    shutil.rmtree(folder, ignore_errors=True)
    steps = folder / 'checkpoints'
    steps.mkdir(parents=True)
    first = members[0]
    # The soup has its own split, so the digests in the config.json of a member do not apply.
    config = config_json(first.workdir)
    config = {key: value for key, value in config.items() if key not in ('sha256', 'split_digest')}
    config['pretrained'] = starting_weights.of_several([member.workdir for member in members])
    best = _best_checkpoint(first)
    like, frozen = checkpoints.read_weights(best), list(read_frozen(best.parent))
    if any(name.endswith('/lora_a') for name in by_path(like)):
        # The adapters are in the kernels now. Whoever opens the run makes a model without any, all
        # of whose weights train.
        finetune = config['finetune']
        config['finetune'] = finetune | dict(table=[], lora=finetune['lora'] | dict(rank=0))
        like[PARAMS] = _without_adapters(like[PARAMS], frozen)
        frozen = []
    write_json(folder / 'config.json', config)
    _write_split(members, folder / 'split.csv')
    ancestors.save(folder, ancestors.of_several([member.workdir for member in members],
                                                init.digest_of_best))
    tree = jax.tree_util.tree_map_with_path(lambda path, _: soup[path_name(path)], like)
    if frozen:
        write_frozen(steps.absolute(), {name: jax.numpy.asarray(soup[f'{PARAMS}/{name}'])
                                        for name in frozen})
    writing = steps.absolute() / 'writing-0'
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(writing, args=ocp.args.Composite(
            state=ocp.args.StandardSave(tree), host=ocp.args.JsonSave(HostState().to_json())))
    checkpoints.write_digests(writing)
    os.rename(writing, steps / '0')


def _without_adapters(params: Mapping, frozen: Sequence[str]) -> dict[str, Any]:
    """A nested dict of weights without those of adapters, and with the frozen ones, by path."""
    whole = {key: _without_adapters(value, ()) if isinstance(value, Mapping) else value
             for key, value in params.items() if key not in ('lora_a', 'lora_b')}
    for name in frozen:
        *parents, last = name.split('/')
        node = whole
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = 0
    return whole


def _best_checkpoint(member: Member) -> Path:
    best = init.best_checkpoint(member.workdir)
    if best is None:
        raise ConfigError(f'The member {member.name} has no checkpoint: a soup needs weights.')
    return best


def _write_split(members: Sequence[Member], path: Path) -> None:
    """The split.csv of the first member, in which the training rows of any member are training
    rows."""
    trained = {name for member in members for name, role in member.roles.items()
               if role == 'train'}
    with open(members[0].workdir / 'split.csv', encoding='utf-8', newline='') as file:
        header, *rows = csv.reader(file)
    side, name = header.index('split'), header.index('id')
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator='\n')
        writer.writerow(header)
        writer.writerows([*row[:side], 'train' if row[name] in trained else row[side],
                          *row[side + 1:]] for row in rows)
