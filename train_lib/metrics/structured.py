"""Scores of classes that have an order, or that are leaves of a tree. NumPy, no JAX."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.class_levels import inner_levels
from train_lib.metrics.scores import softmax

ORDER_SCORES = ('mae', 'mae_median', 'qwk')
_ROWS = 4096  # whose probabilities are computed at once


def ordinal_scores(logits: np.ndarray, labels: np.ndarray, predicted: np.ndarray | None = None, *,
                   distribution: bool = True) -> dict[str, float | None]:
    """How far predictions are from the label, in classes.

    Args:
        logits: float [N, C] of classes in their order.
        labels: int [N]; rows of -1 are left out.
        predicted: int [N]; None: the class of the largest logit.
        distribution: whether the logits stand for probabilities; `mae_median` is None otherwise.

    Returns:
        mae: mean distance of the predicted class, 0 to C - 1.
        mae_median: that of the median of the probabilities, the class with the least expected
            distance, which is how CORN predicts.
        qwk: see `quadratic_kappa`.
        All are None without labels.
    """
    logits, labels, predicted = _known(logits, labels, predicted)
    if not len(labels):
        return dict.fromkeys(ORDER_SCORES)
    return dict(mae=float(np.mean(np.abs(predicted - labels))),
                mae_median=float(np.mean(np.abs(medians(logits) - labels))) if distribution
                else None, qwk=quadratic_kappa(predicted, labels))


def medians(logits: np.ndarray) -> np.ndarray:
    """The median class of the probabilities of logits [N, C], whose expected distance is least;
    the first of two such classes. int64 [N]."""
    return np.concatenate([np.zeros(0, np.int64), *(
        (np.cumsum(softmax(logits[start:start + _ROWS]), 1) < 0.5 - 1e-9).sum(1)
        for start in range(0, len(logits), _ROWS))])


def quadratic_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968) of two ratings, int [N] each, N > 0: 1 -
    the mean squared distance / that of independent ratings of the same frequencies.

    1 where all ratings agree, also if they are all of one class, where the formula is 0 / 0;
    exactly 0 if one of the two is constant and the other differs from it. The sums are whole
    numbers, so that equally good answers never differ by rounding.
    """
    first, second = first.astype(np.int64), second.astype(np.int64)
    n, squared = len(first), int(((first - second) ** 2).sum())
    chance = n * int((first ** 2).sum() + (second ** 2).sum()) \
        - 2 * int(first.sum()) * int(second.sum())
    return 1 - n * squared / chance if squared else 1.0


def level_scores(logits: np.ndarray, labels: np.ndarray, names: Sequence[str],
                 predicted: np.ndarray | None = None, *, distribution: bool = True) -> list[dict]:
    """How often the right node is found on the levels above the classes, from the top.

    Args:
        logits: float [N, C].
        labels: int [N]; rows of -1 are left out.
        names: of the classes, cut into levels at '/'.
        predicted, distribution: as of `ordinal_scores`; `accuracy_summed` is None without it.

    Returns:
        For each level with more than one node and fewer nodes than classes: dict(level, from 1;
        nodes, their number; accuracy of the node of the predicted class; accuracy_summed, of the
        node with the largest sum of probabilities; mistaken, the share of rows whose node is right
        and whose class is wrong). Accuracies are None without labels.
    """
    logits, labels, predicted = _known(logits, labels, predicted)
    found = []
    for level in inner_levels(names):
        depth = 1 + max(name.count('/') for name in level.names)
        about = dict(level=depth, nodes=len(level.names))
        if not len(labels):
            found.append(about | dict(accuracy=None, accuracy_summed=None, mistaken=None))
            continue
        order = np.argsort(level.nodes, kind='stable')
        starts = np.flatnonzero(np.diff(level.nodes[order], prepend=-1))
        summed = np.concatenate([
            np.add.reduceat(softmax(logits[start:start + _ROWS])[:, order], starts, axis=1).argmax(
                1) for start in range(0, len(logits), _ROWS)])
        truth = level.nodes[labels]
        right = level.nodes[predicted] == truth
        found.append(about | dict(
            accuracy=float(right.mean()),
            accuracy_summed=float((summed == truth).mean()) if distribution else None,
            mistaken=float((right & (predicted != labels)).mean())))
    return found


def _known(logits: np.ndarray, labels: np.ndarray, predicted: np.ndarray | None
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits, labels int64, predicted) of the rows with a label; what is predicted without a
    word is the class of the largest logit."""
    known = labels >= 0
    logits = np.asarray(logits)[known]
    return logits, labels[known].astype(np.int64), (
        logits.argmax(1) if predicted is None else np.asarray(predicted)[known])
