"""config.distill: what trained runs, or a vote of them, say of the training rows.

A teacher hands on what it learnt. So whoever trained on a row that this run validates or tests
says nothing here, not even of other rows: its answers carry the labels that it was trained on into
this run. Among the folds of a run those are left out; a run of which no fold remains is refused.
"""

import dataclasses
import hashlib
import logging
import math
import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline.errors import counted
from input_pipeline.extra_rows import SoftRows
from input_pipeline.manifest import Manifest
from train_lib.losses.soft_targets import Distillation
from train_lib.metrics.scores import log_softmax
from train_lib.predictions.members import join, workdirs_of
from train_lib.predictions.run_folders import folds_of, splits_of
from train_lib.predictions.store import IDENTITY, OUT_OF_FOLD, Member, members_of
from train_lib.predictions.vote_result import is_vote, open_vote
from train_lib.run_dir import seen_rows
from train_lib.run_dir.ancestors import Ancestry, of_several
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
KEY = 'distill.teachers'
ROWS = ('out_of_fold', 'own')  # config.distill.rows


class Found(NamedTuple):
    """What teachers say of the training rows, what they trained on, and what the run notes."""

    rows: dict[str, SoftRows]
    distillation: Distillation
    ancestry: Ancestry
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Teacher:
    """One model, or a vote.

    Attributes:
        folders: the workdirs of what trained.
        answers: for rows that it did not train on, or that it did, if asked for.
    """

    folders: Sequence[Path]
    answers: Sequence[Member]


def read_teachers(config: ConfigDict, manifest: Manifest, train: Manifest, accepted: bool) -> Found:
    """What the teachers of config.distill say of the rows `train`.

    Args:
        config: of the run.
        manifest: of all its rows, with the column `split`.
        train: its training rows.
        accepted: whether teachers may have trained on validation and test rows.

    Raises:
        ConfigError: a wrong value; a teacher that does not exist, has other classes, trained on a
            row that is held out, or says nothing of any training row.
    """
    spec, distillation = config.distill, distillation_of(config.distill)
    chosen: list[_Teacher] = []
    left = 0
    for pattern in spec.teachers:
        for run in workdirs_of(pattern) if not is_vote(pattern) else [Path(pattern).expanduser()]:
            found = list(_teachers_of(run, spec.rows))
            clean = [one for one in found if accepted or not _held_out(one, config, manifest)]
            if not clean:
                raise ConfigError(_refusal(run, _held_out(found[0], config, manifest), manifest))
            left += len(found) - len(clean)
            chosen += clean
    folders = list(dict.fromkeys(folder for one in chosen for folder in one.folders))
    answers = [member for one in chosen for member in one.answers]
    _refuse_other_classes(answers, train)
    rows = {head: _pooled(answers, head, train, distillation.temperature) for head in train.heads}
    known = int((next(iter(rows.values())).places >= 0).sum())
    if not known:
        raise ConfigError(_nothing(spec, left, len(train)))
    hasher = hashlib.sha256()
    for soft in rows.values():
        hasher.update(soft.places.astype('<i8').tobytes() + soft.values.astype('<f4').tobytes())
    facts = dict(teachers=[str(folder) for folder in folders], digest=hasher.hexdigest(),
                 rows=known, of=len(train), left_out=left, accepted=accepted)
    return Found(rows, distillation, of_several(folders), facts)


def distillation_of(spec: ConfigDict) -> Distillation:
    """How much teachers count, by config.distill.

    Raises:
        ConfigError: a value is unknown or out of range.
    """
    if spec.rows not in ROWS:
        raise ConfigError(f'config.distill.rows = {spec.rows!r}: choose one of {", ".join(ROWS)}.')
    return Distillation(_number('weight', spec.weight, 0, 1),
                        _number('temperature', spec.temperature, 0, 100))


def say(facts: dict[str, Any]) -> None:
    """Logs who teaches what."""
    log.info('distill  %s %s of %s training rows%s',
             'a teacher knows' if len(facts['teachers']) == 1 else
             f'{len(facts["teachers"])} teachers know', f'{facts["rows"]:,}', f'{facts["of"]:,}',
             '' if facts['rows'] == facts['of'] else '; the others go by label')
    if facts['left_out']:
        log.info('distill  left out %s that trained on held-out rows of this run',
                 counted(facts['left_out'], 'fold'))


