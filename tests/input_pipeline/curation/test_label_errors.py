import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from input_pipeline import sources
from input_pipeline.curation.label_errors import (
    find_label_errors,
    out_of_fold,
    overlapping_classes,
    to_finding,
)
from input_pipeline.descriptors import describe_all


def test_confident_learning_by_hand():
    probabilities = np.array([[.9, .1, 0], [.8, .2, 0], [.2, .8, 0], [.45, .55, 0],
                              [.1, .9, 0], [.3, .7, 0], [.6, .4, 0], [.5, .5, 0]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, -1])
    # Thresholds: class 0 (.9 + .8 + .2 + .45) / 4 = .5875, class 1 (.9 + .7 + .4) / 3 = .6667.
    found = find_label_errors(labels, probabilities)
    assert found.joint.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert np.flatnonzero(found.wrong).tolist() == [2, 6]
    assert found.suggestion[[2, 6]].tolist() == [1, 0]
    np.testing.assert_allclose(found.score[2:4], np.log([.8 / .2, .55 / .45]))
    assert np.isnan(found.score[7]) and not found.wrong[7]
    other = find_label_errors(labels, probabilities, score='self_confidence')
    np.testing.assert_allclose(other.score[:4], [.1, .2, .8, .55])


def test_an_unsure_class_gets_its_own_threshold():
    # A model that gives class 1 at most .4: an absolute threshold would never count it.
    probabilities = np.array([[.6, .4], [.95, .05], [.9, .1], [.62, .38], [.62, .38]])
    found = find_label_errors(np.array([0, 0, 0, 1, 1]), probabilities)
    assert np.flatnonzero(found.wrong).tolist() == [0]


def test_rows_without_a_prediction_are_not_judged():
    probabilities = np.array([[.9, .1], [np.nan, np.nan], [.1, .9], [.1, .9]])
    found = find_label_errors(np.array([0, 0, 1, 0]), probabilities)
    assert np.isnan(found.score[1]) and found.wrong.tolist() == [False, False, False, True]
    finding = to_finding(found, ['x', 'y'], drop=2)
    assert finding.action.tolist() == ['keep', 'keep', 'keep', 'drop']
    assert to_finding(found, ['x', 'y'], drop=9).action[3] == 'review'
    assert finding.label.tolist() == ['', '', '', 'y']


def test_mixed_classes_come_first():
    joint = np.array([[10, 4, 0], [2, 8, 1], [0, 0, 30]])
    table = overlapping_classes(joint, ['a', 'b', 'c'])
    assert table[['first', 'second']].values.tolist() == [['a', 'b'], ['b', 'c']]
    assert table['share'][0] == pytest.approx(6 / 25) and table['there'][0] == 4


@pytest.fixture(scope='module')
def digits():
    manifest = sources.load_source({'source': 'digits'})
    manifest = manifest.select(np.arange(0, len(manifest), 2))
    return describe_all(manifest), manifest.labels('class')


def test_planted_wrong_labels_are_found(digits):
    features, truth = digits
    rng = np.random.default_rng(0)
    labels = truth.copy()
    rows = rng.permutation(len(labels))[:45]
    labels[rows] = (labels[rows] + rng.integers(1, 10, 45)) % 10
    labels[-1] = -1
    found = find_label_errors(labels, out_of_fold(features, labels, classes=10))
    known = labels >= 0
    assert average_precision_score((labels != truth)[known], found.score[known]) > .97
    assert np.mean(found.suggestion[found.wrong] == truth[found.wrong]) > .95


def test_copies_do_not_vouch_for_each_other(digits):
    features, truth = (part[:200] for part in digits)
    features, labels = np.concatenate([features, features[:40]]), np.append(truth, truth[:40])
    wrong = np.r_[:40, 200:240]
    labels[wrong] = (labels[wrong] + 1 + np.r_[:40, :40] % 9) % 10
    group = np.full(240, '', object)
    group[wrong] = np.r_[:40, :40].astype(str)
    apart, together = (out_of_fold(features, labels, classes=10, groups=groups)[
        wrong, labels[wrong]].mean() for groups in (group, None))
    assert apart < .5 * together
