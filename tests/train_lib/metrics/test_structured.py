"""Scores of ordered classes and of trees, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from input_pipeline.class_levels import inner_levels, levels_of
from train_lib.metrics.structured import level_scores, ordinal_scores, quadratic_kappa

NAMES = ('Greek/a', 'Korean/a', 'Greek/b', 'Korean/b', 'Korean/c')


def test_ordinal_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 5)), rng.integers(-1, 5, 200)
    logits[np.arange(200), labels] += 1.5
    found, known = ordinal_scores(logits, labels), labels >= 0
    predicted, truth = logits[known].argmax(1), labels[known]
    np.testing.assert_allclose(found['mae'], mean_absolute_error(truth, predicted))
    np.testing.assert_allclose(found['qwk'],
                               cohen_kappa_score(truth, predicted, weights='quadratic'))


def test_the_median_has_the_least_expected_distance():
    probabilities = np.array([[0.4, 0.05, 0.3, 0.25]])  # largest: 0, median: 2
    found = ordinal_scores(np.log(probabilities), np.array([3]))
    assert (found['mae'], found['mae_median']) == (3, 1)
    expected = [np.abs(np.arange(4) - k) @ probabilities[0] for k in range(4)]
    assert np.argmin(expected) == 2


def test_nothing_to_score():
    assert ordinal_scores(np.zeros((2, 3)), np.array([-1, -1])) == dict(
        mae=None, mae_median=None, qwk=None)
    assert quadratic_kappa(np.zeros(3, int), np.zeros(3, int)) is None
    assert [one['accuracy'] for one in level_scores(np.zeros((1, 5)), np.array([-1]), NAMES)
            ] == [None]


def test_levels_of_names():
    top, leaves = levels_of(NAMES)
    assert top.names == ('Greek', 'Korean') and leaves.names == NAMES
    np.testing.assert_array_equal(top.nodes, [0, 1, 0, 1, 1])
    ragged = levels_of(('a/x/1', 'a/x/2', 'a/y', 'b'))
    assert [level.names for level in ragged] == [
        ('a', 'b'), ('a/x', 'a/y', 'b'), ('a/x/1', 'a/x/2', 'a/y', 'b')]
    assert inner_levels(('a', 'b')) == [] and inner_levels(('all/a', 'all/b')) == []
    assert len(inner_levels(('a/x/1', 'a/x/2', 'a/y', 'b'))) == 2


def test_right_alphabet_wrong_character():
    logits = np.log(np.array([[0.30, 0.20, 0.05, 0.20, 0.25],    # a Greek class, Korean by sums
                              [0.05, 0.60, 0.05, 0.20, 0.10],    # right
                              [0.05, 0.20, 0.05, 0.10, 0.60]]))  # right node, wrong class
    found, = level_scores(logits, np.array([4, 1, 3]), NAMES)
    assert found == pytest.approx(dict(level=1, nodes=2, accuracy=2 / 3, accuracy_summed=1,
                                       mistaken=1 / 3))
