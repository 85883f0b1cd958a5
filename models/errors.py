"""The one exception by which the models tell a user what to change."""

import difflib
from collections.abc import Iterable


class ModelError(ValueError):
    """The name or the settings of a model are at fault.

    The message is one sentence that names the setting and its value, what is wrong
    with it, and what to do. `main.py` prints it without a traceback and ends with
    exit code 2.
    """


def unknown(what: str, name: object, valid: Iterable[str]) -> ModelError:
    """The error for a word that is not among the valid ones; it offers the nearest (at most 3)."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.5)
    if near:
        advice = f'did you mean {" or ".join(repr(word) for word in near)}?'
    else:
        advice = f'use one of {", ".join(valid)}.'
    return ModelError(f'{what} {name!r} is not known: {advice}')
