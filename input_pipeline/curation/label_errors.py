"""Wrong labels, found by models that have not seen the pictures.

Confident learning (Northcutt, Jiang and Chuang, JAIR 2021): the model counts a picture as a class
if the probability of that class reaches the average among pictures with that label. Pictures that
are counted as another class than their label are likely label errors.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from input_pipeline.curation.decisions import Finding
from input_pipeline.curation.quiet import without_sklearn_warnings

SCORES = ('margin', 'self_confidence')
# Share of the labels with which predictions agree. Where it is less, by two standard errors, they
# may be wrong more often than the labels, and it is estimated how often.
_STRONG = 0.8
_ALMOST = 0.9  # share of the rows that are off from which they are all believed
_PRECISE = 0.5  # the least precision of what weak predictions mark for review
_LEAST = 0.05  # share of planted wrong labels from which a share of found ones is estimated


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """What the probabilities say about N labels.

    Attributes:
        score: float [N], higher is more suspicious; NaN for a row without label or prediction.
        wrong: bool [N], whether the row is counted as another class than its label; of weak
            predictions, only the rows that their precision supports.
        suggestion: int [N], the class that the model suggests; -1 for none.
        joint: int [C, C], number of rows labelled i that are counted as class j.
        note: what is wrong with the predictions, one sentence or ''.
    """

    score: np.ndarray
    wrong: np.ndarray
    suggestion: np.ndarray
    joint: np.ndarray
    note: str = ''

    @property
    def weak(self) -> bool:
        """Whether the predictions are too weak to drop a picture."""
        return bool(self.note)


def find_label_errors(labels: np.ndarray, probabilities: np.ndarray, *, score: str = 'margin'
                      ) -> LabelErrors:
    """Judges the labels.

    Args:
        labels: int [N], -1 for unlabelled.
        probabilities: float [N, C], from models that have not seen the row; NaN for none.
        score: 'margin' is the log odds of the best other class against the label;
            'self_confidence' is one minus the probability of the label.
    """
    labels = np.asarray(labels, int)
    count, classes = probabilities.shape
    judged = np.isfinite(probabilities).all(1)
    rows = np.flatnonzero((labels >= 0) & judged)
    known, given = probabilities[rows], labels[rows]
    sums = np.bincount(given, known[np.arange(len(rows)), given], minlength=classes)
    # A class that no row is labelled as has no threshold, so no row is counted as it.
    sizes = np.bincount(given, minlength=classes)
    thresholds = np.where(sums > 0, sums / np.maximum(sizes, 1), np.inf)
    judge = functools.partial(_judged, known, thresholds, score=score)
    value, best, counted, confident = judge(given)
    values, suggestion = np.full(count, np.nan), np.full(count, -1)
    values[rows], suggestion[rows] = value, best
    open_ = (labels < 0) & judged
    suggestion[open_] = probabilities[open_].argmax(1)
    joint = np.zeros((classes, classes), int)
    np.add.at(joint, (given[confident], counted[confident]), 1)
    off = counted != given
    suggestion[rows[off]] = counted[off]
    note = ''
    agree = float(np.mean(known.argmax(1) == given)) if len(rows) else 1.0
    if agree < _STRONG - 2 * np.sqrt(_STRONG * (1 - _STRONG) / max(len(rows), 1)):
        most, flagged = _supported(judge, value, off, given, sizes), int(off.sum())
        if most < _ALMOST * flagged:
            order = np.argsort(-np.where(off, value, -np.inf), kind='stable')
            off[order[most:]] = False
            note = (f'the predictions agree with {100 * agree:.0f} % of the labels only, and wrong '
                    f'labels do not explain it: of {flagged:,} pictures that they would label '
                    f'otherwise, {most:,} are for review')
    wrong = np.zeros(count, bool)
    wrong[rows] = off
    return LabelErrors(values, wrong, suggestion, joint, note)


def _judged(known: np.ndarray, thresholds: np.ndarray, given: np.ndarray, *, score: str
            ) -> tuple[np.ndarray, ...]:
    """(score, best other class, class counted as, whether confidently) of rows with these labels"""
    rows = np.arange(len(given))
    own = known[rows, given]
    others = known.copy()
    others[rows, given] = -1
    best = others.argmax(1)
    if score == 'margin':
        value = (np.log(np.maximum(others[rows, best], 1e-30)) - np.log(np.maximum(own, 1e-30)))
    else:
        value = 1 - own
    reached = np.where(known >= thresholds, known, -1)
    confident = reached.max(1) >= 0
    return value, best, np.where(confident, reached.argmax(1), given), confident


def _supported(judge: Callable, value: np.ndarray, off: np.ndarray, given: np.ndarray,
               sizes: np.ndarray) -> int:
    """How many of the rows that are off, the highest scores first, are wrong in about half of the
    cases at best.

    Rows get another label at random: a prediction out of fold does not depend on it. The share of
    these that is found beyond a score, against the share of all rows beyond it, bounds how many
    of those can be wrong labels.
    """
    if np.count_nonzero(sizes) < 2:
        return 0
    rng = np.random.default_rng(0)
    planted = rng.choice(len(sizes), len(given), p=sizes / sizes.sum())
    other = planted != given
    found_value, _, counted, _ = judge(planted)
    hits = np.sort(found_value[other & (counted != planted)])
    scores = np.sort(value[off])[::-1]
    beyond = np.arange(1, len(scores) + 1) / len(value)
    recall = (len(hits) - np.searchsorted(hits, scores)) / max(other.sum(), 1)
    trusted = recall >= _LEAST
    noise = np.min(beyond[trusted] / recall[trusted], initial=1.0)
    right = np.flatnonzero((noise * recall >= _PRECISE * beyond) & (beyond <= noise))
    return int(right[-1]) + 1 if len(right) else 0


def overlapping_classes(joint: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Pairs of classes whose pictures are counted as each other, the most confused pair first.

    Columns: first, second, there (labelled first, counted as second), back (labelled second,
    counted as first), share (there and back as a share of both classes' counted pictures).
    """
    both = joint + joint.T
    first, second = np.nonzero(np.triu(both, 1))
    total = joint.sum(1)
    share = both[first, second] / np.maximum(total[first] + total[second], 1)
    table = pd.DataFrame(dict(
        first=np.array(names, object)[first], second=np.array(names, object)[second],
        there=joint[first, second], back=joint[second, first], share=share))
    return table.sort_values('share', ascending=False, kind='stable').reset_index(drop=True)


