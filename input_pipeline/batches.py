"""Batches by number, made ahead by threads or by worker processes.

The state of an iterator is just the number of its next batch, so a resumed run may use other
numbers of threads and workers. Workers ignore SIGINT and SIGTERM, because the run ends them. They
also end when the run disappears, for whatever reason. Workers that die are started again.
"""

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker

import grain

from input_pipeline.errors import WorkerError

RESTARTS = 3  # how often dead workers are started again before the run ends
_log = logging.getLogger(__name__)


class Batches(grain.DatasetIterator):
    """An iterator over batch(first), batch(first + 1), ..., batch(stop - 1).

    `get_state()` is {'next_index': number of the next batch}, exact for any number of threads and
    workers. Close the iterator, or its workers keep running.

    Raises, from next():
        WorkerError: workers died more than RESTARTS times.
        Any exception that `batch` raises.
    """

    def __init__(self, batch: Callable[[int], dict], stop: int, *, first: int = 0, threads: int,
                 workers: int = 0, prefetch: int = 4):
        super().__init__()
        self._batch, self._stop, self._next = batch, stop, first
        self._threads, self._workers, self._prefetch = threads, workers, prefetch
        self._iterator: grain.DatasetIterator | None = None
        self._deaths = 0
        if workers:
            _prepare_for_workers()

    def __next__(self) -> dict:
        while True:
            try:
                # The first call starts the workers.
                with _blocked_signals() if self._workers else contextlib.nullcontext():
                    batch = next(self._started())
            except RuntimeError as error:
                self._handle(error)
                continue
            self._next += 1
            return batch

    def _started(self) -> grain.DatasetIterator:
        if self._closed:
            raise ValueError('The iterator is closed.')
        if self._iterator is None:
            # One Grain record is a whole batch, because Grain's work per record costs half as much
            # as decoding a picture.
            records = grain.MapDataset.range(self._next, self._stop).map(self._batch)
            dataset = records.to_iter_dataset(grain.ReadOptions(
                num_threads=max(self._threads, 1), prefetch_buffer_size=max(self._prefetch, 1)))
            if self._workers:
                dataset = dataset.mp_prefetch(
                    grain.MultiprocessingOptions(num_workers=self._workers),
                    worker_init_fn=_exit_with_the_run)
            self._iterator = iter(dataset)
        return self._iterator

    def _handle(self, error: RuntimeError) -> None:
        """Prepares a restart if workers died; raises any other error again."""
        found = re.search(r'terminated unexpectedly with exit code (-?\d+)', str(error))
        if not self._workers or not found:
            raise error
        code = int(found[1])
        how = f'was killed by {signal.Signals(-code).name}' if code < 0 else f'ended with {code}'
        self._deaths += 1
        if self._deaths > RESTARTS:
            raise WorkerError(
                f'A data worker {how}, the {self._deaths}th that died: read its output above; if '
                f'it ran out of memory, lower config.loader.workers or config.image.cache_mb and '
                f'start again with the same --workdir.') from None
        _log.warning('A data worker %s: all workers are started again (%d of %d times).', how,
                     self._deaths, RESTARTS)
        self._drop()

    def _drop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def start_prefetch(self) -> None:
        """Begins to make batches ahead, if threads make them; workers start at the first batch."""
        if not self._workers:
            self._started().start_prefetch()

    def get_state(self) -> dict:
        """{'next_index': number of the next batch}."""
        return {'next_index': self._next}

    def set_state(self, state: dict) -> None:
        """Continues from what `get_state` returned."""
        self._drop()
        self._next = state['next_index']

    def close(self) -> None:
        """Ends the threads or workers."""
        self._closed = True
        self._drop()


def _prepare_for_workers() -> None:
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags that we don't define.
    resource_tracker.ensure_running()  # started here, because its start unblocks the signals


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Threads and processes that start in the block never see SIGINT and SIGTERM.

    Ctrl-C goes to every process of a terminal, and some clusters send SIGTERM to all processes.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_the_run(index: int, count: int) -> None:
    """Ends this worker when the process that started it has ended."""
    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, name='parent', daemon=True).start()
