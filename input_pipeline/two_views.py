"""Two views of unlabelled pictures, a weak and a strong one, beside the labelled ones of a batch.

They come in an endless order of their own: position p belongs to step p // batch_size. The order is
a function of (seed, epoch), and what a view looks like of (seed, epoch, id, view): so threads,
workers, hosts and resuming change nothing, as in loader.py.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from input_pipeline.curriculum import Stage, stage_at
from input_pipeline.decode import UnreadableImage
from input_pipeline.errors import DataError
from input_pipeline.loader import LoaderSpec, Shard, example_keys, example_rng
from input_pipeline.manifest import Manifest
from input_pipeline.order import Order, Walk
from input_pipeline.pictures import Pictures, PreprocessSpec
from input_pipeline.transforms import Transform

WEAK, STRONG = 'unlabelled/weak', 'unlabelled/strong'  # in a batch: uint8 [U, height, width, C]
TRUTH = 'unlabelled/truth/'  # and the head: int32 [U], -1 where no label is known
# The purposes of their random streams; loader.py has another one.
_PURPOSES = {WEAK: 6, STRONG: 7}
_SEED_OF_ORDER = 1 << 64  # is added to the seed, so that the order is none of labelled pictures

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """What the two views show.

    Attributes:
        batch_size: pictures per step, over all processes.
        weak: stages of the weak view: the transforms that apply at each step.
        strong: transforms of the strong view. Both are drawn for the picture itself.
        seed: of the order and the views.
        truth: add the labels that are known, for metrics; nothing may learn from them.
    """

    batch_size: int
    weak: Sequence[Stage]
    strong: tuple[Transform, ...]
    seed: int
    truth: bool = False


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """step -> this process's part of the unlabelled pictures of a batch; a class because worker
    processes pickle it."""

    pictures: Pictures
    truth: dict[str, np.ndarray]
    keys: np.ndarray
    order: Order
    spec: ViewSpec
    shard: Shard
    drop: bool

    def __call__(self, step: int) -> dict:
        positions = self.shard.positions(int(step), self.spec.batch_size)
        weak = self.spec.weak[stage_at(self.spec.weak, step)]
        stages = {WEAK: weak, STRONG: Stage(0, self.spec.strong)}
        images = {name: np.empty((len(positions), *self.pictures.shape), np.uint8)
                  for name in stages}
        rows = []
        for place, position in enumerate(positions):
            epoch, row, _ = self.order(position)
            row, *views = self._views(stages, epoch, row)
            rows.append(row)
            for name, view in zip(stages, views):
                images[name][place] = view
        return images | {TRUTH + head: labels[rows] for head, labels in self.truth.items()}

    def _views(self, stages: dict[str, Stage], epoch: int, row: int) -> tuple:
        """(the row that is shown, its views); a picture that can no longer be read makes room for
        the next one that can."""
        for other in (row, *range(row + 1, len(self.keys)), *range(row)):
            try:
                return other, *(self.pictures.augmented(other, stage, example_rng(
                    self.spec.seed, epoch, self.keys[other], purpose=_PURPOSES[name]))
                    for name, stage in stages.items())
            except UnreadableImage as error:
                if not self.drop:
                    raise
                _log.warning('Unlabelled image %r %s: the next one is shown in its place.',
                             self.pictures.location(other), error.reason)
        raise DataError('No unlabelled image can be read any more: restore the files.')


def two_views(manifest: Manifest, prepared: PreprocessSpec, spec: ViewSpec, *,
              shard: Shard, loading: LoaderSpec) -> TwoViews:
    """The function of a step that `loader.train_iterator` takes as `beside`.

    Args:
        manifest: N unlabelled rows, in an order that does not depend on where they were read.
        prepared: size and resizing of the pictures.
        spec: what the views show.
        shard: the part of each batch that this process loads.
        loading: how batches are made; only `cache_mb` and `unreadable` are used.

    Returns:
        step -> {WEAK: uint8 [u, height, width, channels], STRONG: likewise, and with spec.truth
        TRUTH + head: int32 [u]}, u = batch_size / processes.

    Raises:
        UnreadableImage, from the iterator: a picture cannot be read, with unreadable='error'.
        DataError, from the iterator: none of them can, with 'drop'.
    """
    count = len(manifest)
    order = Order(Walk(count, spec.seed + _SEED_OF_ORDER, np.arange(count), np.array([count]),
                       np.array([count])))
    truth = {head: manifest.labels(head) for head in manifest.heads} if spec.truth else {}
    return TwoViews(Pictures(manifest, prepared, loading.cache_mb), truth, example_keys(manifest),
                    order, spec, shard, loading.unreadable == 'drop')
