"""SIGTERM and Ctrl-C: before there is anything to save they end the work, later they ask for it,
and Ctrl-C twice ends everything at once."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)
AT_ONCE = 130  # the exit code
_GRACE = 2.0  # seconds
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

    def once_more(ignored) -> None:
        """What is raised in a callback of the garbage collector, Python only mentions here."""
        if not isinstance(ignored.exc_value, Left):
            hook(ignored)
            return
        for each in _NUMBERS:
            signal.signal(each, leave)
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():  # nobody can signal us there
        yield
        return
    before = {number: signal.signal(number, leave) for number in _NUMBERS}
    hook, sys.unraisablehook = sys.unraisablehook, once_more
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def twice_is_at_once() -> Iterator[None]:
    """In the block, a second Ctrl-C ends the process, if Python has not answered it _GRACE seconds
    later: it hears of no signal while XLA compiles, which may take minutes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    over = threading.Event()

    def watch() -> None:
        count = 0
        while (number := os.read(reader, 1)) and not over.is_set():
            count += number[0] == signal.SIGINT
            if count == 2 and not over.wait(_GRACE):
                print('main.py: stopped at once, without saving.', file=sys.stderr, flush=True)
                os._exit(AT_ONCE)

    thread = threading.Thread(target=watch, name='signals', daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(writer)
        thread.join()
        os.close(reader)


class StopSignal:
    """SIGTERM or Ctrl-C once: stop cleanly and save. Ctrl-C again: stop at once. One that came too
    late for the block is passed on at its end to whoever waits for it outside."""

    def __init__(self):
        self._asked = 0  # the number of the signal
        self._told = False  # whoever calls us

    def __enter__(self):
        self._before = {}
        for number in _NUMBERS:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: nobody can signal us there
                break
        return self

    def __exit__(self, kind, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        outside = self._before.get(self._asked)
        ours = callable(outside) and outside is not signal.default_int_handler
        if ours and kind is None and not self._told:
            outside(self._asked, None)

    def _handle(self, number, frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number
        log.info('%s: saving, then stopping.', signal.Signals(number).name)

    def __call__(self) -> bool:
        self._told = self._asked > 0
        return self._told
