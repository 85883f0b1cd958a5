import zipfile

import pytest

from input_pipeline.errors import DataError
from input_pipeline.readable import check_files, check_readable
from input_pipeline.sources import load_source
from tests.input_pipeline.test_sources import tree
from tests.input_pipeline.test_zip import archive, picture

NAMES = [f'cat/{k}.png' for k in range(60)]


def manifest_of(root, names, images):
    (root / 'tables').mkdir(exist_ok=True)
    (root / 'tables/t.csv').write_text(
        'image,label\n' + ''.join(f'"{name}",x\n' for name in names), 'utf-8')
    return load_source({'source': 'csv', 'csv': str(root / 'tables/t.csv'),
                        'images': str(root / images)})


@pytest.mark.parametrize('images, change, words', [
    ('A', lambda name: name[:-4], r"lack the extension .png \('cat/0' is 'cat/0.png' there\)"),
    ('A', lambda name: name[:-3] + 'jpg', 'end in .jpg, and the files in .png'),
    ('A', lambda name: name.replace('/', '\\'), "have backslashes instead of '/'"),
    ('A', str.upper, 'the paths differ in capital letters'),
    ('A', lambda name: name[:-3] + 'PNG', 'the paths differ in capital letters'),
    ('A', lambda name: f'{name} ', r"the paths have blanks around names \('cat/0.png ' is"),
    ('A', lambda name: f'train/{name}', "begin with 'train', which is not there"),
    ('A', lambda name: 'C:\\me\\' + name.replace('/', '\\'), "backslashes .* begin with 'C:/me'"),
    ('A', lambda name: f'https://x.org/{name}', 'are web addresses: download'),
    ('A', lambda name: f'HTTP://x.org/{name}', 'are web addresses: download'),
    ('A', lambda name: f'A/{name}', "files lie in '(.*)': set data.images='[^']*[0-9]'"),
    ('B', lambda name: name, "files lie in '.*/A': set data.images='.*/A'"),
    ('B', lambda name: name[:-4], "/A', and the paths lack the extension .*: set data.images"),
    ('', lambda name: name, "set data.images='.*/A'"),
    ('A', lambda name: f'other{name}', 'first.: correct data.images or the paths in the table')])
def test_one_reason_for_all_is_said(tmp_path, images, change, words):
    tree(tmp_path, *(f'A/{name}' for name in NAMES), 'B/dog/1.png')
    manifest = manifest_of(tmp_path, map(change, NAMES), images)
    for check in (check_readable, check_files):
        with pytest.raises(DataError, match=f'All 60 images are missing in .*{words}') as error:
            check(manifest)
        assert 'unreadable=drop' not in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(DataError, match=words):
        check_readable(manifest, policy='drop')


@pytest.mark.parametrize('inside, change, words', [
    ('', lambda name: name, "set data.images='.*a.zip/dataset/train'"),
    ('/dataset', lambda name: name.upper(),
     "'dataset/CAT/0.PNG' is 'dataset/train/cat/0.png' there, .*capital letters: correct"),
    ('/dataset/train', lambda name: f'train/{name}', "is 'dataset/train/cat/0.png' there: correct"),
    ('/dataset/train', lambda name: name[:-4], "lack the extension .png"),
    ('/dataset/train', lambda name: name.replace('/', '\\'), 'backslashes')])
def test_one_reason_in_an_archive(tmp_path, inside, change, words):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
        for name in NAMES:
            file.writestr(f'dataset/train/{name}', picture(0))
    manifest = manifest_of(tmp_path, map(change, NAMES), f'a.zip{inside}')
    with pytest.raises(DataError, match=f'All 60 images are missing .*{words}'):
        check_readable(manifest)


@pytest.mark.parametrize('images', ['A', 'a.zip'])
def test_names_that_look_alike_are_written_in_ascii(tmp_path, images):
    real = [f'caf\xe9/{k}.png' for k in range(4)]
    tree(tmp_path, *(f'A/{name}' for name in real))
    archive(tmp_path / 'a.zip', {name: picture(0) for name in real})
    manifest = manifest_of(tmp_path, [name.replace('\xe9', 'e\u0301') for name in real], images)
    with pytest.raises(DataError, match=r"'cafe.u0301/0.png' is 'caf.xe9/0.png' there"):
        check_readable(manifest)


def test_some_that_are_missing(tmp_path):
    tree(tmp_path, *(f'A/{name}' for name in NAMES))
    some = [*NAMES[:50], *map(str.upper, NAMES[50:])]
    with pytest.raises(DataError, match=r'10 of 60 .*capital letters .*or continue without them'):
        check_readable(manifest_of(tmp_path, some, 'A'))
    assert len(check_readable(manifest_of(tmp_path, some, 'A'), policy='drop')) == 50
    with pytest.raises(DataError, match=r'1 of 61 .*: restore them, or continue without'):
        check_readable(manifest_of(tmp_path, [*NAMES, 'cat/none.png'], 'A'))
