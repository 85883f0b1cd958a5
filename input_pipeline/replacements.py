"""Training pictures that can no longer be read, and what is shown in their place."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline import decode
from input_pipeline.errors import DataError
from input_pipeline.extra_rows import JoinedPictures
from input_pipeline.manifest import Manifest
from input_pipeline.mirrored_labels import Swap
from input_pipeline.pictures import Pictures

_log = logging.getLogger(__name__)

# The picture of an example, and the swaps of labels that belong to the flips it was drawn with.
Shown = tuple[np.ndarray, Sequence[Swap]]


class Replacements:
    """Which pictures can no longer be read, and what is shown in their place.

    A row is replaced by the next readable row of its class (of the first head, or any row where
    that is a multi-label one; after the last comes the first), with that row's labels. So the
    replacement depends only on the row and on the files. Extra rows are replaced by others of them.
    """

    def __init__(self, manifest: Manifest, found: dict[int, int], extra: Manifest | None = None):
        first = manifest.heads[0]
        self._labels, self._texts = manifest.numbers(first), manifest.texts(first)
        if first in manifest.label_sets:  # few rows have the same set: any other may be shown
            self._labels, self._texts = np.zeros(len(manifest), np.int32), ['any'] * len(manifest)
        if extra is not None:  # as classes of their own; one more is of those without a label
            more = self._labels.max(initial=0) + 2 + extra.numbers(first)
            self._labels = np.append(self._labels, more)
            self._texts = [*self._texts, *extra.texts(first)]
        self.found = found
        self._said: dict[tuple[int, int], object] = {}

    def __call__(self, row: int, show: Callable[[int], Shown],
                 pictures: Pictures | JoinedPictures, error: decode.UnreadableImage
                 ) -> tuple[int, Shown]:
        """(the row shown in its place, what is shown of it)"""
        same = np.flatnonzero(self._labels == self._labels[row])
        after = np.searchsorted(same, row, 'right')
        for other in (*same[after:].tolist(), *same[:after].tolist()):
            try:
                shown = show(other)
            except decode.UnreadableImage:
                continue
            token = object()
            if self._said.setdefault((row, other), token) is token:  # one of several threads
                self.found[row] = other
                _log.warning('Image %r %s: %r is shown in its place (%d replaced so far).',
                             pictures.location(row), error.reason, pictures.location(other),
                             len(self.found))
            return other, shown
        name = self._texts[row] or 'without a label'
        raise DataError(f'No image of the class {name!r} can be read any more (the last one, '
                        f'{pictures.location(row)!r}, {error.reason}): restore the files.')
