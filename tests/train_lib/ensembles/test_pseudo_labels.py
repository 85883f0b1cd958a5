"""Which answers become pseudo-labels."""

import numpy as np
import pytest

from train_lib.ensembles.pseudo_labels import (
    Selection,
    check_names,
    read_selection,
    select,
    thresholds_of,
)
from train_lib.runtime.errors import ConfigError

CLASSES = ('cat', 'dog', 'eel')


def answers(*pairs):
    """[N, 3] of (class, confidence)."""
    found = np.zeros((len(pairs), 3))
    for row, (place, confidence) in enumerate(pairs):
        found[row] = (1 - confidence) / 2
        found[row, place] = confidence
    return found


GIVEN = answers((0, .9), (0, .8), (0, .7), (0, .6), (1, .95), (1, .55), (2, .5))


@pytest.mark.parametrize(('selection', 'chosen'), [
    (Selection(), [0, 1, 2, 3, 4, 5, 6]),
    (Selection(threshold=.6), [0, 1, 2, 3, 4]),
    (Selection(threshold=.6, thresholds={'cat': .8, 'eel': .4}), [0, 1, 4, 6]),
    (Selection(quantile=.5), [0, 1, 4, 6]),
    (Selection(quantile=.5, threshold=.85), [0, 4]),
    (Selection(per_class=1), [0, 4, 6]),
    (Selection(per_class=2, threshold=.52), [0, 1, 4, 5]),
])
def test_thresholds_and_caps(selection, chosen):
    least = thresholds_of(selection, GIVEN, CLASSES)
    assert np.flatnonzero(select(GIVEN, least, selection.per_class)).tolist() == chosen


def test_of_equally_sure_answers_the_first_are_taken():
    same = answers((1, .8), (1, .8), (1, .9), (1, .8))
    assert np.flatnonzero(select(same, np.zeros(3), 2)).tolist() == [0, 2]
    assert select(np.zeros((0, 3)), np.zeros(3), 2).tolist() == []


def test_flags_are_read():
    found = read_selection('0.9,cat=0.8,a=b=0.5', '0.25', '7')
    assert found == Selection(.9, {'cat': .8, 'a=b': .5}, .25, 7)
    assert read_selection('', '', '') == Selection()
    check_names(read_selection('cat=0.5', '', ''), {'kind': CLASSES})


@pytest.mark.parametrize(('flags', 'words'), [
    (('1.5', '', ''), "--threshold='1.5'"), (('x=y', '', ''), "--threshold='y'"),
    (('nan', '', ''), "--threshold='nan'"), (('', '1', ''), '--quantile=1 leaves no label'),
    (('', '-1', ''), "--quantile='-1'"), (('', '', '2.5'), "--per-class='2.5'"),
    (('', '', '-1'), "--per-class='-1'")])
def test_wrong_flags_are_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        read_selection(*flags)


def test_an_unknown_class_is_refused():
    with pytest.raises(ConfigError, match="names 'cet', which is not a class: did you mean 'cat'"):
        check_names(Selection(thresholds={'cet': .5}), {'kind': CLASSES})
