"""The result of a vote as one member: vote.json and predictions.npz in its folder."""

import os
from pathlib import Path

import numpy as np

from input_pipeline.errors import in_one_line
from train_lib.predictions.run_folders import folds_of, splits_of
from train_lib.predictions.store import IDENTITY, Member
from train_lib.run_dir.json_files import read_json
from train_lib.run_dir.npz import read_npz
from train_lib.runtime.errors import ConfigError


def is_vote(path: str | Path) -> bool:
    """Whether a folder holds the result of a vote."""
    full = os.path.expanduser(str(path))
    return os.path.isfile(os.path.join(full, 'vote.json')) and not os.path.isfile(
        os.path.join(full, 'config.json'))


def folders_of_vote(folder: Path) -> list[Path]:
    """The workdirs of the runs, or of the folds of runs, that voted.

    Raises:
        ConfigError: vote.json is damaged, or a run is not there.
    """
    try:
        members = [Path(one['workdir']) for one in read_json(folder / 'vote.json')['members']]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{folder / "vote.json"} cannot be read ({in_one_line(error)}): vote '
                          f'again.') from None
    gone = [path for path in members if not path.is_dir()]
    if gone:
        raise ConfigError(f'The vote {folder} is one of {gone[0]}, which is not there: put it '
                          f'back; without it, nobody knows what it trained on.')
    return list(dict.fromkeys(fold for path in members for fold in folds_of(path) or [path]))


def open_vote(folder: Path) -> tuple[Member, list[Path]]:
    """(its answer as a member, the workdirs of those who voted).

    Raises:
        ConfigError: a file is damaged, a run is not there, or it answers several heads together.
    """
    folders, path = folders_of_vote(folder), folder / 'predictions.npz'
    try:
        about, content = read_json(folder / 'vote.json'), read_npz(path)
        head, *others = about['heads']
        ids, classes = content['ids'], tuple(map(str, content['classes']))
        logits, labels = content['logits'], content['labels']
        if logits.shape != (len(ids), len(classes)) or not np.isfinite(logits).all():
            raise ValueError(f'its logits have the shape {logits.shape}, or are not finite')
    except Exception as error:  # NumPy and zipfile raise nearly every type on damaged files
        raise ConfigError(f'{path} cannot be read ({in_one_line(error)[:200]}): vote again.'
                          ) from None
    if others:
        raise ConfigError(f'The vote {folder} answers {len(others) + 1} heads together: give the '
                          f'runs that voted.')
    first = splits_of(folders[0])
    return Member(name=folder.name, model=folder.name, architecture='', fold=None, workdir=folder,
                  source=str(about['source']), view=IDENTITY, ids=ids, labels={head: labels},
                  logits={head: logits}, classes={head: classes}, digest='', roles={},
                  groups=first.groups), folders
