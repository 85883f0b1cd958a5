"""The logits of several members for the same rows, read block by block. NumPy only.

`AlignedLogits.read` is the one place where stored logits become probabilities.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train_lib.ensembles.rules import RuleInputs
from train_lib.runtime.errors import ConfigError

# Members x rows x classes of a block: so few that one member's part stays in the second cache, and
# so many that threads seldom wait for each other's short steps.
BLOCK_CELLS = 1 << 21


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
        shape = (len(members), part.stop - part.start, self.num_classes)
        log_probs, probs = np.empty(shape, dtype), np.empty(shape, dtype)
        votes = np.empty(shape[:2], np.int32)
        stored = [self.of_member(member, part) for member in members]
        for i, member in enumerate(members):
            votes[i], total = _softmax(stored[i], log_probs[i], probs[i], (member, part.start))
            log_probs[i] -= np.log(total)
        return RuleInputs(probs, votes, log_probs, stored)

    def read_probs(self, part: slice, dtype: type) -> np.ndarray:
        """The probabilities of all members, as `read` makes them, [M, B, C]."""
        shape = (part.stop - part.start, self.num_classes)
        shifted, probs = np.empty(shape, dtype), np.empty((self.count, *shape), dtype)
        for member in range(self.count):
            _softmax(self.of_member(member, part), shifted, probs[member], (member, part.start))
        return probs

    @property
    def _rows(self) -> Sequence[np.ndarray | None]:
        return [None] * self.count if self.rows is None else self.rows


def _softmax(stored: np.ndarray, shifted: np.ndarray, probs: np.ndarray, where: tuple[int, int]
             ) -> tuple[np.ndarray, np.ndarray]:
    """Fills `shifted` with logits minus the largest of their row, and `probs`, all [B, C].

    Args:
        where: for the error: the member, and the number of the first row.

    Returns:
        (the class of the largest int [B], the sum [B, 1] by which exp(shifted) was divided).
    """
    _convert(stored, shifted)
    vote = shifted.argmax(-1)
    largest = shifted[np.arange(len(shifted)), vote][:, None]
    # The least and the largest tell it for all; NaN is both.
    if len(shifted) and not (np.isfinite(largest).all() and np.isfinite(shifted.min())):
        row = where[1] + int(np.argmin(np.isfinite(stored).all(1)))
        raise ValueError(f'Member {where[0]} has logits that are not finite, first in row '
                         f'{row}: the model has diverged, leave it out.')
    shifted -= largest
    np.exp(shifted, out=probs)
    total = probs.sum(-1, keepdims=True)
    probs *= 1 / total
    return vote, total


def _convert(stored: np.ndarray, values: np.ndarray) -> None:
    """Copies logits into an array of the same shape and at least the same precision.

    From float16 to float32 by moving the bits, in less than half of NumPy's time: the exponent,
    whose bias differs by 112, is corrected by a product, which is exact also of denormal numbers.
    Infinity and NaN, which this would lose, are copied the usual way.
    """
    if stored.dtype != np.float16 or values.dtype != np.float32:
        values[...] = stored
        return
    codes = stored.view(np.int16)
    if np.count_nonzero((codes & 0x7c00) == 0x7c00):
        values[...] = stored
        return
    moved = values.view(np.int32)
    moved[...] = codes
    moved <<= 13
    moved &= -0x70002000  # the sign and the rest, without the copies of the sign
    values *= np.float32(2.0 ** 112)
