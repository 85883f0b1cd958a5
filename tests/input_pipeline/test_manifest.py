import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.manifest import digest, make_manifest
from input_pipeline.manifest_files import load, save
from input_pipeline.sources import load_source, read_image

ODD = ['a,b', 'quo"te', 'line\nend', 'ö 그림', 'NA', '', '007', 'x']


@pytest.fixture
def manifest(tmp_path):
    return make_manifest({
        'id': [f'{k} {name}' for k, name in enumerate(ODD)],
        'location': [f'c/{name or "empty"}.png' for name in ODD],
        'label/class': [0, 1, 2, 3, -1, 0, 4, 3], 'label/tool': [1, 0, -1, 1, 1, 0, 0, 1],
        'group': ODD, 'weight': np.linspace(0, 1 / 3, 8).astype(np.float32),
        'split': ['train', 'val', 'test', ''] * 2, 'truth/wrong': [True, False] * 4,
    }, {'class': ('z', 'NA', '10', 'None', 'a,"b'), 'tool': ('pen', 'brush', 'never used')},
        root=str(tmp_path / 'images'))


@pytest.mark.parametrize('ending', ['.csv', '.parquet'])
def test_a_round_trip_changes_nothing(manifest, tmp_path, ending):
    path = str(tmp_path / f'm{ending}')
    save(manifest, path)
    for loaded in (load(path), load_source({'source': 'csv', 'csv': path})):
        assert digest(loaded) == digest(manifest)
        assert loaded.classes == manifest.classes and loaded.root == manifest.root
        for name in ('id', 'location', 'group', 'split'):
            assert loaded.table[name].tolist() == manifest.table[name].tolist()
        assert loaded.table['label/class'].dtype == np.int32
    (tmp_path / 'far').mkdir()
    for file in tmp_path.glob(f'm{ending}*'):
        file.rename(tmp_path / 'far' / file.name)
    # The pictures lie below the file, so the folder moves along with it.
    assert load(str(tmp_path / f'far/m{ending}')).root == str(tmp_path / 'far/images')


def test_a_csv_without_its_json(tmp_path):
    path = tmp_path / 'm.csv'
    path.write_text('id,location,label/class,label/tool\n1,a.png,10,pen\n2,b.png,9,\n3,c.png,-1,ink')
    manifest = load(str(path))
    assert manifest.classes == {'class': ('9', '10'), 'tool': ('ink', 'pen')}
    assert manifest.labels('class').tolist() == [1, 0, -1] and manifest.root == str(tmp_path)
    assert manifest.labels('tool').tolist() == [1, -1, 0]


def test_a_manifest_of_drawn_pictures(tmp_path):
    digits = load_source({'source': 'digits'}).select(np.arange(5))
    save(digits, str(tmp_path / 'm.csv'))
    loaded = load_source({'source': 'csv', 'csv': str(tmp_path / 'm.csv')})
    assert digest(loaded) == digest(digits) and loaded.root == ''
    np.testing.assert_array_equal(read_image(loaded.root, loaded.table['location'][3]),
                                  read_image('', 'digits:3'))


def test_bad_manifests(manifest, tmp_path):
    path = str(tmp_path / 'm.csv')
    save(manifest, path)
    text = (tmp_path / 'm.csv').read_text('utf-8')
    for old, new, words in (
            (',pen,', ',pin,', "row 2 'pin'"), ('0.04761904', 'x', 'not a number'),
            (',val,', ',dev,', "split 'dev'"), ('location', 'place', "no column 'location'")):
        assert old in text
        (tmp_path / 'm.csv').write_text(text.replace(old, new, 1), encoding='utf-8')
        with pytest.raises(DataError, match=words):
            load(path)
    (tmp_path / 'm.parquet').write_bytes(b'PAR1 but no more')
    with pytest.raises(DataError, match=r'm.parquet.*cannot be read'):
        load_source({'source': 'csv', 'csv': str(tmp_path / 'm.parquet')})
    with pytest.raises(DataError, match=r'use .parquet or .csv'):
        save(manifest, str(tmp_path / 'm.txt'))
    doubled = make_manifest({'id': ['1'], 'location': ['a'], 'label/class': [1]},
                            {'class': ('a', 'a')})
    with pytest.raises(DataError, match='told apart'):
        save(doubled, path)
    save(doubled, str(tmp_path / 'm.parquet'))
    assert digest(load(str(tmp_path / 'm.parquet'))) == digest(doubled)


def test_a_manifest_stays_in_its_folder(tmp_path):
    (tmp_path / 'm.csv').write_text('id,location,label/class\n1,../a.png,x\n')
    data = {'source': 'csv', 'csv': str(tmp_path / 'm.csv')}
    with pytest.raises(DataError, match='lies outside'):
        load_source(data)
    assert len(load_source(data | {'allow_outside': True})) == 1
    with pytest.raises(DataError, match=r'data.group_regex is set'):
        load_source(data | {'allow_outside': True, 'group_regex': 'a'})
