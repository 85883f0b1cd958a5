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
    assert [one['accuracy'] for one in level_scores(np.zeros((1, 5)), np.array([-1]), NAMES)
            ] == [None]


def test_the_kappa_of_one_class_is_a_number():
    three, mixed = np.full(6, 3), np.array([0, 1, 3, 3, 4, 2])
    assert quadratic_kappa(three, three) == quadratic_kappa(mixed, mixed) == 1.0
    assert quadratic_kappa(np.full(6, 1), three) == 0.0
    for constant in range(7):  # exactly: rounding would make one of them the best
        assert quadratic_kappa(np.full(6, constant), mixed) == 0.0
        assert constant == 3 or quadratic_kappa(np.full(6, constant), three) == 0.0
    assert quadratic_kappa(mixed, three) == 0.0


def test_answers_other_than_the_largest_logit():
    """As votes have them, whose ties are broken, and whose shares may be no probabilities."""
    logits, labels = np.log([[0.4, 0.35, 0.25], [0.4, 0.4, 0.2]]), np.array([1, 1])
    found = ordinal_scores(None, labels, np.array([0, 1]))
    assert found == dict(mae=0.5, mae_median=None, qwk=0.0)
    assert ordinal_scores(logits, labels)['mae'] == 1 and ordinal_scores(
        logits, labels)['mae_median'] == 0
    level, = level_scores(None, labels, ('a/x', 'b/x', 'b/y'), np.array([0, 1]))
    assert (level['accuracy'], level['accuracy_summed']) == (0.5, None)


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
