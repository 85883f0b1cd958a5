"""A sample submission: its rows and columns as text, and the form in which it is written."""

import csv
import dataclasses
import re
from collections.abc import Mapping

import pandas as pd

from input_pipeline.csv_table import quoting_for, read_csv, separator_of
from train_lib.runtime.errors import ConfigError

_QUOTED = '"(?:[^"]|"")*"'


@dataclasses.dataclass(frozen=True)
class SampleFile:
    """A sample submission of N rows.

    Attributes:
        path: of the file, as it was given.
        columns: {name: N cells as they are written}, in their order.
        header: the names as they are written, with spaces around.
        separator: ',', ';' or a tab.
        line_end: a newline, alone or after a carriage return.
        quoted: every cell is written in quotes.
    """

    path: str
    columns: Mapping[str, list[str]]
    header: tuple[str, ...]
    separator: str
    line_end: str
    quoted: bool

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def text_of(self, table: pd.DataFrame) -> str:
        """A table with the same columns, in the form of the file but without its byte order
        mark."""
        table = table.set_axis(list(self.header), axis=1)
        return table.to_csv(index=False, sep=self.separator, lineterminator=self.line_end,
                            quoting=csv.QUOTE_ALL if self.quoted else quoting_for(table))


def read_sample(path: str) -> SampleFile:
    """Reads a sample submission (see `csv_table`); nothing becomes a number, so '007' stays.

    Raises:
        DataError: the file cannot be read. ConfigError: it has no rows.
    """
    names, rows, _ = read_csv(path, edited=True)
    if not rows:
        raise ConfigError(f'The sample {path!r} has no rows below its header: give one with a row '
                          f'per picture.')
    with open(path, 'rb') as file:
        first, second = (file.readline().decode('utf-8-sig', 'replace') for _ in range(2))
    separator = separator_of(first)
    all_quoted = re.compile(f'{_QUOTED}({separator}{_QUOTED})*')
    text = first.rstrip('\r\n')
    header = next(csv.reader([text], delimiter=separator), [])
    header = header if [name.strip() for name in header] == names else names  # of several lines
    return SampleFile(path, dict(zip(names, map(list, zip(*rows)))), tuple(header), separator,
                      '\r\n' if first.endswith('\r\n') else '\n',
                      all(all_quoted.fullmatch(line.rstrip('\r\n')) for line in (first, second)))
