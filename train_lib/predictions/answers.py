"""Logits as answers: the class of each row by name, and its probability."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

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


def columns_of(what: str, heads: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(head, name of its column): the plain word for one head, `<what>/<head>` for several."""
    for head in heads:
        yield head, f'{what}/{head}' if len(heads) > 1 else what
