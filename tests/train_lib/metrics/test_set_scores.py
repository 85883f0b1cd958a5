"""Scores of heads with several labels per picture, against scikit-learn; thresholds, nested."""

import numpy as np
import pytest
from sklearn import metrics

from input_pipeline.label_sets import UNLABELLED
from train_lib.metrics.set_scores import (
    average_precision,
    confident_set_errors,
    decided,
    predicted_sets,
    set_scores,
    set_table,
    sigmoid,
)
from train_lib.metrics.thresholds import (
    LEAST,
    by_class,
    fit_thresholds,
    in_order,
    nested_scores,
    nested_sets,
)


def example(rows=300, strength=2.0, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((rows, 6)) < [.5, .3, .1, .05, .02, .4]).astype(np.uint8)
    logits = rng.normal(size=(rows, 6)) + strength * targets - 1
    return np.round(logits, 1), targets  # with ties


def test_scores_are_those_of_scikit_learn():
    logits, targets = example()
    found, predicted = set_scores(logits, targets), predicted_sets(logits)
    for how in ('macro', 'micro'):
        want = metrics.precision_recall_fscore_support(targets, predicted, average=how,
                                                       zero_division=0)[:3]
        ours = [found[f'{name}_{how}'] for name in ('precision', 'recall', 'f1')]
        np.testing.assert_allclose(ours, want)
    np.testing.assert_allclose(found['f1_examples'], metrics.f1_score(
        targets, predicted, average='samples', zero_division=1.0))
    assert found['accuracy'] == metrics.accuracy_score(targets, predicted)
    np.testing.assert_allclose(found['map'], metrics.average_precision_score(targets, logits))
    np.testing.assert_allclose(found['nll'], 6 * metrics.log_loss(
        targets.ravel(), sigmoid(logits).ravel()), rtol=1e-9)
    np.testing.assert_allclose(found['brier'], 6 * metrics.brier_score_loss(
        targets.ravel(), sigmoid(logits).ravel()))


@pytest.mark.parametrize('seed', range(5))
def test_average_precision_handles_ties(seed):
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 4, (30, 1)), rng.integers(0, 2, (30, 1)).astype(np.uint8)
    np.testing.assert_allclose(average_precision(scores, truth)[0],
                               metrics.average_precision_score(truth[:, 0], scores[:, 0]))
    assert np.isnan(average_precision(scores, np.zeros_like(truth))[0])


def test_unlabelled_rows_and_absent_classes_are_left_out():
    logits, targets = example()
    more = np.vstack([targets, np.full((5, 6), UNLABELLED, np.uint8)])
    padded = np.vstack([logits, np.full((5, 6), 9.0)])
    assert set_scores(padded, more) == set_scores(logits, targets)
    wide = np.hstack([logits, np.full((300, 1), -9.0)]), np.hstack([targets, targets[:, :1] * 0])
    assert set_scores(*wide)['f1_macro'] == set_scores(logits, targets)['f1_macro']
    assert set_scores(*wide)['map'] == set_scores(logits, targets)['map']
    assert set_scores(logits[:0], targets[:0])['accuracy'] is None
    with pytest.raises(ValueError, match='do not fit'):
        set_scores(logits, targets[:, :3])


def test_thresholds_have_the_largest_f1():
    logits, targets = example()
    fitted = fit_thresholds(logits, targets)
    grid = np.linspace(0, 1, 1001)
    enough = [k for k in range(6) if targets[:, k].sum() >= LEAST]
    assert len(enough) == 5
    for k in enough:
        said = sigmoid(logits[:, k]) >= grid[:, None]
        best = (2 * (said & (targets[:, k] == 1)).sum(1)
                / (said.sum(1) + targets[:, k].sum())).max()
        ours = metrics.f1_score(targets[:, k], sigmoid(logits[:, k]) >= fitted[k])
        assert ours == pytest.approx(best)
    none = np.zeros_like(targets)
    assert fit_thresholds(logits, none).tolist() == fit_thresholds(logits, 1 - none).tolist() == \
        [0.5] * 6
    names = tuple('abcdef')
    stored = by_class(fitted, names)
    assert in_order(stored, names[::-1]).tolist() == fitted[::-1].tolist()
    assert in_order({'a': 0.2}, names).tolist() == [0.2, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_rare_classes_share_the_threshold_that_is_best_for_all():
    logits, targets = example()
    rare = targets.copy()
    rare[np.flatnonzero(rare[:, 0])[LEAST - 1:], 0] = 0  # one row too few
    fitted = fit_thresholds(logits, rare)
    assert fitted[0] == fitted[4] and fitted[0] not in fitted[[1, 2, 3, 5]]
    said = sigmoid(logits)[None] >= np.linspace(0, 1, 1001)[:, None, None]
    best = (2 * (said & (rare == 1)).sum((1, 2)) / (said.sum((1, 2)) + rare.sum())).max()
    assert decided(predicted_sets(logits, fitted[0]), rare == 1)['f1_micro'] == pytest.approx(best)


def test_the_nested_score_of_random_labels_stays_at_chance():
    """With labels that say nothing, thresholds look good on the rows that they were fitted on."""
    rng = np.random.default_rng(1)
    naive, nested, chance = [], [], []
    for _ in range(20):
        targets = (rng.random((80, 4)) < 0.2).astype(np.uint8)
        logits = rng.normal(size=(80, 4))
        units = [str(k) for k in range(80)]
        said = predicted_sets(logits, fit_thresholds(logits, targets))
        naive.append(decided(said, targets == 1)['f1_macro'])
        nested.append(nested_scores(logits, targets, units)['f1_macro'])
        # To say yes always is the best that can be done without knowing anything.
        chance.append(decided(np.ones((80, 4), bool), targets == 1)['f1_macro'])
    assert np.mean(naive) > np.mean(chance) + 0.02
    assert np.mean(nested) < np.mean(chance)


def test_a_group_is_decided_by_the_thresholds_of_others():
    """All rows of a group are alike: were one of them among those that fit, it would tell."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(10), 4)
    logits = rng.normal(size=(10, 3))[group]
    targets = (rng.random((10, 3)) < 0.3).astype(np.uint8)[group]
    by_group = nested_sets(logits, targets, [f'g{k}' for k in group])
    assert all((by_group[group == k] == by_group[group == k][0]).all() for k in range(10))
    for k in range(10):  # what decides a group does not change with the labels of its rows
        other = targets.copy()
        other[group == k] = 1 - other[group == k]
        again = nested_sets(logits, other, [f'g{k}' for k in group])
        np.testing.assert_array_equal(again[group == k], by_group[group == k])
    assert nested_sets(logits[:4], targets[:4], ['g0'] * 4) is None
    assert nested_scores(logits[:4], targets[:4], ['g0'] * 4)['f1_macro'] is None


def test_the_table_and_the_errors():
    logits = np.array([[3.0, -3, -1], [-2, 2, 1], [0.5, 0.5, -9], [9, 9, 9]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [UNLABELLED] * 3], np.uint8)
    table = set_table(logits[:3], targets[:3], ('a', 'b', 'c'))
    assert table['n'].tolist() == [1, 2, 1] and table['missed'].tolist() == [0, 0, 1]
    assert table['added'].tolist() == [1, 0, 1]
    rows, worst = confident_set_errors(logits, targets)
    assert rows.tolist() == [2, 1] and worst.tolist() == [2, 2]
