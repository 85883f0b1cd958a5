"""Weights of the classes in the loss, against scikit-learn and plain formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from input_pipeline.errors import DataError
from train_lib.losses.class_weights import class_weights


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any),
       st.floats(0, 0.99999))
def test_class_weights(counts, beta):
    counts = np.array(counts)
    labels = np.repeat(np.arange(len(counts)), counts)
    there = np.unique(labels)
    balanced = class_weights(counts)
    np.testing.assert_allclose(balanced[there],
                               compute_class_weight('balanced', classes=there, y=labels))
    weights = {kind: class_weights(counts, kind, beta=beta)
               for kind in ('balanced', 'effective', 'sqrt')}
    for kind, values in weights.items():
        assert values[labels].mean() == pytest.approx(1), kind
        assert not values[counts == 0].any()
    formula = (1 - beta) / (1 - beta ** counts[there].astype(float))
    for kind, expected in (('effective', formula), ('sqrt', counts[there] ** -0.5)):
        ratio = weights[kind][there] / expected
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_array_equal(class_weights(counts, 'none'), 1)


def test_class_weights_by_hand():
    found = class_weights((3, 0, 5), 'manual', names=('ant', 'bee', 'cow'),
                          manual={'cow': 2, 'bee': 0.5})
    assert found.tolist() == [1, 0.5, 2]
    assert class_weights((3, 1), 'effective', beta=0.0).tolist() == [1, 1]


def test_pos_weight_is_negatives_by_positives_with_a_cap():
    """Four pictures with labels; a label of none of them gets the cap."""
    found = class_weights((1, 2, 4, 0), 'pos_weight', labelled=4)
    assert found.tolist() == [3, 1, 0, 100]
    assert class_weights((1, 2, 4, 0), 'pos_weight', labelled=4, cap=2.5).tolist() == \
        [2.5, 1, 0, 2.5]


@pytest.mark.parametrize('arguments, words', [
    ({'kind': 'pos_weight'}, 'there is one label per picture: use balanced'),
    ({'kind': 'pos_weight', 'labelled': 9, 'cap': 0}, 'loss.weights.cap=0: give a number above 0'),
    ({'kind': 'pos_weight', 'labelled': 9, 'cap': '9'}, "loss.weights.cap='9'"),
    ({'kind': 'balance'}, "loss.weights.kind='balance' is unknown: did you mean 'balanced'"),
    ({'kind': 'effective', 'beta': 1.0}, r'loss.weights.beta=1.0: give a number'),
    ({'kind': 'manual', 'manual': {'cat': 1}}, "loss.weights.manual names the class 'cat'"),
    ({'kind': 'manual', 'manual': {'cow': 'x'}}, r"manual\['cow'\] = 'x'")])
def test_bad_class_weights(arguments, words):
    with pytest.raises(DataError, match=words):
        class_weights((3, 5), **arguments, names=('ant', 'cow'), key='loss.weights')
    with pytest.raises(DataError, match='there are none'):
        class_weights((0, 0))
