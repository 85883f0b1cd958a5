"""The Grain graph: from a Manifest to batches of uint8 pictures.

Training walks an endless order of positions: position p belongs to epoch p // n and to
step p // batch_size, and a batch may straddle two epochs, so every example is seen exactly
once an epoch. What an example looks like is a pure function of (seed, epoch, id): threads,
workers, hosts, folds and resuming change nothing.
"""

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence

import cv2
import grain
import numpy as np

from input_pipeline import curriculum as curricula
from input_pipeline import decode, sources, transforms, warp  # noqa: F401
from input_pipeline.manifest import Manifest

# What a random stream is for: streams of different purposes never meet.
_ORDER, _AUGMENT = 1, 2

cv2.setNumThreads(0)  # Grain's threads are the parallelism; OpenCV's would fight them.


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
    """Decoded and resized pictures by row, kept in memory if all of them fit.

    Thread-safe: two threads may decode the same row, and both get the same pixels.
    """

    def __init__(self, manifest: Manifest, spec: ImageSpec, cache_mb: float = 0):
        self._locations = manifest.table['location'].to_numpy()
        self._root = manifest.root
        self._spec = spec
        shape = (len(manifest), spec.size, spec.size, 3)
        fits = np.prod(shape, dtype=np.int64) <= cache_mb * 2**20
        self._cache = np.empty(shape, np.uint8) if fits else None
        self._filled = np.zeros(len(manifest), bool)

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

    def __getstate__(self):
        # A worker process fills a cache of its own.
        return {**self.__dict__, '_filled': np.zeros_like(self._filled),
                '_cache': None if self._cache is None else self._cache.shape}

    def __setstate__(self, state):
        shape = state['_cache']
        self.__dict__.update(state, _cache=None if shape is None else np.empty(shape, np.uint8))


class Order:
    """The endless order of training: position -> (epoch, row). O(1), shuffled anew each epoch."""

    def __init__(self, num_rows: int, seed: int):
        self._num_rows = num_rows
        self._seed = seed
        self._permutations: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self._num_rows)
        order = self._permutations.get(epoch)
        if order is None:
            with self._lock:
                rng = np.random.default_rng((self._seed, _ORDER, epoch))
                order = rng.permutation(self._num_rows)
                # Threads work on two neighbouring epochs at most.
                self._permutations = {key: value for key, value in self._permutations.items()
                                      if abs(key - epoch) <= 1} | {epoch: order}
        return epoch, int(order[offset])

    def __getstate__(self):
        return self._num_rows, self._seed

    def __setstate__(self, state):
        self.__init__(*state)


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


def _augment(picture: np.ndarray, stage: curricula.Stage, rng: np.random.Generator,
             border: str) -> np.ndarray:
    size = picture.shape[:2]
    return transforms.apply(transforms.draw(stage.transforms, rng, size), picture, size, border)


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    """position of this process -> record; a class because worker processes pickle it."""

    pictures: Pictures
    columns: Mapping[str, np.ndarray]
    keys: np.ndarray
    order: Order
    stages: Sequence[curricula.Stage]
    border: str
    seed: int
    batch_size: int
    shard: tuple[int, int]

    def __call__(self, local_position: int) -> dict:
        index, count = self.shard
        local_batch = self.batch_size // count
        step, offset = divmod(int(local_position), local_batch)
        position = step * self.batch_size + index * local_batch + offset
        epoch, row = self.order(position)
        picture = self.pictures[row]
        stage = self.stages[curricula.stage_at(self.stages, step)]
        if stage.transforms:
            rng = example_rng(self.seed, epoch, self.keys[row])
            picture = _augment(picture, stage, rng, self.border)
        return {'image': picture, **{name: values[row] for name, values in self.columns.items()}}


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    pictures: Pictures
    columns: Mapping[str, np.ndarray]
    num_rows: int
    batch_size: int
    shard: tuple[int, int]

    def __call__(self, local_position: int) -> dict:
        index, count = self.shard
        local_batch = self.batch_size // count
        batch, offset = divmod(int(local_position), local_batch)
        row = batch * self.batch_size + index * local_batch + offset
        inside = row < self.num_rows
        row = min(row, self.num_rows - 1)
        return {'image': self.pictures[row], 'mask': np.bool_(inside), 'row': np.int32(row),
                **{name: values[row] for name, values in self.columns.items()}}


