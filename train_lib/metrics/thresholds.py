"""Thresholds of the classes of a multi-label head, fitted on validated rows, and what they are
worth on rows that they were not fitted on.

The score of thresholds on the rows that they were fitted on would be too good. So it is nested: the
rows are cut into parts, groups kept whole, and each part is decided by thresholds of the others.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from train_lib.metrics.set_scores import (
    DECIDED,
    HALF,
    decided,
    is_labelled,
    labelled_rows,
    sigmoid,
)

PARTS = 5
LEAST = 10  # rows with a label, and without it, for a threshold of the class's own


def fit_thresholds(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The threshold of each class with the largest F1 on these rows, float64 [C].

    A class to which fewer than `LEAST` rows belong, or all but so few, has too little to fit one:
    such classes share the threshold that is best for all classes together, by micro F1. The best
    one of a few rows is mostly very low, and then the class is answered everywhere.

    Args:
        logits: float [N, C].
        targets: uint8 [N, C]; unlabelled rows are left out.
    """
    logits, targets = labelled_rows(logits, targets)
    found = np.full(targets.shape[1], _best(logits.ravel(), targets.ravel()))
    for place, truth in enumerate(targets.T):
        if LEAST <= truth.sum() <= len(truth) - LEAST:
            found[place] = _best(logits[:, place], truth)
    return found


def _best(logits: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the largest F1, in the middle between two probabilities; of equally good
    ones the nearest to 0.5. Without a row that has the label, or one that has not, 0.5."""
    there = int(truth.sum())
    if not 0 < there < len(truth):
        return HALF
    order = np.argsort(-logits, kind='stable')
    values, hits = sigmoid(logits[order]), np.cumsum(truth[order], dtype=np.int64)
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # of equal probabilities
    f1 = 2 * hits[last] / (last + 1 + there)
    middle = (values[last] + np.append(values[1:], 0.0)[last]) / 2
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    return float(middle[best[np.argmin(np.abs(middle[best] - HALF))]])


def nested_sets(logits: np.ndarray, targets: np.ndarray, units: Sequence[str], parts: int = PARTS
                ) -> np.ndarray | None:
    """Each row's set as decided by thresholds of the other parts of the rows, bool [N, C]; None for
    fewer than two units.

    Args:
        logits: float [N, C].
        targets: uint8 [N, C]; unlabelled rows fit nothing.
        units: of each row, its group or its id: rows of one unit are in one part.
        parts: how many.
    """
    labelled = is_labelled(targets)
    part = _parts_of(units, labelled, parts)
    if len(set(part[labelled].tolist())) < 2:
        return None
    predicted = np.zeros(targets.shape, bool)
    for number in range(part.max() + 1):
        here = part == number
        chosen = fit_thresholds(logits[~here], targets[~here])
        predicted[here] = sigmoid(logits[here]) >= chosen
    return predicted


def nested_scores(logits: np.ndarray, targets: np.ndarray, units: Sequence[str]
                  ) -> dict[str, float | None]:
    """The scores `set_scores.DECIDED` of thresholds that were fitted on other rows; None each where
    there are too few rows. Arguments as in `nested_sets`."""
    predicted = nested_sets(logits, targets, units)
    if predicted is None:
        return dict.fromkeys(DECIDED)
    labelled = is_labelled(targets)
    return dict(decided(predicted[labelled], targets[labelled].astype(bool)))


def by_class(thresholds: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """{class: threshold}, as result.json keeps them."""
    return dict(zip(classes, map(float, thresholds)))


def in_order(stored: Mapping[str, float], classes: Sequence[str]) -> np.ndarray:
    """What `by_class` made, as float64 [C]; 0.5 for a class that it lacks."""
    return np.array([float(stored.get(name, HALF)) for name in classes])


def _parts_of(units: Sequence[str], labelled: np.ndarray, parts: int) -> np.ndarray:
    """Part of each row, int [N]: the units that have a label are dealt in the order of their
    digests, so it depends on nothing else."""
    def digest(unit: str) -> bytes:
        return hashlib.sha256(unit.encode('utf-8', 'surrogateescape')).digest()

    named = [str(unit) for unit in units]
    order = sorted({unit for unit, known in zip(named, labelled) if known}, key=digest)
    number = {unit: place % parts for place, unit in enumerate(order)}
    return np.array([number.get(unit, 0) for unit in named])
