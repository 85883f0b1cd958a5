"""A call that may be refused with one sentence, within seconds and a gigabyte."""

import contextlib
import resource
import signal
from pathlib import Path

from input_pipeline.errors import DataError
from models.errors import ModelError
from train_lib.runtime.errors import CheckpointError, ConfigError

REFUSALS = (ConfigError, DataError, ModelError, CheckpointError)
REFUSED = object()
SECONDS, WAIT = 10, 120  # of computing, of waiting, that one example may take


@contextlib.contextmanager
def at_most_a_gigabyte_more():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def attempt(action, *args, **kwargs):
    """Calls it; a refusal must be one sentence. Anything else, and a hang, fails the test."""
    def too_long(*_):
        raise TimeoutError('too long')

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
              (signal.SIGALRM, signal.ITIMER_REAL, WAIT))
    before = [signal.signal(number, too_long) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        return action(*args, **kwargs)
    except REFUSALS as error:
        text = str(error)
        assert text and '\n' not in text and len(text) < 12_000, text[:500]
        return REFUSED
    finally:
        for (number, timer, _), handler in zip(timers, before):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
