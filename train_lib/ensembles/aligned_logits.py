"""The logits of several members for the same rows, read block by block. NumPy only.

`AlignedLogits.read` is the one place where stored logits become probabilities.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train_lib.ensembles.rules import RuleInputs
from train_lib.runtime.errors import ConfigError

BLOCK_CELLS = 1 << 20  # members x rows x classes of a block: a few MB, which stay in the cache


@dataclasses.dataclass(frozen=True)
class AlignedLogits:
    """Logits of M members for the same N rows and C classes.

    The arrays stay as they are, mostly memory maps; nothing is read before `read` or `of_member`.

    Attributes:
        members: M arrays [N_m, C].
        rows: per member int [N], where to find row i, or None: its rows as they are. None: the
            rows of all members as they are.
    """

    members: Sequence
    rows: Sequence[np.ndarray | None] | None = None

    @property
    def count(self) -> int:
        """M."""
        return len(self.members)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.members[0].shape[1]

    @property
    def dtype(self) -> type:
        """What votes are computed in: float32 for float16 logits, float64 for all others."""
        return np.float32 if all(member.dtype == np.float16 for member in self.members) \
            else np.float64

    def check(self, labels: np.ndarray | None = None) -> tuple[int, int]:
        """(N, C), after checking that the members and the labels fit each other.

        Args:
            labels: int [N] in -1..C-1, or None.

        Raises:
            ConfigError: there are no members.
            ValueError: shapes that differ, fewer than 2 classes, a label outside.
        """
        if not len(self.members):
            raise ConfigError('The vote has no members: give at least one.')
        sizes = {len(member if rows is None else rows)
                 for member, rows in zip(self.members, self._rows)}
        if labels is not None:
            sizes.add(len(labels))
        widths = {member.shape[1:] for member in self.members}
        if len(sizes) > 1 or len(widths) > 1 or len(next(iter(widths))) != 1:
            raise ValueError(f'The members have {sorted(sizes)} rows (labels included) and shapes '
                             f'{sorted(widths)} per row: they must agree.')
        size, (classes,) = sizes.pop(), widths.pop()
        if classes < 2:
            raise ValueError('A vote needs at least 2 classes.')
        if labels is not None and size and not -1 <= np.min(labels) <= np.max(labels) < classes:
            raise ValueError(f'Labels range from {np.min(labels)} to {np.max(labels)}, but there '
                             f'are {classes} classes: use 0 to {classes - 1}, or -1 for none.')
        return size, classes

    def take(self, rows: np.ndarray) -> 'AlignedLogits':
        """The same members at these of the N rows, int [n]."""
        return AlignedLogits(self.members, [rows if own is None else np.asarray(own)[rows]
                                            for own in self._rows])

    def of_member(self, member: int, part: slice = slice(None)) -> np.ndarray:
        """The logits of one member at the rows `part` of N, [n, C] of its own dtype."""
        rows = self._rows[member]
        return np.asarray(self.members[member][part if rows is None else rows[part]])

    def read(self, part: slice, members: Sequence[int] | np.ndarray, dtype: type
             ) -> RuleInputs:
        """Probabilities, votes and log probabilities of these members at the rows `part` of N.

        Raises:
            ValueError: logits that are not finite.
        """
        size = part.stop - part.start
        shape = (len(members), size, self.num_classes)
        values, log_probs, probs = (np.empty(shape, dtype) for _ in range(3))
        votes = np.empty(shape[:2], np.int32)
        for i, member in enumerate(members):
            values[i] = self.of_member(member, part)
            votes[i] = values[i].argmax(-1)
            largest = values[i][np.arange(size), votes[i]][:, None]
            if not np.isfinite(values[i]).all():
                row = part.start + int(np.argmin(np.isfinite(values[i]).all(1)))
                raise ValueError(f'Member {member} has logits that are not finite, first in row '
                                 f'{row}: the model has diverged, leave it out.')
            np.subtract(values[i], largest, out=log_probs[i])
            np.exp(log_probs[i], out=probs[i])
            total = probs[i].sum(-1, keepdims=True)
            probs[i] *= 1 / total
            log_probs[i] -= np.log(total)
        return RuleInputs(probs, votes, log_probs, values)

    @property
    def _rows(self) -> Sequence[np.ndarray | None]:
        return [None] * self.count if self.rows is None else self.rows
