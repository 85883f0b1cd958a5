"""SIGTERM and Ctrl-C: before there is anything to save they end the work, later they ask for it."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)
_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Left(BaseException):
    """Raised where the program is when a signal comes; no `except Exception` keeps it."""


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """In the block, SIGTERM or Ctrl-C raises `Left`, unless a StopSignal in it waits for them.

    A program that is being compiled is compiled to its end first.
    """
    def leave(number, frame):
        for each in _NUMBERS:  # nothing shall disturb the clearing up
            signal.signal(each, signal.SIG_IGN)
        raise Left(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # nobody can signal us there
        yield
        return
    before = {number: signal.signal(number, leave) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignal:
    """SIGTERM or Ctrl-C once: stop cleanly and save. Ctrl-C again: stop at once."""

    def __init__(self):
        self._asked = False

    def __enter__(self):
        self._before = {}
        for number in _NUMBERS:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: nobody can signal us there
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        log.info('%s: saving, then stopping.', signal.Signals(number).name)

    def __call__(self) -> bool:
        return self._asked