def _number(key: str, value, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (
            math.isfinite(value) and low < float(value) <= high):
        raise ConfigError(f'config.distill.{key} = {value!r}: give a number above {low} and up to '
                          f'{high}.')
    return float(value)


def _teachers_of(run: Path, rows: str) -> Iterator[_Teacher]:
    """The folds of a run, or it itself, or a vote."""
    if is_vote(run):
        member, folders = open_vote(run)
        yield _Teacher(folders, [member])
        return
    for folder in folds_of(run) or [run]:
        held = [name for name in ('val', 'test', OUT_OF_FOLD) if _has(folder, name)]
        if rows == 'own' and not _has(folder, 'train'):
            raise ConfigError(f'config.distill.rows = "own": {folder} has no predictions of its '
                              f'training rows: run `main.py predict --workdir={run} '
                              f'--config.predict.source=train`.')
        names = [*held, 'train'] if rows == 'own' else held
        yield _Teacher([folder], [members_of(folder, name, [IDENTITY])[0] for name in names])


def _has(folder: Path, source: str) -> bool:
    stored = folder / 'predictions' / source
    if stored.is_dir() and any(stored.iterdir()):
        return (stored / IDENTITY).is_dir()
    return stored.with_name(f'{source}.npz').exists()


def _held_out(teacher: _Teacher, config: ConfigDict, manifest: Manifest) -> dict[str, list[str]]:
    """{'val' or 'test': ids} of the rows of this run that a teacher trained on, {} for none.

    Raises:
        ConfigError: it is not known what it trained on.
    """
    unknown = [folder for folder in teacher.folders if not splits_of(folder).roles]
    if unknown:
        raise ConfigError(f'config.{KEY}: it is not known what {unknown[0]} trained on (it has no '
                          f'split.csv): restore it, or leave that teacher out.')
    table = manifest.table
    seen = seen_rows.seen_rows(of_several(teacher.folders), table['id'].tolist(),
                               table['split'].tolist(),
                               seen_rows.groups_of(manifest, config.split.grouped))
    return {name: seen[name] for name in seen_rows.HELD_OUT if seen[name]}


def _refusal(run: Path, held: dict[str, list[str]], manifest: Manifest) -> str:
    sizes = manifest.table['split'].value_counts()
    counts = ' and '.join(f'{len(ids)} of the {sizes[name]} {name} rows'
                          for name, ids in held.items())
    return (f'config.{KEY}: {run} trained on {counts} of this run '
            f'({next(iter(held.values()))[0]!r}, ...), whose labels its answers would carry into '
            f'the training: hold out rows that it held out (split.kind=given), for folds give a '
            f'run of the same folds and distill.rows=own, or accept it by '
            f'--config.init.seen=accept, which is marked in every result.')


def _nothing(spec: ConfigDict, left: int, rows: int) -> str:
    shown = ', '.join(map(str, spec.teachers))
    hint = ('the folds that could were left out, because they trained on held-out rows of this '
            'run: hold out only rows that no fold trained on, or set distill.rows=own, so that '
            'each fold learns from the fold of its number' if left else
            'give the runs that hold these rows out')
    return (f'config.{KEY} = {shown}: it says nothing of any of the {rows:,} training rows that '
            f'it did not train on: {hint}.')


def _refuse_other_classes(answers: Sequence[Member], train: Manifest) -> None:
    for member in answers:
        for head, names in train.classes.items():
            theirs = member.classes.get(head) or (
                next(iter(member.classes.values())) if len(train.heads) == len(member.classes) == 1
                else None)
            if theirs is None or tuple(theirs) != tuple(names):
                raise ConfigError(f'config.{KEY}: {member.name} has other classes of {head!r} than '
                                  f'this run: give teachers of the same config.data.classes.')


def _pooled(answers: Sequence[Member], head: str, train: Manifest, temperature: float) -> SoftRows:
    """The mean probability of those who know a row, p ** (1 / T), normalised."""
    wanted = pd.Index(train.table['id'].to_numpy(object), dtype=object)
    total = np.zeros((len(train), len(train.classes[head])), np.float32)
    count = np.zeros(len(train), int)
    for member in answers:
        join([member])  # refuses an id that it has twice
        rows = pd.Index(np.asarray(member.ids, object), dtype=object).get_indexer(wanted)
        here = np.flatnonzero(rows >= 0)
        key = head if head in member.logits else next(iter(member.logits))
        logits = np.asarray(member.logits[key])[rows[here]].astype(np.float64)
        total[here] += np.exp(log_softmax(logits))
        count[here] += 1
    known = np.flatnonzero(count)
    mean = np.log(np.maximum(total[known] / count[known, None], np.finfo(np.float32).tiny))
    places = np.full(len(train), -1)
    places[known] = np.arange(len(known))
    return SoftRows(np.exp(log_softmax(mean / temperature)).astype(np.float32), places)
