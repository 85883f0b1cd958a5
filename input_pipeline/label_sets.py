"""Heads whose pictures have several labels each: every row has a set of classes.

The manifest keeps the number of a row's set, as it keeps the number of a class elsewhere, and
`LabelSets` says which classes each set has. The empty set, no class applies, is a label like any
other; a row that nobody looked at is unlabelled, -1.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

UNLABELLED = 255  # in the targets of a row without a label, uint8


@dataclasses.dataclass(frozen=True, eq=False)
class LabelSets:
    """The different sets of labels of one head.

    Attributes:
        table: bool [S, C], the classes of each set; S may be 0.
        separator: between the labels of a picture, where they are written in one text.
    """

    table: np.ndarray
    separator: str = '|'

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of sets, int [N], as uint8 [N, C]: 1 for a label of the row, 0 for another class,
        and `UNLABELLED` throughout for the number -1."""
        padded = np.concatenate([self.table.astype(np.uint8),
                                 np.full((1, self.table.shape[1]), UNLABELLED, np.uint8)])
        return padded[numbers]

    def texts(self, numbers: np.ndarray, names: Sequence[str]) -> list[str]:
        """Each row's labels as one text: '' if it is unlabelled, the separator for no label."""
        written = [joined(np.flatnonzero(row), names, self.separator) for row in self.table]
        return [written[number] if number >= 0 else '' for number in numbers]

    def moved(self, places: Sequence[int | None], classes: int) -> 'LabelSets':
        """The same sets for classes in another order; a class whose place is None is left out.

        Args:
            places: [C], where each class is among the others.
            classes: how many these are.
        """
        table = np.zeros((len(self.table), classes), bool)
        for here, there in enumerate(places):
            if there is not None:
                table[:, there] = self.table[:, here]
        return dataclasses.replace(self, table=table)


def joined(classes: Iterable[int], names: Sequence[str], separator: str) -> str:
    """Some classes as one text; the separator alone stands for none."""
    return separator.join(names[place] for place in classes) or separator


def numbered(rows: Sequence[Iterable[int] | None], classes: int, separator: str = '|'
             ) -> tuple[np.ndarray, LabelSets]:
    """(number of each row's set, int32 [N]; the sets, in an order that depends on them alone).

    Args:
        rows: the classes of each row, None for an unlabelled one.
        classes: how many there are.
        separator: see `LabelSets`.
    """
    found = [None if row is None else tuple(sorted(set(row))) for row in rows]
    sets = sorted({row for row in found if row is not None})
    number = {row: place for place, row in enumerate(sets)}
    table = np.zeros((len(sets), classes), bool)
    for place, row in enumerate(sets):
        table[place, list(row)] = True
    return (np.array([-1 if row is None else number[row] for row in found], np.int32),
            LabelSets(table, separator))


def float_targets(targets: np.ndarray) -> np.ndarray:
    """uint8 targets as the loss takes them: float32, an unlabelled row is -1 throughout."""
    return np.where(targets == UNLABELLED, np.float32(-1), targets.astype(np.float32))


class TargetRows:
    """The targets of many rows, made when they are asked for: numbers of sets take a fraction of
    the memory. `rows[places]` is float32 [n, C], see `float_targets`."""

    def __init__(self, numbers: np.ndarray, sets: LabelSets):
        self._numbers = numbers
        self._table = float_targets(sets.targets(np.append(np.arange(len(sets.table)), -1)))

    def __getitem__(self, places) -> np.ndarray:
        return self._table[self._numbers[places]]
