"""The scores of a run with their intervals, for its model card."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train_lib.metrics.intervals import accuracy_interval, f1_interval, f1_rows
from train_lib.metrics.scores import scores
from train_lib.metrics.set_scores import is_labelled, predicted_sets, set_scores
from train_lib.predictions import store
from train_lib.predictions.run_folders import splits_of
from train_lib.reporting.inputs import as_dict
from train_lib.reporting.page import number
from train_lib.runtime.errors import ConfigError
from train_lib.serving.trained_models import TrainedModel

Interval = tuple[float, float]
SET_KEYS = ('map', 'f1_micro', 'accuracy_fitted', 'f1_macro_fitted', 'f1_micro_fitted')


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model reaches on one split.

    Attributes:
        split: 'val', 'test', 'out of fold', or 'test, mean of 5 folds'.
        head: '' where the run has only one.
        n: labelled pictures.
        accuracy, f1, nll, ece: as in result.json; None where it has none.
        accuracy_interval, f1_interval: 95 %, None where the predictions are missing.
        groups: how many groups the intervals are by, 0 for single pictures.
        sets: of a multi-label head what result.json has of `SET_KEYS`; {} of others.
    """

    split: str
    head: str
    n: int
    accuracy: float | None
    f1: float | None = None
    nll: float | None = None
    ece: float | None = None
    accuracy_interval: Interval | None = None
    f1_interval: Interval | None = None
    groups: int = 0
    sets: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


def scores_of_run(workdir: Path, trained: Sequence[TrainedModel], result: Mapping) -> list[Score]:
    """Validation and test of a run; out of fold and the mean of the tests of a k-fold run.

    Args:
        workdir: of the whole run.
        trained: its models.
        result: the content of its result.json.
    """
    groups = splits_of(trained[0].workdir).known_groups
    heads = tuple(trained[0].classes)
    if len(trained) == 1:
        return [score for split in ('val', 'test') for score in
                _of_split(split, as_dict(result.get(split)), heads,
                          trained[0].workdir / 'predictions' / f'{split}.npz', groups)]
    found = _of_split('out of fold', as_dict(result.get('out_of_fold')), heads,
                      workdir / 'predictions/out_of_fold.npz', groups)
    tests = [as_dict(as_dict(fold).get('test')) for fold in result.get('folds') or ()]
    return found + (_means(tests, heads) if tests and all(tests) else [])


def _by_head(values: Mapping, heads: Sequence[str]) -> dict[str, Mapping]:
    """{head: its scores}; the only head is called ''."""
    if len(heads) == 1:
        return {'': values} if number(values.get('accuracy')) is not None else {}
    return {head: as_dict(values.get(head)) for head in heads if as_dict(values.get(head))}


def _of_split(split: str, values: Mapping, heads: Sequence[str], path: Path,
              groups: Mapping[str, str]) -> list[Score]:
    try:
        member = store.open_member(path)
    except (ConfigError, OSError):
        member = None
    found = []
    for head, own in _by_head(values, heads).items():
        score = Score(split, head, int(own.get('n', values.get('n', 0))),
                      number(own.get('accuracy')), number(own.get('f1_macro')),
                      number(own.get('nll')), number(own.get('ece')), sets=_of_sets([own]))
        found.append(_with_intervals(score, member, head or heads[0], groups))
    return found


def _with_intervals(score: Score, member: store.Member | None, head: str,
                    groups: Mapping[str, str]) -> Score:
    """The intervals by the stored predictions, if those have this accuracy."""
    if member is None or score.accuracy is None:
        return score
    labels = np.asarray(member.labels[head])
    rows = is_labelled(labels)
    logits, labels = np.asarray(member.logits[head], np.float32)[rows], labels[rows]
    several = head in member.multi_label
    if not len(labels) or abs((set_scores if several else scores)(logits, labels)['accuracy']
                              - score.accuracy) > 1e-6:
        return score
    named = [f'group {groups[one]}' if one in groups else f'picture {one}'
             for one in member.ids[rows].tolist()]
    count = len(set(named))
    given = np.array(named, object) if count < len(named) else None
    if given is not None and count < 2:  # a single group says nothing about others
        return score
    if several:  # f1_rows is of one label per picture
        right = (predicted_sets(logits) == (labels == 1)).all(1)
        return dataclasses.replace(score, accuracy_interval=accuracy_interval(right, given),
                                   groups=0 if given is None else count)
    predicted = logits.argmax(-1)
    right = predicted == labels
    return dataclasses.replace(
        score, accuracy_interval=accuracy_interval(right, given),
        f1_interval=f1_interval(f1_rows(predicted, labels, logits.shape[-1]), right, given),
        groups=0 if given is None else count)


def _means(tests: Sequence[Mapping], heads: Sequence[str]) -> list[Score]:
    """Each number averaged over folds, which share their test pictures."""
    name = f'test, mean of {len(tests)} folds'
    parts = [_by_head(values, heads) for values in tests]
    found = []
    for head in parts[0]:
        accuracy, f1, nll, ece = (_mean([part.get(head, {}).get(key) for part in parts])
                                  for key in ('accuracy', 'f1_macro', 'nll', 'ece'))
        found.append(Score(name, head, int(parts[0][head].get('n', tests[0].get('n', 0))),
                           accuracy, f1, nll, ece,
                           sets=_of_sets([part.get(head, {}) for part in parts])))
    return found


def _of_sets(parts: Sequence[Mapping]) -> dict[str, float | None]:
    """The means of `SET_KEYS`, {} of a head with one label per picture."""
    if not all('f1_examples' in part for part in parts):
        return {}
    return {key: _mean([part.get(key) for part in parts]) for key in SET_KEYS}


def _mean(values: Sequence) -> float | None:
    known = [one for one in map(number, values) if one is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
