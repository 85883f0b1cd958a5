"""Features in a Parquet file, which `main.py features` writes and other programs read.

    id               text, unique
    split, group     text, where they are known; an empty split: in none
    label/<head>     text, the name of the class; null for an unlabelled row
    embedding        a list of D numbers, float32 or float16

The key `atelier.features` of the file's metadata holds, as JSON, what they were computed with. The
file is written and read by parts of at most 16 MiB. Any program that reads Parquet reads it;
`load_features` also checks that it is whole and of a known format. This module does not load JAX.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.atomic_files import atomic_open
from input_pipeline.errors import DataError, in_one_line
from train_lib.run_dir.json_files import read_json
from train_lib.runtime.errors import ConfigError

FORMAT = 1
KEY = b'atelier.features'
EMBEDDING = 'embedding'
DTYPES = ('float32', 'float16')
_PART = 2 ** 24  # bytes of embeddings that are written at once
_WRITTEN_BY = '`python main.py features`'


def check_out(path: Path) -> None:
    """Refuses a place that the file cannot have, before minutes of work.

    Raises:
        ConfigError: it does not end with .parquet, its folder is not there, or another file that
            this program did not write is.
    """
    if path.suffix != '.parquet':
        raise ConfigError(f'--out={path} does not end with .parquet: give the name of the file '
                          f'of features.')
    if not path.parent.is_dir():
        raise ConfigError(f'--out={path}: the folder {path.parent} is not there: make it.')
    if path.exists():
        try:
            _about(path, _schema(path))
        except DataError:
            raise ConfigError(f'--out={path} is another file, which would be replaced: give '
                              f'another name.') from None


def check_scores(path: Path) -> None:
    """Refuses to replace a file of that name that does not hold scores of features.

    Raises:
        ConfigError: there is such a file.
    """
    if not path.exists():
        return
    try:
        known = {'heads', 'weights', 'prepared'} <= read_json(path).keys()
    except (OSError, ValueError):
        known = False
    if not known:
        raise ConfigError(f'{path} is another file, which the scores of --out would replace: give '
                          f'another --out.')


def write_features(path: Path, columns: Mapping[str, Sequence[str | None]], embeddings: np.ndarray,
                   about: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all.

    Args:
        path: of the file.
        columns: {name: N texts}, `id` among them.
        embeddings: float32 or float16 [N, D], perhaps a memory map.
        about: JSON values; `format`, `rows`, `width` and `dtype` are added.

    Raises:
        DataError: a feature is not finite, or an id is not valid Unicode.
        ConfigError: the file cannot be written.
    """
    import pyarrow as pa  # takes half a second
    import pyarrow.parquet as pq
    count, width = embeddings.shape
    kind = pa.float16() if embeddings.dtype == np.float16 else pa.float32()
    about = dict(about, format=FORMAT, rows=count, width=width, dtype=str(embeddings.dtype))
    schema = pa.schema(
        [*((name, pa.string()) for name in columns), (EMBEDDING, pa.list_(kind, width))],
        metadata={KEY: json.dumps(about).encode()})
    rows = max(1, _PART // max(1, width * embeddings.itemsize))
    try:
        with (atomic_open(path, 'wb') as file,
              pq.ParquetWriter(file, schema, use_dictionary=list(columns),
                               write_page_checksum=True) as writer):
            for start in range(0, count, rows):
                part = np.ascontiguousarray(embeddings[start:start + rows])
                _refuse_infinite(part, columns['id'][start:start + rows])
                arrays = [pa.array(list(values[start:start + rows]), pa.string())
                          for values in columns.values()]
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1), kind),
                                                                width))
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    except UnicodeEncodeError as error:
        raise DataError(f'The name {error.object!r} is not valid Unicode, which Parquet cannot '
                        f'hold: rename the picture, class or group.') from None
    except OSError as error:
        raise ConfigError(f'--out={path} cannot be written ({error.strerror or error}): give '
                          f'another file.') from None


def _refuse_infinite(part: np.ndarray, ids: Sequence[str | None]) -> None:
    wrong = np.flatnonzero(~np.isfinite(part).all(axis=1))
    if len(wrong):
        hint = ('the numbers are too large for float16: set config.features.dtype=float32'
                if part.dtype == np.float16 else
                'the weights are damaged, or do not fit the preparation: check config.init and '
                'config.image')
        raise DataError(f'The features of {ids[wrong[0]]!r} are not finite: {hint}.')


