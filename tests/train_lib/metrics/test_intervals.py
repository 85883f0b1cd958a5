"""Intervals and tests by rows and by groups: values by hand, and a small version of
benchmarks/coverage.py."""

import itertools

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from benchmarks.statistics_before import cochran_q
from train_lib.metrics.intervals import (
    Groups,
    accuracy_interval,
    difference_interval,
    f1_interval,
    f1_rows,
    mean_variance,
)
from train_lib.metrics.scores import wilson_interval
from train_lib.metrics.statistics import equal_accuracy, macro_f1, paired_test


def test_the_variance_of_a_mean_is_that_of_students_t():
    values = np.random.default_rng(0).normal(size=30)
    low, high = difference_interval(values)
    assert (low, high) == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval())
    # Groups of equal size: Student's t over their means.
    groups = np.repeat(np.arange(6), 5)
    means = values.reshape(6, 5).mean(1)
    assert mean_variance(values, Groups.of(groups, 30)) == pytest.approx(means.var(ddof=1) / 6)


def test_an_interval_by_groups_is_never_narrower_than_by_rows():
    rng = np.random.default_rng(1)
    for groups in (2, 4, 9, 40):
        index = np.arange(200) % groups
        right = rng.random(200) < 0.9
        low, high = accuracy_interval(right, index)
        rows = wilson_interval(float(right.mean()), 200)
        assert low <= rows[0] + 1e-9 and high >= rows[1] - 1e-9
        differences = rng.integers(-1, 2, size=200).astype(float)
        wide = difference_interval(differences, index, share=True)
        narrow = difference_interval(differences, share=True)
        assert wide[0] <= narrow[0] and wide[1] >= narrow[1]


def test_a_group_without_an_error_does_not_stand_for_all():
    right = np.ones(544, bool)
    assert accuracy_interval(right)[0] > 0.99
    low, high = accuracy_interval(right, np.arange(544) // 136)
    assert low < 0.8 and high == 1
    assert accuracy_interval(~right, np.arange(544) // 136)[1] > 0.2
    # One group says nothing of others.
    one = np.zeros(544)
    assert accuracy_interval(right, one) == (0, 1)
    assert difference_interval(right - .5, one) == (-np.inf, np.inf)
    assert paired_test(right, right, one)['p'] is None
    assert equal_accuracy(np.stack([right, right]), one)['p'] is None


def test_the_likelihood_is_that_of_the_beta_binomial_distribution():
    hits, sizes = np.array([9, 4, 7, 10]), np.array([10, 9, 7, 10])
    right = np.concatenate([np.arange(n) < h for h, n in zip(hits, sizes)])
    low, high = accuracy_interval(right, np.repeat(np.arange(4), sizes))
    correlations = np.geomspace(.004, .9, 10)

    def loss(rate):
        spread = (1 - correlations) / correlations
        found = [stats.betabinom.logpmf(hits, sizes, rate * k, (1 - rate) * k).sum()
                 for k in spread] + [stats.binom.logpmf(hits, sizes, rate).sum()]
        return max(found)

    best = max(map(loss, np.linspace(.7, .99, 100)))
    cut = stats.t.ppf(.975, 6) ** 2
    assert 2 * (best - loss(low)) == pytest.approx(cut, rel=.04)
    assert 2 * (best - loss(high)) == pytest.approx(cut, rel=.04)


def test_rows_of_macro_f1_have_its_mean_and_its_variance():
    rng = np.random.default_rng(2)
    labels = rng.integers(6, size=600)
    predicted = np.where(rng.random(600) < .8, labels, rng.integers(6, size=600))
    rows = f1_rows(predicted, labels, 8)
    assert rows.mean() == pytest.approx(macro_f1(predicted, labels, 8), rel=1e-12)
    drawn = [macro_f1(predicted[i], labels[i], 8) for i in rng.integers(600, size=(400, 600))]
    assert rows.std() / 600 ** .5 == pytest.approx(np.std(drawn), rel=.15)
    low, high = f1_interval(rows, predicted == labels)
    assert low < rows.mean() < high


def test_the_paired_test_flips_the_sign_of_whole_groups():
    rng = np.random.default_rng(3)
    groups = rng.integers(9, size=150)
    first, second = rng.random(150) < .9, rng.random(150) < .7
    sums = np.bincount(groups, first.astype(int) - second.astype(int))
    flipped = np.abs(np.array(list(itertools.product([1, -1], repeat=9))) @ sums)
    seen = abs(sums.sum())
    got = paired_test(first, second, groups)
    assert got['p'] == pytest.approx((flipped > seen).mean() + (flipped == seen).mean() / 2)
    assert got['only_first'] - got['only_second'] == sums.sum()
    # Rows are groups of one: McNemar's test with the mid-p value.
    b, c = got['only_first'], got['only_second']
    mid = stats.binomtest(c, b + c).pvalue - stats.binom.pmf(c, b + c, .5)
    assert paired_test(first, second)['p'] == pytest.approx(mid, abs=1e-12)
    # An answer that was chosen as the best is favoured where it is the better one.
    assert paired_test(second, first, chosen=5)['p'] == pytest.approx(5 * mid, abs=1e-12)
    assert paired_test(first, second, chosen=5)['p'] == pytest.approx(mid, abs=1e-12)


def test_cochrans_test_by_rows_is_cochrans():
    right = np.random.default_rng(4).random((4, 900)) < np.array([[.8], [.8], [.8], [.7]])
    got, want = equal_accuracy(right), cochran_q(right)
    assert got == pytest.approx(want)
    few = right[:, :60]
    assert equal_accuracy(few, draws=4000)['p'] == pytest.approx(cochran_q(few)['p'], abs=.03)
    # Copies of the rows, joined by groups, add no evidence.
    copies, groups = np.repeat(few, 5, axis=1), np.repeat(np.arange(60), 5)
    assert equal_accuracy(copies, groups, draws=4000)['p'] == pytest.approx(
        equal_accuracy(few, draws=4000)['p'], abs=.03)
    assert cochran_q(copies)['p'] < .2 * cochran_q(few)['p']


# (rows, accuracy, groups, correlation): few groups, where intervals by rows covered half
CELLS = [(544, .9, 8, .2), (544, .98, 12, .05), (200, .9, None, 0.)]
CHECKED = ('accuracy', 'f1', 'difference', 'mean_member', 'mcnemar', 'cochran')


@pytest.mark.parametrize('cell', CELLS)
def test_intervals_cover_and_tests_raise_few_false_alarms(cell):
    found = coverage.measure(CHECKED, 60, *cell)  # standard error 2.8 points at 95 %
    for name in ('accuracy', 'f1', 'difference', 'mean_member'):
        assert found[name] >= 85, (name, found)
    assert max(found['mcnemar'], found['cochran']) <= 13.4, found


@pytest.mark.slow
def test_every_interval_of_the_table_covers():
    """benchmarks/coverage.py with fewer repetitions; standard error 2.2 points at 95 %."""
    names = ('accuracy', 'f1', 'difference', 'mean_member', 'mcnemar', 'cochran')
    for rows, accuracy, groups, correlation in coverage.cells_of_table():
        found = coverage.measure(names, 100, rows, accuracy, groups, correlation)
        what = (rows, accuracy, groups, correlation, found)
        assert min(found[name] for name in names[:4]) >= 86, what
        assert max(found['mcnemar'], found['cochran']) <= 13, what
    for name in coverage.TRIALS:
        assert coverage.measure_trial(name, 100)[1] <= 12, name
