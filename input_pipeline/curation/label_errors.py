"""Wrong labels, found by models that have not seen the pictures.

Confident learning (Northcutt, Jiang and Chuang, JAIR 2021): the model counts a picture as a class
if the probability of that class reaches the average among pictures with that label. Pictures that
are counted as another class than their label are likely label errors.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from input_pipeline.curation.decisions import Finding

SCORES = ('margin', 'self_confidence')


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """What the probabilities say about N labels.

    Attributes:
        score: float [N], higher is more suspicious; NaN for a row without label or prediction.
        wrong: bool [N], whether the row is counted as another class than its label.
        suggestion: int [N], the class that the model suggests; -1 for none.
        joint: int [C, C], number of rows labelled i that are counted as class j.
    """

    score: np.ndarray
    wrong: np.ndarray
    suggestion: np.ndarray
    joint: np.ndarray


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
    own = probabilities[rows, labels[rows]]
    others = probabilities.copy()
    others[rows, labels[rows]] = -1
    best = others[rows].argmax(1)
    suggestion = np.full(count, -1)
    suggestion[rows] = best
    open_ = (labels < 0) & judged
    suggestion[open_] = probabilities[open_].argmax(1)
    values = np.full(count, np.nan)
    if score == 'margin':
        values[rows] = (np.log(np.maximum(others[rows, best], 1e-30))
                        - np.log(np.maximum(own, 1e-30)))
    else:
        values[rows] = 1 - own
    sums = np.bincount(labels[rows], own, minlength=classes)
    # A class that no row is labelled as has no threshold, so no row is counted as it.
    thresholds = np.where(sums > 0, sums / np.maximum(np.bincount(labels[rows], minlength=classes),
                                                      1), np.inf)
    reached = np.where(probabilities[rows] >= thresholds, probabilities[rows], -1)
    confident = reached.max(1) >= 0
    counted = np.where(confident, reached.argmax(1), labels[rows])
    joint = np.zeros((classes, classes), int)
    np.add.at(joint, (labels[rows][confident], counted[confident]), 1)
    wrong = np.zeros(count, bool)
    wrong[rows] = counted != labels[rows]
    suggestion[rows[wrong[rows]]] = counted[wrong[rows]]
    return LabelErrors(values, wrong, suggestion, joint)


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
    """Decisions: rows with a wrong label are for review, or dropped if their score is high.

    Args:
        found: from `find_label_errors`.
        names: of the classes.
        drop: the score from which a row with a wrong label is dropped.
    """
    names = np.array(names, object)
    action = np.full(len(found.wrong), 'keep', object)
    action[found.wrong] = 'review'
    action[found.wrong & (found.score >= drop)] = 'drop'
    label = np.where(found.wrong, names[found.suggestion], '')
    reason = np.array([f'looks like {name}' if name else '' for name in label], object)
    return Finding('labels', found.score, action, reason, label=label)


def out_of_fold(features: np.ndarray, labels: np.ndarray, *, classes: int, folds: int = 5,
                seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
    """Probabilities by logistic regressions, for each row by a model of other rows: float [N, C].

    Args:
        features: float [N, D]; rows are scaled to length 1 and reduced to 256 components.
        labels: int [N]; rows with -1 are unlabelled: predicted, but not trained on.
        classes: the number of classes, C.
        folds: the number of folds.
        seed: of the folds.
        groups: str [N], '' for none; a group (a drawer, copies) is never on both sides.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    count = len(labels)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    inputs = PCA(min(256, *features.shape), random_state=seed).fit_transform(
        features / np.maximum(lengths, 1e-9))
    alone = np.array([f'\0{row}' for row in range(count)], object)
    groups = alone if groups is None else np.where(groups == '', alone, groups)
    codes = pd.factorize(groups)[0]
    known = labels >= 0
    found = np.zeros((count, classes))
    splits = StratifiedGroupKFold(min(folds, len(np.unique(codes))), shuffle=True,
                                  random_state=seed)
    for train, test in splits.split(inputs, np.where(known, labels, 0), codes):
        train = train[known[train]]
        model = LogisticRegression(C=20, max_iter=200)
        model.fit(inputs[train], labels[train])
        found[np.ix_(test, model.classes_)] = model.predict_proba(inputs[test])
    return found
