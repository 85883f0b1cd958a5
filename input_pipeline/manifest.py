"""The Manifest: one row per image. Everything before the loader is a pure function from
Manifest to Manifest.

Columns of `Manifest.table` (a pandas DataFrame with a plain 0..n-1 index):

    id            str, unique and stable: the name by which rows are joined
    location      str, where the picture is: a path relative to `root`, an
                  absolute path, or `<scheme>:<rest>` for sources without files
    label/<head>  int, index into `classes[head]`, or, where pictures have several labels of a head,
                  into `label_sets[head]`; -1 means unlabelled
    group         str, optional: person, drawer, duplicate group; a row with '' is a group
                  of its own
    weight        float, optional: weight of the example in the loss
    split         str, optional: 'train', 'val' or 'test'
    content       str, optional: digest of the picture's bytes, '' if it was not read, where rows
                  may show the same picture (`same_files`)
    truth/<what>  optional: what was planted on purpose, for scoring detectors
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Mapping

import numpy as np
import pandas as pd

from input_pipeline.errors import DataError, listed
from input_pipeline.label_sets import LabelSets
from input_pipeline.sixteen_bits import FULL, Range

SPLITS = ('train', 'val', 'test')
CONTENT = 'content'


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A table of pictures, the class names of each head, where the files are, which values of
    16-bit ones become black and white, and the sets of labels of each multi-label head."""

    table: pd.DataFrame
    classes: Mapping[str, tuple[str, ...]]
    root: str = ''
    range16: Range = FULL
    label_sets: Mapping[str, LabelSets] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads, in their order."""
        return tuple(self.classes)

    def labels(self, head: str) -> np.ndarray:
        """Labels of one head, int32 [N].

        Raises:
            DataError: its pictures have several labels each, which whoever asks does not know; who
                does asks for `truth`.
        """
        if head in self.label_sets:
            raise DataError(f'The head {head!r} has several labels per picture, and this needs one '
                            f'per picture: name another head, or leave it out.')
        return self.numbers(head)

    def numbers(self, head: str) -> np.ndarray:
        """The column of one head, int32 [N]: its label, or the number of its set of labels; -1 for
        an unlabelled row of either."""
        return self.table[f'label/{head}'].to_numpy(np.int32)

    def truth(self, head: str) -> np.ndarray:
        """What predictions of one head are compared with: labels int32 [N], or of a multi-label
        head targets uint8 [N, C], see `LabelSets.targets`."""
        if head in self.label_sets:
            return self.label_sets[head].targets(self.numbers(head))
        return self.labels(head)

    def texts(self, head: str) -> list[str]:
        """The label of each row by name, or several between separators; '' for none."""
        names = self.classes[head]
        if head in self.label_sets:
            return self.label_sets[head].texts(self.numbers(head), names)
        return [names[label] if label >= 0 else '' for label in self.labels(head)]

    def select(self, rows) -> 'Manifest':
        """The manifest of some rows, given as a boolean mask or as positions, in that order."""
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        return dataclasses.replace(
            self, table=self.table.iloc[rows].reset_index(drop=True))

    def with_column(self, name: str, values) -> 'Manifest':
        """The manifest with one column added or replaced."""
        return dataclasses.replace(self, table=self.table.assign(**{name: values}))


def make_manifest(columns: Mapping[str, object], classes: Mapping[str, tuple[str, ...]],
                  root: str = '', label_sets: Mapping[str, LabelSets] | None = None) -> Manifest:
    """Checks the columns and builds a Manifest.

    Raises:
        DataError: there are no rows, two rows have the same id, a label is out of range, or two
            classes look alike.
    """
    table = pd.DataFrame(dict(columns)).reset_index(drop=True)
    if not len(table):
        raise DataError(f'No images were found in {root or "the source"!r}: check the path.')
    table['id'] = table['id'].astype(str)
    doubled = table['id'][table['id'].duplicated(keep=False)]
    if len(doubled):
        first = doubled.iloc[0]
        places = table['location'][table['id'] == first].tolist()
        raise DataError(
            f'Two images have the id {first!r} ({places[0]} and {places[1]}): '
            f'give every image its own id.')
    classes = {head: tuple(str(name) for name in names) for head, names in classes.items()}
    for head, names in classes.items():
        _refuse_lookalikes(head, names)
        column = f'label/{head}'
        labels = table[column].to_numpy(np.int64)
        several = (label_sets or {}).get(head)
        if several is not None and several.table.shape[1] != len(names):
            raise DataError(f'The sets of labels of the head {head!r} have '
                            f'{several.table.shape[1]} classes, and there are {len(names)}.')
        most = len(names) if several is None else len(several.table)
        wrong = np.flatnonzero((labels < -1) | (labels >= most))
        if len(wrong):
            row = wrong[0]
            raise DataError(
                f'Image {table["id"][row]!r} has label {labels[row]} for head {head!r}, '
                f'which has {most} classes: use 0 to {most - 1}, or -1 for none.')
        table[column] = labels.astype(np.int32)
    return Manifest(table=table, classes=classes, root=root, label_sets=dict(label_sets or {}))


def _refuse_lookalikes(head: str, names: tuple[str, ...]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize('NFC', name), name)
        if other != name:
            raise DataError(f'The classes {other!a} and {name!a} of the head {head!r} look alike '
                            f'({listed([name])}), because their accents are composed in two '
                            f'ways (Unicode NFC and NFD): write both the same way.')


def digest(manifest: Manifest) -> str:
    """SHA-256 over the meaning of the data: ids, labels, groups, weights, class names.

    Rows are taken in the order of their ids, and locations are left out. So a copied or
    packed data set keeps its digest.
    """
    table = manifest.table.sort_values('id', kind='stable')
    hasher = hashlib.sha256()

    def feed(*parts: str) -> None:
        for part in parts:
            data = part.encode('utf-8', 'surrogateescape')
            hasher.update(len(data).to_bytes(8, 'little'))
            hasher.update(data)

    feed('id', *table['id'])
    for head in sorted(manifest.classes):
        feed('classes', head, *manifest.classes[head])
        numbers = table[f'label/{head}'].to_numpy('<i4')
        if head in manifest.label_sets:  # not their numbers, which say nothing by themselves
            feed('several labels')
            hasher.update(manifest.label_sets[head].targets(numbers).tobytes())
        else:
            hasher.update(numbers.tobytes())
    if 'group' in table:
        feed('group', *table['group'].astype(str))
    if 'weight' in table:
        hasher.update(table['weight'].to_numpy('<f8').tobytes())
    return hasher.hexdigest()


def class_counts(manifest: Manifest, head: str, times: np.ndarray | None = None) -> np.ndarray:
    """Number of images per class, int64 [C]; unlabelled rows are not counted. With `times`, float
    [N], which says how often each row comes, float64 [C]. Images of a multi-label head count once
    for each of their labels."""
    if head in manifest.label_sets:
        numbers, table = manifest.numbers(head), manifest.label_sets[head].table
        known = numbers >= 0
        found = np.bincount(numbers[known], None if times is None else times[known],
                            minlength=len(table)) @ table
        return found if len(table) else np.zeros(table.shape[1], found.dtype)
    labels = manifest.labels(head)
    known = labels >= 0
    return np.bincount(labels[known], None if times is None else times[known],
                       minlength=len(manifest.classes[head]))
