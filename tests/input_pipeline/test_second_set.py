"""A second set of pictures without labels, from a folder, an archive or a table."""

import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest

from input_pipeline.errors import DataError
from input_pipeline.sources import read_image, second_set

DATA = dict(allow_outside=False, zip_encoding='', rules=2)


@pytest.fixture
def pictures(tmp_path):
    """Three pictures: loose, in a folder, and in a folder that looks like a split."""
    for k, name in enumerate(('a.png', 'deep/er/b.png', 'test/c.jpg')):
        path = tmp_path / 'second' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((20, 30, 3), 40 * k, np.uint8))
    return tmp_path / 'second'


def test_a_folder_or_archive_has_no_classes(pictures, tmp_path):
    with zipfile.ZipFile(tmp_path / 'second.zip', 'w') as archive:
        for path in pictures.rglob('*.*'):
            archive.write(path, f'top/{path.relative_to(pictures)}')
    for path in (pictures, tmp_path / 'second.zip/top'):
        found = second_set.load(str(path), DATA)
        assert found.table['id'].tolist() == ['a.png', 'deep/er/b.png', 'test/c.jpg']
        assert found.heads == () and list(found.table) == ['id', 'location']
        assert read_image(found.root, found.table['location'][1]).mean() == 40
    whole = second_set.load(str(tmp_path / 'second.zip'), DATA)
    assert whole.table['id'].tolist()[0] == 'top/a.png'


@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_a_table_finds_its_column_and_pictures_beside_it(pictures, ending):
    table = pd.DataFrame(dict(number=[1, 2], Filename=['deep/er/b.png', 'a.png'], label=['x', '']))
    path = pictures / f'list.{ending}'
    table.to_csv(path, index=False) if ending == 'csv' else table.to_parquet(path)
    found = second_set.load(str(path), DATA)
    assert found.table['id'].tolist() == ['deep/er/b.png', 'a.png'] and found.heads == ()
    assert read_image(found.root, found.table['location'][0]).mean() == 40


def test_what_cannot_be_a_second_set_is_one_sentence(pictures, tmp_path):
    (tmp_path / 'empty').mkdir()
    (pictures / 'other.csv').write_text('number,thing\n1,a.png\n')
    (pictures / 'none.csv').write_text('path\n')
    (pictures / 'out.csv').write_text('path\n../else/a.png\n')
    for path, *words in (
            (tmp_path / 'secnd', 'explore.beside', 'does not exist', "/second'?"),
            (tmp_path / 'empty', 'holds no images', 'put them there'),
            (pictures / 'a.png', 'explore.beside', 'not a folder'),
            (pictures / 'other.csv', 'no column called image', 'among number, thing'),
            (pictures / 'none.csv', 'no lines'),
            (pictures / 'out.csv', 'set data.allow_outside=True')):
        with pytest.raises(DataError) as error:
            second_set.load(str(path), DATA)
        text = str(error.value)
        assert all(word in text for word in words), text
        assert '\n' not in text and 'data.folder' not in text and 'data.csv' not in text
        assert '<class>' not in text and 'data.images' not in text and 'data.columns' not in text
