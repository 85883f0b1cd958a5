"""The exceptions by which the input pipeline ends a run with a sentence, and the end of such a
sentence that says which word was likely meant."""

import difflib
import itertools
import unicodedata
from collections.abc import Callable, Iterable

_COMPARED = 5000  # known words looked through, which takes 30 us each
_LENGTH = 100  # characters of a word that are compared
_LISTED = 12


class DataError(ValueError):
    """The user's data or data settings are at fault.

    The message is one sentence that names the file, key or value, what is wrong
    with it, and what to do. `main.py` prints it without a traceback and ends with
    exit code 2.
    """


class WorkerError(RuntimeError):
    """The processes that read pictures died or do not answer: exit code 1."""


def nearest(word: object, known: Iterable, n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known words that look most like `word`, the best first; often none. Those that differ by
    capital letters alone come before all others, however short they are.

    Args:
        word: what the user wrote, of any type.
        known: the valid words, of any type; the first 5000 are looked at.
        n: at most so many are returned.
        cutoff: how alike a word must be, from 0 (anything) to 1 (the same), as in difflib.
    """
    known = [str(one) for one in itertools.islice(known, _COMPARED)]
    text = str(word)[:_LENGTH]
    same = [one for one in known if one.casefold() == text.casefold()]
    near = difflib.get_close_matches(text, known, n=n, cutoff=cutoff)
    return [*same, *(one for one in near if one not in same)][:n]


def listed(names: Iterable) -> str:
    """Names between commas. One that holds a line break or another sign that is not printable is
    written as in Python, so that the sentence stays one line."""
    return ', '.join(name if name.isprintable() else repr(name) for name in map(str, names))


def counted(count: int, one: str, several: str = '') -> str:
    """A number and its noun, such as '1 image' and '1,200 images'.

    Args:
        count: 0 or more.
        one, several: the noun in the singular and the plural ('': with an s).
    """
    return f'{count:,} {one if count == 1 else several or one + "s"}'


def in_one_line(text: object) -> str:
    """The text of another program's error, without its line breaks and other wide blanks."""
    return ' '.join(str(text).split())


def did_you_mean(word: object, known: Iterable, *, n: int = 1, cutoff: float = 0.6,
                 show: Callable[[str], str] = repr, otherwise: str | None = None) -> str:
    """The end of an error's sentence: the valid words that were likely meant.

        raise DataError(f'split.kind={kind!r} is unknown: {did_you_mean(kind, KINDS)}')

    Args:
        word, known, n, cutoff: as in `nearest`.
        show: how one word is written, e.g. `'--{}'.format`; in quotes by default.
        otherwise: the text where no known word is near. By default it lists the first 12 of them:
            'use one of a, b, c.', without quotes.

    Returns:
        "did you mean 'over'?", "did you mean 'over' or 'under'?", or `otherwise`. A known word
        that looks the same (Unicode NFC and NFD, wide letters) is shown beside the other in ASCII.
    """
    known = list(known)
    same = _lookalike(str(word), known)
    if same:
        return (f'did you mean {same!a}, which differs from {str(word)!a} by Unicode normalisation '
                f'only?')
    near = nearest(word, known, n, cutoff)
    if near:
        return f'did you mean {" or ".join(map(show, near))}?'
    if otherwise is not None:
        return otherwise
    return (f'use one of {listed(known[:_LISTED])}'
            f'{", ..." if len(known) > _LISTED else "."}')


def _lookalike(word: str, known: Iterable) -> str:
    """The known word that differs from `word` by Unicode normalisation only, else ''."""
    form = unicodedata.normalize('NFKC', word)
    return next((name for name in map(str, itertools.islice(known, _COMPARED))
                 if name != word and unicodedata.normalize('NFKC', name) == form), '')


def perhaps(word: object, known: Iterable) -> str:
    """" (did you mean 'over'?)", for the middle of a sentence; '' if no known word is near."""
    hint = did_you_mean(word, known, otherwise='')
    return hint and f' ({hint})'
