"""The one exception by which the input pipeline tells a user what to change."""


class DataError(ValueError):
    """The user's data or data settings are at fault.

    The message is one sentence that names the file, key or value, what is wrong
    with it, and what to do. `main.py` prints it without a traceback and ends with
    exit code 2.
    """
