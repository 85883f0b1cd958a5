"""config.soup: the weights of the members averaged into a run of its own, predicted and scored.

    <workdir>/soup/   config.json, split.csv, checkpoints/0, predictions/<source>.npz

The folder is a run to the verb predict, to config.init.from and to further votes. Rows that any of
its members trained on are training rows of the soup. BatchNorm statistics are averaged too.
"""

import csv
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from input_pipeline.manifest import SPLITS
from train_lib.commands.command_line import config_of_run
from train_lib.commands.predict_missing import predict_with
from train_lib.ensembles.aligned import Panel
from train_lib.ensembles.soups import check_ingredients, greedy_soup, uniform_soup
from train_lib.metrics.scores import scores
from train_lib.predictions.members import refuse_leakage
from train_lib.predictions.store import IDENTITY, Member, config_of, members_of
from train_lib.run_dir import checkpoints
from train_lib.run_dir.metrics_log import write_json
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import path_name
from train_lib.training import init
from train_lib.training.loop import new_host_state

log = logging.getLogger(__name__)
KINDS = ('uniform', 'greedy')


def make_soup(config: Mapping, panel: Panel, folder: Path) -> dict:
    """Makes the soup in `folder`, and scores it on config.source.

    Returns:
        kind, members (names of those in it), scores, workdir.

    Raises:
        ConfigError: members that started differently, or are other models; an unknown kind; rows
            that a member trained on.
    """
    kind, source = config['soup'], config['source']
    if kind not in KINDS:
        raise ConfigError(f"config.soup = {kind!r}: choose {' or '.join(KINDS)}, or '' for none.")
    if source not in SPLITS or source == 'train' or len(panel.heads) > 1:
        raise ConfigError(f'config.soup = {kind!r} is scored on one head of test or val rows, and '
                          f'config.source is {source!r} of the heads {", ".join(panel.heads)}: '
                          f"set config.soup=''.")
    members = list({member.workdir.resolve(): member for member in panel.members}.values())
    names = [member.name for member in members]
    weights = [_weights(member) for member in members]
    check_ingredients(weights, names, [_start(member) for member in members])
    chosen = list(range(len(members)))
    if kind == 'greedy':
        held = [{name for name, role in member.roles.items() if role == 'val'}
                for member in members]
        if any(one != held[0] for one in held) or not held[0]:
            raise ConfigError("config.soup = 'greedy' needs members with the same validation rows, "
                              'unseen by all: take uniform, or train with one split.')
        alone = [_score(members_of(member.workdir, 'val')[0], panel.heads[0])
                 for member in members]
        trial = folder.with_name(f'trial-{folder.name}')

        def evaluate(soup: dict) -> float:
            _bake(soup, members, trial)
            return _score(_predict(trial, 'val'), panel.heads[0])

        soup, chosen, _ = greedy_soup(weights, [one['accuracy'] for one in alone],
                                      lambda soup: evaluate(soup)['accuracy'])
        shutil.rmtree(trial, ignore_errors=True)
    else:
        soup = uniform_soup(weights)
    _bake(soup, [members[i] for i in chosen], folder)
    found = _score(_predict(folder, source), panel.heads[0])
    log.info('soup     %s of %d members: accuracy %.4f  (%s)', kind, len(chosen),
             found['accuracy'], folder)
    return dict(kind=kind, members=[names[i] for i in chosen], workdir=str(folder), **found)


def _start(member: Member) -> str:
    """What the run started from, with its model.

    Raises:
        ConfigError: random weights.
    """
    config = config_of_run(member.workdir)
    origin = config.init['from'] or config.init.pretrained
    if not origin:
        raise ConfigError(f'A soup needs members that were fine-tuned from the same weights, and '
                          f'{member.name} started from random ones: give config.init.from or '
                          f'config.init.pretrained in training, or leave it out.')
    return f'{origin} with {json.dumps(config.model.to_dict(), sort_keys=True, default=str)}'


def _weights(member: Member) -> dict[str, np.ndarray]:
    """All weights of the best checkpoint: {'params/...', 'rest/...', 'frozen/...': array}."""
    best = init.best_checkpoint(member.workdir)
    if best is None:
        raise ConfigError(f'The member {member.name} has no checkpoint: a soup needs weights.')
    flat = {name: np.asarray(value)
            for name, value in checkpoints.flat(checkpoints.read_weights(best)).items()}
    frozen = checkpoints.read_frozen(best.parent)
    return flat | {f'frozen/{name}': value for name, value in frozen.items()}


def _bake(soup: Mapping[str, np.ndarray], members: Sequence[Member], folder: Path) -> None:
    """Writes a run with these weights; an older one goes."""
    shutil.rmtree(folder, ignore_errors=True)
    steps = folder / 'checkpoints'
    steps.mkdir(parents=True)
    first = members[0].workdir
    # Its split is one of its own, so what the member's config.json says of that does not hold.
    write_json(folder / 'config.json', {key: value for key, value in config_of(first).items()
                                        if key not in ('sha256', 'split_digest')})
    _write_split(members, folder / 'split.csv')
    like = checkpoints.read_weights(init.best_checkpoint(first))
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: soup[path_name(path)], like)
    frozen = {name.removeprefix('frozen/'): jax.numpy.asarray(value)
              for name, value in soup.items() if name.startswith('frozen/')}
    if frozen:
        checkpoints.write_frozen(steps.absolute(), frozen)
    writing = steps.absolute() / 'writing-0'
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(writing, args=ocp.args.Composite(
            state=ocp.args.StandardSave(tree), host=ocp.args.JsonSave(new_host_state())))
    checkpoints.write_digests(writing)
    os.rename(writing, steps / '0')


def _write_split(members: Sequence[Member], path: Path) -> None:
    """The split of the first, with every row in training that any of them trained on."""
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


def _predict(folder: Path, source: str) -> Member:
    predict_with(folder, source, (IDENTITY,))
    member, = members_of(folder, source)
    refuse_leakage([member], member.ids.tolist())
    return member


def _score(member: Member, head: str) -> dict:
    return scores(member.logits[head], member.labels[head])
