"""Zip archives of pictures, read without unpacking.

A location is `zip:<name in the archive>`, and the manifest's root is the archive. The name is what
`zip_names` finds without being told an encoding; that of `zipfile`, which older manifests have, is
found too. Members are read by position (`os.pread`), without a file pointer. So threads need no
lock, a forked process may keep reading, and pickled objects contain no file handle.
"""

import collections
import functools
import logging
import os
import posixpath
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Sequence

import numpy as np

from input_pipeline.decode import MAX_BYTES, UnreadableImage
from input_pipeline.errors import DataError, perhaps
from input_pipeline.sources import zip_names

# A zip bomb is refused before it is unpacked. Members below the first size do no harm. The second
# number is a compression ratio that not even uncompressed drawings reach.
_HARMLESS_BYTES, _BOMB_RATIO = 2**26, 100
_PLAIN, _ENCRYPTED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 0x1
_OTHER_FORM = (' (there is one whose name composes its accents differently: Unicode NFC and '
               'NFD)')
_lock = threading.Lock()
_log = logging.getLogger(__name__)


def split_path(path: str) -> tuple[str, str]:
    """(archive, path inside it): ('/a/b.zip', 'c/d') for '/a/b.zip/c/d' if b.zip is a file, else
    ('', '')."""
    archive, inside = os.path.abspath(os.path.expanduser(path)), ''
    while not os.path.exists(archive) and archive != os.path.dirname(archive):
        archive, name = os.path.split(archive)
        inside = posixpath.join(name, inside) if inside else name
    if archive.lower().endswith('.zip') and os.path.isfile(archive):
        return archive, inside
    return '', ''


def walk(archive: str, inside: str = '', encoding: str = '', key: str = 'data.folder'
         ) -> dict[str, tuple[list[str], list[str]]]:
    """{folder relative to `inside`: (file names, folder names)}, all sorted.

    Args:
        archive, inside: as `split_path` returns them.
        encoding: `config.data.zip_encoding`, see `zip_names.decoded`.
        key: the config key of the path, for errors.

    Raises:
        DataError: it is not a valid zip archive, a name leads out of it or occurs twice, it
            holds no folder `inside`, or the names are not in that encoding.
    """
    opened = _archive(archive)
    files, below = collections.defaultdict(set), collections.defaultdict(set)
    start = f'{inside}/' if inside else ''
    everything = opened.names(encoding)
    taken, example = opened.found
    if taken and not encoding and not opened.said:
        opened.said = True
        _log.log(logging.INFO if taken == 'utf-8' else logging.WARNING,
                 '%s does not say how its names are encoded: they are read as %s (such as %r); if '
                 'that is wrong, set config.data.zip_encoding.', archive, taken, example)
    names = [name[len(start):] for name in everything if name.startswith(start)]
    if not names and inside:
        folders = {folder for name in everything for folder in _above(name)}
        hint = (_OTHER_FORM if _same_but_for_form(inside, folders) else perhaps(inside, folders))
        raise DataError(f'The archive {archive!r} has no folder {inside!r}{hint}: correct {key}.')
    for name in names:
        folder, _, file = name.rpartition('/')
        if file:
            files[folder].add(file)
        while folder:  # an archive need not list its folders
            above, _, last = folder.rpartition('/')
            below[above].add(last)
            folder = above
    return {folder: (sorted(files[folder]), sorted(below[folder]))
            for folder in sorted({'', *files, *below, *(posixpath.join(above, name)
                                  for above, names in below.items() for name in names)})}


def locations(archive: str, names: Sequence[str], encoding: str = '') -> list[str]:
    """The locations of members, one for one; those that do not exist get one too.

    Args:
        archive: the zip file.
        names: of members, in that encoding.
        encoding: as in `walk`.
    """
    opened = _archive(archive)
    if not encoding:
        return [f'zip:{name}' for name in names]
    usual = dict(zip(opened.names(encoding), opened.names('')))
    return [f'zip:{usual.get(name, name)}' for name in names]


def read_bytes(root: str, location: str) -> bytes:
    """The bytes of the member `zip:<name>`, checked against the archive's checksum.

    Raises:
        UnreadableImage: there is no such member, or it cannot be unpacked.
    """
    name = location.partition(':')[2]
    reason, data = _archive(root).read(name)
    if reason:
        raise UnreadableImage.of(name, f'in {root!r} {reason}')
    return data


def stamp(root: str, location: str) -> tuple[int, int]:
    """(size in bytes, checksum) of a member; (0, 0) if there is none."""
    opened = _archive(root)
    row = opened.row(location.partition(':')[2])
    return (0, 0) if row is None else (int(opened.table[row, 2]), int(opened.table[row, 3]))


