"""Why files that a table names are missing: one reason often holds for all of them.

The folder (or archive) is searched for files whose paths differ from those in the table in one way:
another folder on top or none, backslashes, blanks, capital letters, the extension.
"""

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence

from input_pipeline.class_names import nfc
from input_pipeline.errors import DataError
from input_pipeline.sources import scheme_of, zip_archive
from input_pipeline.sources.folder import EXTENSIONS

_TRIED = 40  # missing files that are looked for
_ENOUGH = 0.9  # of them must be found by one reason
_FOLDERS = 500  # in which they are looked for
_WEB = ('http:/', 'https:/', 'ftp:/', 's3:/', 'gs:/')  # a location has single slashes

# A folder, relative to the root -> the names of its files and folders; ([], []) if there is none.
Listing = Callable[[str], tuple[Sequence[str], Sequence[str]]]
# (path as written, its parts, the parts of the real path in the folder where it was found)
Rows = Sequence[tuple[str, list[str], list[str]]]


def why_missing(root: str, locations: Sequence[str]) -> str:
    """The one reason why files are missing, with its remedy; '' if none is found.

    Args:
        root: of the manifest: a folder or an archive.
        locations: of the missing files.

    Returns:
        The end of a sentence, such as "the paths lack the extension .jpg ('cat/1' is 'cat/1.jpg'
        there): correct them in the table".
    """
    tried = locations[::max(len(locations) // _TRIED, 1)]
    in_archive = bool(tried) and scheme_of(tried[0]) == 'zip'
    written = [name.partition(':')[2] if in_archive else name for name in tried]
    if all(name.lower().startswith(_WEB) for name in written):
        return 'the paths are web addresses: download the files and write their local paths'
    listing = _cached(_members(root) if in_archive else _files(root))
    paths = [name.removeprefix('./').replace('\\', '/').strip('/').split('/') for name in written]
    for base, cut in _places(listing, in_archive, max(map(len, paths), default=0)):
        found = _found(listing, base, [path[cut:] for path in paths])
        if found:
            told = _told_of_archive if in_archive and cut else _told
            return told(root, base, cut, [(name, path, found[row]) for row, (name, path) in
                                           enumerate(zip(written, paths)) if row in found])
    return ''


def refuse_all_missing(root: str, locations: Sequence[str]) -> None:
    """Raises the error for data of which every file is missing, with the reason if it is found.

    Raises:
        DataError: always.
    """
    why = why_missing(root, locations)
    what = f'All {len(locations):,} images are missing in {root!r} ({locations[0]!r} is the first)'
    if len(locations) == 1:
        what = f'The only image, {locations[0]!r}, is missing in {root!r}'
    raise DataError(f'{what}: {why or "correct data.images or the paths in the table"}.')


def _places(listing: Listing, in_archive: bool, longest: int) -> Iterator[tuple[str, int]]:
    """(folder in which all files may lie, parts of their paths to leave out), likely ones first."""
    yield '', 0
    below = ['']
    for folder in below:  # which grows
        for name in listing(folder)[1]:
            if len(below) < _FOLDERS:
                below.append(posixpath.join(folder, name))
    for folder in below[1:]:
        yield folder, 0
    if not in_archive:
        for above in ('..', '../..', '../../..'):
            yield above, 0
        for name in listing('..')[1][:_FOLDERS]:
            yield f'../{name}', 0
    for cut in range(1, longest):
        yield '', cut
        # A path in an archive begins with the folder that data.images names.
        yield from ((folder, cut) for folder in (below[1:] if in_archive else ()))


def _found(listing: Listing, base: str, paths: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    """{row: the parts of the file's real path in `base`} if enough of them are there, else {}."""
    found: dict[int, list[str]] = {}
    for row, path in enumerate(paths):
        real = _real(listing, base, path) if path else None
        if real:
            found[row] = real
        if row - len(found) + 1 > (1 - _ENOUGH) * len(paths):
            return {}
    return found


def _real(listing: Listing, base: str, path: Sequence[str]) -> list[str] | None:
    real: list[str] = []
    for place, part in enumerate(path):
        files, folders = listing(posixpath.join(base, *real))
        is_last = place + 1 == len(path)
        names = files if is_last else folders
        keys = (str, _loose, lambda name: _loose(_stem(name))) if is_last else (str, _loose)
        match = next((name for key in keys for name in names if key(name) == key(part)), None)
        if match is None:
            return None
        real.append(match)
    return real


def _loose(name: str) -> str:
    return nfc(name).strip().casefold()


def _extension(name: str) -> str:
    extension = posixpath.splitext(name.strip())[1]
    return extension if extension.lower() in EXTENSIONS else ''


def _stem(name: str) -> str:
    return name.strip().removesuffix(_extension(name))


def _told(root: str, base: str, cut: int, rows: Rows) -> str:
    """The reason in words."""
    reasons = _differences(cut, rows)
    name, path, parts = rows[0]
    if cut:
        reasons.append(f'begin with {"/".join(path[:cut])!r}, which is not there')
    there = f'({_is_there(name, "/".join(parts))})'
    if base:
        place = os.path.normpath(os.path.join(root, base))
        also = f', and the paths {" and ".join(reasons)} {there}' if reasons else ''
        return f'the files lie in {place!r}{also}: set data.images={place!r}'
    return f'the paths {" and ".join(reasons)} {there}: correct them in the table'


def _told_of_archive(root: str, base: str, cut: int, rows: Rows) -> str:
    """The same, where the first parts of a path may be those of data.images."""
    name, _, parts = rows[0]
    also = ''.join(f', and the paths {reason}' for reason in _differences(cut, rows))
    return (f'{_is_there(name, posixpath.join(base, *parts))}{also}: correct data.images or the '
            f'paths in the table')


def _is_there(name: str, real: str) -> str:
    alike = name != real and nfc(name) == nfc(real)
    return f'{name!a} is {real!a} there' if alike else f'{name!r} is {real!r} there'


def _differences(cut: int, rows: Rows) -> list[str]:
    """What distinguishes the paths in the table from the real ones, but for their folder."""
    reasons = []
    pairs = [(part, real) for _, path, parts in rows for part, real in zip(path[cut:], parts)]
    if any('\\' in name for name, _, _ in rows):
        reasons.append("have backslashes instead of '/'")
    if any(part.strip() != part and real.strip() == real for part, real in pairs):
        reasons.append('have blanks around names')
    elif any(part.strip() == part and real.strip() != real for part, real in pairs):
        reasons.append('lack the blanks around names')
    ends = [(_extension(path[-1]), _extension(parts[-1])) for _, path, parts in rows]
    wanted, there = next(((a, b) for a, b in ends if a.lower() != b.lower()), ('', ''))
    if wanted != there:
        reasons.append(f'lack the extension {there}' if not wanted else
                       f'end in {wanted}, and the files in {there or "none"}')
    bare = [(nfc(_stem(part)), nfc(_stem(real))) for part, real in pairs]
    if any(part != real for part, real in bare) or any(
            a != b and a.lower() == b.lower() for a, b in ends):
        reasons.append('differ in capital letters')
    if any(part != real and nfc(part) == nfc(real) for part, real in pairs):
        reasons.append('compose accents differently (Unicode NFC and NFD)')
    return reasons


def _cached(listing: Listing) -> Listing:
    known: dict[str, tuple[Sequence[str], Sequence[str]]] = {}

    def cached(folder: str) -> tuple[Sequence[str], Sequence[str]]:
        if folder not in known:
            known[folder] = listing(folder)
        return known[folder]

    return cached


def _files(root: str) -> Listing:
    def listing(folder: str) -> tuple[Sequence[str], Sequence[str]]:
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                found = sorted((entry.name, entry.is_dir()) for entry in entries)
        except (OSError, ValueError):
            return [], []
        return ([name for name, is_folder in found if not is_folder],
                [name for name, is_folder in found if is_folder])

    return listing


def _members(archive: str) -> Listing:
    folders = zip_archive.walk(archive)
    return lambda folder: folders.get(folder, ([], []))
