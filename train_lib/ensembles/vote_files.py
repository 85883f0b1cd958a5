"""The files of a vote: members.csv, predictions.npz, submission.csv."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.atomic_files import atomic_open, write_text
from input_pipeline.class_names import nfc, places_of
from input_pipeline.csv_table import quoting_for
from input_pipeline.errors import counted, did_you_mean, listed, nearest
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.ensembles.answer_columns import (
    INDEX,
    PROBABILITY,
    USUAL,
    is_yes,
    known_contents,
    question_of,
)
from train_lib.ensembles.rules import FLOOR
from train_lib.ensembles.sample_file import SampleFile, read_sample
from train_lib.ensembles.vote_scores import Votes
from train_lib.ensembles.voters import split_words
from train_lib.metrics.structured import ORDER_SCORES
from train_lib.run_dir.npz import write_npz
from train_lib.runtime.errors import ConfigError

_SHOWN = 6  # columns that the log names
_ROWS = 1024  # whose logits are made at once
_COPIED = ('', 'copy', 'id')  # contents that are cells of the sample
_MEMBER_SCORES = ('n', 'accuracy', 'f1_macro', 'nll', 'ece', 'brier', 'weight',
                  'contribution_accuracy', 'contribution_f1_macro', 'contribution_nll')


def write_members(path: Path, aligned: AlignedPredictions, figures: Mapping | None,
                  shares: np.ndarray) -> None:
    """One row per member: name, model, fold, ..., scores, its share in the answer, and its
    contribution: what the soft vote of these shares loses without it (more is better); with a head
    of ordered classes also mae, mae_median and qwk.

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
                         **{name: scores[name] for name in ORDER_SCORES if name in scores},
                         workdir=str(member.workdir), digest=member.digest))
    _write_table(path, pd.DataFrame(rows))


def write_predictions(path: Path, aligned: AlignedPredictions, votes: Votes) -> None:
    """ids; labels int32 [N]; logits float32 [N, C], log probabilities of the answer or log shares
    of the votes; classes; predicted int32 [N], the class of the largest logit, or the median where
    an ordered head answers that; tied bool [N]."""
    answer = votes.answer
    found = np.empty(votes.scores.shape, np.float32)
    for start in range(0, len(aligned), _ROWS):
        part = slice(start, start + _ROWS)
        logits = np.log(np.maximum(votes.scores[part], FLOOR).astype(np.float64))
        # Where a tie was broken, the class that won gets a slightly larger logit.
        rows, won = np.arange(len(logits)), answer.predicted[part]
        logits[rows, won] = np.maximum(logits[rows, won],
                                       logits.max(1) + 1e-5 * answer.tied[part])
        found[part] = logits
    with atomic_open(path, 'wb') as file:
        write_npz(file, dict(
            ids=aligned.ids.astype(np.str_), labels=aligned.labels.astype(np.int32),
            logits=found, classes=np.array(aligned.classes, np.str_),
            predicted=votes.said, tied=answer.tied))


def write_submission(path: Path, config: Mapping, aligned: AlignedPredictions, votes: Votes
                     ) -> str:
    """submission.csv, in the order of the rows, or with the rows and columns of config.sample.

    Args:
        config: of the vote, as a dict; sample, extra and columns are read.

    Returns:
        How many rows and which columns it has, in words.

    Raises:
        ConfigError: a column whose content is unknown, or a sample with other ids.
    """
    sample = read_sample(config['sample']) if config['sample'] else None
    columns = column_contents(config['columns'], aligned, sample)
    order = np.arange(len(aligned))
    if sample is not None:
        key = next((name for name, what in columns.items() if what == 'id'), None)
        if key is None:
            raise ConfigError(f'config.sample = {config["sample"]!r}: none of its columns holds '
                              f"the id: say which by config.columns, as in dict(ID='id', "
                              f"target='class').")
        order = _in_order_of(sample.columns[key], aligned, sample.path,
                             extra=config['extra'] == 'ignore')
    shares = votes.scores
    if any(what.startswith(PROBABILITY) for what in columns.values()):
        shares = shares.astype(np.float64)
        shares /= np.maximum(shares.sum(1, keepdims=True), FLOOR)
    votes = dataclasses.replace(votes, scores=shares)
    table = pd.DataFrame({
        name: (_content(what, aligned, votes, order) if sample is None or what not in _COPIED
               else sample.columns[key if what == 'id' else name])
        for name, what in columns.items()})
    if sample is None:
        _write_table(path, table)
    else:
        write_text(path, sample.text_of(table))
    more = len(columns) - _SHOWN
    return (f'{counted(len(table), "row")}; columns {", ".join([*columns][:_SHOWN])}'
            + (f' and {more} more' if more > 0 else ''))


def _content(what: str, aligned: AlignedPredictions, votes: Votes, order: np.ndarray
             ) -> np.ndarray:
    """[N] of what a column holds, for the rows in this order."""
    predicted = votes.said
    head = what.removeprefix(INDEX)
    if what.startswith(PROBABILITY):
        values = probability_of(what.removeprefix(PROBABILITY), aligned, votes.scores)[order]
        return np.array([f'{value:.9g}' for value in values], object)
    if what == 'names':
        return _names(aligned, predicted)[order]
    if head in aligned.heads and len(aligned.heads) > 1:
        numbers = aligned.split_heads(predicted)[head][order]
        return numbers if what != head else np.array(_classes(aligned)[head], object)[numbers]
    return {'id': lambda: aligned.ids[order],
            'row': lambda: np.arange(len(order)),
            'class': lambda: np.array(aligned.classes, object)[predicted[order]],
            'index': lambda: predicted[order],
            'confidence': lambda: votes.scores[order, predicted[order]]}[what]()


