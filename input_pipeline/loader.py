"""The Grain graph: from a Manifest to batches of uint8 pictures.

Training walks an endless order of positions (order.py): position p belongs to step
p // batch_size, and a batch may straddle two epochs. What an example looks like is a pure
function of (seed, epoch, id, copy): threads, workers, hosts, folds and resuming change nothing.

A stage without crops works on the picture as evaluation sees it, resized to the model's input,
and only that is cached. A stage with a crop would blow up what resizing threw away, so it works
on the file itself, decoded at the smallest JPEG scale that loses nothing, with crop, resize and
all other geometry in one look-up. Under image.resize=squash, and under the others if the stage
has `random_resized_crop`, the frame of such a stage is the whole picture, as in timm's training;
otherwise it is the padded or centre-cropped picture. Its files are decoded anew each time, except
those of at most twice the input's sides, which are cached whole.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import cv2
import grain
import numpy as np

from input_pipeline import curriculum as curricula
from input_pipeline import decode, sources, transforms
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.order import Order, Walk

# What a random stream is for: streams of different purposes never meet.
_AUGMENT = 2
_CROPS = ('random_resized_crop', 'random_crop', 'center_crop')

cv2.setNumThreads(0)  # Grain's threads are the parallelism; OpenCV's would fight them.

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes the model's input (config.image)."""

    size: int
    resize: str = 'squash'
    border: str = 'edge'
    interpolation: str = 'area'
    crop_pct: float = 1.0
    reduced_decode: bool = True


