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


def predictions(agree, noise, count=2000, classes=10):
    """(labels, which are wrong, probabilities of a model that is right so often)"""
    rng = np.random.default_rng(0)
    truth, values = rng.integers(0, classes, count), rng.normal(0, 1, (count, classes))
    rows = np.arange(count)
    margin = np.sort(np.where(rows[:, None] * 0 + np.arange(classes) == truth[:, None], -np.inf,
                              values).max(1) - values[rows, truth])
    values[rows, truth] += margin[int(agree * count)]
    probabilities = np.exp(1.5 * values)
    labels, wrong = truth.copy(), rng.permutation(count)[:round(noise * count)]
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return labels, labels != truth, probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.parametrize('agree', [.4, .6, .75])
@pytest.mark.parametrize('noise', [0, .05, .2])
def test_weak_predictions_review_what_their_precision_supports(agree, noise):
    labels, wrong, probabilities = predictions(agree, noise)
    found = find_label_errors(labels, probabilities)
    off = found.joint.sum() - np.trace(found.joint)  # what was marked for review before
    assert found.weak and found.wrong.sum() <= .05 * len(labels) + 2 * wrong.sum()
    assert found.wrong.sum() < .9 * off and f'of {off:,} pictures' in found.note
    if noise:  # half of them at best, and not every wrong label is found
        assert wrong[found.wrong].mean() > (.18 if noise < .1 else .42)
    finding = to_finding(found, [f'{k}' for k in range(10)], drop=-np.inf)
    assert not (finding.action == 'drop').any() and finding.note == found.note


@pytest.mark.parametrize('noise', [0, .05, .2])
def test_predictions_that_only_wrong_labels_contradict_are_not_weak(noise):
    labels, wrong, probabilities = predictions(.97, noise)
    found = find_label_errors(labels, probabilities)
    assert not found.weak and found.wrong.sum() >= .75 * wrong.sum()


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('labels, judged', [
    ([0], 0), ([0] * 6, 0), ([0, 1], 0), ([-1] * 5, 0), ([0, 0, 0, 0, 1], 0),
    ([0, 0, 1, 1], 4), ([0, 0, 0, 1, 1, 1, 2], 6)])
def test_small_classes_get_fewer_folds_or_no_judgement(labels, judged):
    labels = np.array(labels)
    features = np.random.default_rng(0).normal(0, 1, (len(labels), 12))
    for values in (features, features * 0):
        found = out_of_fold(values, labels, classes=3)
        assert np.isfinite(found).all(1).sum() <= judged
        errors = find_label_errors(labels, found)
        assert not errors.wrong[np.isnan(found).any(1)].any()
    if judged:
        assert np.isfinite(out_of_fold(features, labels, classes=3)).any()
    # A class that is one group of copies has nothing to be judged by.
    groups = np.array(['x' if label == 0 else '' for label in labels], object)
    assert np.isnan(out_of_fold(features, labels, classes=3, groups=groups)[labels == 0]).all()


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
