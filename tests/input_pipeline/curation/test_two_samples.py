"""The classifier two-sample test: chance is covered, differences are found, copies do not leak."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from input_pipeline.curation.two_samples import LEAST, compare, inputs_of, rank_area


def test_one_set_split_at_random_is_not_told_apart():
    """The interval must be wide enough: that of DeLong alone misses chance far too often."""
    covered = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        values = rng.normal(size=(160, 12)) * np.linspace(3, 0.3, 12)
        found = compare(values, rng.permutation(160) < 60, np.arange(160))
        covered += found.low <= 0.5 <= found.high
        assert 0 < found.high - found.low < 0.5
    assert covered >= 36


@pytest.mark.parametrize('second', [100, 1000])
def test_a_shift_is_found_whatever_the_sizes(second):
    rng = np.random.default_rng(1)
    is_second = np.arange(300 + second) >= 300
    values = rng.normal(size=(len(is_second), 6))
    values[is_second, 2] += 1.2
    found = compare(values, is_second, np.arange(len(values)))
    best = roc_auc_score(is_second, values[:, 2])
    assert found.differ and abs(found.auc - best) < 0.03 and found.low < best < found.high
    means = [found.probability[is_second == side].mean() for side in (True, False)]
    assert means[0] > 0.6 and means[1] < 0.4  # as if both were equally large


def test_sets_that_do_not_overlap_are_not_said_to_be_certain():
    values = np.r_[np.zeros(12), np.ones(12)][:, None] + np.linspace(0, 0.1, 24)[:, None]
    found = compare(values, np.arange(24) >= 12, np.arange(24))
    assert found.auc == found.high == 1 and 0.8 < found.low < 1


def test_copies_are_in_one_fold():
    """Every picture comes four times, always in the same set: that says nothing of the sets."""
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(size=(60, 40)), 4, axis=0)
    is_second, picture = np.repeat(rng.permutation(60) < 30, 4), np.repeat(np.arange(60), 4)
    assert compare(values, is_second, np.arange(240)).low > 0.6
    found = compare(values, is_second, picture)
    assert found.low < 0.5 < found.high
    # The interval is of 60 pictures, not of 240.
    alone = compare(values[::4], is_second[::4], picture[::4])
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.25)


def test_too_few_pictures_say_nothing():
    values, is_second = np.arange(40.)[:, None], np.arange(40) >= 31
    found = compare(values, is_second, np.arange(40))
    assert np.isnan([found.auc, found.low, found.high, *found.probability]).all()
    assert not found.differ
    groups = np.where(is_second, 0, np.arange(40))
    assert np.isnan(compare(np.r_[values, values], np.r_[is_second, is_second],
                            np.r_[groups, groups]).auc)  # many, but all of them copies
    assert compare(values, np.arange(40) >= 40 - LEAST, np.arange(40)).auc == 1


def test_the_area_counts_pairs():
    values = np.array([1, 2, 2, 3, 0.5])
    second = np.array([False, True, False, True, True])
    assert rank_area(values, second) == pytest.approx(roc_auc_score(second, values)) == 3.5 / 6


def test_inputs_have_comparable_columns_and_need_no_spread():
    rng = np.random.default_rng(3)
    found = inputs_of(rng.normal(size=(50, 200)), np.c_[rng.normal(0, 1000, 50), np.full(50, 7.)])
    assert found.shape == (50, 52) and np.isfinite(found).all()
    assert np.abs(found.mean(0)).max() < 1e-4
    assert found[:, -2].std() == pytest.approx(1) and (found[:, -1] == 0).all()
