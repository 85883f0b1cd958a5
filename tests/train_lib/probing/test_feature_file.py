"""Files of features: read as they were written, in parts, and refused when they are not whole."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from input_pipeline.errors import DataError
from train_lib.probing import feature_file
from train_lib.probing.feature_file import KEY, features_of, load_features, write_features


def written(path, count=50, dtype=np.float32, **about):
    values = np.random.default_rng(0).normal(size=(count, 6)).astype(dtype)
    columns = dict(id=[f'{row}.png' for row in range(count)],
                   split=['train'] * count, **{'label/class': ['x', None] * (count // 2)})
    write_features(path, columns, values, dict(model='m', tag='t', **about))
    return values


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_what_is_written_is_read(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(feature_file, '_PART', 200)  # several parts
    values = written(tmp_path / 'f.parquet', dtype=dtype)
    ids, embeddings, meta = load_features(tmp_path / 'f.parquet')
    assert embeddings.dtype == dtype and (embeddings == values).all()
    assert ids.tolist() == [f'{row}.png' for row in range(50)]
    assert meta == dict(model='m', tag='t', format=1, rows=50, width=6,
                        dtype=np.dtype(dtype).name)
    assert pq.ParquetFile(tmp_path / 'f.parquet').num_row_groups > 3
    table = pd.read_parquet(tmp_path / 'f.parquet', columns=['label/class', 'split'])
    assert table['label/class'].isna().sum() == 25
    taken, _ = features_of(tmp_path / 'f.parquet', ['7.png', '3.png'])
    assert taken.dtype == np.float32 and (taken == values[[7, 3]].astype(np.float32)).all()
    with pytest.raises(DataError, match=r"lack 1 of 2 pictures .* 'x'"):
        features_of(tmp_path / 'f.parquet', ['7.png', 'x'])


def rewritten(path, change):
    """The file with other metadata or another table."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[KEY])
    table, about = change(table, about)
    metadata = {} if about is None else {KEY: about if isinstance(about, bytes) else
                                         json.dumps(about).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def doubled(table, about):
    return pa.concat_tables([table, table.slice(0, 1)]), about | dict(rows=51)


def endless(table, about):
    values = np.zeros((50, 6), np.float32)
    values[3] = np.inf
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
    return table.set_column(table.column_names.index('embedding'), 'embedding', lists), about


@pytest.mark.parametrize(('change', 'words'), [
    (lambda table, about: (table, None), 'no file of features'),
    (lambda table, about: (table, about | dict(format=2)), 'format 2.* reads up to 1'),
    (lambda table, about: (table, about | dict(format='1')), 'damaged metadata'),
    (lambda table, about: (table, b'{'), 'damaged metadata'),
    (lambda table, about: (table, b'[1]'), 'damaged metadata'),
    (lambda table, about: (table, about | dict(width=7)), 'do not hold'),
    (lambda table, about: (table, about | dict(rows=10 ** 15)), 'damaged'),
    (lambda table, about: (table, about | dict(dtype='object')), 'do not hold'),
    (lambda table, about: (table.drop_columns('id'), about), 'do not hold'),
    (lambda table, about: (table.drop_columns('embedding'), about), 'do not hold'),
    (lambda table, about: (table.slice(0, 20), about), '20 rows instead of 50'),
    (doubled, 'occurs twice'), (endless, 'not finite')])
def test_what_is_not_whole_is_refused(tmp_path, change, words):
    path = tmp_path / 'f.parquet'
    written(path)
    rewritten(path, change)
    with pytest.raises(DataError, match=words):
        load_features(path)


def test_no_byte_changes_unnoticed(tmp_path):
    """Cut or changed anywhere: refused, or read as it was."""
    path = tmp_path / 'f.parquet'
    values = written(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(150):
        broken = bytearray(whole)
        if trial % 3:
            place = int(rng.integers(len(whole)))
            broken[place] ^= 1 << int(rng.integers(8))
        else:
            broken = broken[:int(rng.integers(len(whole)))]
        path.write_bytes(bytes(broken))
        try:
            _, found, _ = load_features(path)
        except DataError:
            refused += 1
        else:
            assert found.shape == values.shape and (found == values).all()
    assert refused > 75


@pytest.mark.parametrize(('dtype', 'words'), [(np.float32, 'weights'), (np.float16, 'float32')])
def test_what_is_not_finite_is_not_written(tmp_path, dtype, words):
    values = np.zeros((3, 2), dtype)
    values[1, 1] = np.inf
    with pytest.raises(DataError, match=rf"'b' are not finite: .*{words}"):
        write_features(tmp_path / 'f.parquet', dict(id=['a', 'b', 'c']), values, {})
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_unicode_is_refused(tmp_path):
    with pytest.raises(DataError, match='not valid Unicode'):
        write_features(tmp_path / 'f.parquet', dict(id=['a\udc80']), np.zeros((1, 2), np.float32),
                       {})


@pytest.mark.parametrize('make', [lambda path: path.mkdir(), lambda path: path.write_text('id,x'),
                                  lambda path: None])
def test_what_is_no_parquet_is_refused(tmp_path, make):
    make(tmp_path / 'f.parquet')
    with pytest.raises(DataError, match=r'main\.py features'):
        load_features(tmp_path / 'f.parquet')
