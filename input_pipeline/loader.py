"""The Grain graph: from a Manifest to batches of uint8 pictures.

Training walks an endless order of positions (order.py): position p belongs to step
p // batch_size, and a batch may extend over two epochs. What an example looks like is a pure
function of (seed, epoch, id, copy): threads, workers, hosts, folds and resuming change nothing.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from input_pipeline import curriculum as curricula
from input_pipeline import decode
from input_pipeline.batches import Batches
from input_pipeline.extra_rows import Extra, JoinedPictures, SoftRows
from input_pipeline.label_sets import TargetRows
from input_pipeline.manifest import Manifest
from input_pipeline.mirrored_labels import Swap, mirror, partners_of
from input_pipeline.order import Joined, Order, Walk
from input_pipeline.pictures import Pictures, PreprocessSpec, View
from input_pipeline.replacements import Replacements, Shown

# The purpose of a random stream: streams of different purposes never meet.
_AUGMENT = 2
_PLAIN = curricula.Stage(0, ())
# Examples drawn at a time: repeating one kind of work is faster than alternating between two.
# The files of crops stay in memory meanwhile.
_AHEAD = 8
# Batches made ahead at most outside of training, where batches are often larger.
_EVAL_PREFETCH = 4

_log = logging.getLogger(__name__)


class _Unseeded(ISeedSequence):
    """Seeds a generator whose state is set afterwards: NumPy would ask the system for entropy,
    which takes longer than drawing what a picture needs."""

    def generate_state(self, n_words, dtype=np.uint32):
        return np.zeros(n_words, dtype)


_UNSEEDED = _Unseeded()
_UNUSED = {'buffer': (0, 0, 0, 0), 'buffer_pos': 4, 'has_uint32': 0, 'uinteger': 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """How batches are made (config.loader, and two keys of other sections).

    Attributes:
        threads: threads that read, decode and warp, per process or per worker.
        workers: processes that make training batches; 0: the threads of this process do.
        prefetch: batches made ahead, at most 4 of them outside of training.
        cache_mb: MiB of decoded pictures that are kept in memory (pictures.py).
        unreadable: what becomes of a picture that can no longer be read: 'error' raises. With
            'drop', training shows the next readable picture of its class (of the first head)
            with that picture's labels, and evaluation masks the row.
    """

    threads: int = 2
    workers: int = 0
    prefetch: int = 8
    cache_mb: float = 0
    unreadable: str = 'error'


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of every batch that one process loads: number `index` of `count` equal parts."""

    index: int = 0
    count: int = 1

    def positions(self, batch: int, batch_size: int) -> range:
        """The positions of this part of a batch; `batch_size` is that of all processes."""
        local = batch_size // self.count
        first = batch * batch_size + self.index * local
        return range(first, first + local)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """What a training shows, from its first step to its last.

    Attributes:
        stages: the curriculum.
        steps: length of the run.
        seed: of the augmentation, and of the order if none is given.
        order: position -> (epoch, row, copy), from `resampling.make_order`; None: each row once
            per epoch.
        extra: rows that only train; None for none.
        teacher: {head: what a teacher says of the training rows}, 'teacher/<head>' in batches.
    """

    stages: Sequence[curricula.Stage]
    steps: int
    seed: int
    order: Order | None = None
    extra: Extra | None = None
    teacher: Mapping[str, SoftRows] = dataclasses.field(default_factory=dict)


def example_keys(manifest: Manifest) -> np.ndarray:
    """A 64-bit number for each row, from its id alone: uint64 [N]. It does not depend on the
    split or the order of the rows."""
    return np.array([int.from_bytes(hashlib.blake2b(
        name.encode('utf-8', 'surrogateescape'), digest_size=8).digest(), 'little')
        for name in manifest.table['id'].tolist()], np.uint64)


def example_rng(seed: int, epoch: int, key: int, copy: int = 0, purpose: int = _AUGMENT
                ) -> np.random.Generator:
    """The generator of one example's augmentation in one epoch; `copy` numbers the times that
    over-sampling shows the example in that epoch, `purpose` the stream."""
    philox = np.random.Philox(_UNSEEDED)
    philox.state = {'bit_generator': 'Philox', **_UNUSED,
                    'state': {'counter': (0, 0, copy, int(key)),
                              'key': (seed, (purpose << 56) | epoch)}}
    return np.random.Generator(philox)


