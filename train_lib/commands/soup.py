"""config.soup of the verb vote: the averaged weights of the members as a run of its own, scored."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.errors import counted, listed
from input_pipeline.manifest import SPLITS
from train_lib.commands.missing_predictions import predict_missing
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.soups import check_ingredients, greedy_soup, uniform_soup
from train_lib.metrics.scores import scores
from train_lib.predictions.members import refuse_leakage
from train_lib.predictions.store import IDENTITY, Member, members_of
from train_lib.run_dir.checkpoints import BATCH_STATS
from train_lib.runtime.errors import ConfigError
from train_lib.training.batch_statistics import statistics_of_run
from train_lib.training.soup_run import start_of, weights_of, write_run

log = logging.getLogger(__name__)
KINDS = ('uniform', 'greedy')


def make_soup(config: Mapping, aligned: AlignedPredictions, folder: Path) -> dict:
    """Writes the soup of the members to `folder`, and scores it on config.source.

    Returns:
        kind, members (the names of those in it), scores, workdir.

    Raises:
        ConfigError: members that started differently, or are other models; an unknown kind; rows
            that a member trained on.
    """
    kind, source = config['soup'], config['source']
    if kind not in KINDS:
        raise ConfigError(f"config.soup = {kind!r}: choose {' or '.join(KINDS)}, or '' for none.")
    if source not in SPLITS or source == 'train' or len(aligned.heads) > 1:
        raise ConfigError(f'config.soup = {kind!r} is scored on one head of test or val rows, and '
                          f'config.source is {source!r} of the heads {listed(aligned.heads)}: '
                          f"set config.soup=''.")
    head = aligned.heads[0]
    members = list({member.workdir.resolve(): member for member in aligned.members}.values())
    names = [member.name for member in members]
    weights = [weights_of(member) for member in members]
    check_ingredients(weights, names, [start_of(member) for member in members])
    chosen = list(range(len(members)))
    pictures = _pictures(config['soup_statistics'], weights)
    if kind == 'greedy':
        _check_validation(members)
        alone = [_score(members_of(member.workdir, 'val')[0], head) for member in members]
        trial = folder.with_name(f'trial-{folder.name}')

        def evaluate(soup: dict) -> float:
            write_run(trial, _with_statistics(trial, soup, members, pictures), members)
            return _score(_predict(trial, 'val'), head)['accuracy']

        soup, chosen, _ = greedy_soup(weights, [one['accuracy'] for one in alone], evaluate)
        shutil.rmtree(trial, ignore_errors=True)
    else:
        soup = uniform_soup(weights)
    members_in = [members[i] for i in chosen]
    write_run(folder, _with_statistics(folder, soup, members_in, pictures), members_in)
    found = _score(_predict(folder, source), head)
    log.info('soup     %s of %s: accuracy %.4f', kind, counted(len(chosen), 'member'),
             found['accuracy'])
    log.info('         %s', folder)
    return dict(kind=kind, members=[names[i] for i in chosen], workdir=str(folder), **found)


def _pictures(wanted: int, weights: Sequence[Mapping[str, np.ndarray]]) -> int:
    """Pictures on which BatchNorm statistics are estimated anew; 0 where all members have the same
    ones, or none."""
    if wanted < 0:
        raise ConfigError(f'config.soup_statistics = {wanted}: give a number of pictures, or 0 for '
                          f'the average of the statistics.')
    names = [name for name in weights[0] if name.startswith(f'{BATCH_STATS}/')]
    differ = any((one[name] != weights[0][name]).any() for one in weights for name in names)
    return wanted if differ else 0


def _with_statistics(folder: Path, soup: dict, members: Sequence[Member], pictures: int) -> dict:
    """The soup with BatchNorm statistics of its own; the folder is written for that."""
    if not pictures or len(members) < 2:
        return soup
    write_run(folder, soup, members)
    found = statistics_of_run(folder, pictures)
    log.info('soup     BatchNorm statistics estimated anew on training pictures')
    return soup | {f'{BATCH_STATS}/{name}': value for name, value in found.items()}


def _check_validation(members: list[Member]) -> None:
    held_out = [{name for name, role in member.roles.items() if role == 'val'}
                for member in members]
    if any(one != held_out[0] for one in held_out) or not held_out[0]:
        raise ConfigError("config.soup = 'greedy' needs members with the same validation rows, "
                          'which none of them trained on: take uniform, or train with one split.')


def _predict(folder: Path, source: str) -> Member:
    predict_missing(folder, source, (IDENTITY,))
    member, = members_of(folder, source)
    refuse_leakage([member], member.ids.tolist())
    return member


def _score(member: Member, head: str) -> dict:
    return scores(member.logits[head], member.labels[head])
