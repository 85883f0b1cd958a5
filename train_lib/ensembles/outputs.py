"""The files of a vote: vote.json, members.csv, predictions.npz, submission.csv."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.csv_table import quoting_for
from train_lib.ensembles.aligned import Panel, patterns_of
from train_lib.ensembles.results import Votes
from train_lib.ensembles.rules import FLOOR
from train_lib.run_dir.metrics_log import write_text
from train_lib.runtime.errors import ConfigError

CONTENTS = ('id', 'row', 'class', 'index', 'confidence')
# What a column of these names holds unless config.columns says so.
_USUAL = {'id': 'id', 'imageid': 'id', 'image_id': 'id', 'image_path': 'id', 'image': 'id',
          'path': 'id', 'filename': 'id', 'file': 'id', 'name': 'id', 'row': 'row',
          'target': 'class', 'label': 'class', 'class': 'class', 'ans': 'class',
          'prediction': 'class', 'index': 'index', 'confidence': 'confidence'}
_MEMBER_SCORES = ('n', 'accuracy', 'f1_macro', 'nll', 'ece', 'brier', 'weight',
                  'contribution_accuracy', 'contribution_f1_macro', 'contribution_nll')


def write_members(path: Path, panel: Panel, found: Mapping | None, weights: np.ndarray) -> None:
    """One row a member: name, model, fold, ... scores, weight in the answer, contribution (what
    the answer's soft vote loses without it; for all three more is better)."""
    rows = []
    for i, member in enumerate(panel.members):
        scores = found['members'][i] if found else dict(weight=weights[i])
        rows.append(dict(name=member.name, model=member.model,
                         fold='' if member.fold is None else member.fold, view=member.view,
                         architecture=member.architecture,
                         **{name: scores.get(name) for name in _MEMBER_SCORES},
                         workdir=str(member.workdir), digest=member.digest))
    _write_table(path, pd.DataFrame(rows))


def write_predictions(path: Path, panel: Panel, votes: Votes) -> None:
    """ids, labels, logits (float32 [N, C], log probabilities of the answer, or log shares of the
    votes), classes; predicted int32 [N], the largest logit; tied bool [N], as counted."""
    answer = votes.ensembles[votes.chosen]
    logits = np.log(np.maximum(votes.scores, FLOOR).astype(np.float64))
    # Where a tie was broken the largest logit says how.
    here = np.arange(len(panel))
    logits[here, answer.predicted] = np.maximum(logits[here, answer.predicted],
                                                logits.max(1) + 1e-5 * answer.tied)
    partial = path.with_name(f'{path.name}.tmp')
    with open(partial, 'wb') as file:
        np.savez_compressed(
            file, ids=panel.ids.astype(np.str_), labels=panel.labels.astype(np.int32),
            logits=logits.astype(np.float32), classes=np.array(panel.classes, np.str_),
            predicted=answer.predicted, tied=answer.tied)
    os.replace(partial, path)


def write_submission(path: Path, config: Mapping, panel: Panel, votes: Votes) -> None:
    """submission.csv, in the order of the rows, or as config.sample has it.

    Raises:
        ConfigError: a column whose content is not known, or a sample with other ids.
    """
    sample = _sample(config['sample'])
    columns = column_contents(config['columns'], panel, sample)
    answer = votes.ensembles[votes.chosen]
    order = np.arange(len(panel))
    if sample is not None:
        key = next((name for name, what in columns.items() if what == 'id'), None)
        if key is None:
            raise ConfigError(f'config.sample = {config["sample"]!r}: none of its columns holds '
                              f"the id; say which by config.columns, as in dict(ID='id', "
                              f"target='class').")
        order = _in_order_of(sample[key], panel, config['sample'])
    by_head = panel.of_heads(answer.predicted)
    names = dict(zip(panel.heads, _class_names(panel)))
    content = {
        'id': lambda: panel.ids[order],
        'row': lambda: np.arange(len(order)),
        'class': lambda: np.array(panel.classes, object)[answer.predicted[order]],
        'index': lambda: answer.predicted[order],
        'confidence': lambda: votes.scores[order, answer.predicted[order]],
        **{head: lambda head=head: np.array(names[head], object)[by_head[head][order]]
           for head in by_head}}
    table = pd.DataFrame({name: content[what]() if what else sample[name]
                          for name, what in columns.items()})
    _write_table(path, table)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator='\n', quoting=quoting_for(table)))


def column_contents(given, panel: Panel, sample: pd.DataFrame | None) -> dict[str, str]:
    """{column: what it holds}; '' for a column that is copied from the sample.

    Raises:
        ConfigError: it is not known what a column holds.
    """
    allowed = (*CONTENTS, *(panel.heads if len(panel.heads) > 1 else ()))
    told = dict(given) if isinstance(given, Mapping) else {
        name: name if name in allowed else _USUAL.get(name.lower(), '')
        for name in patterns_of(given)}
    for name, what in told.items():
        if what not in allowed:
            near = difflib.get_close_matches(str(what), allowed, n=1) or allowed
            raise ConfigError(f'config.columns: it is not known what {name!r} holds: write '
                              f'dict({name}={near[0]!r}), of {", ".join(allowed)}.')
    if sample is None:
        return told
    ids = set(panel.ids.tolist())
    found = {}
    for name in sample.columns:
        what = told.get(name, _USUAL.get(name.lower(), ''))
        # A column of ids is known by what it holds: names of columns say 'ID' for numbers too.
        if what == 'id' and not isinstance(given, Mapping) and not ids & set(sample[name]):
            what = ''
        found[name] = what
    if 'id' not in found.values():
        best = max(sample.columns, key=lambda name: len(ids & set(sample[name])))
        if ids & set(sample[best]):
            found[best] = 'id'
    if not any(what not in ('', 'id', 'row') for what in found.values()):
        raise ConfigError(f'config.sample has the columns {", ".join(sample.columns)}, and '
                          f'config.columns fills none of them with an answer: name it, as in '
                          f"dict({sample.columns[-1]}='class').")
    return found


def _sample(path: str) -> pd.DataFrame | None:
    if not path:
        return None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f'config.sample = {path!r} cannot be read as a CSV '
                          f'({" ".join(str(error).split())}).') from None
    return table


def _in_order_of(ids: pd.Series, panel: Panel, path: str) -> np.ndarray:
    number = {name: i for i, name in enumerate(panel.ids.tolist())}
    unknown = [name for name in ids if name not in number]
    doubled = ids[ids.duplicated()].tolist()
    missing = sorted(set(number) - set(ids))
    for names, what in ((unknown, 'that were not predicted'), (doubled, 'twice')):
        if names:
            raise ConfigError(f'config.sample = {path!r} has {len(names)} of {len(ids)} ids {what} '
                              f'({names[0]!r}): predict the same pictures, or correct the sample.')
    if missing:
        raise ConfigError(f'config.sample = {path!r} lacks {len(missing)} of {len(number)} ids '
                          f'({missing[0]!r}): predict the same pictures, or correct the sample.')
    return np.array([number[name] for name in ids], np.int64)


def _class_names(panel: Panel) -> list[tuple[str, ...]]:
    first = panel.members[0]
    return [first.classes[head] for head in panel.heads]