@dataclasses.dataclass(frozen=True)
class _TrainBatch:
    """step -> this process's part of the batch; a class because worker processes pickle it."""

    pictures: Pictures | JoinedPictures
    columns: Mapping[str, Any]
    keys: np.ndarray
    order: Order | Joined
    stages: Sequence[curricula.Stage]
    seed: int
    batch_size: int
    shard: Shard
    replacements: Replacements | None
    partners: Mapping[Swap, Mapping[str, np.ndarray]]
    multi_label: Collection[str]
    beside: Callable[[int], dict] | None = None

    def __call__(self, step: int) -> dict:
        positions = self.shard.positions(int(step), self.batch_size)
        stage = self.stages[curricula.stage_at(self.stages, step)]
        images = np.empty((len(positions), *self.pictures.shape), np.uint8)
        rows: list[int] = []
        swaps: list[Sequence[Swap]] = []  # of each example
        for start in range(0, len(positions), _AHEAD):
            examples = [self.order(position) for position in positions[start:start + _AHEAD]]
            for view, example in [(self._view(stage, *one), one) for one in examples]:
                place = images[len(rows)]
                row, (picture, of_example) = self._example(stage, view, place, *example)
                rows.append(row)
                swaps.append(of_example)
                if picture is not place:
                    place[:] = picture
        columns = {name: values[rows] for name, values in self.columns.items()}
        if self.partners:
            mirror(columns, swaps, self.partners, self.multi_label)
        return {'image': images, **columns, **(self.beside(int(step)) if self.beside else {})}

    def _view(self, stage: curricula.Stage, epoch: int, row: int, copy: int) -> View | None:
        rng = example_rng(self.seed, epoch, self.keys[row], copy) if stage.transforms else None
        try:
            return self.pictures.draw(row, stage, rng)
        except decode.UnreadableImage:
            return None  # `_example` meets the same error and handles it

    def _example(self, stage: curricula.Stage, view: View | None, place: np.ndarray, epoch: int,
                 row: int, copy: int) -> tuple[int, Shown]:
        """(the row that is shown, what is shown of it: its picture may lie in `place`)"""
        def show(shown: int) -> Shown:
            rng = example_rng(self.seed, epoch, self.keys[row], copy) if stage.transforms else None
            drawn = self.pictures.draw(shown, stage, rng)
            return self.pictures.show(drawn), drawn.swaps

        try:
            return row, (show(row) if view is None else
                         (self.pictures.show(view, place), view.swaps))
        except decode.UnreadableImage as error:
            if self.replacements is None:
                raise
            return self.replacements(row, show, self.pictures, error)


@dataclasses.dataclass(frozen=True)
class _EvalBatch:
    pictures: Pictures
    columns: Mapping[str, Any]
    num_rows: int
    batch_size: int
    shard: Shard
    unreadable: str
    view: curricula.Stage

    def __call__(self, batch: int) -> dict:
        rows = np.array(self.shard.positions(int(batch), self.batch_size))
        mask = rows < self.num_rows
        rows = np.minimum(rows, self.num_rows - 1)
        images = np.empty((len(rows), *self.pictures.shape), np.uint8)
        for i, row in enumerate(rows.tolist()):
            try:
                rng = np.random.default_rng(0) if self.view.transforms else None
                images[i] = self.pictures.augmented(row, self.view, rng, exact=True)
            except decode.UnreadableImage as error:
                if self.unreadable == 'error':
                    raise
                mask[i] = False
                images[i] = self.pictures.blank()
                _log.warning('Image %r %s: its logits are 0, which is a random guess.',
                             self.pictures.location(row), error.reason)
        return {'image': images, 'mask': mask, 'row': rows.astype(np.int32),
                **{name: values[rows] for name, values in self.columns.items()}}


def _columns(manifest: Manifest) -> dict[str, Any]:
    columns: dict[str, Any] = {f'label/{head}': manifest.numbers(head) for head in manifest.heads}
    columns |= {f'target/{head}': TargetRows(manifest.numbers(head), sets)
                for head, sets in manifest.label_sets.items()}
    if 'weight' in manifest.table:
        columns['weight'] = manifest.table['weight'].to_numpy(np.float32)
    return columns


