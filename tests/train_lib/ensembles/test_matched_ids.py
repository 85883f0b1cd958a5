"""Ids are matched in the strictest way that fits all, and never to a wrong picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_lib.ensembles.matched_ids import match

FLAT = ['07.png', '1.png', '010.png']


@pytest.mark.parametrize('ids, pictures, how', [
    (['1.png', '07.png', '010.png'], FLAT, 'path'),
    (['./1.png', '07.png', '/010.png'], FLAT, 'path'),
    (['test\\1.png', 'test\\07.png', 'test\\010.png'], FLAT, "path without 'test/'"),
    (['/kaggle/test/1.png', '/kaggle/test/07.png', '/kaggle/test/010.png'], FLAT,
     "path without 'kaggle/test/'"),
    (['1.png', '07.png', '010.png'], [f'test/{name}' for name in FLAT], "path below 'test/'"),
    (['1.png', '07.png', '010.png'], ['a/1.png', 'b/07.png', 'b/c/010.png'], 'file name'),
    (['1', '07', '010'], FLAT, 'path without its extension'),
    (['a/1', 'b/1'], ['a/1.png', 'b/1.jpg'], 'path without its extension'),
    (['test/1', 'test/07', 'test/010'], FLAT, "path without its extension without 'test/'"),
    (['1', '07'], ['a/1.png', 'b/07.jpg'], 'stem of the file name'),
    (['1', '7', '10'], FLAT, 'number in the file name'),
    (['0001', '0007', '0010'], FLAT, 'number in the file name'),
    (['a b.png'], ['a%20b.png'], 'path with percent signs decoded'),
    (['A.PNG', 'b.png'], ['a.png', 'B.png'], 'path in upper or lower case'),
    (['e\u0301.png'], ['\u00e9.png'], 'path'),
    (['1.2', '1.3'], ['1.2.png', '1.3.png'], 'path without its extension'),
])
def test_the_strictest_way_that_fits_all(ids, pictures, how):
    found = match(ids, pictures)
    assert (found.is_whole, found.how) == (True, how)
    assert found.count == len(ids)


def test_capitals_count_where_they_tell_pictures_apart():
    assert match(['a.png', 'A.png'], ['A.png', 'a.png']).places.tolist() == [1, 0]
    assert not match(['B.png'], ['b.png', 'b.PNG', 'a.png']).is_whole


@pytest.mark.parametrize('ids, pictures, several, shared', [
    (['1'], ['1.png', '1.jpg'], ('1',), ()),
    (['1.png'], ['a/1.png', 'b/1.png'], ('1.png',), ()),
    (['7'], ['007.png', '07.png'], ('7',), ()),
    (['07', '7'], ['7.png', '8.png'], (), ('7',)),
])
def test_what_is_ambiguous_is_not_whole(ids, pictures, several, shared):
    found = match(ids, pictures)
    assert not found.is_whole
    assert (found.several, found.shared) == (several, shared)


def test_both_folders_may_not_differ():
    """Pictures of the training, say, are not those of the test with the same names."""
    found = match(['test/1.png', 'test/2.png'], ['train/1.png', 'train/2.png'])
    assert not found.is_whole and found.count == 0


def test_what_fits_most_is_told():
    found = match(['1', '2', '3'], ['1.png', '2.png', 'x.png'])
    assert found.places.tolist() == [0, 1, -1]
    assert not found.is_whole and found.count == 2


NAMES = st.lists(st.text('ab01/.%\u00e9', min_size=1, max_size=8), min_size=1, max_size=6,
                 unique=True)


@given(NAMES, NAMES)
def test_a_whole_match_gives_each_id_a_picture_of_its_own(ids, pictures):
    found = match(ids, pictures)
    assert len(found.places) == len(ids)
    if found.is_whole:
        assert len(np.unique(found.places)) == len(ids)


@given(st.lists(st.from_regex(r'[a-c]{1,2}(/[0-9]{1,3}){0,2}\.png', fullmatch=True), min_size=1,
                max_size=8, unique=True), st.randoms(use_true_random=False))
def test_paths_are_found_in_any_order(pictures, random):
    ids = random.sample(pictures, len(pictures))
    found = match(ids, pictures)
    assert [pictures[place] for place in found.places] == ids and found.how == 'path'
