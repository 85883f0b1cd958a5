"""The files of a vote: members.csv, predictions.npz, submission.csv."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.atomic_files import atomic_open, write_text
from input_pipeline.class_names import nfc, places_of
from input_pipeline.csv_table import quoting_for, read_csv
from input_pipeline.errors import listed, nearest
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.rules import FLOOR
from train_lib.ensembles.vote_scores import Votes
from train_lib.ensembles.voters import split_words
from train_lib.run_dir.npz import write_npz
from train_lib.runtime.errors import ConfigError

CONTENTS = ('id', 'row', 'class', 'index', 'confidence')
# What a column of these names holds unless config.columns says so.
_USUAL = {'id': 'id', 'imageid': 'id', 'image_id': 'id', 'image_path': 'id', 'image': 'id',
          'path': 'id', 'filename': 'id', 'file': 'id', 'name': 'id', 'row': 'row',
          'target': 'class', 'label': 'class', 'class': 'class', 'ans': 'class',
          'prediction': 'class', 'index': 'index', 'confidence': 'confidence'}
_MEMBER_SCORES = ('n', 'accuracy', 'f1_macro', 'nll', 'ece', 'brier', 'weight',
                  'contribution_accuracy', 'contribution_f1_macro', 'contribution_nll')


def write_members(path: Path, aligned: AlignedPredictions, figures: Mapping | None,
                  shares: np.ndarray) -> None:
    """One row per member: name, model, fold, ..., scores, its share in the answer, and its
    contribution: what the soft vote of these shares loses without it (more is better).

    Args:
        figures: of `vote_scores.describe`; None if no row has a label.
        shares: float [M], of `EnsembleSpec.member_shares`.
    """
    rows = []
    for i, member in enumerate(aligned.members):
        scores = figures['members'][i] if figures else dict(weight=shares[i])
        rows.append(dict(name=member.name, model=member.model,
                         fold='' if member.fold is None else member.fold, view=member.view,
                         architecture=member.architecture,
                         **{name: scores.get(name) for name in _MEMBER_SCORES},
                         workdir=str(member.workdir), digest=member.digest))
    _write_table(path, pd.DataFrame(rows))


def write_predictions(path: Path, aligned: AlignedPredictions, votes: Votes) -> None:
    """ids; labels int32 [N]; logits float32 [N, C], log probabilities of the answer or log shares
    of the votes; classes; predicted int32 [N], the class of the largest logit; tied bool [N]."""
    answer = votes.answer
    logits = np.log(np.maximum(votes.scores, FLOOR).astype(np.float64))
    # Where a tie was broken, the class that won gets a slightly larger logit.
    rows = np.arange(len(aligned))
    logits[rows, answer.predicted] = np.maximum(logits[rows, answer.predicted],
                                                logits.max(1) + 1e-5 * answer.tied)
    with atomic_open(path, 'wb') as file:
        write_npz(file, dict(
            ids=aligned.ids.astype(np.str_), labels=aligned.labels.astype(np.int32),
            logits=logits.astype(np.float32), classes=np.array(aligned.classes, np.str_),
            predicted=answer.predicted, tied=answer.tied))


def write_submission(path: Path, config: Mapping, aligned: AlignedPredictions, votes: Votes
                     ) -> None:
    """submission.csv, in the order of the rows, or with the rows and columns of config.sample.

    Args:
        config: of the vote, as a dict; sample and columns are read.

    Raises:
        ConfigError: a column whose content is unknown, or a sample with other ids.
    """
    sample = _sample(config['sample'])
    columns = column_contents(config['columns'], aligned, sample)
    answer = votes.answer
    order = np.arange(len(aligned))
    if sample is not None:
        key = next((name for name, what in columns.items() if what == 'id'), None)
        if key is None:
            raise ConfigError(f'config.sample = {config["sample"]!r}: none of its columns holds '
                              f"the id: say which by config.columns, as in dict(ID='id', "
                              f"target='class').")
        order = _in_order_of(sample[key], aligned, config['sample'])
    by_head = aligned.split_heads(answer.predicted)
    names = dict(zip(aligned.heads, _class_names(aligned)))
    content = {
        'id': lambda: aligned.ids[order] if sample is None else sample[key].to_numpy(),
        'row': lambda: np.arange(len(order)),
        'class': lambda: np.array(aligned.classes, object)[answer.predicted[order]],
        'index': lambda: answer.predicted[order],
        'confidence': lambda: votes.scores[order, answer.predicted[order]],
        **{head: lambda head=head: np.array(names[head], object)[by_head[head][order]]
           for head in by_head}}
    table = pd.DataFrame({name: content[what]() if what else sample[name]
                          for name, what in columns.items()})
    _write_table(path, table)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator='\n', quoting=quoting_for(table)))


def column_contents(given, aligned: AlignedPredictions, sample: pd.DataFrame | None
                    ) -> dict[str, str]:
    """{column: what it holds}, of CONTENTS or a head; '' for a column copied from the sample.

    Args:
        given: config.columns, names or {column: what it holds}.
        sample: the sample submission, or None.

    Raises:
        ConfigError: what a column holds is unknown.
    """
    allowed = (*CONTENTS, *(aligned.heads if len(aligned.heads) > 1 else ()))
    told = dict(given) if isinstance(given, Mapping) else {
        name: name if name in allowed else _USUAL.get(name.lower(), '')
        for name in split_words(given)}
    for name, what in told.items():
        if what not in allowed:
            example = (nearest(what, allowed) or allowed)[0]
            raise ConfigError(f'config.columns: it is unknown what {name!r} holds: write '
                              f'{{{name!r}: {example!r}}}, of {listed(allowed)}.')
    if sample is None:
        return told
    row_of = _row_of(aligned)
    # How many ids each column holds.
    ids = {name: len({*map(row_of, sample[name])} - {None}) for name in sample.columns}
    found = {}
    for name in sample.columns:
        what = told.get(name, _USUAL.get(name.lower(), ''))
        # A column of ids is recognised by its content: 'ID' may also name running numbers.
        if what == 'id' and not isinstance(given, Mapping) and not ids[name]:
            what = ''
        found[name] = what
    if 'id' not in found.values():
        best = max(sample.columns, key=ids.__getitem__)
        if ids[best]:
            found[best] = 'id'
    if not any(what not in ('', 'id', 'row') for what in found.values()):
        raise ConfigError(f'config.sample has the columns {listed(sample.columns)}, and '
                          f'config.columns fills none of them with an answer: name it, as in '
                          f"dict({sample.columns[-1]}='class').")
    return found


def _sample(path: str) -> pd.DataFrame | None:
    if not path:
        return None
    header, rows, _ = read_csv(path, edited=True)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _row_of(aligned: AlignedPredictions) -> Callable[[str], int | None]:
    """(id) -> its row; an id that differs by Unicode normalisation only is the same."""
    places = places_of(aligned.ids.tolist())
    return lambda name: places.get(name, places.get(nfc(name)))


def _in_order_of(ids: pd.Series, aligned: AlignedPredictions, path: str) -> np.ndarray:
    """int [N], the row of each id of the sample."""
    rows = pd.Series(list(map(_row_of(aligned), ids)), dtype=object)
    unknown = ids[rows.isna()].tolist()
    doubled = ids[rows.duplicated()].tolist()
    missing = sorted(np.delete(aligned.ids, rows.dropna().astype(int)).tolist())
    for names, what in ((unknown, 'that were not predicted'), (doubled, 'twice')):
        if names:
            raise ConfigError(f'config.sample = {path!r} has {len(names)} of {len(ids)} ids {what} '
                              f'({names[0]!r}): predict the same pictures, or correct the sample.')
    if missing:
        raise ConfigError(f'config.sample = {path!r} lacks {len(missing)} of {len(aligned)} ids '
                          f'({missing[0]!r}): predict the same pictures, or correct the sample.')
    return rows.to_numpy(np.int64)


def _class_names(aligned: AlignedPredictions) -> list[tuple[str, ...]]:
    first = aligned.members[0]
    return [first.classes[head] for head in aligned.heads]
