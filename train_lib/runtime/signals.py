"""SIGTERM and Ctrl-C: before there is anything to save they end the work at once, later they ask
for a clean stop, and a second Ctrl-C ends everything at once."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)
STOPPED = 75  # exit code: told to stop, and saved
AT_ONCE = 130  # exit code: stopped without saving
_GRACE = 2.0  # seconds
_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The training was told to stop, and its state is saved."""


class Paused(Stopped):
    """The training has come to the step at which it was to pause, of so many, and its state is
    saved."""

    def __init__(self, step: int, steps: int):
        super().__init__(step, steps)
        self.step, self.steps = step, steps


class Interrupted(Exception):
    """A pass over a split, or other work that is not part of a checkpoint, was given up because the
    program was told to stop."""


class Left(BaseException):
    """Raised wherever the program is when a signal comes; `except Exception` does not catch it."""


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """In the block, SIGTERM or Ctrl-C raises `Left`, unless a StopSignal inside it waits for them.

    While XLA compiles, Python handles no signal: the compilation ends first.
    """
    def leave(number: int, frame: Any) -> None:
        for each in _NUMBERS:  # nothing may disturb the cleaning up
            signal.signal(each, signal.SIG_IGN)
        raise Left(signal.Signals(number).name)

    def once_more(ignored: Any) -> None:
        """An exception in a callback of the garbage collector ends up here, and nowhere else."""
        if not isinstance(ignored.exc_value, Left):
            hook(ignored)
            return
        for each in _NUMBERS:
            signal.signal(each, leave)
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread
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
    """In the block, a second Ctrl-C ends the process if Python has not handled it after _GRACE
    seconds: while XLA compiles, which may take minutes, Python handles no signal."""
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
    """SIGTERM or Ctrl-C in the block asks for a clean stop: calling the object then returns True.

    A second Ctrl-C raises KeyboardInterrupt. A signal that came after the last call is passed on at
    the end of the block to the handler outside it, if there is one of ours.
    """

    def __init__(self) -> None:
        self._asked = 0  # the number of the signal that came, 0 for none
        self._told = False  # whether a call has returned True

    def __enter__(self) -> 'StopSignal':
        self._before: dict[int, Any] = {}
        for number in _NUMBERS:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread, to which signals go
                break
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        outside = self._before.get(self._asked)
        if (callable(outside) and outside is not signal.default_int_handler and kind is None
                and not self._told):
            outside(self._asked, None)

    def _handle(self, number: int, frame: Any) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number
        log.info('%s: saving, then stopping.', signal.Signals(number).name)

    def __call__(self) -> bool:
        self._told = self._asked > 0
        return self._told
