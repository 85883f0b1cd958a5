"""Scores of a multi-label head from its logits: one sigmoid per class. NumPy, no JAX.

Targets are uint8 [N, C] as in `LabelSets.targets`: 1 for a class that applies, 0 for another,
`UNLABELLED` throughout for a row without a label, which is left out everywhere. A class is
predicted where its probability is at least its threshold.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from input_pipeline.label_sets import UNLABELLED
from train_lib.metrics.scores import BINS, expected_calibration_error, reliability_of

HALF = 0.5  # the threshold where none was fitted
DECIDED = ('accuracy', 'precision_macro', 'recall_macro', 'f1_macro', 'precision_micro',
           'recall_micro', 'f1_micro', 'f1_examples')  # what thresholds decide
_NAMES = (*DECIDED, 'map', 'nll', 'ece', 'brier')


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64, stable for logits of any size."""
    logits = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def predicted_sets(logits: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """Which classes are predicted, bool [N, C]; thresholds float [C], None for 0.5 each."""
    return sigmoid(logits) >= (HALF if thresholds is None else thresholds)


def set_scores(logits: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | None = None,
               bins: int = BINS) -> dict:
    """Scores of N rows, as plain int and float (JSON-ready).

    Args:
        logits: float [N, C], finite.
        targets: uint8 [N, C].
        thresholds: float [C]; None: 0.5.
        bins: of the calibration error.

    Returns:
        n: number of labelled rows. With n = 0 all others are None.
        accuracy: share of rows whose predicted set is exactly theirs (subset accuracy).
        precision_macro, recall_macro, f1_macro: means over the classes that occur among the labels
            or the predictions; a ratio with denominator 0 counts as 0.
        precision_micro, recall_micro, f1_micro: of all decisions together.
        f1_examples: mean over rows of 2 |A and B| / (|A| + |B|) of the sets A of labels and B of
            predictions; 1 where both are empty.
        map: mean over the classes that have a row of the average precision (`average_precision`).
        nll: mean over rows of the negative log likelihood of the whole set, the classes taken as
            independent: the sum over classes of the binary cross-entropy, in nats.
        ece: calibration error of the probabilities of all classes together: bins of the
            probability, their mean against the share of rows to which the class applies.
        brier: mean over rows of the sum over classes of (probability - target)^2.
    """
    logits, targets = labelled_rows(logits, targets)
    if not len(targets):
        return {'n': 0, **dict.fromkeys(_NAMES)}
    probs, truth = sigmoid(logits), targets.astype(bool)
    precision = average_precision(logits, targets)
    seen = ~np.isnan(precision)
    # log(1 + e^z) - t z, stable.
    nll = np.logaddexp(0.0, logits.astype(np.float64)) - truth * logits
    found = decided(predicted_sets(logits, thresholds), truth)
    found.update(map=float(precision[seen].mean()) if seen.any() else None,
                 nll=float(nll.sum(1).mean()),
                 ece=expected_calibration_error(
                     reliability_of(probs.ravel(), truth.ravel(), bins)),
                 brier=float(((probs - truth) ** 2).sum(1).mean()))
    return {'n': len(targets)} | {name: found[name] for name in _NAMES}


def decided(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The scores `DECIDED`, of predicted sets and labels, bool [N, C] both; N > 0."""
    right, said, there = ((predicted & truth).sum(0), predicted.sum(0), truth.sum(0))
    occurs = (said + there) > 0

    def ratio(a, b):
        return np.where(b > 0, a / np.maximum(b, 1), 0.0)

    def mean(values):
        return float(values[occurs].mean()) if occurs.any() else 0.0

    both, sizes = (predicted & truth).sum(1), predicted.sum(1) + truth.sum(1)
    return dict(
        accuracy=float((predicted == truth).all(1).mean()),
        precision_macro=mean(ratio(right, said)), recall_macro=mean(ratio(right, there)),
        f1_macro=mean(ratio(2 * right, said + there)),
        precision_micro=float(ratio(right.sum(), said.sum())),
        recall_micro=float(ratio(right.sum(), there.sum())),
        f1_micro=float(ratio(2 * right.sum(), (said + there).sum())),
        f1_examples=float(np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0).mean()))


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class, float64 [C]: the sum over distinct scores, from the highest,
    of the gain in recall times the precision there, as scikit-learn's `average_precision_score`;
    NaN for a class without a row. Rows are labelled."""
    found = np.full(targets.shape[1], np.nan)
    for place in range(targets.shape[1]):
        truth = targets[:, place] == 1
        if not truth.any():
            continue
        order = np.argsort(-scores[:, place], kind='stable')
        values, hits = scores[order, place], np.cumsum(truth[order])
        last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # of equal scores
        gains = np.diff(hits[last], prepend=0) / hits[-1]
        found[place] = np.sum(gains * hits[last] / (last + 1))
    return found


def labelled_rows(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks both and returns the rows that have a label.

    Raises:
        ValueError: shapes that do not fit, or logits that are not finite.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(f'Logits of shape {logits.shape} and targets of shape {targets.shape} do '
                         f'not fit: give [N, C] for both.')
    known = is_labelled(targets)
    if not known.all():
        logits, targets = logits[known], targets[known]
    if not np.isfinite(logits).all():
        raise ValueError('Some logits are not finite: the model has diverged, use an earlier '
                         'checkpoint.')
    return logits, targets


def is_labelled(truth: np.ndarray) -> np.ndarray:
    """Which rows have a label, bool [N], of `Manifest.truth` of any head: labels int [N] or targets
    uint8 [N, C]."""
    if truth.ndim == 1:
        return truth >= 0
    return (truth != UNLABELLED).all(axis=1)


def set_table(logits: np.ndarray, targets: np.ndarray, classes: Sequence[str],
              predicted: np.ndarray | None = None) -> pd.DataFrame:
    """One row per class, in the order of `classes`: class, n (rows that have it), ap (NaN without
    such rows), precision, recall and f1 (NaN where undefined), missed and added (rows where it was
    left out, or predicted wrongly).

    Args:
        logits: float [N, C], of labelled rows.
        targets: uint8 [N, C].
        classes: C names.
        predicted: bool [N, C]; None: at the threshold 0.5.
    """
    truth = targets == 1
    predicted = predicted_sets(logits) if predicted is None else predicted
    right, said, there = (predicted & truth).sum(0), predicted.sum(0), truth.sum(0)

    def ratio(a, b):
        return np.where(b > 0, a / np.maximum(b, 1), np.nan)

    return pd.DataFrame({
        'class': pd.Series(list(classes), dtype=object), 'n': there,
        'ap': average_precision(logits, targets), 'precision': ratio(right, said),
        'recall': ratio(right, there), 'f1': ratio(2 * right, said + there),
        'missed': there - right, 'added': said - right})


def confident_set_errors(logits: np.ndarray, targets: np.ndarray,
                         predicted: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows of [N] whose predicted set is not theirs, the most confident first; the class of each
    that is most confidently wrong). `predicted` as in `set_table`; rows may be unlabelled."""
    predicted = predicted_sets(logits) if predicted is None else predicted
    known = np.flatnonzero(is_labelled(targets))
    wrong = predicted[known] != (targets[known] == 1)
    far = np.where(wrong, np.abs(sigmoid(logits[known]) - targets[known]), -1.0)
    rows = np.flatnonzero(wrong.any(1))
    rows = rows[np.argsort(-far[rows].max(axis=1, initial=-1.0), kind='stable')]
    return known[rows], far[rows].argmax(axis=1)
