"""Batches of pictures that a program hands over, of which there may be any number."""

import collections
import concurrent.futures
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from input_pipeline.curriculum import Stage
from input_pipeline.given_pictures import Given, GivenPictures
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.sixteen_bits import FULL, Range

_AHEAD = 3  # batches that are read while another one is used
_PART = 8  # pictures that a thread reads in one piece
# A list that is shorter than a batch is put into a batch so many times smaller, or again smaller.
_SMALLER = 4


def given_batches(given: Iterable[Given], spec: PreprocessSpec, views: Sequence[Stage], *,
                  batch_size: int, multiple: int = 1, range16: Range = FULL,
                  threads: int | None = None) -> Iterator[dict]:
    """Reads pictures by threads, a few batches ahead, and no further.

    Args:
        given: of `each_given`; taken from in the caller's thread.
        spec: how they are prepared.
        views: how each is shown: transforms that draw no random numbers.
        batch_size: pictures per batch. All batches of a call have one size, for which programs are
            compiled: this one, or for a shorter list one of a few smaller ones, whose pictures
            cost less than the rest of a large batch.
        multiple: sizes are rounded up to a multiple of it.
        range16: which values of 16-bit pictures become black and white.
        threads: None for one per processor.

    Yields:
        For each so many pictures one batch per view: dict(image=uint8 [b, height, width, channels],
        row=int32 [b], the numbers of the pictures, mask=bool [b], False where the last batch is
        filled up).

    Raises:
        DataError: a picture cannot be read.
    """
    given = iter(given)
    pool = concurrent.futures.ThreadPoolExecutor(threads or _processors())
    ahead: collections.deque[tuple[dict, list]] = collections.deque()
    try:
        block, first = list(itertools.islice(given, batch_size)), 0
        size = -(-_size(len(block), batch_size) // multiple) * multiple
        block += itertools.islice(given, size - len(block))
        bytes_of_one = math.prod(spec.frame) * spec.channels
        while block:
            # Room for what several views share, which has at most twice the input's sides.
            kept = 4 * len(block) * bytes_of_one / 2**20 if len(views) > 1 else 0
            pictures = GivenPictures(block, spec, range16, kept)
            for view in views:
                ahead.append(_start(pool, pictures, view, size, first))
                if len(ahead) > _AHEAD:
                    yield _finished(*ahead.popleft())
            first += len(block)
            block = list(itertools.islice(given, size))
        while ahead:
            yield _finished(*ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _size(count: int, batch_size: int) -> int:
    size = batch_size
    while size > 1 and -(-size // _SMALLER) >= count:
        size = -(-size // _SMALLER)
    return size


def _start(pool: concurrent.futures.Executor, pictures: GivenPictures, view: Stage, size: int,
           first: int) -> tuple[dict, list]:
    """(a batch, what fills it)"""
    count = len(pictures)
    images = np.zeros((size, *pictures.blank().shape), np.uint8)

    def fill(start: int) -> None:
        for row in range(start, min(start + _PART, count)):
            rng = np.random.default_rng(0) if view.transforms else None
            images[row] = pictures.augmented(row, view, rng, exact=True)

    rows = np.arange(size)
    batch = dict(image=images, row=(first + np.minimum(rows, count - 1)).astype(np.int32),
                 mask=rows < count)
    return batch, [pool.submit(fill, start) for start in range(0, count, _PART)]


def _finished(batch: dict, parts: Sequence[concurrent.futures.Future]) -> dict:
    for part in parts:
        part.result()
    return batch


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
