"""A run that goes on keeps its split."""

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.kept_splits import keep_split, split_digest
from input_pipeline.manifest import make_manifest

SIDES = ['train', 'train', 'val', 'test', 'train', 'train']
GROUPS = ['p', 'p', 'q', 'r', '', '']


def manifest(ids='abcdef', sides=SIDES, groups=GROUPS):
    return make_manifest({
        'id': list(ids), 'location': list(ids), 'label/class': np.arange(len(ids)) % 2,
        'group': list(groups), 'split': list(sides)}, {'class': ('x', 'y')})


def sides(found):
    return ' '.join(found.table['split'])


def test_the_digest_knows_sides_and_not_the_order():
    ids = list('abcdef')
    whole = split_digest(ids, SIDES)
    assert split_digest(ids[::-1], SIDES[::-1]) == whole
    assert split_digest(ids, [*SIDES[:5], 'val']) != whole != split_digest(ids[:5], SIDES[:5])
    assert split_digest(['ab', 'c'], ['d', 'e']) != split_digest(['a', 'bc'], ['d', 'e'])


def test_known_rows_stay_and_new_ones_join_their_group_or_train():
    known = {'a': 'train', 'b': 'train', 'c': 'test', 'gone': 'val', 'x': 'test'}
    today = manifest('abcdef', ['test', 'val', 'train', 'train', 'val', 'test'],
                     ['p', 'p', 'q', 'q', '', 'new'])
    found = keep_split(today, known, given=False, grouped=True)
    assert sides(found) == 'train train test test train train'
    found = keep_split(today, known, given=False, grouped=False)
    assert sides(found) == 'train train test train train train'


def test_a_given_side_holds_and_must_not_be_another():
    known = dict(zip('abcd', SIDES))
    assert sides(keep_split(manifest(), known, given=True, grouped=True)) == ' '.join(SIDES)
    moved = manifest(sides=['train', 'test', *SIDES[2:]], groups=[''] * 6)
    with pytest.raises(DataError, match=r"1 pictures .*'b' was in train, and is now in test"):
        keep_split(moved, known, given=True, grouped=True)


def test_a_group_that_was_torn_since_is_refused():
    torn = manifest(groups=['p', 'p', 'p', 'r', '', ''])
    with pytest.raises(DataError, match="group 'p' is in train and val"):
        keep_split(torn, dict(zip('abcdef', SIDES)), given=False, grouped=True)
