"""Shares of classes in two sets of rows: the tests hold their level and find what is there."""

import numpy as np
import pytest
from scipy import stats

from train_lib.metrics.class_shift import compare_shares, shift_of_classes


def test_p_is_fishers_exact_test_with_the_mid_p_value():
    counts, reference = np.array([3, 30, 27]), np.array([10, 12, 14])
    found = compare_shares(counts, reference)
    for k in range(3):
        here, there = counts[k], reference[k]
        chances = stats.hypergeom.pmf(np.arange(97), 96, here + there, 60)
        tails = chances[:here].sum(), chances[here + 1:].sum()
        raw = min(1, 2 * (min(tails) + chances[here] / 2))
        assert raw <= 2 * stats.fisher_exact([[here, 60 - here], [there, 36 - there]])[1]
        assert found['p'][k] >= raw - 1e-12  # Holm's correction
    assert found['p'].min() == pytest.approx(3 * min(
        1, 2 * (stats.hypergeom.cdf(3, 96, 13, 60) - stats.hypergeom.pmf(3, 96, 13, 60) / 2)))
    assert found['marked'].tolist() == [True, False, False]
    assert found['distance'] == pytest.approx(abs(3 / 60 - 10 / 36))


def test_equal_shares_are_seldom_marked_and_other_shares_are():
    rng = np.random.default_rng(0)
    shares = np.repeat([1, 3], 10) / 40
    draw = lambda shares, n: rng.multinomial(n, shares)
    equal = [compare_shares(draw(shares, 300), draw(shares, 800), draws=200, seed=k)
             for k in range(200)]
    assert np.mean([found['marked'].any() for found in equal]) <= 0.06
    assert 0.01 < np.mean([found['p_distance'] < 0.05 for found in equal]) < 0.1
    moved = shares.copy()
    moved[[0, 19]] += [0.05, -0.05]
    found = compare_shares(draw(moved, 2000), draw(shares, 2000))
    assert found['marked'][0] and found['marked'][19] and found['marked'].sum() == 2
    assert found['p_distance'] < 0.01 and found['distance'] > found['by_chance']


def test_a_certain_but_small_shift_is_not_marked():
    found = compare_shares(np.array([55_000, 45_000]), np.array([50_000, 50_000]))
    assert found['p'].max() < 1e-10 and not found['marked'].any()


def test_classes_that_occur_nowhere_and_pairs_without_rows():
    found = compare_shares(np.array([5, 0, 5]), np.array([4, 0, 6]))
    assert found['p'][1] == 1 and not found['marked'].any()
    none, some = np.zeros(2, int), np.array([3, 4])
    assert shift_of_classes({'a': (some, none), 'b': (some, some)})['reference'] == 'b'
    assert shift_of_classes({'a': (none, some)}) == {'reference': ''}