def load_features(path: str | Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Reads what `main.py features` wrote; one part of the file is in memory besides the result.

    Args:
        path: of the .parquet file.

    Returns:
        (ids, embeddings, meta): ids object [N], unique; embeddings float32 or float16 [N, D],
        finite; meta: the model, `tag` (config.init.pretrained), `weights` (SHA-256 of the
        backbone), `prepared` (how pictures are prepared), `classes` and so on.

    Raises:
        DataError: the file is missing or damaged, is no file of features, or is of a newer format.
    """
    import pyarrow.parquet as pq
    path = Path(path)
    meta = _about(path, _schema(path))
    try:
        count, width, dtype = meta['rows'], meta['width'], np.dtype(meta['dtype'])
        ids, done = np.empty(count, object), 0
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if file.metadata.num_rows != count:
                raise ValueError(f'it has {file.metadata.num_rows} rows instead of {count}')
            embeddings = np.empty((count, width), dtype)
            for part in range(file.num_row_groups):
                table = file.read_row_group(part, columns=['id', EMBEDDING])
                table.validate(full=True)
                if table.column(EMBEDDING).null_count or table.column('id').null_count:
                    raise ValueError('values are missing')
                lists = table.column(EMBEDDING).combine_chunks()
                values = lists.flatten().to_numpy(zero_copy_only=False)
                end = done + table.num_rows
                embeddings[done:end] = values.reshape(table.num_rows, width)
                ids[done:end] = table.column('id').to_pylist()
                if not np.isfinite(embeddings[done:end]).all():
                    raise ValueError('a feature is not finite')
                done = end
        if len(set(ids)) < count:
            raise ValueError('an id occurs twice')
    except Exception as error:  # pyarrow raises nearly every type on damaged files
        raise DataError(f'The features {str(path)!r} are damaged ({in_one_line(error)[:300]}): '
                        f'write them again by {_WRITTEN_BY}.') from None
    return ids, embeddings, meta


def features_of(path: str | Path, wanted: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The features of some ids, in their order, float32 [n, D], and the metadata.

    Raises:
        DataError: as `load_features`, or an id has no features.
    """
    ids, embeddings, meta = load_features(path)
    row_of = {name: row for row, name in enumerate(ids)}
    missing = [name for name in wanted if name not in row_of]
    if missing:
        raise DataError(f'The features {str(path)!r} lack {len(missing):,} of {len(wanted):,} '
                        f'pictures of the data, such as {missing[0]!r}: write them again by '
                        f'{_WRITTEN_BY} with the same config.data.')
    return embeddings[[row_of[name] for name in wanted]].astype(np.float32), meta


def _schema(path: Path):
    import pyarrow.parquet as pq
    try:
        if path.exists() and not path.is_file():
            raise ValueError('it is a folder, a pipe or a device')
        return pq.read_schema(path)
    except FileNotFoundError:
        raise DataError(f'The features {str(path)!r} are not there: write them by {_WRITTEN_BY}.'
                        ) from None
    except Exception as error:  # see above
        raise DataError(f'The features {str(path)!r} cannot be read ({in_one_line(error)[:300]}): '
                        f'write them again by {_WRITTEN_BY}.') from None


def _about(path: Path, schema) -> dict[str, Any]:
    """The metadata, checked."""
    import pyarrow as pa
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        raise DataError(f'{str(path)!r} is no file of features: write one by {_WRITTEN_BY}.')
    try:
        about = json.loads(text)
        version = about['format']
        if type(version) is not int or version < 1:
            raise ValueError(f'its format is {version!r}')
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'The features {str(path)!r} have damaged metadata ({in_one_line(error)}): '
                        f'write them again by {_WRITTEN_BY}.') from None
    if version > FORMAT:
        raise DataError(f'The features {str(path)!r} have the format {version}, and this version '
                        f'reads up to {FORMAT}: use the newer version of the program.')
    width, rows, dtype = (about.get(key) for key in ('width', 'rows', 'dtype'))
    column = schema.field(EMBEDDING).type if EMBEDDING in schema.names else None
    if (type(width) is not int or type(rows) is not int or rows < 0 or dtype not in DTYPES
            or 'id' not in schema.names or column is None or not pa.types.is_fixed_size_list(column)
            or column.list_size != width):
        raise DataError(f'The features {str(path)!r} do not hold what their metadata say: write '
                        f'them again by {_WRITTEN_BY}.')
    return about
