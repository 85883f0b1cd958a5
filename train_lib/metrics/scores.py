"""Scores of a classifier from its logits. NumPy and scikit-learn, no JAX.

Rows with label -1 are unlabelled and left out everywhere. All sums are made in
float64 over blocks of rows, so 50,000 x 1,000 logits need little memory.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from train_lib.metrics.confusions import Confusions, count_pairs

BINS = 15
_BLOCK, _CELLS = 4096, 1 << 16  # rows and cells computed at once, at most
_NAMES = ('accuracy', 'precision_macro', 'recall_macro', 'f1_macro', 'nll', 'ece', 'brier')


def log_softmax(logits) -> np.ndarray:
    """Log probabilities, float64 [..., C], stable for logits of any size."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def softmax(logits) -> np.ndarray:
    """Probabilities, float64 [..., C]."""
    return np.exp(log_softmax(logits))


def confident_errors(logits, labels) -> np.ndarray:
    """Rows of [N] whose largest logit is not their label, the most confident first."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    wrong = np.flatnonzero((logits.argmax(axis=1) != labels) & (labels >= 0))
    return wrong[np.argsort(-top_probability(logits[wrong]), kind='stable')]


def top_probability(logits) -> np.ndarray:
    """The largest probability of each row, float64 [N]."""
    return np.concatenate([np.zeros(0), *(softmax(logits[part]).max(axis=1)
                                          for part in _blocks(logits))])


def _blocks(logits: np.ndarray) -> Iterator[slice]:
    """The rows of [N, C] in blocks whose float64 copies stay in the processor's cache."""
    rows = max(1, min(_BLOCK, _CELLS // max(1, logits.shape[1])))
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)


def scores(logits, labels, bins: int = BINS) -> dict:
    """Scores of N classified examples, as plain int and float (JSON-ready).

    Args:
        logits: float [N, C], finite.
        labels: int [N] in -1..C-1; rows of -1 are left out.
        bins: number of equal-width bins of the calibration error.

    Returns:
        n: number of labelled rows. With n = 0 all others are None.
        accuracy: share of rows whose largest logit (the first of equal ones) is the label, 0..1.
        precision_macro, recall_macro, f1_macro: unweighted means over the classes that
            occur among the labels or the predictions (scikit-learn's default, so the
            numbers equal `f1_score(labels, predictions, average='macro')`). A ratio with
            denominator 0 counts as 0. A class that occurs in neither, as happens in small
            splits, is left out of the mean.
        nll: mean negative log likelihood of the label, in nats.
        ece: expected calibration error of the top probability (Guo et al. 2017,
            arXiv 1706.04599), bins (lower, upper], 0..1.
        brier: mean of the squared distance between the probabilities and the one-hot
            label, summed over the classes, 0..2 (Brier 1950).
        top5: share of rows whose label is among the five largest logits; only if C > 5.

    Raises:
        ValueError: shapes that do not fit, a label outside -1..C-1, logits that are not finite.
    """
    logits, labels = _labelled(logits, labels)
    return summary(per_row(logits, labels), labels, logits.shape[1], bins)


def summary(rows: Mapping[str, np.ndarray | None], labels: np.ndarray, num_classes: int,
            bins: int = BINS) -> dict:
    """What `scores` returns, from what each of N labelled rows contributes.

    Args:
        rows: predicted int [N]; rank int [N], of the label among the classes, from 0;
            confidence, nll and brier float [N], or None for all three if there are no
            probabilities, and their scores are then None.
        labels: int [N] in 0..num_classes-1.
    """
    names = _NAMES + (('top5',) if num_classes > 5 else ())
    if not len(labels):
        return {'n': 0, **dict.fromkeys(names)}
    right = rows['predicted'] == labels
    from sklearn.metrics import precision_recall_fscore_support  # not before the first step

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, rows['predicted'], average='macro', zero_division=0)
    values = {'accuracy': np.mean(right), 'top5': np.mean(rows['rank'] < 5),
              'precision_macro': precision, 'recall_macro': recall, 'f1_macro': f1}
    if rows['confidence'] is not None:
        table = reliability_of(rows['confidence'], right, bins)
        values.update(nll=np.mean(rows['nll']), brier=np.mean(rows['brier']),
                      ece=expected_calibration_error(table))
    return {'n': len(labels),
            **{name: float(values[name]) if name in values else None for name in names}}


def confusion(logits, labels, num_classes: int) -> np.ndarray:
    """Confusion matrix, int64 [C, C]: rows are true classes, columns predicted ones."""
    return confusions(logits, labels, num_classes).matrix()


def confusions(logits, labels, num_classes: int) -> Confusions:
    """What `confusion` returns, as the cells above 0; for any number of classes."""
    logits, labels = _labelled(logits, labels)
    if logits.shape[1] != num_classes:
        raise ValueError(
            f'The logits have {logits.shape[1]} columns, but there are {num_classes} classes.')
    return count_pairs(labels, logits.argmax(axis=1), num_classes)


