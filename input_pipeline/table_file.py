"""A table of pictures as text, from a CSV or a Parquet file.

Numbers of a Parquet file become text as short as possible (1.0 is '1'), and what is missing becomes
''. A column whose values are no text and no numbers may be there, as long as nobody asks for it.
"""

import dataclasses
import os
from collections.abc import Mapping

import numpy as np

from input_pipeline.csv_table import read_csv
from input_pipeline.errors import DataError, in_one_line

_ABOUT = b'manifest'  # the key of the metadata that `manifest_files.save` writes


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of N rows.

    Attributes:
        path: of the file.
        header: names of the columns, without spaces around.
        texts: the values of each column by position, N of each.
        places: where each row is, for errors: 'line 3', or 'row 2' of a Parquet file.
        unusable: {position: its type} of the columns that have no texts.
        lists: {position: a list of texts per row, None for a missing one} of the columns of a
            Parquet file that hold lists.
    """

    path: str
    header: list[str]
    texts: Mapping[int, list[str]]
    places: list[str]
    unusable: Mapping[int, str]
    lists: Mapping[int, list] = dataclasses.field(default_factory=dict)

    def values(self, place: int) -> list[str]:
        """The column at this position, N texts.

        Raises:
            DataError: it holds lists or other values that are not text.
        """
        if place in self.unusable:
            kind, name = self.unusable[place], self.header[place]
            hint = ('several labels per picture are multi-label: name the head in data.multi_label'
                    if kind.startswith(('list', 'large_list', 'fixed_size_list')) else
                    'write pictures as files, and their paths into the table')
            raise DataError(f'The column {name!r} of {self.path!r} holds {kind[:80]}, not text: '
                            f'{hint}.')
        return self.texts[place]


def is_parquet(path: str) -> bool:
    """Whether a file is a Parquet file, by its ending or its first bytes."""
    if path.lower().endswith('.parquet'):
        return True
    try:
        with open(path, 'rb') as file:
            return file.read(4) == b'PAR1'
    except OSError:
        return False


def read_header(path: str) -> tuple[list[str], bool]:
    """The columns of a Parquet file, and whether it is a manifest that this program saved.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow.parquet  # takes half a second, and only Parquet needs it
    try:
        schema = pyarrow.parquet.read_schema(path)
    except Exception as error:  # pyarrow raises nearly every type on damaged files
        raise _unreadable(path, error) from None
    return [name.strip() for name in schema.names], _ABOUT in (schema.metadata or {})


def read_table(path: str) -> Table:
    """Reads a CSV (see `csv_table`) or Parquet file.

    Raises:
        DataError: as `csv_table.read_csv`, or the Parquet file is damaged.
    """
    if is_parquet(path):
        return _read_parquet(path)
    header, rows, lines = read_csv(path)
    columns = dict(enumerate(map(list, zip(*rows)))) or {k: [] for k in range(len(header))}
    return Table(path, header, columns, [f'line {line}' for line in lines], {})


def _read_parquet(path: str) -> Table:
    import pyarrow.parquet
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError('it is a folder, a pipe or a device')
        table = pyarrow.parquet.read_table(path)
        table.validate(full=True)  # texts that are not UTF-8 would fail only when they are read
        header = [name.strip() for name in table.column_names]
        found = [_texts(column) for column in table.columns]
    except Exception as error:  # pyarrow raises nearly every type on damaged files
        raise _unreadable(path, error) from None
    doubled = [name for name in header if name and header.count(name) > 1]
    if doubled:
        raise DataError(f'The file {path!r} has the column {doubled[0]!r} twice: rename one.')
    return Table(path, header, {k: texts for k, texts in enumerate(found) if texts is not None},
                 [f'row {k}' for k in range(1, table.num_rows + 1)],
                 {k: str(table.schema.types[k]) for k, texts in enumerate(found) if texts is None},
                 {k: _lists(column) for k, column in enumerate(table.columns)
                  if _is_list(column.type)})


def _is_list(kind) -> bool:
    """Whether an Arrow type is a list of texts or whole numbers."""
    import pyarrow as pa
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or \
        pa.types.is_fixed_size_list(kind)
    return is_list and any(test(kind.value_type) for test in (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_integer))


def _lists(column) -> list[list[str] | None]:
    return [None if row is None else ['' if item is None else str(item).strip() for item in row]
            for row in column.to_pylist()]


def _texts(column) -> list[str] | None:
    """An Arrow column as text; None if its values are neither text nor numbers."""
    import pyarrow as pa
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_nested(kind):
        return None
    values = column.to_pylist()
    if pa.types.is_floating(kind):
        as_written = np.float32 if kind == pa.float32() else np.float64
        return ['' if value is None or value != value else
                np.format_float_positional(as_written(value), trim='-') for value in values]
    try:
        return ['' if value is None else value.decode() if isinstance(value, bytes) else str(value)
                for value in values]
    except UnicodeDecodeError:
        return None


def _unreadable(path: str, error: Exception) -> DataError:
    detail = in_one_line(error)[:300]
    return DataError(f'The Parquet file {path!r} cannot be read ({detail}): restore it or write '
                     f'it again.')