def to_finding(found: LabelErrors, names: Sequence[str], *, drop: float) -> Finding:
    """Decisions: rows with a wrong label are for review, or dropped if their score is high and the
    predictions are not weak.

    Args:
        found: from `find_label_errors`.
        names: of the classes.
        drop: the score from which a row with a wrong label is dropped.
    """
    names = np.array(names, object)
    action = np.full(len(found.wrong), 'keep', object)
    action[found.wrong] = 'review'
    if not found.weak:
        action[found.wrong & (found.score >= drop)] = 'drop'
    label = np.where(found.wrong, names[found.suggestion], '')
    reason = np.array([f'looks like {name}' if name else '' for name in label], object)
    return Finding('labels', found.score, action, reason, label=label, note=found.note)


@without_sklearn_warnings()
def out_of_fold(features: np.ndarray, labels: np.ndarray, *, classes: int, folds: int = 5,
                seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
    """Probabilities by logistic regressions, for each row by a model of other rows: float [N, C].

    They are NaN for rows of a class of which no model has seen another picture, and for all rows
    if there are not two classes with pictures in several groups.

    Args:
        features: float [N, D]; rows are scaled to length 1 and reduced to 256 components.
        labels: int [N]; rows with -1 are unlabelled: predicted, but not trained on.
        classes: the number of classes, C.
        folds: the number of folds; fewer where no class has so many groups.
        seed: of the folds.
        groups: str [N], '' for none; a group (a drawer, copies) is never on both sides.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    count = len(labels)
    found = np.full((count, classes), np.nan)
    alone = np.array([f'\0{row}' for row in range(count)], object)
    groups = alone if groups is None else np.where(groups == '', alone, groups)
    codes = pd.factorize(groups)[0]
    known = labels >= 0
    of_class = pd.Series(codes[known]).groupby(labels[known]).nunique()
    if (of_class > 1).sum() < 2:
        return found
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    inputs = PCA(min(256, *features.shape), random_state=seed).fit_transform(
        features / np.maximum(lengths, 1e-9))
    splits = StratifiedGroupKFold(min(folds, int(of_class.max())), shuffle=True, random_state=seed)
    for train, test in splits.split(inputs, np.where(known, labels, 0), codes):
        train = train[known[train]]
        if len(np.unique(labels[train])) < 2:
            continue
        model = LogisticRegression(C=20, max_iter=200)
        model.fit(inputs[train], labels[train])
        seen = test[np.isin(labels[test], [-1, *model.classes_])]
        found[seen] = 0
        found[np.ix_(seen, model.classes_)] = model.predict_proba(inputs[seen])
    return found
