"""Batches by their numbers, made ahead by threads or by worker processes.

Where an iterator stands is the number of its next batch and nothing else, so a run goes on with
other threads and workers than it began with. Workers leave signals to the run, which ends them;
they end too when the run is gone, however that came. One that dies is started again.
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

RESTARTS = 3  # of dead workers, before the run ends
_log = logging.getLogger(__name__)


class Batches(grain.DatasetIterator):
    """batch(first), batch(first + 1), ..., batch(stop - 1).

    `get_state()` is {'next_index': number of the next one}, exact for any number of threads and
    workers. Close it, or its workers stay.

    Raises, from next():
        WorkerError: workers died more than RESTARTS times. And whatever `batch` raises.
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
                self._answer(error)
                continue
            self._next += 1
            return batch

    def _started(self) -> grain.DatasetIterator:
        if self._closed:
            raise ValueError('The iterator is closed.')
        if self._iterator is None:
            # A record of Grain's is a whole batch: what Grain does with a record costs as much as
            # half a decoding.
            records = grain.MapDataset.range(self._next, self._stop).map(self._batch)
            dataset = records.to_iter_dataset(grain.ReadOptions(
                num_threads=max(self._threads, 1), prefetch_buffer_size=max(self._prefetch, 1)))
            if self._workers:
                dataset = dataset.mp_prefetch(
                    grain.MultiprocessingOptions(num_workers=self._workers),
                    worker_init_fn=_leave_with_the_run)
            self._iterator = iter(dataset)
        return self._iterator

    def _answer(self, error: RuntimeError) -> None:
        """Lets dead workers be started again; other errors go on."""
        found = re.search(r'terminated unexpectedly with exit code (-?\d+)', str(error))
        if not self._workers or not found:
            raise error
        code = int(found[1])
        how = f'was killed by {signal.Signals(-code).name}' if code < 0 else f'ended with {code}'
        self._deaths += 1
        if self._deaths > RESTARTS:
            raise WorkerError(
                f'A data worker {how}, the {self._deaths}th that died: see what it said, and if '
                f'it ran out of memory, lower config.loader.workers or config.image.cache_mb and '
                f'start again with the same --workdir.') from None
        _log.warning('A data worker %s: all are started again (%d of %d times).', how, self._deaths,
                     RESTARTS)
        self._drop()

    def _drop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def start_prefetch(self) -> None:
        """Begins to work ahead, if that is the work of threads; workers wait for the first call."""
        if not self._workers:
            self._started().start_prefetch()

    def get_state(self) -> dict:
        return {'next_index': self._next}

    def set_state(self, state: dict) -> None:
        self._drop()
        self._next = state['next_index']

    def close(self) -> None:
        self._closed = True
        self._drop()


def _prepare_for_workers() -> None:
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags that we don't define.
    resource_tracker.ensure_running()  # its start unblocks the signals, so now


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Threads and processes that begin in the block never see SIGINT and SIGTERM: Ctrl-C goes to
    every process of a terminal, and some clusters send SIGTERM to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_with_the_run(index: int, count: int) -> None:
    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, name='parent', daemon=True).start()
