"""Logits as answers: the class of each row by name, and its probability."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.atomic_files import atomic_open
from train_lib.metrics.scores import log_softmax, softmax, top_probability


class Answers(NamedTuple):
    """What one head says of N rows.

    Attributes:
        names: the class with the largest logit (the first of equal ones), N texts.
        probability: of that class, float32 [N].
    """

    names: np.ndarray
    probability: np.ndarray


def answers(logits: np.ndarray, classes: Sequence[str]) -> Answers:
    """The answers of logits [N, C] of these C classes; a mean of probabilities is given by its
    logarithm."""
    chosen = np.asarray(logits).argmax(axis=1) if len(logits) else np.zeros(0, int)
    return Answers(np.array(classes, object)[chosen], top_probability(logits).astype(np.float32))


def class_probabilities(logits: np.ndarray) -> np.ndarray:
    """The probability of each class, float32 [N, C]."""
    return softmax(logits).astype(np.float32)


def log_mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The log of the mean probability of several logits [N, C] of the same rows, float32 [N, C];
    the logits themselves if they are alone."""
    if len(parts) == 1:
        return np.asarray(parts[0], np.float32)
    logs = np.stack([log_softmax(one) for one in parts])
    return (np.logaddexp.reduce(logs, axis=0) - np.log(len(parts))).astype(np.float32)


def columns_of(what: str, heads: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(head, name of its column): the plain word for one head, `<what>/<head>` for several."""
    for head in heads:
        yield head, f'{what}/{head}' if len(heads) > 1 else what


def write_answers(path: Path, ids: Sequence[str], labels: Mapping[str, np.ndarray],
                  logits: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]]) -> None:
    """Writes a CSV with id, label, prediction and probability, by head if there are several; whole
    or not at all.

    Args:
        path: the file, in a folder that exists.
        ids: of the rows, N texts.
        labels: {head: int [N]}; -1, for none, becomes an empty field.
        logits: {head: float [N, C]}.
        classes: {head: C names}.
    """
    columns: dict[str, Iterable[str]] = {'id': ids}
    said = {head: answers(logits[head], names) for head, names in classes.items()}
    for head, name in columns_of('label', classes):
        columns[name] = np.array([*classes[head], ''], object)[labels[head]]
    for head, name in columns_of('prediction', classes):
        columns[name] = said[head].names
    for head, name in columns_of('probability', classes):
        columns[name] = said[head].probability.astype(str)  # as few digits as tell it from others
    texts = [*ids, *(name for names in classes.values() for name in names)]
    # Writers leave a bare carriage return unquoted, and readers take it for the end of a line.
    quoting = csv.QUOTE_ALL if any('\r' in text for text in texts) else csv.QUOTE_MINIMAL
    with atomic_open(path) as file:
        writer = csv.writer(file, quoting=quoting, lineterminator='\n')
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
