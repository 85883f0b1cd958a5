"""What the members of a zip archive are called.

An archive may say that a name is UTF-8; else nothing says how it is encoded, and `zipfile` takes it
for CP437, that of the first PCs. But macOS writes UTF-8, and Windows the encoding of its language
(CP949 in Korea, CP932 in Japan).
"""

import struct
import zipfile
import zlib
from collections.abc import Sequence

from input_pipeline.errors import DataError

OLDEST = 'cp437'  # what zipfile reads names as that do not say that they are UTF-8
_IS_UTF8 = 0x800  # the flag that says so
_UNICODE_PATH = 0x7075  # the extra field with a name in UTF-8
_TESTED = 10_000  # names whose characters are looked at, 1 us each


def decoded(members: Sequence[zipfile.ZipInfo], encoding: str = '', archive: str = ''
            ) -> tuple[list[str], str, str]:
    """The names of members, in their order.

    A name that the archive declares to be UTF-8 is that. Of the others, a Unicode Path field
    counts if it belongs to the name; the rest are UTF-8 if all of them are valid UTF-8, else
    CP949, CP932 or CP437, by trial.

    Args:
        members: as `zipfile` read them.
        encoding: of the names that are not declared (a Python codec), instead of a trial; 'cp437'
            takes them as `zipfile` does.
        archive: for messages.

    Returns:
        The names; the encoding that was given or found ('' if no name needed one); the first name
        that needed it.

    Raises:
        DataError: the encoding is unknown, or a name is not valid in it.
    """
    _check_codec(encoding)
    names = [member.filename for member in members]
    if encoding and _is_oldest(encoding):
        return names, '', ''
    unknown: dict[int, bytes] = {}
    for row, member in enumerate(members):
        if member.flag_bits & _IS_UTF8 or member.orig_filename.isascii():
            continue
        raw = member.orig_filename.encode(OLDEST)
        declared = _unicode_path(member.extra, raw)
        if declared:
            names[row] = declared
        else:
            unknown[row] = raw
    if not unknown:
        return names, '', ''
    taken = encoding or found_encoding(list(unknown.values()))
    for row, raw in unknown.items():
        try:
            names[row] = raw.decode(taken).partition('\0')[0]
        except UnicodeDecodeError:
            raise DataError(f'The archive {archive!r} has the name {names[row]!a}, which is '
                            f'not {encoding}: correct data.zip_encoding={encoding!r}.') from None
    return names, taken, names[next(iter(unknown))]


def found_encoding(names: Sequence[bytes]) -> str:
    """'utf-8', 'cp949', 'cp932' or 'cp437', whichever all names are likely written in.

    Args:
        names: bytes of names, each with bytes above 127.
    """
    if _text(names, 'utf-8') is not None:
        return 'utf-8'
    korean, japanese = _text(names, 'cp949'), _text(names, 'cp932')
    # CP949 has 8,822 more syllables than the standard, which are rare in Korean; bytes in other
    # encodings become such ones.
    if korean is not None and _share(korean, _is_common) > 0.5:
        return 'cp949'
    # An accented letter and the next one ('Mü|ll|er' in CP437) are a valid character too.
    if japanese is not None and _share(japanese, _stands_free) > 0.5:
        return 'cp932'
    return OLDEST


def _text(names: Sequence[bytes], encoding: str) -> list[str] | None:
    try:
        return [name.decode(encoding) for name in names]
    except UnicodeDecodeError:
        return None


def _share(names: Sequence[str], test) -> float:
    """The share of characters above 127 that pass `test(name, position)`."""
    answers = [test(name, place) for name in names[:_TESTED] for place, sign in enumerate(name)
               if not sign.isascii()]
    return sum(answers) / max(len(answers), 1)


def _is_common(name: str, place: int) -> bool:
    try:
        return len(name[place].encode('euc_kr')) == 2  # the codec spells others in 8 bytes
    except UnicodeEncodeError:
        return False


def _stands_free(name: str, place: int) -> bool:
    beside = name[max(place - 1, 0):place] + name[place + 1:place + 2]
    return not any(sign.isascii() and sign.isalpha() for sign in beside)


def _unicode_path(extra: bytes, raw: bytes) -> str:
    """The name in an extra field, if it belongs to the name `raw`; else ''."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from('<HH', extra)
        field, extra = extra[4:4 + size], extra[4 + size:]
        if kind == _UNICODE_PATH and len(field) > 5:
            version, checksum = struct.unpack_from('<BL', field)
            if version == 1 and checksum == zlib.crc32(raw):
                try:
                    return field[5:].decode('utf-8').partition('\0')[0]
                except UnicodeDecodeError:
                    return ''
    return ''


def _is_oldest(encoding: str) -> bool:
    return encoding.lower().replace('-', '').replace('_', '') in ('cp437', '437', 'ibm437')


def _check_codec(encoding: str) -> None:
    if not encoding:
        return
    try:
        valid = b'a'.decode(encoding) == 'a'  # not so in UTF-16
    except (LookupError, ValueError, TypeError):
        valid = False
    if not valid:
        raise DataError(f'data.zip_encoding={encoding!r} is not a valid encoding: use cp949 '
                        f'(Korean), cp932 (Japanese), gbk (Chinese), utf-8 or another codec of '
                        f"Python, or '' to find it.")
