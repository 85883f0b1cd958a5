import concurrent.futures
import io
import multiprocessing
import pathlib
import pickle
import zipfile

import cv2
import numpy as np
import pytest

from input_pipeline import loader
from input_pipeline.errors import DataError
from input_pipeline.manifest import digest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.readable import check_readable
from input_pipeline.sources import load_source, read_bytes, read_image


def picture(value):
    return cv2.imencode('.png', np.full((4, 6, 3), value, np.uint8))[1].tobytes()


def archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return str(path)


def load(path, **data):
    return load_source({'source': 'folder', 'folder': str(path)} | data)


@pytest.fixture
def members():
    return {f'{side}/{name}/{k}.png': picture(60 * k + 9 * len(name))
            for side in ('train', 'test') for name in ('cat', 'horse') for k in range(3)}


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_like_its_folder(tmp_path, members, method):
    path = archive(tmp_path / 'a.ZIP', {
        **members, 'train/.x.png': b'', '__MACOSX/train/cat/._0.png': b'', 'train/note.txt': b'x',
        'test/': b''}, method)
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / 'a')
    packed, plain = load(path), load(tmp_path / 'a')
    assert digest(packed) == digest(plain) and packed.root == path
    assert packed.table['split'].tolist() == plain.table['split'].tolist()
    for zipped, file in zip(packed.table['location'], plain.table['location']):
        assert read_bytes(path, zipped) == read_bytes(plain.root, file) == members[file]
    inside = load(path + '/test')
    assert inside.table['id'].tolist() == [f'{n}/{k}.png' for n in ('cat', 'horse')
                                           for k in range(3)]
    assert read_bytes(inside.root, inside.table['location'][4]) == members['test/horse/1.png']
    assert check_readable(packed, cache_dir=str(tmp_path / 'cache')) is packed
    with pytest.raises(DataError, match="no folder 'tset'"):
        load(path + '/tset')


def read_value(pictures, row):
    return int(pictures[row][0, 0, 0])


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_threads_forks_and_pickles_read_right(tmp_path):
    path = archive(tmp_path / 'a.zip', {f'c/{k:03d}.png': picture(k) for k in range(200)})
    pictures = loader.Pictures(load(path), PreprocessSpec(size=4))
    rows = np.random.default_rng(0).permutation(200).tolist() * 3
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: read_value(pictures, row), rows)) == rows
    assert read_value(pickle.loads(pickle.dumps(pictures)), 7) == 7
    with multiprocessing.get_context('fork').Pool(3) as pool:  # all with one inherited handle
        assert pool.starmap(read_value, [(pictures, row) for row in rows], chunksize=5) == rows


def test_csv_with_an_archive(tmp_path, members):
    path = archive(tmp_path / 'a.zip', members)
    (tmp_path / 't.csv').write_text('image,label\ntest/cat/1.png,x\n./train/horse/2.png,y\n')
    manifest = load_source({'source': 'csv', 'csv': str(tmp_path / 't.csv'), 'images': path})
    assert read_bytes(manifest.root, manifest.table['location'][1]) == members['train/horse/2.png']
    (tmp_path / 't.csv').write_text('image,label\n../a.png,x\n')
    with pytest.raises(DataError, match='lies outside'):
        load_source({'source': 'csv', 'csv': str(tmp_path / 't.csv'), 'images': path})


@pytest.mark.parametrize('name', ['a/../../x.png', '../x.png', '/etc/x.png', 'a\\..\\x.png',
                                  'C:/x.png'])
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = archive(tmp_path / 'a.zip', {'a/0.png': picture(0), name: picture(1)})
    with pytest.raises(DataError, match='leads out'):
        load(path)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_names_with_dots_and_second_slashes(tmp_path):
    names = ['./', './cat/', './cat/0.png', 'dog//1.png', './a./2.png']
    path = archive(tmp_path / 'a.zip', {name: picture(3) if name[-1] != '/' else b''
                                        for name in names})
    manifest = load(path)
    assert manifest.root == str(path)
    assert manifest.table['id'].tolist() == ['a./2.png', 'cat/0.png', 'dog/1.png']
    assert manifest.classes['class'] == ('a.', 'cat', 'dog')
    for location in [*manifest.table['location'], 'zip:./cat/0.png']:
        assert read_bytes(manifest.root, location) == picture(3)
    (tmp_path / 't.csv').write_text('image,label\ncat/0.png,x\n./dog/1.png,y\n', 'utf-8')
    check_readable(load_source({'source': 'csv', 'csv': str(tmp_path / 't.csv'),
                                'images': str(path)}))
    archive(tmp_path / 'b.zip', {'cat/0.png': picture(0), './cat/0.png': picture(1)})
    with pytest.raises(DataError, match=r"'cat/0.png' twice"):
        load(tmp_path / 'b.zip')


def test_the_name_of_an_archive_has_no_slash_behind_it(tmp_path):
    with pytest.raises(DataError, match=r"lies in '.*a.zip' without .* to .*a.zip/<class>/"):
        load(archive(tmp_path / 'a.zip', {'0.png': picture(0)}))


def test_bad_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / 'twice.zip', 'w') as file:
        file.writestr('a/0.png', b'1')
        file.writestr('a/0.png', b'2')
    with pytest.raises(DataError, match='twice'):
        load(tmp_path / 'twice.zip')
    whole = archive(tmp_path / 'a.zip', {'a/0.png': picture(0), 'a/1.png': picture(1)})
    (tmp_path / 'cut.zip').write_bytes(pathlib.Path(whole).read_bytes()[:-60])
    with pytest.raises(DataError, match='not a valid zip'):
        load(tmp_path / 'cut.zip')


def test_bad_members_are_named(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for k in range(3):
            file.writestr(f'a/{k}.png', picture(k))
        file.writestr('a/3.png', picture(3), zipfile.ZIP_BZIP2)
    data = bytearray(buffer.getvalue())
    data[data.index(picture(1)) + 50] ^= 1
    (tmp_path / 'a.zip').write_bytes(data)
    manifest = load(tmp_path / 'a.zip')
    with pytest.raises(DataError, match=r"2 of 4 .*1.png.*checksum.*3.png.*method 12"):
        check_readable(manifest)
    with pytest.raises(DataError, match=r"'a/1.png' in .*a.zip.*damaged"):
        read_image(manifest.root, 'zip:a/1.png')
    kept = check_readable(manifest, policy='drop')
    assert kept.table['id'].tolist() == ['a/0.png', 'a/2.png']
    with pytest.raises(DataError, match='missing'):
        read_image(manifest.root, 'zip:a/9.png')