class _Archive:
    """An open archive and its table with the columns offset, packed size, size, checksum, method
    and flags."""

    def __init__(self, path: str):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            self.table = np.array([(m.header_offset, m.compress_size, m.file_size, m.CRC,
                                    m.compress_type, m.flag_bits) for m in members],
                                  np.int64).reshape(-1, 6)
        # Names that are not UTF-8 raise a ValueError, numbers above 64 bits an OverflowError.
        except (OSError, ValueError, OverflowError, struct.error, zipfile.BadZipFile,
                NotImplementedError) as error:
            raise DataError(f'The archive {path!r} is not a valid zip file ({error}): '
                            f'download or write it again.') from None
        self._path, self._members = path, members
        self._names: dict[str, list[str]] = {}
        self.found = ['', '']  # the encoding that was found for names, and one of them
        self.said = False
        self._rows = {name: row for row, name in enumerate(self.names('')) if name[-1:] != '/'}
        self._older = {member.filename.replace('\\', '/'): row
                       for row, member in enumerate(members)}
        self._file = os.open(path, os.O_RDONLY)
        self._bytes = os.fstat(self._file).st_size

    def names(self, encoding: str) -> list[str]:
        """The names of all members; those of folders end with '/'.

        Raises:
            DataError: see `walk`.
        """
        if encoding not in self._names:
            names, *found = zip_names.decoded(self._members, encoding, self._path)
            self.found = found if not encoding else self.found
            # Some Windows tools write backslashes.
            self._names[encoding] = _checked([name.replace('\\', '/') for name in names],
                                             self._path)
        return self._names[encoding]

    def row(self, name: str) -> int | None:
        """The position of a member; None if there is no such file."""
        return self._rows.get(name, self._older.get(name))

    def lacks(self, name: str) -> str:
        """What to say of a name that is missing."""
        return 'is missing' + (_OTHER_FORM if _same_but_for_form(name, self._rows) else '')

    def read(self, name: str) -> tuple[str, bytes]:
        """(what is wrong with the member or '', its bytes)."""
        row = self.row(name)
        if row is None:
            return self.lacks(name), b''
        offset, packed, size, checksum, method, flags = (int(n) for n in self.table[row])
        if flags & _ENCRYPTED:
            return 'is encrypted', b''
        if method not in _PLAIN:
            return f'is packed by method {method}; write the archive with "deflate"', b''
        if size > MAX_BYTES or size > max(_HARMLESS_BYTES, _BOMB_RATIO * packed):
            return f'has {size:,} bytes, packed in {packed:,} (a zip bomb?)', b''
        if not 0 <= offset <= offset + packed <= self._bytes:  # reading would allocate it first
            return 'is damaged (it would end after the end of the archive)', b''
        try:
            header = os.pread(self._file, 30, offset)
            if header[:4] != b'PK\3\4':
                return 'is damaged (no header in the archive)', b''
            offset += 30 + sum(struct.unpack_from('<HH', header, 26))
            data = os.pread(self._file, packed, offset)
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except (OSError, struct.error, zlib.error) as error:
            return f'is damaged ({error})', b''
        if len(data) != size or zlib.crc32(data) != checksum:
            return 'is damaged (its checksum differs)', b''
        return '', data

    def __del__(self):
        if hasattr(self, '_file'):
            os.close(self._file)


def _checked(names: list[str], path: str) -> list[str]:
    """The names, without a './' or a second slash."""
    seen, checked = set(), []
    for name in names:
        if name.startswith('/') or '..' in name.split('/') or name[1:2] == ':':
            raise DataError(f'The archive {path!r} has the name {name!r}, which leads out of it: '
                            f'do not use it, or write it again.')
        if '//' in name or './' in name:
            parts = [part for part in name.split('/')[:-1] if part not in ('', '.')]
            name = '/'.join([*parts, name.rpartition('/')[2]]) or name
        if name in seen and name[-1:] != '/':
            raise DataError(f'The archive {path!r} has {name!r} twice: write it again.')
        seen.add(name)
        checked.append(name)
    return checked


def _above(name: str) -> list[str]:
    """The folders that a name lies in."""
    parts = name.split('/')[:-1]
    return ['/'.join(parts[:count]) for count in range(1, len(parts) + 1)]


def _same_but_for_form(name: str, known: Collection[str]) -> bool:
    """Whether a name is there if accents and Hangul are composed otherwise."""
    return not name.isascii() and any(
        unicodedata.normalize(form, name) in known for form in ('NFC', 'NFD'))


def _archive(path: str) -> _Archive:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f'The archive {path!r} cannot be opened ({error.strerror}): '
                        f'restore it.') from None
    with _lock:  # one thread reads the table of contents while the others wait
        return _open(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _open(path: str, size: int, mtime: int) -> _Archive:
    return _Archive(path)
