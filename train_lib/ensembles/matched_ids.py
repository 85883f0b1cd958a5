"""The ids of a sample submission, matched to pictures: by path, file name, stem or number.

One way must fit all ids, and the strictest that does is taken. Backslashes count as slashes, and
names in Unicode NFC and NFD are the same. Names in other capitals or with percent signs for other
characters (`a%20b.png`) are tried only where nothing stricter fits.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import unquote

import numpy as np

from input_pipeline.class_names import nfc

# (how, rank, id -> key, picture -> key); '' is the key of what cannot be matched in this way.
_Way = tuple[str, int, Callable[[str], str], Callable[[str], str]]
_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ('', str), (' with percent signs decoded', unquote),
    (' in upper or lower case', str.casefold),
    (' with percent signs decoded, in upper or lower case',
     lambda name: unquote(name).casefold()))


@dataclasses.dataclass(frozen=True)
class Match:
    """Which picture each of N ids means.

    Attributes:
        places: int64 [N], the position of its picture, -1 for none.
        how: in words, as in 'file name'.
        rank: the strictest way has the smallest.
        several: ids that fit several pictures.
        shared: ids whose picture an earlier id has.
    """

    places: np.ndarray
    how: str
    rank: int
    several: tuple[str, ...]
    shared: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every id has a picture of its own."""
        return not self.several and not self.shared and bool((self.places >= 0).all())

    @property
    def count(self) -> int:
        """How many ids have a picture of their own."""
        return int((self.places >= 0).sum()) - len(self.shared)


def match(ids: Sequence[str], pictures: Sequence[str]) -> Match:
    """Matches ids to pictures in the first way that fits all, else in the one that fits most.

    Args:
        ids: different ones, at least one.
        pictures: paths relative to their folder, with forward slashes.
    """
    ids, pictures = [_cleaned(name) for name in ids], [_cleaned(name) for name in pictures]
    best = None
    for way in _ways(ids, pictures):
        found = _matched(way, ids, pictures)
        if found.is_whole:
            return found
        if best is None or _told(found) > _told(best):
            best = found
    assert best is not None  # there is at least one way
    return best


def _told(found: Match) -> tuple[int, int]:
    return found.count, len(found.several) + len(found.shared)


def _cleaned(name: str) -> str:
    parts = nfc(name).replace('\\', '/').split('/')
    return '/'.join(part for part in parts if part not in ('', '.'))


def _matched(way: _Way, ids: Sequence[str], pictures: Sequence[str]) -> Match:
    how, rank, of_id, of_picture = way
    place_of: dict[str, int] = {}
    doubled = set()
    for place, name in enumerate(pictures):
        key = of_picture(name)
        if place_of.setdefault(key, place) != place:
            doubled.add(key)
    keys = [of_id(name) for name in ids]
    places = np.array([-1 if key in doubled or not key else place_of.get(key, -1)
                       for key in keys], np.int64)
    seen: set[int] = set()
    shared = []
    for name, place in zip(ids, places.tolist()):
        if place >= 0 and place in seen:
            shared.append(name)
        seen.add(place)
    several = tuple(name for name, key in zip(ids, keys) if key and key in doubled)
    return Match(places, how, rank, several, tuple(shared))


def _ways(ids: Sequence[str], pictures: Sequence[str]) -> Iterator[_Way]:
    """The ways in their order, the strictest first."""
    for number, (words, form) in enumerate(_FORMS):
        for how, rank, of_id, of_picture in _plain_ways(ids, pictures):
            yield (f'{how}{words}', 10 * number + rank, _after(form, of_id),
                   _after(form, of_picture))


def _after(form: Callable[[str], str], key: Callable[[str], str]) -> Callable[[str], str]:
    return key if form is str else lambda name: form(key(name))


def _plain_ways(ids: Sequence[str], pictures: Sequence[str]) -> Iterator[_Way]:
    """A folder may be left out at the front of all ids, or of all pictures, but not of both: what
    is left would say too little."""
    above_ids, above_pictures = _common_folders(ids), _common_folders(pictures)
    cuts = range(len(above_ids) + 1)
    in_ids = {cut: f' without {"/".join(above_ids[:cut]) + "/"!r}' if cut else '' for cut in cuts}
    for rank, what, of_picture in ((0, 'path', str), (2, 'path without its extension', _stem)):
        for cut in cuts:
            yield f'{what}{in_ids[cut]}', rank, _below(cut), of_picture
        for cut in range(1, len(above_pictures) + 1):
            yield (f'{what} below {"/".join(above_pictures[:cut]) + "/"!r}', rank, str,
                   functools.partial(_after_cut, cut=cut, key=of_picture))
        yield ('stem of the file name' if rank else 'file name', rank + 1, str,
               functools.partial(_last, key=of_picture))
    yield 'number in the file name', 4, _number, lambda name: _number(_stem(_last(name, key=str)))


def _common_folders(names: Sequence[str]) -> list[str]:
    folders = [name.split('/')[:-1] for name in {os.path.dirname(name) + '/' for name in names}]
    first, last = min(folders, default=[]), max(folders, default=[])
    count = 0
    while count < min(len(first), len(last)) and first[count] and first[count] == last[count]:
        count += 1
    return first[:count]


def _below(cut: int) -> Callable[[str], str]:
    return functools.partial(_after_cut, cut=cut, key=str) if cut else str


def _after_cut(name: str, cut: int, key: Callable[[str], str]) -> str:
    return key('/'.join(name.split('/')[cut:]))


def _last(name: str, key: Callable[[str], str]) -> str:
    return key(name.rpartition('/')[2])


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _number(name: str) -> str:
    """'007' as '7'; '' for what is no whole number of 0 or more."""
    return str(int(name)) if name.isascii() and name.isdecimal() and len(name) < 30 else ''