class Pictures:
    """The pictures of a manifest by row: resized, or as a stage of the curriculum shows them.

    Resized ones are kept in memory if all of them fit, and whole ones, for crops, while they are
    small and fit. Thread-safe: two threads may decode the same row, and both get the same pixels.
    """

    def __init__(self, manifest: Manifest, spec: ImageSpec, cache_mb: float = 0):
        self._locations = manifest.table['location'].to_numpy()
        self._root = manifest.root
        self._spec = spec
        self._cache_bytes = cache_mb * 2**20
        shape = (len(manifest), spec.size, spec.size, 3)
        fits = np.prod(shape, dtype=np.int64) <= self._cache_bytes
        self._cache = np.empty(shape, np.uint8) if fits else None
        self._filled = np.zeros(len(manifest), bool)
        self._whole: dict[int, np.ndarray] = {}
        self._whole_bytes = 0

    def location(self, row: int) -> str:
        """Where the row's picture is."""
        return self._locations[row]

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 [size, size, 3]; the caller must not write to it."""
        if self._cache is not None and self._filled[row]:
            return self._cache[row]
        spec, size = self._spec, (self._spec.size, self._spec.size)
        # Pillow's filters are chosen for their exact pixels, which need the whole picture.
        reduced = spec.reduced_decode and spec.interpolation == 'area'
        picture = sources.read_image(
            self._root, self._locations[row],
            decode.resize_target(size, spec.crop_pct) if reduced else None)
        picture = decode.resize(picture, size, spec.resize, interpolation=spec.interpolation,
                                crop_pct=spec.crop_pct)
        if self._cache is not None:
            self._cache[row] = picture
            self._filled[row] = True
        return picture

    def augmented(self, row: int, stage: curricula.Stage, rng: np.random.Generator) -> np.ndarray:
        """A row in a stage, uint8 [size, size, 3]; the caller must not write to it."""
        spec, size = self._spec, (self._spec.size, self._spec.size)
        if not stage.transforms:
            return self[row]
        crops = [item.kind for item in stage.transforms
                 if item.kind in _CROPS and item.params.get('share', 0) < 1]
        if not crops:
            plan = transforms.draw(stage.transforms, rng, size)
            return transforms.apply(plan, self[row], size, spec.border)
        data, whole, source = self._source(row)
        plan = transforms.draw(stage.transforms, rng, size, source)
        # Not below the input's size: a chain that shrinks the whole may show parts of it larger.
        needed = tuple(map(max, transforms.source_size(plan, size), size))
        framed = ((spec.resize != 'squash' or spec.crop_pct < 1)
                  and 'random_resized_crop' not in crops)
        if whole is None:
            least = decode.resize_target(needed, spec.crop_pct) if framed else needed
            whole = decode.decode(data, name=self._locations[row], tight=not framed,
                                  min_size=least if spec.reduced_decode else None)
        if framed:
            # A larger frame, but no larger than the file is in it.
            limit = (max if spec.resize == 'pad' else min)(whole.shape[:2])
            side = max(min(*needed, math.floor(limit * spec.crop_pct)), spec.size)
            whole = decode.resize(whole, (side, side), spec.resize, crop_pct=spec.crop_pct)
        return transforms.apply(plan, whole, size, spec.border)

    def _source(self, row: int) -> tuple[bytes, np.ndarray | None, tuple[int, int]]:
        """(the file, its whole picture unless decoding may depend on what is needed, (h, w))."""
        if row in self._whole:
            return b'', self._whole[row], self._whole[row].shape[:2]
        location, small = self._locations[row], 2 * self._spec.size
        if sources.scheme_of(location) in sources.DRAWN:
            data, whole = b'', sources.read_image(self._root, location)
        else:
            data = sources.read_bytes(self._root, location)
            source = decode.size_of(data)
            if source and max(source) > small:
                return data, None, source
            whole = decode.decode(data, name=location)
        if max(whole.shape) <= small and self._whole_bytes + whole.nbytes <= self._cache_bytes:
            self._whole[row] = whole
            self._whole_bytes += whole.nbytes
        return data, whole, whole.shape[:2]

    def blank(self) -> np.ndarray:
        """What stands for a picture that cannot be read, uint8 [size, size, 3]."""
        return np.zeros((self._spec.size, self._spec.size, 3), np.uint8)

    def __getstate__(self):
        # A worker process fills a cache of its own.
        return {**self.__dict__, '_filled': np.zeros_like(self._filled), '_whole': {},
                '_whole_bytes': 0, '_cache': None if self._cache is None else self._cache.shape}

    def __setstate__(self, state):
        shape = state['_cache']
        self.__dict__.update(state, _cache=None if shape is None else np.empty(shape, np.uint8))


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
            if self.found.get(row) != other:
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
        for position in range(first, first + local):
            row, picture = self._example(stage, *self.order(position))
            rows.append(row)
            images.add(picture)
        return {'image': images.array,
                **{name: values[rows] for name, values in self.columns.items()}}

    def _example(self, stage: curricula.Stage, epoch: int, row: int, copy: int
                 ) -> tuple[int, np.ndarray]:
        def show(shown: int) -> np.ndarray:
            rng = example_rng(self.seed, epoch, self.keys[row], copy) if stage.transforms else None
            return self.pictures.augmented(shown, stage, rng)

        try:
            return row, show(row)
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

    def __call__(self, batch: int) -> dict:
        index, count = self.shard
        local = self.batch_size // count
        rows = np.arange(local) + (int(batch) * self.batch_size + index * local)
        mask = rows < self.num_rows
        rows = np.minimum(rows, self.num_rows - 1)
        images = _Stack(local)
        for i, row in enumerate(rows.tolist()):
            try:
                images.add(self.pictures[row])
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


def _iterate(batch: Callable, num_batches: int, *, threads: int, workers: int,
             prefetch: int) -> grain.DatasetIterator:
    # A record of Grain's is a whole batch: what Grain does with a record costs as much as half a
    # decoding.
    records = grain.MapDataset.range(num_batches).map(batch)
    options = grain.ReadOptions(num_threads=max(threads, 1), prefetch_buffer_size=max(prefetch, 1))
    dataset = records.to_iter_dataset(options)
    if workers:
        from absl import flags
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags that we don't define.
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)


def train_iterator(manifest: Manifest, spec: ImageSpec, stages: Sequence[curricula.Stage], *,
                   steps: int, batch_size: int, seed: int, order: Order | None = None,
                   shard: tuple[int, int] = (0, 1), threads: int = 2, workers: int = 0,
                   prefetch: int = 8, cache_mb: float = 0, unreadable: str = 'error',
                   replaced: dict[int, int] | None = None) -> grain.DatasetIterator:
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
        cache_mb: pictures are kept in memory up to so many MiB; resized ones if all fit.
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
    return _iterate(batch, steps, threads=threads, workers=workers, prefetch=prefetch)


def eval_dataset(manifest: Manifest, spec: ImageSpec, *, batch_size: int,
                 shard: tuple[int, int] = (0, 1), threads: int = 2, prefetch: int = 4,
                 cache_mb: float = 0, unreadable: str = 'error'
                 ) -> Callable[[], grain.DatasetIterator]:
    """A function that starts one pass over every example, in order, none dropped.

    The last batch is filled up with rows of `mask=False`; with unreadable='drop' a picture that
    broke since the start of the run is such a row too, else it is an error. Batches: as in
    training, and mask=bool [b], row=int32 [b] (the row of the manifest).
    """
    batch = _EvalBatch(Pictures(manifest, spec, cache_mb), _columns(manifest),
                       len(manifest), batch_size, shard, unreadable)
    batches = -(-len(manifest) // batch_size)
    return lambda: _iterate(batch, batches, threads=threads, workers=0, prefetch=prefetch)


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
                  prefetch: int = 4) -> grain.DatasetIterator:
    """Batches dict(image=uint8 [batch_size, size, size, 3]) of all rows in order, looking as
    they do in training in that epoch and stage; only those with the given numbers. The last
    batch of all is filled up with its last row."""
    batch = _ViewBatch(pictures, example_keys(manifest), stage, epoch, seed, batch_size,
                       np.asarray(batches))
    return _iterate(batch, len(batches), threads=threads, workers=0, prefetch=prefetch)