def _columns(manifest: Manifest) -> dict[str, np.ndarray]:
    columns = {f'label/{head}': manifest.labels(head) for head in manifest.heads}
    if 'weight' in manifest.table:
        columns['weight'] = manifest.table['weight'].to_numpy(np.float32)
    return columns


def _iterate(example: Callable, num_local: int, local_batch: int, *, threads: int, workers: int,
             prefetch: int) -> grain.DatasetIterator:
    records = grain.MapDataset.range(num_local).map(example).batch(local_batch)
    # Grain's units: whole batches of a map dataset are elements that threads make ahead.
    options = grain.ReadOptions(num_threads=max(threads, 1), prefetch_buffer_size=max(prefetch, 1))
    dataset = records.to_iter_dataset(options)
    if workers:
        from absl import flags
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags that we don't define.
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)


def train_iterator(manifest: Manifest, spec: ImageSpec, stages: Sequence[curricula.Stage], *,
                   steps: int, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1),
                   threads: int = 2, workers: int = 0, prefetch: int = 8,
                   cache_mb: float = 0) -> grain.DatasetIterator:
    """An iterator over `steps` training batches of one process.

    Args:
        manifest: the training rows.
        spec: size and resizing of the pictures.
        stages: the curriculum.
        steps: length of the run.
        batch_size: examples a step over all processes.
        seed: of order and augmentation.
        shard: (number of this process, how many processes).
        threads, workers, prefetch: how the work is done; they change no pixel.
        cache_mb: decoded pictures are kept in memory if all fit into this many MiB.

    Returns:
        Batches dict(image=uint8 [b, size, size, 3], 'label/<head>'=int32 [b], and weight=float32
        [b] if the manifest has one), b = batch_size / processes. `get_state()` and `set_state()`
        are exact for any number of threads.
    """
    example = _TrainExample(
        Pictures(manifest, spec, cache_mb), _columns(manifest), example_keys(manifest),
        Order(len(manifest), seed),
        tuple(stages), spec.border, seed, batch_size, shard)
    local = batch_size // shard[1]
    return _iterate(example, steps * local, local,
                    threads=threads, workers=workers, prefetch=prefetch)


def eval_dataset(manifest: Manifest, spec: ImageSpec, *, batch_size: int,
                 shard: tuple[int, int] = (0, 1), threads: int = 2, prefetch: int = 4,
                 cache_mb: float = 0) -> Callable[[], grain.DatasetIterator]:
    """A function that starts one pass over every example, in order, none dropped.

    The last batch is filled up with rows of `mask=False`. Batches: as in training, and
    mask=bool [b], row=int32 [b] (the row of the manifest).
    """
    example = _EvalExample(Pictures(manifest, spec, cache_mb), _columns(manifest),
                           len(manifest), batch_size, shard)
    local = batch_size // shard[1]
    batches = -(-len(manifest) // batch_size)
    return lambda: _iterate(example, batches * local, local,
                            threads=threads, workers=0, prefetch=prefetch)


@dataclasses.dataclass(frozen=True)
class _ViewExample:
    """position -> picture as training shows it in one epoch."""

    pictures: Pictures
    keys: np.ndarray
    stage: curricula.Stage
    epoch: int
    seed: int
    border: str
    batch_size: int
    batches: np.ndarray

    def __call__(self, position: int) -> dict:
        batch, offset = divmod(int(position), self.batch_size)
        row = min(int(self.batches[batch]) * self.batch_size + offset, len(self.keys) - 1)
        picture = self.pictures[row]
        if self.stage.transforms:
            rng = example_rng(self.seed, self.epoch, self.keys[row])
            picture = _augment(picture, self.stage, rng, self.border)
        return {'image': picture}


def view_iterator(pictures: Pictures, manifest: Manifest, stage: curricula.Stage, *, epoch: int,
                  seed: int, batch_size: int, batches: np.ndarray, border: str,
                  threads: int = 2, prefetch: int = 4) -> grain.DatasetIterator:
    """Batches dict(image=uint8 [batch_size, size, size, 3]) of all rows in order, looking as
    they do in training in that epoch and stage; only those with the given numbers. The last
    batch of all is filled up with its last row."""
    example = _ViewExample(pictures, example_keys(manifest), stage, epoch, seed, border,
                           batch_size, np.asarray(batches))
    return _iterate(example, len(batches) * batch_size, batch_size, threads=threads, workers=0,
                    prefetch=prefetch)
