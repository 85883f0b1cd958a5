"""What soft votes of any weights need of the members' probabilities, and no more.

The likelihood of a vote needs each member's probability of the label. The answer needs only the
classes that can win: a class that every member puts strictly below one and the same other class
loses under all weights. Of 1,000 classes a few are left a row, so selections that try thousands
of weights are exact and cheap.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from train_lib.ensembles.pool import BLOCK_CELLS, check_members, read_block
from train_lib.ensembles.rules import FLOOR, weighted_sum


@dataclasses.dataclass(frozen=True)
class Evidence:
    """N labelled rows of M members.

    Attributes:
        at: int [N], which rows of the vote these are.
        labels: int [N], 0..num_classes-1.
        num_classes: C.
        own: float64 [M, N], the probability of the label.
        starts: int [N + 1]; the contenders of row n are starts[n]:starts[n + 1].
        classes: int32 [T], ascending within a row.
        probs: float32 [M, T], their probabilities.
    """

    at: np.ndarray
    labels: np.ndarray
    num_classes: int
    own: np.ndarray
    starts: np.ndarray
    classes: np.ndarray
    probs: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def members(self) -> int:
        return len(self.own)

    def select(self, index: np.ndarray) -> 'Evidence':
        """The rows at these indices, in this order."""
        lengths = np.diff(self.starts)[index]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        cells = np.arange(starts[-1]) + np.repeat(self.starts[index] - starts[:-1], lengths)
        return Evidence(self.at[index], self.labels[index], self.num_classes,
                        self.own[:, index], starts, self.classes[cells], self.probs[:, cells])

    def predict(self, weights: np.ndarray) -> np.ndarray:
        """Answers of the weighted soft vote, int32 [N]; equal scores go to the lowest class."""
        return self.winners(np.asarray(weights, self.probs.dtype) @ self.probs)

    def winners(self, scores: np.ndarray) -> np.ndarray:
        """The classes of the largest of these scores [T], int32 [N]; the lowest of equal ones."""
        if not len(self):
            return np.empty(0, np.int32)
        largest = np.maximum.reduceat(scores, self.starts[:-1])
        lengths = np.diff(self.starts)
        cells = np.flatnonzero(scores == np.repeat(largest, lengths))
        rows = np.repeat(np.arange(len(self)), lengths)[cells]
        first = np.empty(len(self), np.int64)
        first[rows[::-1]] = cells[::-1]
        return self.classes[first]

    def nll(self, weights: np.ndarray) -> float:
        """Mean negative log likelihood of the weighted soft vote, in nats."""
        return float(-np.log(np.maximum(weights @ self.own, FLOOR)).mean())


def gather_evidence(logits: Sequence, labels: np.ndarray, rows: Sequence | None = None,
                    threads: int = 2) -> Evidence:
    """Evidence of the labelled rows; arguments and errors as in `ballots.vote`."""
    labels = np.asarray(labels)
    _, classes = check_members(logits, rows, labels)
    at = np.flatnonzero(labels >= 0)
    index = [at if rows is None or rows[i] is None else np.asarray(rows[i])[at]
             for i in range(len(logits))]
    step = max(1, BLOCK_CELLS // (len(logits) * classes))
    even = np.full(len(logits), 1 / len(logits))

    def gather(start: int):
        part = slice(start, min(start + step, len(at)))
        probs = read_block(logits, index, part, np.arange(len(logits)), np.float32).probs
        here = np.arange(part.stop - start)
        winner = weighted_sum(probs, even).argmax(1)
        beaten = np.ones(probs.shape[1:], bool)
        for member in probs:
            beaten &= member < member[here, winner][:, None]
        row, kind = np.nonzero(~beaten)
        own = probs[:, here, labels[at[part]]].astype(np.float64)
        lengths = np.bincount(row, minlength=len(here))
        return own, lengths, kind.astype(np.int32), probs[:, row, kind]

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(gather, range(0, len(at), step)))
    if not parts:
        empty = np.zeros((len(logits), 0))
        return Evidence(at, labels[at], classes, empty, np.zeros(1, int),
                        np.zeros(0, np.int32), empty.astype(np.float32))
    own, lengths, kinds, probs = zip(*parts)
    return Evidence(at, labels[at], classes, np.concatenate(own, 1),
                    np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
                    np.concatenate(kinds), np.concatenate(probs, 1))
