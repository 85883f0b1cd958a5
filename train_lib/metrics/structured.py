"""Scores of classes that have an order, or that are leaves of a tree. NumPy, no JAX."""

from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.class_levels import Level, inner_levels
from train_lib.metrics.scores import softmax

ORDER_SCORES = ('mae', 'mae_median', 'qwk')
_ROWS = 4096  # whose probabilities are computed at once
_NAME = 16  # letters of a head in a line


def ordinal_scores(logits: np.ndarray | None, labels: np.ndarray,
                   predicted: np.ndarray | None = None) -> dict[str, float | None]:
    """How far predictions are from the label, in classes.

    Args:
        logits: float [N, C] of classes in their order; None where there are no probabilities, and
            `mae_median` is None then.
        labels: int [N]; rows of -1 are left out.
        predicted: int [N]; None: the class of the largest logit.

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
                mae_median=None if logits is None else
                float(np.mean(np.abs(medians(logits) - labels))),
                qwk=quadratic_kappa(predicted, labels))


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


def level_scores(logits: np.ndarray | None, labels: np.ndarray, names: Sequence[str],
                 predicted: np.ndarray | None = None) -> list[dict]:
    """How often the right node is found on the levels above the classes, from the top.

    Args:
        logits: float [N, C]; None as of `ordinal_scores`, and `accuracy_summed` is None then.
        labels: int [N]; rows of -1 are left out.
        names: of the classes, cut into levels at '/'.
        predicted: int [N]; None: the class of the largest logit.

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
        truth = level.nodes[labels]
        right = level.nodes[predicted] == truth
        summed = None if logits is None else float((_summed(logits, level) == truth).mean())
        found.append(about | dict(
            accuracy=float(right.mean()), accuracy_summed=summed,
            mistaken=float((right & (predicted != labels)).mean())))
    return found


def _summed(logits: np.ndarray, level: Level) -> np.ndarray:
    """The node whose classes have the largest probability together, int64 [N]."""
    order = np.argsort(level.nodes, kind='stable')
    starts = np.flatnonzero(np.diff(level.nodes[order], prepend=-1))
    return np.concatenate([
        np.add.reduceat(softmax(logits[start:start + _ROWS])[:, order], starts, axis=1).argmax(1)
        for start in range(0, len(logits), _ROWS)])


def _known(logits: np.ndarray | None, labels: np.ndarray, predicted: np.ndarray | None
           ) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """(logits, labels int64, predicted) of the rows with a label.

    Raises:
        ValueError: neither logits nor predictions are given.
    """
    if logits is None and predicted is None:
        raise ValueError('There are neither logits nor predictions: give one of them.')
    known = labels >= 0
    logits = None if logits is None else np.asarray(logits)[known]
    chosen = logits.argmax(1) if predicted is None else np.asarray(predicted)[known]
    return logits, labels[known].astype(np.int64), chosen


def structure_lines(found: Mapping) -> list[str]:
    """Scores of orders and levels in words, one line each of at most 80 columns, of the scores of a
    split or of an answer; [] without any."""
    heads = {head: one for head, one in found.items()
             if isinstance(one, Mapping) and {'mae', 'levels'} & set(one)}
    lines = []
    for head, one in (heads or {'': found}).items():
        name = f'{head[:_NAME]}  ' if head else ''
        if one.get('mae') is not None:
            lines.append(f'{name}' + '  '.join(f'{key} {_text(one[key])}' for key in ORDER_SCORES))
        lines += [f'{name}level {level["level"]} accuracy {_text(level["accuracy"])}  by sums '
                  f'{_text(level["accuracy_summed"])}  mistaken {_text(level["mistaken"])}'
                  for level in one.get('levels', ()) if level['accuracy'] is not None]
    return lines


def _text(value: float | None) -> str:
    return '–' if value is None else f'{value:.4f}'
