import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.common import get_config
from input_pipeline import splits as module
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.splits import assert_disjoint, save_splits, split_of

SECTION = get_config().split.to_dict()


def assign_splits(manifest, split, **rest):
    """With the defaults of configs/common.py."""
    return module.assign_splits(manifest, SECTION | split, **rest)


def make(labels, groups=None, splits=None, **heads):
    columns = {'id': [f'i{n:04d}' for n in range(len(labels))],
               'location': [f'{n}.png' for n in range(len(labels))], 'label/class': labels}
    classes = {'class': tuple('abcdefghij'[:max(labels) + 1])}
    for head, values in heads.items():
        columns[f'label/{head}'] = values
        classes[head] = tuple(f'{head}{n}' for n in range(max(values) + 1))
    if groups is not None:
        columns['group'] = groups
    if splits is not None:
        columns['split'] = splits
    return make_manifest(columns, classes)


def drawers(classes=5, people=20):
    """Each of the `people` draws each class once, as in Omniglot."""
    labels, groups = np.divmod(np.arange(classes * people), people)
    return make(labels, [f'{group + 1:02d}' for group in groups])


def sides(manifest):
    return dict(zip(manifest.table['id'], manifest.table['split']))


def counts(manifest):
    return manifest.table['split'].value_counts().to_dict()


def groups_of(manifest, name):
    return set(split_of(manifest, name).table['group'])


