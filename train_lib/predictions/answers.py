"""Logits as answers: the class of each row by name, and its probability."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.atomic_files import atomic_open
from input_pipeline.label_sets import joined
from train_lib.metrics.scores import log_softmax, softmax, top_probability
from train_lib.metrics.set_scores import is_labelled, predicted_sets, sigmoid
from train_lib.metrics.structured import medians


class Answers(NamedTuple):
    """What one head says of N rows.

    Attributes:
        names: the class with the largest logit (the first of equal ones), or the median of ordered
            classes, N texts. Of a multi-label head, the predicted classes between separators; the
            separator alone for none.
        probability: of that class, float32 [N]; or of exactly that set, the classes taken as
            independent.
    """

    names: np.ndarray
    probability: np.ndarray


MEDIAN = 'median'  # how a head of ordered classes may answer, beside its most probable class


class Deciding(NamedTuple):
    """How a multi-label head answers.

    Attributes:
        separator: between the predicted classes.
        thresholds: float [C], probabilities from which a class is predicted; None: 0.5 each.
    """

    separator: str = '|'
    thresholds: np.ndarray | None = None


def answers(logits: np.ndarray, classes: Sequence[str], deciding: Deciding | str | None = None
            ) -> Answers:
    """The answers of logits [N, C] of these C classes; a mean of probabilities is given by its
    logarithm, of a multi-label head (`deciding`) by its logit. `deciding` is MEDIAN for the median
    of ordered classes."""
    if isinstance(deciding, Deciding):
        chosen = predicted_sets(logits, deciding.thresholds)
        # Sums of logarithms: a product of many probabilities would vanish.
        sure = -np.logaddexp(0.0, np.where(chosen, -1.0, 1.0) * np.asarray(logits, np.float64))
        names = [joined(np.flatnonzero(row), classes, deciding.separator) for row in chosen]
        return Answers(np.array(names, object), np.exp(sure.sum(1)).astype(np.float32))
    if deciding == MEDIAN:
        chosen = medians(logits)
        return Answers(np.array(classes, object)[chosen],
                       softmax(logits)[np.arange(len(chosen)), chosen].astype(np.float32))
    chosen = np.asarray(logits).argmax(axis=1) if len(logits) else np.zeros(0, int)
    return Answers(np.array(classes, object)[chosen], top_probability(logits).astype(np.float32))


def class_probabilities(logits: np.ndarray, multi_label: bool = False) -> np.ndarray:
    """The probability of each class, float32 [N, C]."""
    return (sigmoid if multi_label else softmax)(logits).astype(np.float32)


def log_mean(parts: Sequence[np.ndarray], multi_label: bool = False) -> np.ndarray:
    """The log of the mean probability of several logits [N, C] of the same rows, float32 [N, C], of
    a multi-label head the logit of the mean probability of each class; the logits themselves if
    they are alone."""
    if len(parts) == 1:
        return np.asarray(parts[0], np.float32)
    if multi_label:
        # The log of the mean of p and of 1 - p, apart: 1 - p would lose its digits.
        yes, no = (np.logaddexp.reduce([-np.logaddexp(0.0, sign * np.asarray(one, np.float64))
                                        for one in parts], axis=0) for sign in (-1.0, 1.0))
        return (yes - no).astype(np.float32)
    logs = np.stack([log_softmax(one) for one in parts])
    return (np.logaddexp.reduce(logs, axis=0) - np.log(len(parts))).astype(np.float32)


def _texts_of_sets(targets: np.ndarray, names: Sequence[str], separator: str) -> list[str]:
    return [joined(np.flatnonzero(row), names, separator) if known else ''
            for row, known in zip(targets, is_labelled(targets))]


def columns_of(what: str, heads: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(head, name of its column): the plain word for one head, `<what>/<head>` for several."""
    for head in heads:
        yield head, f'{what}/{head}' if len(heads) > 1 else what


def write_answers(path: Path, ids: Sequence[str], labels: Mapping[str, np.ndarray],
                  logits: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]],
                  deciding: Mapping[str, Deciding | str] | None = None) -> None:
    """Writes a CSV with id, label, prediction and probability, by head if there are several; whole
    or not at all.

    Args:
        path: the file, in a folder that exists.
        ids: of the rows, N texts.
        labels: {head: int [N]}; -1, for none, becomes an empty field. Of a multi-label head targets
            uint8 [N, C].
        logits: {head: float [N, C]}.
        classes: {head: C names}.
        deciding: of the multi-label heads, and of those that answer their MEDIAN.
    """
    columns: dict[str, Iterable[str]] = {'id': ids}
    deciding = deciding or {}
    said = {head: answers(logits[head], names, deciding.get(head))
            for head, names in classes.items()}
    for head, name in columns_of('label', classes):
        how = deciding.get(head)
        columns[name] = (_texts_of_sets(labels[head], classes[head], how.separator)
                         if isinstance(how, Deciding) else
                         np.array([*classes[head], ''], object)[labels[head]])
    for head, name in columns_of('prediction', classes):
        columns[name] = said[head].names
    for head, name in columns_of('probability', classes):
        columns[name] = said[head].probability.astype(str)  # as few digits as tell it from others
    texts = [*ids, *(name for names in classes.values() for name in names)]
    # Writers leave a bare carriage return unquoted, and readers take it for the end of a line.
    bare = any('\r' in text for text in texts)
    with atomic_open(path) as file:
        writer = csv.writer(file, lineterminator='\n',
                            quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
