"""A resumed run keeps its split."""

import numpy as np
import pytest

from configs.common import get_config
from input_pipeline.errors import DataError
from input_pipeline.kept_splits import keep_sides, split_digest
from input_pipeline.manifest import make_manifest
from input_pipeline.splits import assign_splits

SIDES = ['train', 'train', 'val', 'test', 'train', 'train']
KNOWN = dict(zip('abcdef', SIDES))


def manifest(ids='abcdef', groups=('p', 'p', 'q', 'r', '', ''), **columns):
    return make_manifest({
        'id': list(ids), 'location': list(ids), 'label/class': np.arange(len(ids)) % 2,
        'group': list(groups), **columns}, {'class': ('x', 'y')})


def kept(found, given, known, grouped=True):
    return ' '.join(keep_sides(found, np.array(given, object), known, grouped=grouped))


def test_the_digest_knows_sides_and_not_the_order():
    ids = list('abcdef')
    whole = split_digest(ids, SIDES)
    assert split_digest(ids[::-1], SIDES[::-1]) == whole
    assert split_digest(ids, [*SIDES[:5], 'val']) != whole != split_digest(ids[:5], SIDES[:5])
    assert split_digest(['ab', 'c'], ['d', 'e']) != split_digest(['a', 'bc'], ['d', 'e'])


def test_known_rows_stay_and_new_ones_join_their_group_or_train():
    known = {'a': 'train', 'b': 'train', 'c': 'test', 'gone': 'val', 'x': 'test'}
    today = manifest(groups=['p', 'p', 'q', 'q', '', 'new'])
    assert kept(today, [''] * 6, known) == 'train train test test train train'
    assert kept(today, [''] * 6, known, grouped=False) == 'train train test train train train'


def test_a_given_side_is_kept_and_must_not_change():
    today = manifest(groups=[''] * 6)
    given = ['', '', 'val', 'test', 'test', '']
    assert kept(today, given, dict(zip('abcd', SIDES))) == 'train train val test test train'
    with pytest.raises(DataError, match=r"1 picture .*'e' was in train, and is now in test"):
        kept(today, given, KNOWN)


def test_a_group_that_was_split_since_is_refused():
    torn = manifest(groups=['p', 'p', 'p', 'r', '', ''])
    with pytest.raises(DataError, match="group 'p' has pictures in train and in val"):
        kept(torn, [''] * 6, KNOWN)
    assert kept(torn, [''] * 6, KNOWN, grouped=False) == ' '.join(SIDES)


@pytest.mark.parametrize('split, columns', [
    ({}, {}), ({'kind': 'kfold', 'folds': 3, 'fold': 1}, {}), ({'test_groups': ('8',)}, {}),
    ({}, {'split': ['test'] * 20 + ['train'] * 100}),
    ({'kind': 'kfold', 'folds': 3, 'fold': 1}, {'split': ['test'] * 20 + ['train'] * 100}),
    ({'kind': 'given', 'test_groups': ('g8',)}, {})])
def test_whatever_was_drawn_or_given_stays(split, columns):
    """The same rows split with another seed, and with some of them gone and others new."""
    split = get_config().split.to_dict() | split
    groups = [f'g{k // 4}' for k in range(120)]
    if split['test_groups'] == ('8',):
        groups = [group[1:].zfill(2) for group in groups]
    whole = manifest([f'{k:03}' for k in range(120)], groups, **columns)
    cut = assign_splits(whole, split, seed=0)
    known = dict(zip(cut.table['id'], cut.table['split']))
    assert list(assign_splits(whole, split, seed=1).table['split']) != list(known.values())
    again = assign_splits(whole, split, seed=1, known=known)
    assert list(again.table['split']) == list(known.values())
    rest = whole.select(np.arange(120) % 7 > 0)
    for known_now in (known, {name: known[name] for name in list(known)[:90]}):
        found = assign_splits(rest, split, seed=1, known=known_now).table
        assert all(known_now.get(name, side) == side
                   for name, side in zip(found['id'], found['split']))
        sides = found.groupby('group')['split'].nunique()
        assert sides.max() == 1
