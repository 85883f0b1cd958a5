"""Which folders are classes, which are none, and which files are pictures."""

import logging

import pytest

from input_pipeline.errors import DataError
from input_pipeline.sources import load_source
from tests.input_pipeline.test_sources import tree

NESTED = [f'{name}/p{person}/{k}.png' for name in ('cat', 'dog') for person in range(6)
          for k in range(2)]


def load(root, **data):
    return load_source({'source': 'folder', 'folder': str(root)} | data)


@pytest.mark.parametrize('depth, classes', [
    (None, 12), (1, ('cat', 'dog')), (2, 12), (9, 12), (-1, tuple(f'p{k}' for k in range(6)))])
def test_class_depth(tmp_path, depth, classes):
    found = load(tree(tmp_path, *NESTED), class_depth=depth).classes['class']
    assert (len(found) if classes == 12 else found) == classes


def test_class_depth_counts_from_the_split(tmp_path):
    manifest = load(tree(tmp_path, *(f'{side}/{name}' for side in ('Train', 'Test')
                                     for name in NESTED), 'Test/dog/p9/'), class_depth=1)
    assert manifest.classes['class'] == ('cat', 'dog')
    assert manifest.table['split'].value_counts().to_dict() == {'train': 24, 'test': 24}


@pytest.mark.parametrize('depth', [0, 1.0, True, '1'])
def test_bad_class_depth(tmp_path, depth):
    with pytest.raises(DataError, match=r'data.class_depth=.* is not a valid number of folders'):
        load(tree(tmp_path, *NESTED), class_depth=depth)


def test_odd_classes_are_noticed(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(tree(tmp_path / 'a', *NESTED), class_depth=1)
        load(tree(tmp_path / 'c', *(f'{name}/{k}.png' for name in 'abc' for k in range(2))))
        load(tree(tmp_path / 'd', *(f'K/{name}/{k}.png' for name in 'abc' for k in range(10))))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        load(tree(tmp_path / 'a', *NESTED))
    assert ('12 of 12 classes have fewer than 10 images, and they lie in only 2 folders' in
            caplog.text and 'config.data.class_depth=1' in caplog.text)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load(tmp_path / 'a/cat', class_depth=1)
        assert not caplog.records
        load(tree(tmp_path / 'b', 'all/cat/1.png', 'all/dog/1.png'), class_depth=1)
    assert "only one class, 'all'; is data.folder one folder too deep, or too high?" in caplog.text


CLUTTER = ['@eaDir/cat/1.png', 'cat/@eaDir/1.png/SYNO.jpg', '#recycle/cat/old.png',
           '$RECYCLE.BIN/S-1/x.png', 'System Volume Information/x/1.png', 'lost+found/x/1.png',
           'cat/.ipynb_checkpoints/1-checkpoint.png', '.thumbnails/large/1.png', '__MACOSX/a/1.png']


def test_folders_of_systems_are_no_classes(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        manifest = load(tree(tmp_path, 'cat/1.png', '#/1.png', '@/2.png', 'recycle/3.png',
                             'cat/desktop.ini', 'cat/Thumbs.db', *CLUTTER))
    assert manifest.classes['class'] == ('#', '@', 'cat', 'recycle') and len(manifest) == 4
    assert not caplog.records
    assert len(load(tmp_path, rules=1)) == 10  # as before: only what is hidden is left out


def test_other_extensions_of_jpeg(tmp_path):
    root = tree(tmp_path, 'a/1.jfif', 'a/2.JPE', 'a/3.png', 'b/4.jif', 'b/5.jpeg')
    assert len(load(root)) == 5
    assert set(load(root, rules=1).table['id']) == {'a/3.png', 'b/5.jpeg'}
