import logging

import pytest

from input_pipeline.errors import DataError
from input_pipeline.sources import load_source
from tests.input_pipeline.test_sources import table_of, tree
from tests.input_pipeline.test_zip import archive, picture


def load(root, **data):
    return load_source({'source': 'folder', 'folder': str(root)} | data)


def of_sides(*folders):
    return [f'{folder}/{name}/{k}.png' for folder in folders for name in ('cat', 'dog')
            for k in range(2)]


@pytest.mark.parametrize('train, held, side', [
    ('train', 'test', 'test'), ('Train', 'Test', 'test'), ('TRAIN', 'TEST', 'test'),
    ('Training', 'Testing', 'test'), ('train', 'valid', 'val'), ('Train', 'Validation', 'val'),
    ('training_set', 'test_set', 'test'), ('Training Images', 'Test images', 'test'),
    ('trainset', 'valset', 'val'), ('dataset/train', 'dataset/test', 'test'),
    ('a/b/Train', 'a/b/Val', 'val'), ('training_set/training_set', 'test_set/test_set', 'test')])
@pytest.mark.parametrize('zipped', [False, True])
def test_splits_are_seen(tmp_path, train, held, side, zipped):
    paths = [*of_sides(train, held), '__MACOSX/x/cat/._0.png']
    where = (archive(tmp_path / 'a.zip', {name: picture(0) for name in paths}) if zipped
             else tree(tmp_path, *paths))
    manifest = load(where)
    assert manifest.classes['class'] == ('cat', 'dog')
    assert dict(zip(manifest.table['id'], manifest.table['split'])) == dict.fromkeys(
        of_sides(train), 'train') | dict.fromkeys(of_sides(held), side)
    assert {name.split('/')[-2] for name in manifest.table['id']} == {'cat', 'dog'}
    assert all(name.split('/')[-2] == label for name, label in table_of(manifest).items())


@pytest.mark.parametrize('paths, words', [
    (of_sides('train2017', 'val2017'), "'train2017', which looks like a split.*rename it to train"),
    (of_sides('seg_train/seg_train', 'seg_test/seg_test'), "'seg_test', which looks like a split"),
    (of_sides('x/myTrain', 'x/rest'), "x' contains 'myTrain', which looks like"),
    (of_sides('훈련 데이터', '테스트'), "'테스트', which looks like a split"),
    (of_sides('학습용', '자료'), "'학습용', which looks like a split"),
    (of_sides('ＴＲＡＩＮ', 'ＴＥＳＴ'), "'ＴＥＳＴ', which looks like a split"),
    (of_sides('trn', 'tst'), "'trn', which looks like a split"),
    (of_sides('trains', 'tests'), "'tests', which looks like a split"),
    (of_sides('training', 'evaluation'), "split folder 'training' and also 'evaluation': rename"),
    (of_sides('x/Train', 'x/rest'), "split folder 'Train' and also 'rest': move 'rest'"),
    (of_sides('train/train', 'train/val'), r'train.*holds splits again \(train, val\)'),
    (['cat/train/1.png', 'cat/test/2.png', 'dog/train/1.png'], "move them on top, as 'test/cat'"),
    (['Train/1.png', 'Test/2.png'], 'without a class folder'),
    ([*of_sides('Train'), 'test/'], "class folder '.*test' holds no image")])
def test_what_looks_like_a_split_is_refused(tmp_path, paths, words):
    with pytest.raises(DataError, match=words):
        load(tree(tmp_path, *paths))


def test_a_line_break_in_the_name_of_a_split(tmp_path):
    with pytest.raises(DataError, match=r"holds splits again \('test.n', 'train.n'\)") as error:
        load(tree(tmp_path, *of_sides('train/train\n', 'train/test\n')))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('paths', [
    ['Train/1.png', 'bus/2.png'], ['bullet_train/1.png', 'test_tube/2.png'],
    ['bullet_train/japan/1.png', 'car/usa/2.png'], ['x/train/1.png', 'x/bus/2.png'],
    ['dataset/cat/1.png', 'dataset/dog/1.png'], ['contest/a/1.png', 'retrain/a/1.png'],
    ['시험지/a/1.png', '책/b/1.png']])
def test_classes_with_such_words_are_classes(tmp_path, paths):
    manifest = load(tree(tmp_path, *paths))
    assert set(table_of(manifest).values()) == {path.rpartition('/')[0] for path in paths}
    assert 'split' not in manifest.table


def test_a_run_of_older_rules_keeps_its_classes(tmp_path):
    older = load(tree(tmp_path, *of_sides('Train', 'Test')), rules=1)
    assert older.classes['class'] == ('Test/cat', 'Test/dog', 'Train/cat', 'Train/dog')
    assert 'split' not in older.table
    older = load(tree(tmp_path / 'b', *of_sides('train', 'test')), rules=1)
    assert older.classes['class'] == ('cat', 'dog') and 'split' in older.table


def test_splits_without_a_class_in_common_are_noticed(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(tree(tmp_path, *of_sides('train/a', 'test/b')))
    assert "no class of the split test ('b/cat' is one) occurs in train" in caplog.text


def test_other_folders_beside_splits_may_be_empty(tmp_path):
    manifest = load(tree(tmp_path, *of_sides('d/train', 'd/test'), 'd/annotations/'))
    assert manifest.classes['class'] == ('cat', 'dog')
