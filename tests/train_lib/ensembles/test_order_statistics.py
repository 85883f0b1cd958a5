"""Ranks and order statistics of whole blocks, against their definitions one cell at a time."""

import numpy as np
import pytest
from scipy.stats import rankdata

from train_lib.ensembles.order_statistics import middle_mean, rank_shares, reached, sort_members


def some_values(kind, classes, rng):
    """[12, classes] with ties: of few values, of one value but one, of runs and of none."""
    values = rng.normal(size=(12, classes)) * 3
    values[1] = rng.integers(-2, 3, classes)
    values[2] = 0
    values[2, classes // 2] = -1
    values[3, :classes // 2] = values[3, 0]  # longer than what is counted place by place
    values[4] = np.where(values[4] > 0, 0.0, -0.0)
    values[5] = np.abs(values[5]) * 1e-7  # denormal in float16
    values[6] = np.arange(classes) / 64
    return values.astype(kind)


@pytest.mark.parametrize('classes', [2, 3, 40, 1000])
@pytest.mark.parametrize('kind', [np.float16, np.float32, np.float64, '>f4'])
def test_ranks_are_their_definition_to_the_last_bit(kind, classes):
    values = some_values(kind, classes, np.random.default_rng(classes))
    points = rankdata(values.astype(np.float64), axis=-1) - 1
    for rows in (values, values[6:], values[1:3]):  # of few and of many equal values
        for dtype in (np.float32, np.float64):
            want = points[len(values) - len(rows):] if len(rows) != 2 else points[1:3]
            want = (want * 2).astype(dtype) * dtype(1 / (classes * (classes - 1)))
            np.testing.assert_array_equal(rank_shares(rows, dtype), want)
    assert rank_shares(values).dtype == values.dtype


def test_ranks_of_more_classes_than_are_packed():
    values = np.random.default_rng(0).normal(size=(2, 40_000)).astype(np.float32)
    np.testing.assert_allclose(
        rank_shares(values), (rankdata(values, axis=-1) - 1) * 2 / (40_000 * 39_999), rtol=1e-6)


def test_no_values_have_no_ranks():
    assert rank_shares(np.zeros((3, 0, 5), np.float16), np.float32).shape == (3, 0, 5)


@pytest.mark.parametrize('trim', [0, 0.13, 0.2, 0.4, 0.5 - 1e-6])
def test_skipping_what_is_cut_off_changes_nothing(trim):
    """All places in turn give the same bits as those that can count."""
    rng = np.random.default_rng(0)
    for count in (2, 7, 20):
        weights = rng.random(count) ** 3 + 1e-3  # some heavy enough to hold the median alone
        weights /= weights.sum()
        ordered, order = sort_members(rng.random((count, 5, 30), np.float32), True)
        total, before = np.zeros((5, 30), np.float32), np.full((5, 30), trim)
        upto = np.zeros((5, 30))
        for values, whose in zip(ordered, order):
            upto = upto + weights[whose]
            here = np.clip(upto, trim, 1 - trim)
            total += values * (here - before).astype(np.float32)
            before = here
        found = middle_mean(ordered, reached(order, weights), weights, trim)
        np.testing.assert_array_equal(found, total * np.float32(1 / (1 - 2 * trim)))


def test_sorting_leaves_the_values_alone():
    values = np.random.default_rng(0).random((9, 40), np.float32)
    before = values.copy()
    ordered, order = sort_members(values, True)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(np.stack(ordered), np.sort(values, 0))
    np.testing.assert_array_equal(np.take_along_axis(values, np.stack(order).astype(int), 0),
                                  ordered)