def train_iterator(manifest: Manifest, spec: PreprocessSpec, course: Course, *, batch_size: int,
                   shard: Shard = Shard(), loading: LoaderSpec = LoaderSpec(),
                   replaced: dict[int, int] | None = None,
                   beside: Callable[[int], dict] | None = None) -> Batches:
    """An iterator over the training batches of one process.

    Args:
        manifest: the training rows.
        spec: size and resizing of the pictures.
        course: stages, steps, seed and order.
        batch_size: examples per step, over all processes.
        shard: the part of each batch that this process loads.
        loading: how batches are made; only `unreadable` may change what is shown.
        replaced: is filled with {row: row shown in its place}. Worker processes only log them.
        beside: step -> further arrays of its batch, a function of the step alone (two_views.py).

    Returns:
        Batches dict(image=uint8 [b, height, width, channels], 'label/<head>'=int32 [b], and
        weight=float32 [b] if the manifest has weights), b = batch_size / processes. With extra
        rows or a teacher also factor=float32 [b] (of the weights), 'target/<head>' and
        'teacher/<head>'=float32 [b, C], zeros where there is none; see `extra_rows`. Of a
        multi-label head the label is the number of a set, and 'target/<head>' is 1 for each class
        of it and 0 for others, or -1 throughout without a label. `get_state()`
        and `set_state()` are exact for any number of threads.

    Raises:
        DataError: a flip swaps labels of an unknown class.
        UnreadableImage, from the iterator: a picture cannot be read, with unreadable='error'.
        DataError, from the iterator: no picture of a class can be read, with 'drop'.
        WorkerError, from the iterator: workers died too often (batches.py).
    """
    order = course.order
    if order is None:
        count = len(manifest)
        order = Order(Walk(count, course.seed, np.arange(count), np.array([count]),
                           np.array([count])))
    replacements, extra = None, course.extra
    if loading.unreadable == 'drop':
        replacements = Replacements(manifest, {} if replaced is None else replaced,
                                     extra and extra.manifest)
    pictures: Pictures | JoinedPictures
    columns, keys, whole = _columns(manifest), example_keys(manifest), order
    if extra is None:
        pictures = Pictures(manifest, spec, loading.cache_mb)
    else:
        pictures = JoinedPictures(manifest, extra.manifest, spec, loading.cache_mb)
        columns = extra.columns(columns, len(manifest))
        keys = np.append(keys, example_keys(extra.manifest))
        whole = extra.joined_order(order, course.seed)
    columns |= {f'teacher/{head}': taught.before(len(keys) - len(manifest))
                for head, taught in course.teacher.items()}
    partners = partners_of((item for stage in course.stages for item in stage.transforms),
                           manifest.classes)
    batch = _TrainBatch(pictures, columns, keys, whole, tuple(course.stages), course.seed,
                        batch_size, shard, replacements, partners,
                        tuple(manifest.label_sets), beside)
    return Batches(batch, course.steps, threads=loading.threads, workers=loading.workers,
                   prefetch=loading.prefetch)


def eval_dataset(manifest: Manifest, spec: PreprocessSpec, *, batch_size: int,
                 shard: Shard = Shard(), loading: LoaderSpec = LoaderSpec(),
                 view: curricula.Stage = _PLAIN, pictures: Pictures | None = None
                 ) -> Callable[..., Batches]:
    """Prepares passes over every example, in order; none is dropped.

    Args:
        manifest, spec, batch_size, shard: as in `train_iterator`.
        loading: how batches are made; there are no worker processes.
        view: how every picture is shown: transforms that draw no random numbers.
        pictures: those of the manifest, where several passes share one cache.

    Returns:
        A function that starts one pass, from the batch of the given number on (0 by default).
        Batches: as in training, with mask=bool [b] and row=int32 [b] (the row of the manifest).
        The last batch is filled up with rows whose mask is False. With unreadable='drop', a
        picture that can no longer be read is such a row too.

    Raises:
        UnreadableImage, from the iterator: a picture cannot be read, with unreadable='error'.
    """
    batch = _EvalBatch(pictures or Pictures(manifest, spec, loading.cache_mb), _columns(manifest),
                       len(manifest), batch_size, shard, loading.unreadable, view)
    batches = -(-len(manifest) // batch_size)
    return lambda first=0: Batches(batch, batches, first=first, threads=loading.threads,
                                   prefetch=min(loading.prefetch, _EVAL_PREFETCH))


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
        images = np.empty((self.batch_size, *self.pictures.shape), np.uint8)
        for i in range(self.batch_size):
            row = min(first + i, len(self.keys) - 1)
            images[i] = self.pictures.augmented(
                row, self.stage, example_rng(self.seed, self.epoch, self.keys[row]))
        return {'image': images}


def view_iterator(pictures: Pictures, manifest: Manifest, stage: curricula.Stage, *, epoch: int,
                  seed: int, batch_size: int, batches: np.ndarray,
                  loading: LoaderSpec = LoaderSpec()) -> Batches:
    """The rows in order, as training shows them in one epoch.

    Args:
        pictures: those of the manifest.
        manifest: N rows.
        stage: of the curriculum.
        epoch, seed: of the augmentation.
        batch_size: examples per batch; this process loads all of them.
        batches: int [B], the numbers of the batches to make.
        loading: how batches are made; only threads and prefetch are used.

    Returns:
        Batches dict(image=uint8 [batch_size, height, width, channels]). The last batch of the
        manifest is filled up with its last row.
    """
    batch = _ViewBatch(pictures, example_keys(manifest), stage, epoch, seed, batch_size,
                       np.asarray(batches))
    return Batches(batch, len(batches), threads=loading.threads,
                   prefetch=min(loading.prefetch, _EVAL_PREFETCH))
