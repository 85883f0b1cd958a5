import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics

from train_lib.metrics import scores as module
from train_lib.metrics.scores import (
    class_table,
    confusion,
    log_softmax,
    reliability,
    scores,
    softmax,
)


def _random(n=300, classes=7, seed=0):
    rng = np.random.default_rng((seed, n, classes))
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1.0
    return logits, labels


@pytest.mark.parametrize('classes', [2, 3, 7, 40])
def test_equal_to_scikit_learn(classes):
    logits, labels = _random(classes=classes)
    predicted, probs = logits.argmax(1), softmax(logits)
    got = scores(logits, labels)
    assert got['n'] == 300
    assert got['accuracy'] == pytest.approx(metrics.accuracy_score(labels, predicted))
    for name, function in [('precision', metrics.precision_score),
                           ('recall', metrics.recall_score), ('f1', metrics.f1_score)]:
        want = function(labels, predicted, average='macro', zero_division=0)
        assert got[f'{name}_macro'] == pytest.approx(want)
    assert got['nll'] == pytest.approx(metrics.log_loss(labels, probs, labels=range(classes)))
    want = metrics.brier_score_loss(
        labels, probs, labels=range(classes), scale_by_half=False)
    assert got['brier'] == pytest.approx(want)
    if classes > 5:
        want = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        assert got['top5'] == pytest.approx(want)
    else:
        assert 'top5' not in got
    np.testing.assert_array_equal(
        confusion(logits, labels, classes),
        metrics.confusion_matrix(labels, predicted, labels=range(classes)))


def test_by_hand():
    probs = np.array([[.8, .2], [.6, .4], [.3, .7], [.9, .1]])
    labels = np.array([0, 1, 1, 0])
    got = scores(np.log(probs) + 5.0, labels)
    assert got['accuracy'] == 0.75
    assert got['nll'] == pytest.approx(-np.mean(np.log([.8, .4, .7, .9])))
    assert got['brier'] == pytest.approx(2 * np.mean(np.square([.2, .6, .3, .1])))
    # Each probability has a bin of its own: the gaps are .2, .6, .3, .1.
    assert got['ece'] == pytest.approx((.2 + .6 + .3 + .1) / 4)
    # Class 0: precision 2/3, recall 1; class 1: precision 1, recall 1/2.
    assert got['precision_macro'] == pytest.approx((2 / 3 + 1) / 2)
    assert got['recall_macro'] == pytest.approx(0.75)
    assert got['f1_macro'] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_unlabelled_rows_do_not_count():
    logits, labels = _random()
    labels[::3] = -1
    logits[0] = np.nan  # an unlabelled row may hold anything
    assert scores(logits, labels) == scores(logits[labels >= 0], labels[labels >= 0])
    assert confusion(logits, labels, 7).sum() == (labels >= 0).sum()


def test_macro_takes_the_classes_that_occur():
    logits = np.eye(10)[[0, 1, 1]] * 9
    assert scores(logits, [0, 1, 1])['f1_macro'] == 1.0
    # Class 2 is predicted and never true: it counts, with an F1 of 0.
    assert scores(np.eye(10)[[0, 1, 2]] * 9, [0, 1, 1])['f1_macro'] == pytest.approx(
        (1 + 2 / 3 + 0) / 3)


def test_plain_types_and_nothing_labelled():
    logits, labels = _random()
    got = scores(logits, labels)
    assert type(got['n']) is int
    assert all(type(value) is float for name, value in got.items() if name != 'n')
    empty = scores(logits, np.full(300, -1))
    assert empty['n'] == 0
    assert set(empty) == set(got)
    assert all(value is None for name, value in empty.items() if name != 'n')
    json.dumps([got, empty], allow_nan=False)


def test_ties_count_once():
    logits = np.zeros((8, 8))
    got = scores(logits, np.arange(8))
    assert got['accuracy'] == 1 / 8
    assert got['top5'] == 5 / 8
    assert got['nll'] == pytest.approx(math.log(8))


def test_huge_logits_stay_finite():
    logits = np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)
    got = scores(logits, [0, 0])
    assert got['accuracy'] == 0.5
    assert got['nll'] == pytest.approx(3e38, rel=1e-6)
    np.testing.assert_allclose(log_softmax([[1000., 1000.]]), -math.log(2))


def test_blocks_do_not_change_the_result(monkeypatch):
    logits, labels = _random()
    whole = scores(logits, labels)
    monkeypatch.setattr(module, '_BLOCK', 7)
    assert scores(logits, labels) == whole


@pytest.mark.parametrize('logits, labels, words', [
    (np.zeros((3, 2)), [0, 1], 'do not fit'),
    (np.zeros((2, 2)), [0, 2], 'Row 1 has label 2'),
    (np.zeros((2, 2)), [-2, 0], 'Row 0 has label -2'),
    (np.array([[0., 1.], [np.nan, 0.]]), [0, 1], 'row 1'),
    (np.array([[0., 1.], [np.inf, 0.]]), [0, 1], 'not finite'),
])
def test_wrong_input_is_named(logits, labels, words):
    with pytest.raises(ValueError, match=words):
        scores(logits, labels)


def test_class_table():
    matrix = np.array([[3, 2, 1, 0], [0, 4, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    labels, predicted = (np.repeat(index, matrix.ravel()) for index in
                         (np.arange(16) // 4, np.arange(16) % 4))
    table = class_table(np.eye(4)[predicted], labels, ['a', '<b>', '나무', 'd'])
    assert list(table['class']) == ['a', '<b>', '나무', 'd']
    assert list(table['n']) == [6, 4, 1, 0]
    np.testing.assert_allclose(table['precision'], [1, 4 / 7, 0, np.nan])
    np.testing.assert_allclose(table['recall'], [.5, 1, 0, np.nan])
    np.testing.assert_allclose(table['f1'], [2 / 3, 8 / 11, 0, np.nan])
    assert list(table['mistaken_for']) == ['<b>', '', '<b>', '']
    assert list(table['mistaken']) == [2, 0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(1, 8)),
                  elements=st.floats(-50, 50)), st.integers(1, 20), st.randoms())
def test_reliability_adds_up(logits, bins, random):
    labels = np.array([random.randrange(logits.shape[1]) for _ in logits])
    table = reliability(logits, labels, bins)
    got = scores(logits, labels, bins)
    assert len(table) == bins
    assert table['n'].sum() == len(labels)
    assert (table['accuracy'].fillna(0) * table['n']).sum() / len(labels) == pytest.approx(
        got['accuracy'])
    filled = table[table['n'] > 0]
    assert (filled['confidence'] <= filled['upper'] + 1e-9).all()
    assert (filled['confidence'] >= filled['lower'] - 1e-9).all()
    # Guo et al.'s sum, written out.
    confidence = softmax(logits).max(1)
    right = logits.argmax(1) == labels
    want = 0.0
    for low, high in zip(table['lower'], table['upper']):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            want += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert got['ece'] == pytest.approx(want, abs=1e-9)
    assert 0 <= got['brier'] <= 2


def test_wilson_interval():
    low, high = module.wilson_interval(0.9, 100)
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)
    assert module.wilson_interval(1.0, 5)[1] == 1.0
    assert module.wilson_interval(0.0, 0) == (0.0, 1.0)