def probability_of(name: str, aligned: AlignedPredictions, scores: np.ndarray) -> np.ndarray:
    """[N], the probability of a class of the answer or of one head, or the one that a head
    of two classes says yes by its second.

    Args:
        name: of the class or the head.
        scores: of the answer, [N, C], rows sum to 1.
    """
    def place(names: Sequence[str]) -> int | None:
        return next((k for k, one in enumerate(names) if nfc(one) == nfc(name)), None)

    found = place(aligned.classes)
    if found is not None:
        return scores[:, found]
    by_head = scores.reshape(-1, *aligned.sizes)
    for axis, (head, names) in enumerate(_classes(aligned).items(), 1):
        number = 1 if head == name and len(names) == 2 else place(names)
        if number is not None:
            others = tuple(one for one in range(1, by_head.ndim) if one != axis)
            return by_head.sum(others)[:, number]
    raise ConfigError(f'config.columns: there is no class {name!r}; '
                      f'{did_you_mean(name, aligned.classes)}')


def _names(aligned: AlignedPredictions, predicted: np.ndarray) -> np.ndarray:
    """object [N], see `answer_columns.names_of`."""
    of_head = _classes(aligned)
    by_head = aligned.split_heads(predicted) or {aligned.heads[0]: predicted}
    if all(is_yes(head, names) for head, names in of_head.items()):
        said = [np.where(by_head[head] == 1, head, '').astype(object) for head in of_head]
    else:
        said = [np.array(names, object)[by_head[head]] for head, names in of_head.items()]
    return np.array([' '.join(filter(None, words)) for words in zip(*said)], object)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator='\n', quoting=quoting_for(table)))


def column_contents(given, aligned: AlignedPredictions, sample: SampleFile | None
                    ) -> dict[str, str]:
    """{column: what it holds}, as `answer_columns` says; '' for a column copied from the sample.

    Args:
        given: config.columns, names or {column: what it holds}.
        sample: the sample submission, or None.

    Raises:
        ConfigError: what a column holds is unknown.
    """
    question = question_of(_classes(aligned))
    allowed = known_contents(question, copy=sample is not None)
    told = dict(given) if isinstance(given, Mapping) else {
        name: name if name in allowed else USUAL.get(name.lower(), '')
        for name in split_words(given)}
    for name, what in told.items():
        if what not in allowed:
            example = (nearest(what, allowed) or allowed)[0]
            plain = [one for one in allowed if not one.startswith(PROBABILITY)]
            raise ConfigError(f'config.columns: it is unknown what {name!r} holds: write '
                              f'{{{name!r}: {example!r}}}, of {listed(plain)}, or '
                              f'{PROBABILITY}CLASS.')
    if sample is None:
        return told
    row_of = _row_of(aligned)
    # How many ids each column holds.
    ids = {name: len({*map(row_of, cells)} - {None}) for name, cells in sample.columns.items()}
    found = {}
    for name in sample.columns:
        what = told.get(name, USUAL.get(name.lower(), ''))
        # A column of ids is recognised by its content: 'ID' may also name running numbers.
        if what == 'id' and not isinstance(given, Mapping) and not ids[name]:
            what = ''
        found[name] = what
    if 'id' not in found.values():
        best = max(sample.columns, key=ids.__getitem__)
        if ids[best]:
            found[best] = 'id'
    if not any(what not in ('', 'copy', 'id', 'row') for what in found.values()):
        raise ConfigError(f'config.sample has the columns {listed(sample.columns)}, and '
                          f'config.columns fills none of them with an answer: name it, as in '
                          f"dict({[*sample.columns][-1]}='class').")
    return found


def _row_of(aligned: AlignedPredictions) -> Callable[[str], int | None]:
    """(id) -> its row; an id that differs by Unicode normalisation only is the same."""
    places = places_of(aligned.ids.tolist())
    return lambda name: places.get(name, places.get(nfc(name)))


def _in_order_of(cells: Sequence[str], aligned: AlignedPredictions, path: str, *, extra: bool
                 ) -> np.ndarray:
    """int [N], the row of each id of the sample; `extra` if there may be more rows."""
    ids = pd.Series(cells, dtype=object)
    rows = pd.Series(list(map(_row_of(aligned), ids)), dtype=object)
    unknown = ids[rows.isna()].tolist()
    doubled = ids[rows.duplicated()].tolist()
    missing = sorted(np.delete(aligned.ids, rows.dropna().astype(int)).tolist())
    for names, what in ((unknown, 'that were not predicted'), (doubled, 'twice')):
        if names:
            raise ConfigError(f'config.sample = {path!r} has {len(names)} of {len(ids)} ids {what} '
                              f'({names[0]!r}): predict the same pictures, or correct the sample.')
    if missing and not extra:
        raise ConfigError(f'config.sample = {path!r} lacks {len(missing)} of {len(aligned)} ids '
                          f'({missing[0]!r}): predict the same pictures, correct the sample, or '
                          f'leave these out with --config.extra=ignore.')
    return rows.to_numpy(np.int64)


def _classes(aligned: AlignedPredictions) -> dict[str, tuple[str, ...]]:
    """{head: its classes} of the heads that are voted on."""
    return {head: aligned.members[0].classes[head] for head in aligned.heads}
