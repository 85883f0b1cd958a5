"""What a run shows while it works: a bar on a terminal, plain lines elsewhere."""

import contextlib
import logging
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

COLUMNS = 80
_WORD = 9  # columns of the word by which a line of the log begins, and of the blanks behind it
LONG = 5.0  # seconds of compiling after which a log without a terminal says so


class InColumns(logging.Formatter):
    """The message, on a terminal in lines of at most 80 columns. A path is not broken: one that a
    line ends with, behind a few words, stays there, however long it is. In a file or a pipe a
    message stays whole, so that it can be found."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not to_terminal():
            return text
        return '\n'.join(part for line in text.split('\n') for part in in_columns(line))


def to_terminal() -> bool:
    """Whether somebody reads the log as it is written."""
    return sys.stderr.isatty()


def in_columns(line: str) -> list[str]:
    """A line of the log as lines of at most 80 columns, where no word is longer."""
    words, _, last = line.rpartition(' ')
    ends_with_path = os.sep in last and len(words) <= COLUMNS // 2
    if len(line) <= COLUMNS or ends_with_path or re.match(r'\w+ {2,}/', line):
        return [line]
    return textwrap.wrap(line, COLUMNS, subsequent_indent=' ' * _WORD, break_long_words=False,
                         break_on_hyphens=False)


def setup_logging() -> None:
    """Sends our log lines to standard error, without tearing the progress bar; of other libraries
    only warnings and errors."""

    class Handler(logging.Handler):
        def emit(self, record):
            tqdm.write(self.format(record), file=sys.stderr)

    handler = Handler()
    handler.setFormatter(InColumns('%(message)s'))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax logs an error and then raises it
    for ours in ('train_lib', 'input_pipeline', 'models', 'main'):
        logging.getLogger(ours).setLevel(logging.INFO)


def duration(seconds: float) -> str:
    """Seconds as text, such as 1:23:45."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def epochs(value: float) -> str:
    """A number of epochs as text, such as 20.0; two digits of less than a tenth of one."""
    return f'{value:.1f}' if value >= 0.1 or not value else f'{value:.2g}'


def bar(iterable=None, **settings) -> tqdm:
    """A progress bar on a terminal; nothing elsewhere."""
    return tqdm(iterable, dynamic_ncols=True, leave=False, disable=not sys.stderr.isatty(),
                **settings)


@contextlib.contextmanager
def counting_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """In the block, a bar that the yielded function (done, total) moves."""
    with bar(desc=what, unit=unit) as shown:
        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(min(done, total) - shown.n)

        yield progress


@contextlib.contextmanager
def compiling(enabled: bool = True, *, what: str = 'the training step, before the first one',
              every: float = 0.0) -> Iterator[None]:
    """Says that the block compiles, which may take minutes, and in the end how long it took. On a
    terminal its seconds are counted meanwhile; elsewhere a line says so once it takes long.

    Args:
        enabled: False shows nothing.
        what: is compiled.
        every: seconds after which the line elsewhere is said again (0: once).
    """
    log, began, over = logging.getLogger(__name__), time.perf_counter(), threading.Event()

    def wait() -> None:
        if not sys.stderr.isatty():
            if not over.wait(LONG):
                log.info('compile  %s', what)
            while every and not over.wait(every):
                log.info('compile  %s so far', duration(time.perf_counter() - began))
            return
        with bar(bar_format='compiling {elapsed}') as shown:
            while not over.wait(0.5):
                shown.refresh()

    thread = threading.Thread(target=wait, name='compiling', daemon=True)
    if enabled:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if enabled:
            thread.join()
    seconds = time.perf_counter() - began
    if enabled:
        log.info('compile  %.*f s', seconds < 9.95, seconds)


class Progress:
    """Shows loss, accuracy, images per second and the time left.

    Args:
        total: steps of the run.
        start: steps that earlier starts did.
        batch_size: images per step.
        enabled: False shows nothing.
    """

    def __init__(self, total: int, start: int, batch_size: int, enabled: bool = True):
        self._terminal = sys.stderr.isatty()
        self._log = logging.getLogger(__name__)
        self._enabled = enabled
        self._total, self._batch_size = total, batch_size
        self._last = (start, time.perf_counter())
        self._rate = 0.0  # steps per second of training, smoothed
        self._bar: tqdm | None = None
        if enabled and self._terminal:
            self._bar = tqdm(total=total, initial=start, unit='step', dynamic_ncols=True,
                             bar_format='{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}')

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block, such as an evaluation, does not count as training."""
        since = time.perf_counter()
        try:
            yield
        finally:
            step, last = self._last
            self._last = (step, last + time.perf_counter() - since)

    def rewind(self, step: int) -> None:
        """Back to an earlier step."""
        self._last = (step, time.perf_counter())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def update(self, step: int, loss: float | None, accuracy: float | None) -> float:
        """Shows a log line; returns images per second since the last one.

        Args:
            step: steps done so far.
            loss, accuracy: means since the last line; None if no step trained.
        """
        means = 'nothing trained' if loss is None else f'loss {loss:.3f}  acc {accuracy:.3f}'
        now = time.perf_counter()
        steps, seconds = step - self._last[0], max(now - self._last[1], 1e-9)
        self._last = (step, now)
        rate = steps / seconds
        self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        images = rate * self._batch_size
        left = duration((self._total - step) / max(self._rate, 1e-9))
        if self._bar is not None:
            self._bar.set_postfix_str(f'{means}  {images:,.0f} img/s  {left} left', refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._enabled:
            width = len(str(self._total))
            self._log.info('step %*d/%d  %s  %s img/s  %s left', width, step, self._total, means,
                           f'{images:5,.0f}', left)
        return images

    def close(self) -> None:
        """Leaves the terminal tidy."""
        if self._bar is not None:
            self._bar.close()
