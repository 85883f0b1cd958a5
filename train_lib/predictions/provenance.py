"""What a vote cannot know of its members, and what they were told to accept.

    predictions/made_by.json   of each .npz that training or `predict` wrote there: its SHA-256, and
                               the digest of the checkpoint that it was made with
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from input_pipeline.atomic_files import write_json
from train_lib.predictions.run_folders import config_json, folds_of
from train_lib.run_dir.digests import identity
from train_lib.run_dir.json_files import read_json

NAME = 'made_by.json'
_SHOWN = 3


def record(path: Path, checkpoint: str) -> None:
    """Notes in made_by.json what a .npz that was just written was made with.

    Args:
        path: of the file.
        checkpoint: digest of the checkpoint, '' if there is none.
    """
    content = _read(path.with_name(NAME))
    content[path.name] = dict(sha256=_digest(path), checkpoint=checkpoint)
    write_json(path.with_name(NAME), content)


def doubt_of_file(path: Path, workdir: Path) -> str:
    """Why a .npz may not be the run's own, as a clause; '' if it is.

    Raises:
        ValueError: it is of another checkpoint than those of the run.
    """
    known = _read(path.with_name(NAME)).get(path.name)
    if not isinstance(known, Mapping):
        return f'{path.name} does not say with which checkpoint it was made'
    if known.get('sha256') != _digest(path):
        return f'{path.name} was replaced after the run wrote it'
    checkpoint = str(known.get('checkpoint', ''))
    return doubt_of_digest(checkpoint, None, workdir) if checkpoint else ''  # a probe has none


def doubt_of_digest(digest: str, step: int | None, workdir: Path) -> str:
    """Why predictions may not be the run's own, by the digest of the checkpoint that made them.

    Args:
        digest: of the checkpoint, '' if not known.
        step: of the checkpoint; None: one of the run's.
        workdir: of the run.

    Raises:
        ValueError: the checkpoints of the run are others.
    """
    if not digest:
        return 'they do not say with which checkpoint they were made'
    own = {identity(path) for path in (workdir / 'checkpoints').glob('[0-9]*')
           if path.name.isdigit() and step in (None, int(path.name))}
    own.add(_read(workdir / 'result.json').get('checkpoint', ''))  # an older run does not say
    own.discard('')
    if digest in own or digest in _of_heads(workdir):
        return ''
    if own:
        raise ValueError('they were made with a checkpoint that is not one of this run, as if '
                         'they had been copied from another workdir')
    return 'the checkpoint that they were made with is gone'


def digest_of_heads(files: Sequence[Path], backbone: str) -> str:
    """What stands for a checkpoint of the mean of heads on one backbone.

    Args:
        files: the head of each fold.
        backbone: digest of its weights.
    """
    heads = ''.join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return hashlib.sha256(heads.encode() + backbone.encode()).hexdigest()


def _of_heads(workdir: Path) -> list[str]:
    """The digest of the heads that a probing run chose; [] of another run, or of an older one."""
    result = _read(workdir / 'result.json')
    if not {'chosen', 'backbone'} <= result.keys():
        return []
    files = [fold / 'head.safetensors' for fold in folds_of(workdir / str(result['chosen']))]
    return [digest_of_heads(files, str(result['backbone']))] if all(
        path.is_file() for path in files) else []


def not_checked(members: Sequence, *, shared: bool = True) -> list[str]:
    """What cannot be known of the members of a vote, one clause each.

    Args:
        members: `store.Member`s.
        shared: whether groups that one member knows count for all.
    """
    unknown = [one.name for one in members if not one.roles]
    found = [f'what {_named(unknown)} trained on (no split.csv)'] if unknown else []
    clauses: dict[str, list[str]] = {}
    for one in members:
        for clause in one.ancestry.unknown:
            clauses.setdefault(clause, []).append(one.name)
    found += [f'{clause}, from which {_named(names)} started'
              for clause, names in clauses.items()]
    allowed = [one.name for one in members if _allows_groups(one.workdir)]
    if allowed and not (shared and any(one.groups for one in members)):
        found.append(f'groups: {_named(allowed)} allowed them on two sides (split.grouped=False)')
    if not shared and len({one.workdir for one in members}) > 1:
        found.append('groups that only other members know (config.groups=none)')
    doubts: dict[str, list[str]] = {}
    for one in members:
        if one.doubt:
            doubts.setdefault(one.doubt, []).append(one.name)
    found += [f'whether the predictions of {_named(names)} are their own ({doubt})'
              for doubt, names in doubts.items()]
    return found


def _named(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ', '.join(names[:_SHOWN]) + (f' and {more} more' if more > 0 else '')


def _allows_groups(workdir: Path) -> bool:
    return config_json(workdir).get('split', {}).get('grouped', True) is False


def _read(path: Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _digest(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
