"""What the members of a vote answered on rows with labels that they did not train on.

Where the rows of a vote have no labels, these are the only scores there are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train_lib.ensembles.aligned import AlignedPredictions, groups_of_rows
from train_lib.metrics.intervals import accuracy_interval, f1_interval, f1_rows
from train_lib.metrics.scores import top_probability, wilson_interval
from train_lib.predictions.members import inherited, out_of_fold
from train_lib.predictions.run_folders import folds_of, run_of, splits_of
from train_lib.predictions.store import IDENTITY, OUT_OF_FOLD, Member, members_of
from train_lib.run_dir.json_files import read_json
from train_lib.runtime.errors import ConfigError

MOST_ROWS = 2000  # whose confidence is looked at, evenly spread over the rows


@dataclasses.dataclass(frozen=True)
class Validated:
    """The answers of one model to its N validation rows that have all labels.

    Attributes:
        member: whose rows they are.
        ids: object [N].
        predicted: {head: int [N]}.
        labels: {head: int [N]}.
        confidence: of at most MOST_ROWS rows, float, 0..1: the product over the heads.
    """

    member: Member
    ids: np.ndarray
    predicted: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    confidence: np.ndarray

    def scores(self, groups: str) -> dict:
        """n, accuracy, f1_macro of the answer to all heads together, low and high of both, groups
        (None for rows), heads (the accuracy of each, {} for one head), seen (rows that an ancestor
        trained on), view, rows.

        Args:
            groups: config.groups of the vote; 'none' takes rows as independent.
        """
        sizes = [len(self.member.classes[head]) for head in self.predicted]
        predicted, labels = (np.ravel_multi_index(tuple(part.values()), sizes)
                             for part in (self.predicted, self.labels))
        right = predicted == labels
        by = None if groups == 'none' else groups_of_rows('auto', [self.member], self.ids)
        count = None if by is None else len(np.unique(by.astype(str)))
        # Only classes that occur count, so a product of many heads needs no large table.
        present, both = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
        rows = f1_rows(both[:len(labels)], both[len(labels):], len(present))
        single = count == 1  # says nothing about other groups
        low, high = (None, None) if single else accuracy_interval(right, by)
        f1_low, f1_high = (None, None) if single else f1_interval(rows, right, by)
        heads = {head: float(np.mean(self.predicted[head] == self.labels[head]))
                 for head in self.predicted} if len(sizes) > 1 else {}
        return dict(n=len(labels), accuracy=float(right.mean()), low=low, high=high,
                    f1_macro=float(rows.mean()), f1_low=f1_low, f1_high=f1_high, groups=count,
                    heads=heads, seen=len(inherited(self.member, self.ids.tolist())),
                    view=self.member.view, rows=self.member.source)


def validated_members(aligned: AlignedPredictions) -> list[Validated | None]:
    """Per member its validation rows, in its own view or else as the pictures are; None where it
    has no predictions of them."""
    known: dict[tuple[Path, str], Validated | None] = {}
    found = []
    for member in aligned.members:
        key = (member.workdir.resolve(), member.view)
        if key not in known:
            known[key] = _of_member(member, aligned)
        found.append(known[key])
    return found


def validated_runs(aligned: AlignedPredictions) -> tuple[dict[str, Validated], list[str]]:
    """({run: its out-of-fold rows}, why others have none), of the k-fold runs among the members."""
    runs = {run_of(member.workdir): member.model for member in aligned.members
            if member.fold is not None and folds_of(run_of(member.workdir))}
    models = list(runs.values())
    found, why_not = {}, []
    for path, model in runs.items():
        name = model if models.count(model) == 1 else f'{model} ({path})'
        try:
            whole = out_of_fold(path, IDENTITY)
            found[name] = _answers(whole, aligned)
        except (ConfigError, ValueError) as error:
            why_not.append(f'{name} has no out-of-fold score: {error}')
    return {name: one for name, one in found.items() if one is not None}, why_not


def written_scores(member: Member) -> dict | None:
    """Scores of the validation rows as result.json has them, for a run whose predictions of them
    are gone; None without. The interval is Wilson's; there is none for pictures in groups, of which
    result.json does not say who was right."""
    try:
        result = read_json(member.workdir / 'result.json')
        rows = 'val' if 'val' in result else OUT_OF_FOLD
        values = result[rows]
        accuracy, n = float(values.get('accuracy_product', values['accuracy'])), int(values['n'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not (0 <= accuracy <= 1 and n > 0):
        return None
    grouped = bool(splits_of(member.workdir).known_groups)
    low, high = (None, None) if grouped else wilson_interval(accuracy, n)
    return dict(n=n, accuracy=accuracy, low=low, high=high, f1_macro=None, f1_low=None,
                f1_high=None, groups=None, heads={}, seen=0, view=IDENTITY, rows=rows)


def even_rows(count: int) -> np.ndarray:
    """int, at most MOST_ROWS of `count` rows, evenly spread."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, MOST_ROWS)).astype(int))


def _of_member(member: Member, aligned: AlignedPredictions) -> Validated | None:
    for source in ('val', OUT_OF_FOLD):  # a probing run over folds has the latter only
        for view in dict.fromkeys((member.view, IDENTITY)):
            try:
                rows, = members_of(member.workdir, source, [view])
                return _answers(rows, aligned)
            except (ConfigError, ValueError):
                continue
    return None


def _answers(member: Member, aligned: AlignedPredictions) -> Validated | None:
    """None if it answers another question than the vote, or no row has all labels."""
    classes = aligned.members[0].classes
    if any(member.classes.get(head) != classes[head] for head in aligned.heads):
        return None
    known = np.all([np.asarray(member.labels[head]) >= 0 for head in aligned.heads], axis=0)
    if not known.any():
        return None
    rows = np.flatnonzero(known)
    some = rows[even_rows(len(rows))]
    predicted, confidence = {}, np.ones(len(some))
    for head in aligned.heads:
        logits = member.logits[head]
        predicted[head] = np.concatenate([np.asarray(logits[rows[k:k + 4096]]).argmax(1)
                                          for k in range(0, len(rows), 4096)])
        confidence *= top_probability(np.asarray(logits[some]))
    return Validated(member, np.asarray(member.ids, object)[rows], predicted,
                     {head: np.asarray(member.labels[head])[rows] for head in aligned.heads},
                     confidence)


def answer_counts(validated: Sequence[Validated], head: str, size: int) -> np.ndarray:
    """int [size], how often each class of a head is answered on the validation rows of several
    models; a row that several of them answered counts once, shared among them."""
    if not validated:
        return np.zeros(size, int)
    ids = np.concatenate([one.ids for one in validated]).astype(str)
    _, row, times = np.unique(ids, return_inverse=True, return_counts=True)
    predicted = np.concatenate([one.predicted[head] for one in validated])
    return np.rint(np.bincount(predicted, 1 / times[row], size)).astype(int)
