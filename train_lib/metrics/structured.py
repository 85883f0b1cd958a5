"""Scores of classes that have an order, or that are leaves of a tree. NumPy, no JAX."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.class_levels import inner_levels
from train_lib.metrics.scores import softmax

_ROWS = 4096  # whose probabilities are computed at once


def ordinal_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """How far predictions are from the label, in classes.

    Args:
        logits: float [N, C] of classes in their order.
        labels: int [N]; rows of -1 are left out.

    Returns:
        mae: mean distance of the predicted class, 0 to C - 1.
        mae_median: that of the median of the probabilities, the class with the least expected
            distance, which is how CORN predicts.
        qwk: kappa with quadratic weights (Cohen 1968): 1 for all right, 0 as by chance; None if
            labels and predictions are all of one class.
        All are None without labels.
    """
    known = labels >= 0
    logits, labels = np.asarray(logits)[known], labels[known].astype(np.int64)
    if not len(labels):
        return dict(mae=None, mae_median=None, qwk=None)
    predicted = logits.argmax(1)
    median = np.concatenate([
        (np.cumsum(softmax(logits[start:start + _ROWS]), 1) < 0.5 - 1e-9).sum(1)
        for start in range(0, len(logits), _ROWS)])
    return dict(mae=float(np.mean(np.abs(predicted - labels))),
                mae_median=float(np.mean(np.abs(median - labels))),
                qwk=quadratic_kappa(predicted, labels))


def quadratic_kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Cohen's kappa with quadratic weights of two ratings, int [N] each: 1 - the mean squared
    distance / that of independent ratings of the same frequencies; None where that is 0."""
    first, second = first.astype(float), second.astype(float)
    chance = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return float(1 - np.mean((first - second) ** 2) / chance) if chance else None


def level_scores(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict]:
    """How often the right node is found on the levels above the classes, from the top.

    Args:
        logits: float [N, C].
        labels: int [N]; rows of -1 are left out.
        names: of the classes, cut into levels at '/'.

    Returns:
        For each level with more than one node and fewer nodes than classes: dict(level, from 1;
        nodes, their number; accuracy of the node of the predicted class; accuracy_summed, of the
        node with the largest sum of probabilities; mistaken, the share of rows whose node is right
        and whose class is wrong). Accuracies are None without labels.
    """
    known = labels >= 0
    logits, labels = np.asarray(logits)[known], labels[known].astype(np.int64)
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
        predicted, truth = logits.argmax(1), level.nodes[labels]
        right = level.nodes[predicted] == truth
        found.append(about | dict(
            accuracy=float(right.mean()), accuracy_summed=float((summed == truth).mean()),
            mistaken=float((right & (predicted != labels)).mean())))
    return found
