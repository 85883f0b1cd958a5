"""The exceptions by which the input pipeline ends a run with a sentence."""


class DataError(ValueError):
    """The user's data or data settings are at fault.

    The message is one sentence that names the file, key or value, what is wrong
    with it, and what to do. `main.py` prints it without a traceback and ends with
    exit code 2.
    """


class WorkerError(RuntimeError):
    """The processes that read pictures don't live: exit code 1."""
