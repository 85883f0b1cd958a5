"""What a soft vote of any weights needs of the members' probabilities, and no more.

Its likelihood needs each member's probability of the label. Its answer needs only the candidates,
the classes that can win: a class that all members put strictly below one and the same other class
loses under all weights. Of 1,000 classes a few per row remain, so searches that try thousands of
weights are exact and cheap.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from train_lib.ensembles import aligned_logits
from train_lib.ensembles.aligned_logits import AlignedLogits
from train_lib.ensembles.rules import FLOOR, weighted_sum


@dataclasses.dataclass(frozen=True)
class CandidateProbs:
    """Probabilities of M members for N labelled rows: of the label and of the candidates.

    Attributes:
        rows: int [N], which rows of the vote these are.
        labels: int [N], 0..num_classes-1.
        num_classes: C.
        label_probs: float64 [M, N], the probability of the label.
        starts: int [N + 1]; the candidates of row n are starts[n]:starts[n + 1].
        classes: int32 [T], the candidates, ascending within a row.
        probs: float32 [M, T], their probabilities.
    """

    rows: np.ndarray
    labels: np.ndarray
    num_classes: int
    label_probs: np.ndarray
    starts: np.ndarray
    classes: np.ndarray
    probs: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def members(self) -> int:
        """M."""
        return len(self.label_probs)

    def select(self, index: np.ndarray) -> 'CandidateProbs':
        """The rows at these indices, in this order."""
        lengths = np.diff(self.starts)[index]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        cells = np.arange(starts[-1]) + np.repeat(self.starts[index] - starts[:-1], lengths)
        return CandidateProbs(self.rows[index], self.labels[index], self.num_classes,
                              self.label_probs[:, index], starts, self.classes[cells],
                              self.probs[:, cells])

    def of_members(self, members: np.ndarray) -> 'CandidateProbs':
        """Only these members: their indices, or bool [M]."""
        return dataclasses.replace(self, label_probs=self.label_probs[members],
                                   probs=self.probs[members])

    def predict(self, weights: np.ndarray) -> np.ndarray:
        """Answers of the weighted soft vote, int32 [N]; equal scores go to the lowest class."""
        return self.winners(np.asarray(weights, self.probs.dtype) @ self.probs)

    def winners(self, scores: np.ndarray) -> np.ndarray:
        """The class of the largest of these scores [T] in each row, int32 [N]; the lowest of
        equal ones."""
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
        return float(-np.log(np.maximum(weights @ self.label_probs, FLOOR)).mean())


def find_candidates(logits: AlignedLogits | Sequence, labels: np.ndarray, threads: int = 2
                    ) -> CandidateProbs:
    """The candidates of the labelled rows; arguments and errors as in `pool.vote`."""
    if not isinstance(logits, AlignedLogits):
        logits = AlignedLogits(logits)
    labels = np.asarray(labels)
    _, classes = logits.check(labels)
    rows = np.flatnonzero(labels >= 0)
    labelled = logits.take(rows)
    step = max(1, aligned_logits.BLOCK_CELLS // (logits.count * classes))
    even = np.full(logits.count, 1 / logits.count)

    def find(start: int) -> tuple[np.ndarray, ...]:
        part = slice(start, min(start + step, len(rows)))
        probs = labelled.read_probs(part, np.float32)
        here = np.arange(part.stop - start)
        winner = weighted_sum(probs, even).argmax(1)
        beaten = np.ones(probs.shape[1:], bool)
        for member in probs:
            beaten &= member < member[here, winner][:, None]
        cells = np.flatnonzero(~beaten)
        row, kind = np.divmod(cells, classes)
        label_probs = probs[:, here, labels[rows[part]]].astype(np.float64)
        lengths = np.bincount(row, minlength=len(here))
        return (label_probs, lengths, kind.astype(np.int32),
                np.take(probs.reshape(len(probs), -1), cells, axis=1))

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(find, range(0, len(rows), step)))
    if not parts:
        empty = np.zeros((logits.count, 0))
        return CandidateProbs(rows, labels[rows], classes, empty, np.zeros(1, int),
                              np.zeros(0, np.int32), empty.astype(np.float32))
    label_probs, lengths, kinds, probs = zip(*parts)
    return CandidateProbs(rows, labels[rows], classes, np.concatenate(label_probs, 1),
                          np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
                          np.concatenate(kinds), np.concatenate(probs, 1))
