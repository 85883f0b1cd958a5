"""Confusions as pairs: what the square matrix says, in little memory for many classes."""

import base64
import tracemalloc

import cv2
import numpy as np
import pytest

from train_lib.metrics import scores
from train_lib.metrics.confusions import count_pairs
from train_lib.reporting import figures


def dense(labels, predicted, classes):
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def drawn(classes, rows, seed=0):
    """Labels and predictions: half are right, and few classes attract the rest."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    other = np.minimum(rng.geometric(min(1, 3 / classes), rows) - 1, classes - 1)
    return labels, np.where(rng.random(rows) < 0.5, labels, other)


@pytest.mark.parametrize('classes, rows', [(1, 5), (2, 0), (7, 300), (60, 40), (1500, 4000)])
def test_the_pairs_are_the_cells_of_the_matrix(classes, rows):
    labels, predicted = drawn(classes, rows)
    found, matrix = count_pairs(labels, predicted, classes), dense(labels, predicted, classes)
    np.testing.assert_array_equal(found.matrix(), matrix)
    np.testing.assert_array_equal(found.totals, matrix.sum(1))
    np.testing.assert_array_equal(found.predictions, matrix.sum(0))
    np.testing.assert_array_equal(found.right, np.diag(matrix))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    np.testing.assert_array_equal(found.shares, shares[found.true, found.predicted])
    assert (found.count > 0).all()


@pytest.mark.parametrize('classes, rows', [(5, 60), (40, 30), (900, 5000)])
def test_the_class_table_is_that_of_the_matrix(classes, rows):
    labels, predicted = drawn(classes, rows)
    names = [f'c{k}' for k in range(classes)]
    table = scores.class_table(np.eye(classes, dtype=np.float32)[predicted], labels, names)
    matrix = dense(labels, predicted, classes)
    wrong = matrix - np.diag(np.diag(matrix))
    other, most = wrong.argmax(1), wrong.max(1)  # the first of equal ones
    assert table['mistaken'].tolist() == most.tolist()
    assert table['mistaken_for'].tolist() == [names[k] if n else '' for k, n in zip(other, most)]
    assert table['n'].tolist() == matrix.sum(1).tolist()


@pytest.mark.parametrize('classes, side', [(31, 50), (100, 30), (101, 25)])
def test_the_heat_map_is_that_of_the_matrix(classes, side):
    labels, predicted = drawn(classes, 20 * classes)
    matrix = dense(labels, predicted, classes)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    fold = -(-classes // (2 * side))
    pad = -classes % fold
    blocks = lambda cells: np.pad(cells, ((0, pad), (0, pad))).reshape(
        (classes + pad) // fold, fold, -1, fold).max((1, 3))
    right = blocks(np.diag(np.diag(shares)))
    errors = blocks(shares - np.diag(np.diag(shares)))
    largest = np.maximum(errors, right)
    wanted = np.round(np.where(largest > 0, 50 + 205 * np.sqrt(largest), 0)).astype(np.uint8)
    uri = figures.heat_map(count_pairs(labels, predicted, classes), side)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(',')[1]), np.uint8),
                           cv2.IMREAD_UNCHANGED)
    times = len(picture) // len(wanted)
    np.testing.assert_array_equal(picture[::times, ::times, 3], wanted)
    blue = (picture[::times, ::times, :3] == figures._BLUE).all(-1)
    np.testing.assert_array_equal(blue[largest > 0], (errors > right)[largest > 0])


def test_ten_thousand_classes_need_little_memory():
    classes, rows = 10_000, 900
    labels, predicted = drawn(classes, rows)
    logits = np.random.default_rng(1).normal(0, 1, (rows, classes)).astype(np.float32)
    logits[np.arange(rows), predicted] += 9
    names = [str(k) for k in range(classes)]
    tracemalloc.start()
    scores.scores(logits, labels)
    scores.class_table(logits, labels, names)
    scores.reliability(logits, labels)
    scores.confident_errors(logits, labels)
    figures.heat_map(scores.confusions(logits, labels, classes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # the matrix alone would have 800 MB


@pytest.mark.parametrize('classes', [1, 3, 1000])
def test_scores_do_not_depend_on_how_rows_are_cut_into_blocks(classes, monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (700, classes)).astype(np.float32)
    labels = rng.integers(-1, classes, 700)
    found = []
    for cells in (1, 1 << 10, 1 << 16, 1 << 30):
        monkeypatch.setattr(scores, '_CELLS', cells)
        found.append(scores.scores(logits, labels))
    assert found[0] == found[1] == found[2] == found[3]