@st.composite
def manifests(draw, two_heads=True):
    """Unbalanced classes, groups of any size, single rows, some rows unlabelled."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    classes, per_class = draw(st.integers(1, 5)), draw(st.integers(12, 60))
    sizes = np.maximum(24, per_class * rng.uniform(0.3, 1, classes)).astype(int)
    labels = np.repeat(np.arange(classes), sizes)
    people = draw(st.integers(16, 80))
    groups = rng.integers(0, people, len(labels)).astype(str).astype(object)
    groups[rng.random(len(labels)) < draw(st.sampled_from([0, 0.3, 1]))] = ''
    age = {'age': rng.integers(0, 3, len(labels))} if two_heads else {}
    labels[rng.random(len(labels)) < draw(st.sampled_from([0, 0.1]))] = -1
    labels[:2] = classes - 1
    return make(labels, list(groups), **age)


@settings(max_examples=60, deadline=None)
@given(manifests(), st.integers(0, 9), st.sampled_from(['holdout', 'kfold']), st.booleans())
def test_every_split_is_valid(manifest, seed, kind, grouped):
    split = {'kind': kind, 'folds': 3, 'grouped': grouped, 'val': 0.2, 'test': 0.2}
    result = assign_splits(manifest, split, seed=seed)
    assert_disjoint(result, grouped=grouped)  # all rows assigned, groups whole, classes trained
    side = result.table['split'].to_numpy(str)
    for name in ('train', 'val', 'test'):
        assert (side == name).any()
    unlabelled = result.labels('class') < 0
    if not grouped:
        assert (side[unlabelled] == 'train').all()
    # The same for any order of the rows.
    order = np.random.default_rng(seed).permutation(len(manifest))
    assert sides(assign_splits(manifest.select(order), split, seed=seed)) == sides(result)


@settings(max_examples=40, deadline=None)
@given(manifests(two_heads=False), st.integers(0, 9), st.sampled_from([0.1, 0.15, 0.25, 0.4]))
def test_shares_of_single_rows_are_exact(manifest, seed, share):
    split = {'val': share, 'test': share, 'grouped': False}
    result = assign_splits(manifest, split, seed=seed)
    labels, side = result.labels('class'), result.table['split'].to_numpy(str)
    labelled = (labels >= 0).sum()
    for name in ('val', 'test'):
        assert abs((side == name).sum() - share * labelled) <= 1
        for label in range(max(labels) + 1):
            total = (labels == label).sum()
            if total >= 4:
                assert abs(((side == name) & (labels == label)).sum() - share * total) <= 2


def test_shares_of_groups_are_near():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 80)
    manifest = make(labels, list(rng.integers(0, 60, 400).astype(str)))
    for share in (0.05, 0.15, 0.3, 0.4):
        result = assign_splits(manifest, {'val': share, 'test': share}, seed=1)
        for name in ('val', 'test'):
            assert abs(counts(result)[name] / 400 - share) < 0.03
    per_class = np.bincount(split_of(result, 'test').labels('class'))
    assert per_class.min() >= 0.75 * per_class.max()


def test_seed_and_its_override():
    manifest = drawers()
    first = sides(assign_splits(manifest, {}, seed=0))
    assert first == sides(assign_splits(manifest, {}, seed=0))
    assert first != sides(assign_splits(manifest, {}, seed=1))
    assert first == sides(assign_splits(manifest, {'seed': 0}, seed=1))


def test_twenty_drawers_give_three_to_each_side():
    result = assign_splits(drawers(), {}, seed=3)
    assert counts(result) == {'train': 70, 'val': 15, 'test': 15}
    assert counts(assign_splits(drawers(), {'val': 0, 'test': 0}, seed=3)) == {'train': 100}


def test_listed_groups():
    split = {'test_groups': '17, 18,19,20', 'val_groups': (15, '16')}
    result = assign_splits(drawers(), split, seed=0)
    assert groups_of(result, 'test') == {'17', '18', '19', '20'}
    assert groups_of(result, 'val') == {'15', '16'} and counts(result)['train'] == 70
    result = assign_splits(drawers(), {'test_groups': ['8'], 'val': 0}, seed=0)
    assert groups_of(result, 'test') == {'08'} and counts(result) == {'train': 95, 'test': 5}
    result = assign_splits(drawers(), {'test_groups': ['08'], 'val': 0.2}, seed=0)
    assert counts(result) == {'train': 75, 'val': 20, 'test': 5}
    result = assign_splits(drawers(), {'kind': 'kfold', 'folds': 4, 'test_groups': 8}, seed=0)
    assert groups_of(result, 'test') == {'08'} and 15 <= counts(result)['val'] <= 30
    result = assign_splits(drawers(), {'kind': 'given', 'test_groups': '8', 'val': 0}, seed=0)
    assert counts(result) == {'train': 95, 'test': 5}


@pytest.mark.parametrize('ours, given', [('caf\xe9', 'cafe\u0301'), ('cafe\u0301', 'caf\xe9')])
def test_a_listed_group_may_compose_its_accents_otherwise(ours, given):
    manifest = make([0] * 8, [ours, ours, *'aabbcc'])
    assert groups_of(assign_splits(manifest, {'test_groups': given}, seed=0), 'test') == {ours}


@pytest.mark.parametrize('split, words', [
    ({'test_groups': '21'}, "split.test_groups names the group '21'.*20 groups"),
    ({'test_groups': '1', 'val_groups': '01'}, "'01' is in split.val_groups and"),
    ({'kind': 'kfold', 'val_groups': '1'}, 'split.val_groups has no meaning'),
    ({'kind': 'hold-out'}, 'holdout, kfold, given'),
    ({'tset': 0.1}, "split.tset.*did you mean 'test'"),
    ({'val': 1.5}, 'split.val=1.5'), ({'val': 0.5, 'test': 0.5}, 'nothing to train on'),
    ({'kind': 'kfold', 'fold': 5}, 'split.fold=5'), ({'kind': 'kfold', 'folds': 1}, 'split.folds'),
    ({'kind': 'kfold', 'folds': 30}, 'split.folds=30 is more than'),
    ({'head': 'age'}, "split.head='age'"), ({'kind': 'given'}, 'the data have no splits')])
def test_wrong_settings(split, words):
    with pytest.raises(DataError, match=words):
        assign_splits(drawers(), split, seed=0)


def test_ambiguous_and_missing_groups():
    manifest = make([0] * 6, ['8', '08', '008', '08', '9', '9'])
    with pytest.raises(DataError, match=r"'0008'.*could be several.*'8'"):
        assign_splits(manifest, {'test_groups': '0008'}, seed=0)
    assert groups_of(assign_splits(manifest, {'test_groups': '8', 'val': 0}, seed=0),
                     'test') == {'8'}
    with pytest.raises(DataError, match='group_regex'):
        assign_splits(make([0] * 6), {'test_groups': '1'}, seed=0)


@pytest.mark.parametrize('grouped', [True, False])
def test_folds_cover_every_row_once(grouped):
    manifest = drawers(classes=4, people=17)
    split = {'kind': 'kfold', 'folds': 5, 'grouped': grouped, 'test': 0.2}
    folds = [assign_splits(manifest, split | {'fold': fold}, seed=2) for fold in range(5)]
    held = [set(split_of(fold, 'val').table['id']) for fold in folds]
    tests = {frozenset(split_of(fold, 'test').table['id']) for fold in folds}
    assert len(tests) == 1
    rest = set(manifest.table['id']) - set(*tests)
    assert sum(map(len, held)) == len(rest) and set().union(*held) == rest
    assert max(map(len, held)) <= min(map(len, held)) + 4
    no_test = assign_splits(manifest, split | {'test': 0}, seed=2)
    assert set(counts(no_test)) == {'train', 'val'}


@pytest.mark.parametrize(('split', 'wanted'), [
    ({'kind': 'kfold', 'fold': 2}, None), ({'fold': 'all'}, None), ({'fold': (0, 1)}, None),
    ({'kind': 'kfold', 'fold': 'all', 'folds': 3}, (0, 1, 2)),
    ({'kind': 'kfold', 'fold': [6, 0, 3], 'folds': 7}, (0, 3, 6)),
    ({'kind': 'kfold', 'fold': (4,)}, (4,)), ({'kind': 'kfold', 'fold': 'some'}, None)])
def test_several_folds(split, wanted):
    assert module.several_folds(SECTION | split) == wanted


@pytest.mark.parametrize(('fold', 'words'), [
    ((0, 5), r'split\.fold=5 is not one of the 5 folds: use 0 to 4'),
    ((0, 'x'), r"split\.fold='x' is not one of the 5 folds"),
    ((), r'split\.fold=\(\) is not valid'), ((1, 1), r'\(1, 1\) is not valid: name different')])
def test_wrong_folds(fold, words):
    with pytest.raises(DataError, match=words):
        module.several_folds(SECTION | {'kind': 'kfold', 'fold': fold})


def test_a_class_smaller_than_the_folds_always_trains():
    manifest = make([0] * 30 + [1] * 3, [str(n // 2) for n in range(33)])
    for fold in range(5):
        split = {'kind': 'kfold', 'fold': fold, 'test': 0}
        result = assign_splits(manifest, split, seed=0)
        assert (split_of(result, 'train').labels('class') == 1).any()


def test_a_class_in_one_group_only_trains(caplog):
    manifest = make([0] * 30 + [1] * 4, [str(n % 10) for n in range(30)] + ['x'] * 4)
    with caplog.at_level(logging.INFO):
        for fold in range(3):
            result = assign_splits(
                manifest, {'kind': 'kfold', 'folds': 3, 'fold': fold, 'test': 0.2}, seed=0)
            assert 'x' in groups_of(result, 'train')
    assert '4 images train in every fold' in caplog.text
    with pytest.raises(DataError, match='Every group holds a class'):
        assign_splits(make([0, 0, 1, 1], ['x', 'x', 'y', 'y']), {}, seed=0)


def test_a_class_of_one_image():
    manifest = make([0] * 20 + [1])
    for split in ({}, {'kind': 'kfold'}):
        with pytest.raises(DataError, match=r"Class 'b' has one image \('i0020'\).*add images"):
            assign_splits(manifest, split, seed=0)
    assert counts(assign_splits(manifest, {'val': 0, 'test': 0}, seed=0)) == {'train': 21}
    # Two images are enough: one trains, whatever the second draw takes.
    for seed in range(9):
        result = assign_splits(make([0] * 20 + [1] * 2), {'val': 0.4, 'test': 0.4}, seed=seed)
        assert (split_of(result, 'train').labels('class') == 1).any()


def test_rare_classes_of_other_heads_train():
    age = [0] * 39 + [1]
    for seed in range(8):
        result = assign_splits(make([0, 1] * 20, age=age), {'val': 0.4, 'test': 0.4}, seed=seed)
        assert result.table['split'][39] == 'train'


def test_unlabelled_rows_follow_their_group_or_train():
    manifest = make([0, 1] * 20 + [-1] * 22, [str(n // 4) for n in range(40)] + ['0'] + [''] * 21)
    result = assign_splits(manifest, {'test_groups': '0', 'val': 0.2}, seed=0)
    assert result.table['split'][40] == 'test'
    assert (result.table['split'][41:] == 'train').all()
    # No labelled row is left to draw from.
    manifest = make([0] * 4 + [-1] * 4, splits=['test'] * 4 + ['train'] * 4)
    with pytest.raises(DataError, match=r'none of them in the train'):
        assign_splits(manifest, {}, seed=0)


# Given splits


def test_given_column(caplog):
    given = ['train'] * 60 + ['test'] * 20
    manifest = make([0, 1] * 40, splits=given)
    for kind in ('holdout', 'given'):
        with caplog.at_level(logging.INFO):
            result = assign_splits(manifest, {'kind': kind, 'val': 0.2}, seed=0)
        assert counts(result) == {'train': 48, 'val': 12, 'test': 20}
        assert (result.table['split'][60:] == 'test').all() and 'have no val' in caplog.text
    assert counts(assign_splits(manifest, {'kind': 'given', 'val': 0}, seed=0)) == {
        'train': 60, 'test': 20}
    folds = assign_splits(manifest, {'kind': 'kfold', 'folds': 3}, seed=0)
    assert counts(folds) == {'train': 40, 'val': 20, 'test': 20}
    manifest = manifest.with_column('split', ['train'] * 50 + ['val'] * 10 + ['test'] * 20)
    assert counts(assign_splits(manifest, {}, seed=0)) == {'train': 50, 'val': 10, 'test': 20}


def test_given_group_on_two_sides():
    manifest = make([0, 1] * 4, list('wwxxyyzz'), ['train'] * 3 + ['val'] * 3 + ['test'] * 2)
    with pytest.raises(DataError, match=r"group 'x' is in train and val \(1 such.*grouped=False"):
        assign_splits(manifest, {'kind': 'given'}, seed=0)
    result = assign_splits(manifest, {'kind': 'given', 'grouped': False}, seed=0)
    assert counts(result) == {'train': 3, 'val': 3, 'test': 2}
    # Making folds of the rest must not hide it.
    with pytest.raises(DataError, match=r"group 'y' is in (train|val) and test"):
        assign_splits(make([0] * 8, list('wwxxyyyz'), ['train'] * 6 + ['test'] * 2),
                      {'kind': 'kfold', 'folds': 2}, seed=0)


def test_given_splits_must_train_every_class():
    with pytest.raises(DataError, match=r"Class 'b' of the head 'class' has 2 images.*train"):
        assign_splits(make([0, 0, 1, 1], splits=['train', 'train', 'test', 'val']), {}, seed=0)
    with pytest.raises(DataError, match='train split is empty'):
        assign_splits(make([0, 0], splits=['test', 'val']), {}, seed=0)
    with pytest.raises(DataError, match="'i0001' has the split 'dev'"):
        assert_disjoint(make([0, 0], splits=['train', 'dev']))


def test_saved_splits_are_read_back(tmp_path):
    manifest = drawers()
    odd = ['a,b', 'quo"te', 'new\nline', 'ca\rriage', '그림', ' space ']
    manifest = manifest.with_column('id', odd + manifest.table['id'].tolist()[6:])
    result = assign_splits(manifest, {}, seed=0)
    path = str(tmp_path / 'splits.csv')
    save_splits(result, path)
    again = assign_splits(manifest, {'file': path, 'kind': 'given'}, seed=5)
    assert sides(again) == sides(result)
    header = (tmp_path / 'splits.csv').read_text().splitlines()[0]
    assert header == '"id","split","group","label/class"'
    assert [file.name for file in tmp_path.iterdir()] == ['splits.csv']
    with pytest.raises(DataError, match=r"1 ids .* are not in the file \('i0009'\)"):
        others = manifest.select(manifest.table['id'] != ' space ')
        save_splits(result.select(result.table['id'] != 'i0009'), path)
        assign_splits(manifest, {'file': path}, seed=0)
    with pytest.raises(DataError, match=r"1 ids .* are not in the data \(' space '\)"):
        assign_splits(others, {'file': path}, seed=0)


@pytest.mark.parametrize('text, words', [
    ('id,side\na,train\n', "no column 'split'"),
    ('id,split\na,train\na,val\n', "'a' again in line 3"),
    ('id,split\na,dev\n', "line 2: the split 'dev'")])
def test_bad_split_files(tmp_path, text, words):
    (tmp_path / 's.csv').write_text(text)
    with pytest.raises(DataError, match=words):
        assign_splits(drawers(), {'file': str(tmp_path / 's.csv')}, seed=0)


def test_split_of():
    result = assign_splits(drawers(), {'val': 0}, seed=0)
    assert len(split_of(result, 'train')) + len(split_of(result, 'test')) == 100
    with pytest.raises(DataError, match="'val' has no images"):
        split_of(result, 'val')
    with pytest.raises(DataError, match='train, val, test'):
        split_of(result, 'dev')
