"""The one exception with which models tell a user what to change."""

import difflib
from collections.abc import Iterable


class ModelError(ValueError):
    """The name or a setting of a model is wrong.

    The message is one sentence that names the setting and its value, what is wrong
    with it, and what to do. `main.py` prints it without a traceback and ends with
    exit code 2.
    """


def unknown(what: str, name: object, valid: Iterable[str]) -> ModelError:
    """The error for a name that is not a valid one; it suggests the closest, at most three."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.5)
    if near:
        advice = f'did you mean {" or ".join(repr(word) for word in near)}?'
    else:
        advice = f'use one of {", ".join(valid)}.'
    return ModelError(f'{what} {name!r} is not known: {advice}')
