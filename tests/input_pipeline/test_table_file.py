"""A Parquet table that somebody else made goes the way of a CSV."""

import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet
import pytest

from input_pipeline.errors import DataError
from input_pipeline.manifest import digest
from input_pipeline.sources import load_source
from input_pipeline.sources.csv_file import more_columns
from input_pipeline.table_file import is_parquet, read_table


def write(path, **columns):
    pa.parquet.write_table(pa.table(columns), str(path))
    return str(path)


def load(path, **data):
    return load_source({'source': 'csv', 'csv': str(path)} | data)


@pytest.fixture
def columns():
    return dict(image=['a b.png', '그림.png', 'c.png', 'd.png'], label=pa.array([10, 2, None, 2]),
                group=pa.array(['x', None, 'y', 'NaN']).dictionary_encode(),
                weight=pa.array([1, 0.5, 2, 0.1], pa.float32()), age=pa.array([1.0, None, 2.5, 3]))


def test_it_reads_as_the_csv_of_the_same_values(tmp_path, columns):
    found = load(write(tmp_path / 't.parquet', **columns))
    (tmp_path / 't.csv').write_text(
        'image,label,group,weight,age\na b.png,10,x,1,1\n그림.png,2,,0.5,\nc.png,,y,2,2.5\n'
        'd.png,2,NaN,0.1,3\n', encoding='utf-8')
    wanted = load(tmp_path / 't.csv')
    assert found.table.equals(wanted.table) and found.classes == wanted.classes
    assert digest(found) == digest(wanted) and found.root == str(tmp_path)
    assert found.classes['class'] == ('2', '10')
    for options in (dict(classes=('10', '2')), dict(group_regex='[a-d]?.png'),
                    dict(columns={'labels': 'age', 'id': 'image'}), dict(labelled=False),
                    dict(images=str(tmp_path.parent))):
        if options != dict(classes=('10', '2')):
            columns = {name: values for name, values in columns.items() if name != 'group'}
        assert digest(load(tmp_path / 't.parquet', **options)) == digest(
            load(tmp_path / 't.csv', **options))
    ids = found.table['id'].tolist()
    assert more_columns(str(tmp_path / 't.parquet'), ['age'], ids) == {'age': ['1', '', '2.5', '3']}


def test_it_is_known_by_its_bytes(tmp_path, columns):
    path = write(tmp_path / 'labels.dat', **columns)
    assert is_parquet(path) and len(load(path)) == 4
    assert not is_parquet(str(tmp_path / 'nowhere.csv'))


def test_values_become_short_text(tmp_path):
    path = write(tmp_path / 't.parquet', a=[True, None], b=pa.array([b'x', b'y']),
                 c=[datetime.date(2026, 1, 2), None], d=[decimal.Decimal('1.50'), None],
                 e=pa.array([1e20, float('nan')]), f=pa.nulls(2), g=pa.array([2**60 + 1, -1]),
                 h=pa.array([0.1, 7], pa.float32()))
    table = read_table(path)
    assert [table.values(k) for k in range(8)] == [
        ['True', ''], ['x', 'y'], ['2026-01-02', ''], ['1.50', ''], ['100000000000000000000', ''],
        ['', ''], ['1152921504606846977', '-1'], ['0.1', '7']]
    assert table.places == ['row 1', 'row 2']


def test_a_mistake_is_one_sentence(tmp_path, columns):
    path = tmp_path / 't.parquet'
    for change, words in (
            (dict(label=pa.array([['a', 'b'], ['a'], [], []])), 'multi-label'),
            (dict(image=pa.array([{'bytes': b'\xff', 'path': 'x'}] * 4)), 'as files'),
            (dict(image=pa.array([b'\xff'] * 4)), "'image' .*binary"),
            (dict(image=['a', 'b', 'c', 'a']), "id 'a' in row 1 and in row 4"),
            (dict(image=['a', 'b', 'c', '../d']), "row 4: the image '../d' lies outside"),
            (dict(weight=['1', '1', 'x', '1']), "row 3: the weight 'x'"),
            (dict(label=pa.nulls(4)), 'no label at all')):
        with pytest.raises(DataError, match=words) as error:
            load(write(path, **columns | change))
        assert 't.parquet' in str(error.value)
    with pytest.raises(DataError, match='no column called label'):
        load(write(path, image=['a']))
    with pytest.raises(DataError, match=r"t.parquet' has no lines"):
        load(write(path, image=pa.array([], pa.string()), label=pa.array([], pa.string())))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r't.parquet.* cannot be read'):
        load(path)


def test_a_manifest_without_its_metadata_is_still_one(tmp_path):
    write(tmp_path / 'm.parquet', **{'id': ['1', '2'], 'location': ['a', 'b'],
                                     'label/class': [1, -1]})
    found = load(tmp_path / 'm.parquet')
    assert found.labels('class').tolist() == [0, -1] and found.classes['class'] == ('1',)
