"""A sample submission is read as text and written again in its own form."""

import zipfile

import pandas as pd
import pytest

from input_pipeline.errors import DataError
from train_lib.ensembles.sample_file import read_sample
from train_lib.runtime.errors import ConfigError


@pytest.mark.parametrize('text', [
    'ID,target\n007,0\n08,NA\n', 'ID;target\r\n007;0\r\n', 'ID\ttarget\n007\t1e5\n',
    '"ID","target"\n"007","0"\n', 'ID, target \n"a,b",0\n', 'ID,target\n,\n'])
def test_it_is_written_as_it_was(tmp_path, text):
    path = tmp_path / 'sample.csv'
    path.write_bytes(text.encode())
    sample = read_sample(str(path))
    assert list(sample.columns) == ['ID', 'target']
    assert sample.text_of(pd.DataFrame(sample.columns)) == text


def test_the_byte_order_mark_goes(tmp_path):
    path = tmp_path / 'sample.csv'
    path.write_bytes('\ufeffID,target\nä,0\n'.encode())
    sample = read_sample(str(path))
    assert sample.columns == {'ID': ['ä'], 'target': ['0']}
    assert sample.text_of(pd.DataFrame(sample.columns)) == 'ID,target\nä,0\n'


def test_a_sample_without_rows_is_refused(tmp_path):
    path = tmp_path / 'sample.csv'
    path.write_text('ID,target\n')
    with pytest.raises(ConfigError, match='no rows'):
        read_sample(str(path))


def test_a_packed_sample_is_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / 'sample.csv.zip', 'w') as archive:
        archive.writestr('sample.csv', 'ID,target\na,0\n')
    with pytest.raises(DataError, match='is a zip archive: unpack it'):
        read_sample(str(tmp_path / 'sample.csv.zip'))
