"""The end of a sentence that says which word was likely meant."""

import pytest

from input_pipeline.errors import did_you_mean, in_one_line, listed, nearest, perhaps

KNOWN = {'over': 1, 'under': 2, 'none': 3}


def test_the_nearest_words_are_offered():
    assert did_you_mean('overr', KNOWN) == "did you mean 'over'?"
    assert did_you_mean('oder', KNOWN, n=2, cutoff=0.5) == "did you mean 'over' or 'under'?"
    assert did_you_mean('flod', ['fold'], show='--{}'.format) == 'did you mean --fold?'
    assert nearest('oder', KNOWN, n=2, cutoff=0.5) == ['over', 'under']
    assert did_you_mean('mAP', ['maps', 'map']) == "did you mean 'map'?"  # difflib finds no letter
    assert nearest('SGD', ['sgdm', 'sgd'], n=2, cutoff=0.1) == ['sgd']


def test_the_known_words_are_listed_if_none_is_near():
    assert did_you_mean('smote', KNOWN) == 'use one of over, under, none.'
    assert did_you_mean('smote', iter(KNOWN)) == 'use one of over, under, none.'
    assert did_you_mean('x', range(100, 120)).endswith('109, 110, 111, ...')
    assert did_you_mean('smote', KNOWN, otherwise='read the manual.') == 'read the manual.'


@pytest.mark.parametrize('word', [None, 3, ('over',), 'x' * 10**6])
def test_any_word_has_an_answer(word):
    assert did_you_mean(word, KNOWN)


def test_in_the_middle_of_a_sentence():
    assert perhaps('overr', KNOWN) == " (did you mean 'over'?)" and perhaps('smote', KNOWN) == ''


def test_names_from_data_leave_a_sentence_on_one_line():
    """A cell or a header of a table may hold a line break."""
    assert in_one_line(ValueError('a\n  b ')) == 'a b'
    assert listed(('cat', 'café', 'a\nb', 7)) == "cat, café, 'a\\nb', 7"
    for hint in (did_you_mean('x', ('a\nb', 'c\rd')), did_you_mean('a b', ('a\nb',)),
                 perhaps('a b', ('a\nb',))):
        assert hint and hint.isprintable()