def class_table(logits, labels, classes: Sequence[str]) -> pd.DataFrame:
    """One row per class, in the order of `classes`.

    Columns: class (str), n (int, labelled examples), precision, recall, f1 (0..1; recall
    and F1 are NaN for a class without examples, precision for one that also was never
    predicted), mistaken_for (the class most often predicted for its examples instead; the
    first at a tie, '' for none) and mistaken (how often that happened).
    """
    found = confusions(logits, labels, len(classes))
    count, predicted, right = found.totals, found.predictions, found.right
    absent, unseen = count == 0, (count + predicted) == 0
    precision = np.where(unseen, np.nan, right / np.maximum(predicted, 1))
    recall = np.where(absent, np.nan, right / np.maximum(count, 1))
    f1 = np.where(absent, np.nan, 2 * right / np.maximum(count + predicted, 1))
    other, mistaken = np.zeros((2, len(classes)), np.int64)
    wrong = found.wrong()
    # The most frequent one of a class is written last, of equal ones the first.
    order = wrong[np.lexsort((-found.predicted[wrong], found.count[wrong]))]
    other[found.true[order]] = found.predicted[order]
    mistaken[found.true[order]] = found.count[order]
    mistaken_for = [classes[k] if m else '' for k, m in zip(other, mistaken)]
    # Folder names may hold bytes that are not UTF-8, which Arrow strings refuse: plain objects.
    return pd.DataFrame({
        'class': pd.Series(list(classes), dtype=object), 'n': count,
        'precision': precision, 'recall': recall, 'f1': f1,
        'mistaken_for': pd.Series(mistaken_for, dtype=object), 'mistaken': mistaken,
    })


def reliability(logits, labels, bins: int = BINS) -> pd.DataFrame:
    """One row per bin of the top probability: lower, upper, n, confidence, accuracy.

    `confidence` is the mean top probability in the bin; both `confidence` and `accuracy` are NaN
    in an empty bin. A probability on an edge belongs to the lower bin.
    """
    logits, labels = _labelled(logits, labels)
    rows = per_row(logits, labels)
    return reliability_of(rows['confidence'], rows['predicted'] == labels, bins)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """ECE of a `reliability` table: |accuracy - confidence|, weighted by n, 0..1."""
    total = table['n'].sum()
    if not total:
        return float('nan')
    gap = (table['accuracy'] - table['confidence']).abs().fillna(0.0)
    return float((gap * table['n']).sum() / total)


def wilson_interval(rate: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a rate in n independent trials (Wilson 1927), two floats 0..1."""
    if n <= 0:
        return 0.0, 1.0
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def _labelled(logits, labels) -> tuple[np.ndarray, np.ndarray]:
    """Checks both and returns the rows that have a label."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or not logits.shape[1] or labels.shape != logits.shape[:1]:
        raise ValueError(
            f'Logits of shape {logits.shape} and labels of shape {labels.shape} do not fit: '
            f'give [N, C] with C > 0 and [N].')
    labels = labels.astype(np.int64)
    wrong = np.flatnonzero((labels < -1) | (labels >= logits.shape[1]))
    if len(wrong):
        raise ValueError(
            f'Row {wrong[0]} has label {labels[wrong[0]]}, but there are {logits.shape[1]} '
            f'classes: use 0 to {logits.shape[1] - 1}, or -1 for none.')
    keep = labels >= 0
    if not keep.all():
        logits, labels = logits[keep], labels[keep]
    finite = np.concatenate([np.zeros(0, bool), *(np.isfinite(logits[part]).all(axis=1)
                                                  for part in _blocks(logits))])
    if not finite.all():
        row = np.flatnonzero(keep)[np.argmin(finite)]
        raise ValueError(
            f'{(~finite).sum()} of {len(finite)} rows of logits are not finite (the first is '
            f'row {row}): the model has diverged, use an earlier checkpoint.')
    return logits, labels


def per_row(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What each row of finite logits [N, C] with labels int [N] contributes, for `summary`."""
    size = len(labels)
    rows: dict[str, np.ndarray] = {'predicted': np.empty(size, np.int64),
                                   'rank': np.empty(size, np.int64)}
    rows.update({name: np.empty(size) for name in ('confidence', 'nll', 'brier')})
    for part in _blocks(logits):
        log_probs, truth = log_softmax(logits[part]), labels[part]
        probs, here = np.exp(log_probs), np.arange(len(truth))
        own = logits[part][here, truth][:, None]
        # Equal logits rank by their class, as argmax does, so that rank 0 means correct.
        before = np.arange(logits.shape[1]) < truth[:, None]
        rows['rank'][part] = np.sum(
            (logits[part] > own) | ((logits[part] == own) & before), axis=1)
        rows['predicted'][part] = logits[part].argmax(axis=1)
        rows['confidence'][part] = probs.max(axis=1)
        rows['nll'][part] = -log_probs[here, truth]
        # The one-hot label is subtracted in place: 1 - p would lose digits when squared apart.
        probs[here, truth] -= 1.0
        rows['brier'][part] = np.sum(probs * probs, axis=1)
    return rows


def reliability_of(confidence: np.ndarray, right: np.ndarray, bins: int) -> pd.DataFrame:
    """As `reliability`, of confidences float [N] and whether each was right, bool [N]."""
    if bins < 1:
        raise ValueError(f'bins is {bins}: use at least 1.')
    edges = np.linspace(0.0, 1.0, bins + 1)
    where = np.clip(np.searchsorted(edges, confidence, side='left') - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    # Empty bins divide by NaN, which gives NaN without a warning.
    divisor = np.where(count, count, np.nan)
    return pd.DataFrame({
        'lower': edges[:-1], 'upper': edges[1:], 'n': count,
        'confidence': np.bincount(where, confidence, minlength=bins) / divisor,
        'accuracy': np.bincount(where, right.astype(float), minlength=bins) / divisor,
    })
