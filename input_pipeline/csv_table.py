"""Strict reading of CSV files: UTF-8 with or without a byte order mark, any line ends, and a comma,
semicolon or tab between the fields.

They are read with the standard library and not with pandas, because an error must name the line.
"""

import csv
import logging
import os
import re
import zipfile

import pandas as pd

from input_pipeline.errors import DataError

_log = logging.getLogger(__name__)


def read_rows(path: str, what: str = 'The file', *, edited: bool = False
              ) -> list[tuple[int, list[str]]]:
    """(line where it starts, fields) of every line that is not empty, the header first.

    Args:
        path: the file.
        what: the beginning of an error's sentence, before the path.
        edited: a spreadsheet program may have saved what this program wrote: then CP949, as Korean
            ones write, is read too.

    Raises:
        DataError: the file is absent, empty, packed, not UTF-8 or not a valid CSV, or has two
            columns of the same name.
    """
    rows, line = [], 1
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(f'{what} {path!r} is a folder, a pipe or a device: give a CSV file.')
        if zipfile.is_zipfile(path):  # as competitions give them
            raise DataError(f'{what} {path!r} is a zip archive: unpack it.')
        encoding = _encoding_of(path) if edited else 'utf-8-sig'
        with open(path, encoding=encoding, newline='') as file:
            first = file.readline()
            if '\0' in first:
                raise DataError(f'{what} {path!r} is not UTF-8, perhaps UTF-16: save it as '
                                f'"CSV UTF-8".')
            file.seek(0)
            reader = csv.reader(file, delimiter=separator_of(first), strict=True)
            for row in reader:
                if row:
                    rows.append((line, row))
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise DataError(f'{what} {path!r} is not UTF-8: save it as "CSV UTF-8".') from None
    except csv.Error as error:
        raise DataError(f'{what} {path!r} is not a valid CSV near line {line} ({error}): '
                        f'correct it.') from None
    except OSError as error:
        raise DataError(f'{what} {path!r} cannot be opened ({error.strerror}): '
                        f'check its path.') from None
    if not rows:
        raise DataError(f'{what} {path!r} is empty: name the columns in its first line.')
    seen = set()
    for name in map(str.strip, rows[0][1]):
        if name and name in seen:
            raise DataError(f'{what} {path!r} has the column {name!r} twice: rename one.')
        seen.add(name)
    return rows


def separator_of(first: str) -> str:
    """What separates the fields of a file with this first line: ',', ';' or a tab."""
    # The header decides: commas in a value would mislead a sniffer.
    return max(',;\t', key=re.sub('"[^"]*"', '', first).count)


def _encoding_of(path: str) -> str:
    with open(path, 'rb') as file:
        data = file.read()
    try:
        data.decode()
    except UnicodeDecodeError:
        try:
            data.decode('cp949')
        except UnicodeDecodeError:
            return 'utf-8-sig'  # reading it says what is wrong
        _log.info('%r is read as CP949 (Korean), since it is not UTF-8', path)
        return 'cp949'
    return 'utf-8-sig'


def quoting_for(table: pd.DataFrame) -> int:
    """How to quote a table when it is written: a constant of the module `csv`.

    All fields are quoted if a text contains a bare carriage return, because writers leave it
    unquoted and readers take it for the end of a line.
    """
    texts = (table[name] for name in table if table[name].dtype.kind not in 'biuf')
    bare = any(column.astype(str).str.contains('\r', regex=False).any() for column in texts)
    return csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL


def read_csv(path: str, *, edited: bool = False) -> tuple[list[str], list[list[str]], list[int]]:
    """Reads a CSV in which all lines have the same number of fields.

    Args:
        path: the file.
        edited: as in `read_rows`.

    Returns:
        The column names, the fields of each row, and the line where each row starts.

    Raises:
        DataError: as `read_rows`, or a row has another number of fields.
    """
    rows = read_rows(path, edited=edited)
    header = [name.strip() for name in rows[0][1]]
    if header.count('') > 1:
        raise DataError(f'The file {path!r} has two columns without a name: name them.')
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f'The file {path!r} has {len(row)} fields in line {line}, but {len(header)} '
                f'columns: put quotes around values that contain a comma.')
    return header, [row for _, row in rows[1:]], [line for line, _ in rows[1:]]
