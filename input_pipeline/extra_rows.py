"""Rows that only train, beside the labelled ones, and targets that a label cannot express."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from input_pipeline.curriculum import Stage
from input_pipeline.manifest import Manifest
from input_pipeline.order import Joined, Order, Walk
from input_pipeline.pictures import Pictures, PreprocessSpec, View

FACTOR = 'factor'  # column of a batch: float32 [B], multiplied into the weights of the examples


@dataclasses.dataclass(frozen=True, eq=False)
class SoftRows:
    """A distribution over the classes for some of N rows.

    Attributes:
        values: float [K, C], not negative.
        places: int [N], which of the K belongs to a row; -1 for none.
    """

    values: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    @property
    def width(self) -> int:
        """C."""
        return self.values.shape[1]

    def __getitem__(self, rows) -> np.ndarray:
        """float32 [n, C] of these rows; zeros for a row that has none."""
        places = self.places[rows]
        found = np.zeros((len(places), self.width), np.float32)
        found[places >= 0] = self.values[places[places >= 0]]
        return found

    def after(self, count: int) -> 'SoftRows':
        """The same behind `count` rows that have none."""
        return dataclasses.replace(self, places=np.append(np.full(count, -1), self.places))

    def before(self, count: int) -> 'SoftRows':
        """The same before `count` rows that have none."""
        return dataclasses.replace(self, places=np.append(self.places, np.full(count, -1)))


@dataclasses.dataclass(frozen=True, eq=False)
class Extra:
    """Rows that only train.

    Attributes:
        manifest: of M rows, with the heads and classes of the labelled ones.
        soft: {head: SoftRows of the M}; a row without one goes by its label.
        weight: of each of them in the loss, where a labelled row has 1.
        share: of the examples of a batch; 0 < share < 1.
        start: position (examples since the start of the run) from which on they are shown.
    """

    manifest: Manifest
    soft: Mapping[str, SoftRows]
    weight: float
    share: Fraction
    start: int = 0

    def joined_order(self, order: Order, seed: int) -> Joined:
        """The order of the labelled rows with these in between."""
        count = len(self.manifest)
        own = Order(Walk(count, seed, np.arange(count), np.array([count]), np.array([count])))
        return Joined(order, own, self.start, self.share)

    def columns(self, columns: Mapping[str, np.ndarray], rows: int) -> dict:
        """The columns of all rows, first the `rows` labelled ones, whose columns are given."""
        found: dict = {}
        for name, values in columns.items():
            more = self.manifest.labels(name.removeprefix('label/')) \
                if name.startswith('label/') else np.ones(len(self.manifest), values.dtype)
            found[name] = np.concatenate([values, more])
        if self.weight != 1:
            found[FACTOR] = np.append(np.ones(rows), np.full(len(self.manifest), self.weight)
                                      ).astype(np.float32)
        return found | {f'target/{head}': soft.after(rows) for head, soft in self.soft.items()}


class JoinedPictures:
    """The pictures of two manifests, one after the other; see `pictures.Pictures`."""

    def __init__(self, manifest: Manifest, extra: Manifest, spec: PreprocessSpec,
                 cache_mb: float = 0):
        self._rows = len(manifest)
        share = self._rows / (self._rows + len(extra))
        self._parts = (Pictures(manifest, spec, cache_mb * share),
                       Pictures(extra, spec, cache_mb * (1 - share)))

    def _of(self, row: int) -> tuple[Pictures, int]:
        return (self._parts[0], row) if row < self._rows else (self._parts[1], row - self._rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every picture."""
        return self._parts[0].shape

    def location(self, row: int) -> str:
        """The location of the row's picture."""
        pictures, own = self._of(row)
        return pictures.location(own)

    def draw(self, row: int, stage: Stage, rng: np.random.Generator) -> View:
        """As `Pictures.draw`."""
        pictures, own = self._of(row)
        return pictures.draw(own, stage, rng)._replace(row=row)

    def show(self, view: View, out: np.ndarray | None = None) -> np.ndarray:
        """As `Pictures.show`."""
        pictures, own = self._of(view.row)
        return pictures.show(view._replace(row=own), out)
