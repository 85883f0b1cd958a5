"""The Grain graph: from a Manifest to batches of uint8 pictures.

Training walks an endless order of positions (order.py): position p belongs to step
p // batch_size, and a batch may straddle two epochs. What an example looks like is a pure
function of (seed, epoch, id, copy): threads, workers, hosts, folds and resuming change nothing.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from input_pipeline import curriculum as curricula
from input_pipeline import decode
from input_pipeline.batches import Batches
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.order import Order, Walk
from input_pipeline.pictures import ImageSpec, Pictures, View

# What a random stream is for: streams of different purposes never meet.
_AUGMENT = 2
_PLAIN = curricula.Stage(0, ())
# Examples drawn at a time: it is faster to do the same again than things in turn. The files of
# crops are held meanwhile.
_AHEAD = 8

_log = logging.getLogger(__name__)


def example_keys(manifest: Manifest) -> np.ndarray:
    """A number of 64 bits for each row, from its id alone: uint64 [N]. An example keeps it in
    whatever split or order it stands."""
    return np.array([int.from_bytes(hashlib.blake2b(
        name.encode('utf-8', 'surrogateescape'), digest_size=8).digest(), 'little')
        for name in manifest.table['id']], np.uint64)


def example_rng(seed: int, epoch: int, key: int, copy: int = 0) -> np.random.Generator:
    """The generator of one example's augmentation in one epoch; `copy` tells apart the times
    that over-sampling shows it there."""
    philox = np.random.Philox(counter=np.array([0, 0, copy, key], np.uint64),
                              key=np.array([seed, (_AUGMENT << 56) | epoch], np.uint64))
    return np.random.Generator(philox)


class _Replacements:
    """Which pictures can no longer be read, and what is shown in their place.

    A row is replaced by the next readable one of its class (of the first head; after the last
    comes the first), with that row's labels: a function of the row and of the files alone.
    """

    def __init__(self, manifest: Manifest, found: dict[int, int]):
        self._labels = manifest.labels(manifest.heads[0])
        self._names = manifest.classes[manifest.heads[0]]
        self.found = found
        self._said: dict[tuple[int, int], object] = {}

    def __call__(self, row: int, show: Callable[[int], np.ndarray], pictures: Pictures,
                 error: decode.UnreadableImage) -> tuple[int, np.ndarray]:
        """(the row in its place, its picture)"""
        same = np.flatnonzero(self._labels == self._labels[row])
        after = np.searchsorted(same, row, 'right')
        for other in (*same[after:].tolist(), *same[:after].tolist()):
            try:
                picture = show(other)
            except decode.UnreadableImage:
                continue
            token = object()
            if self._said.setdefault((row, other), token) is token:  # once, of several threads
                self.found[row] = other
                _log.warning('Image %r %s: %r is shown in its place (%d replaced so far).',
                             pictures.location(row), error.reason, pictures.location(other),
                             len(self.found))
            return other, picture
        name = self._names[self._labels[row]] if self._labels[row] >= 0 else 'without a label'
        raise DataError(f'No image of the class {name!r} can be read any more (the last one, '
                        f'{pictures.location(row)!r}, {error.reason}): restore the files.')


@dataclasses.dataclass(frozen=True)
class _TrainBatch:
    """step -> batch of this process; a class because worker processes pickle it."""

    pictures: Pictures
    columns: Mapping[str, np.ndarray]
    keys: np.ndarray
    order: Order
    stages: Sequence[curricula.Stage]
    seed: int
    batch_size: int
    shard: tuple[int, int]
    replacements: _Replacements | None

    def __call__(self, step: int) -> dict:
        index, count = self.shard
        local = self.batch_size // count
        first = int(step) * self.batch_size + index * local
        stage = self.stages[curricula.stage_at(self.stages, step)]
        images, rows = _Stack(local), []
        for start in range(first, first + local, _AHEAD):
            examples = [self.order(position)
                        for position in range(start, min(start + _AHEAD, first + local))]
            for view, example in [(self._view(stage, *one), one) for one in examples]:
                row, picture = self._example(stage, view, *example)
                rows.append(row)
                images.add(picture)
        return {'image': images.array,
                **{name: values[rows] for name, values in self.columns.items()}}

    def _view(self, stage: curricula.Stage, epoch: int, row: int, copy: int) -> View | None:
        rng = example_rng(self.seed, epoch, self.keys[row], copy) if stage.transforms else None
        try:
            return self.pictures.draw(row, stage, rng)
        except decode.UnreadableImage:
            return None  # `_example` meets the same

    def _example(self, stage: curricula.Stage, view: View | None, epoch: int, row: int, copy: int
                 ) -> tuple[int, np.ndarray]:
        def show(shown: int) -> np.ndarray:
            rng = example_rng(self.seed, epoch, self.keys[row], copy) if stage.transforms else None
            return self.pictures.augmented(shown, stage, rng)

        try:
            return row, show(row) if view is None else self.pictures.show(view)
        except decode.UnreadableImage as error:
            if self.replacements is None:
                raise
            return self.replacements(row, show, self.pictures, error)


class _Stack:
    """Pictures, written into one array as they come."""

    def __init__(self, length: int):
        self.array: np.ndarray | None = None
        self._length = length
        self._count = 0

    def add(self, picture: np.ndarray) -> None:
        if self.array is None:
            self.array = np.empty((self._length, *picture.shape), picture.dtype)
        self.array[self._count] = picture
        self._count += 1


@dataclasses.dataclass(frozen=True)
class _EvalBatch:
    pictures: Pictures
    columns: Mapping[str, np.ndarray]
    num_rows: int
    batch_size: int
    shard: tuple[int, int]
    unreadable: str
    view: curricula.Stage

    def __call__(self, batch: int) -> dict:
        index, count = self.shard
        local = self.batch_size // count
        rows = np.arange(local) + (int(batch) * self.batch_size + index * local)
        mask = rows < self.num_rows
        rows = np.minimum(rows, self.num_rows - 1)
        images = _Stack(local)
        for i, row in enumerate(rows.tolist()):
            try:
                rng = np.random.default_rng(0) if self.view.transforms else None
                images.add(self.pictures.augmented(row, self.view, rng, exact=True))
            except decode.UnreadableImage as error:
                if self.unreadable == 'error':
                    raise
                mask[i] = False
                images.add(self.pictures.blank())
                _log.warning('Image %r %s: its logits are 0, an answer by chance.',
                             self.pictures.location(row), error.reason)
        return {'image': images.array, 'mask': mask, 'row': rows.astype(np.int32),
                **{name: values[rows] for name, values in self.columns.items()}}


def _columns(manifest: Manifest) -> dict[str, np.ndarray]:
    columns = {f'label/{head}': manifest.labels(head) for head in manifest.heads}
    if 'weight' in manifest.table:
        columns['weight'] = manifest.table['weight'].to_numpy(np.float32)
    return columns


def train_iterator(manifest: Manifest, spec: ImageSpec, stages: Sequence[curricula.Stage], *,
                   steps: int, batch_size: int, seed: int, order: Order | None = None,
                   shard: tuple[int, int] = (0, 1), threads: int = 2, workers: int = 0,
                   prefetch: int = 8, cache_mb: float = 0, unreadable: str = 'error',
                   replaced: dict[int, int] | None = None) -> Batches:
    """An iterator over `steps` training batches of one process.

    Args:
        manifest: the training rows.
        spec: size and resizing of the pictures.
        stages: the curriculum.
        steps: length of the run.
        batch_size: examples a step over all processes.
        seed: of the augmentation, and of the order if none is given.
        order: position -> (epoch, row, copy), of `resampling.make_order`; None: each row once an
            epoch.
        shard: (number of this process, how many processes).
        threads, workers, prefetch: how the work is done; they change no pixel.
        cache_mb: decoded pictures are kept in memory, up to so many MiB (pictures.py).
        unreadable: what becomes of a picture that can no longer be read: 'error', or 'drop':
            the next readable one of its class (of the first head) is shown, with its labels.
        replaced: filled in with {row: row shown in its place}. Worker processes only log them.

    Returns:
        Batches dict(image=uint8 [b, size, size, 3], 'label/<head>'=int32 [b], and weight=float32
        [b] if the manifest has one), b = batch_size / processes. `get_state()` and `set_state()`
        are exact for any number of threads.

    Raises:
        UnreadableImage, from the iterator: a picture, under 'error'.
        DataError, from the iterator: all of a class, under 'drop'.
        WorkerError, from the iterator: workers that die (batches.py).
    """
    if order is None:
        count = len(manifest)
        order = Order(Walk(count, seed, np.arange(count), np.array([count]), np.array([count])))
    replacements = None
    if unreadable == 'drop':
        replacements = _Replacements(manifest, {} if replaced is None else replaced)
    batch = _TrainBatch(
        Pictures(manifest, spec, cache_mb), _columns(manifest), example_keys(manifest), order,
        tuple(stages), seed, batch_size, shard, replacements)
    return Batches(batch, steps, threads=threads, workers=workers, prefetch=prefetch)


def eval_dataset(manifest: Manifest, spec: ImageSpec, *, batch_size: int,
                 shard: tuple[int, int] = (0, 1), threads: int = 2, prefetch: int = 4,
                 cache_mb: float = 0, unreadable: str = 'error',
                 view: curricula.Stage = _PLAIN, pictures: Pictures | None = None
                 ) -> Callable[..., Batches]:
    """A function that starts one pass over every example, in order, none dropped; given a number,
    from that batch on. `view` is how every picture is shown: transforms that draw nothing.
    `pictures` are those of the manifest, if several passes share what they keep.

    The last batch is filled up with rows of `mask=False`; with unreadable='drop' a picture that
    broke since the start of the run is such a row too, else it is an error. Batches: as in
    training, and mask=bool [b], row=int32 [b] (the row of the manifest).
    """
    batch = _EvalBatch(pictures or Pictures(manifest, spec, cache_mb), _columns(manifest),
                       len(manifest), batch_size, shard, unreadable, view)
    batches = -(-len(manifest) // batch_size)
    return lambda first=0: Batches(batch, batches, first=first, threads=threads, prefetch=prefetch)


@dataclasses.dataclass(frozen=True)
class _ViewBatch:
    """number -> batch of pictures as training shows them in one epoch."""

    pictures: Pictures
    keys: np.ndarray
    stage: curricula.Stage
    epoch: int
    seed: int
    batch_size: int
    batches: np.ndarray

    def __call__(self, number: int) -> dict:
        first = int(self.batches[number]) * self.batch_size
        images = _Stack(self.batch_size)
        for row in range(first, first + self.batch_size):
            row = min(row, len(self.keys) - 1)
            images.add(self.pictures.augmented(
                row, self.stage, example_rng(self.seed, self.epoch, self.keys[row])))
        return {'image': images.array}


def view_iterator(pictures: Pictures, manifest: Manifest, stage: curricula.Stage, *, epoch: int,
                  seed: int, batch_size: int, batches: np.ndarray, threads: int = 2,
                  prefetch: int = 4) -> Batches:
    """Batches dict(image=uint8 [batch_size, size, size, 3]) of all rows in order, looking as
    they do in training in that epoch and stage; only those with the given numbers. The last
    batch of all is filled up with its last row."""
    batch = _ViewBatch(pictures, example_keys(manifest), stage, epoch, seed, batch_size,
                       np.asarray(batches))
    return Batches(batch, len(batches), threads=threads, prefetch=prefetch)
