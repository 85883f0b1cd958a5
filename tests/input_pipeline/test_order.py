"""The order of training: quotas, evenness, and answers that do not depend on the access."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.order import Order, Systematic, Walk


def walk(sizes, quotas, seed=0):
    """A plan of cells with shuffled rows."""
    rows = np.random.default_rng(seed + 1).permutation(sum(sizes))
    return Walk(len(rows), seed, rows, np.array(sizes), np.array(quotas))


def systematic(weights, length, seed=0):
    weights = np.asarray(weights, float)
    rows = np.flatnonzero(weights)
    return Systematic(len(weights), seed, rows, weights[rows] * length / weights.sum(), length)


def epochs(order, start, length, count):
    """Rows of `count` epochs from a position, int [count, length]."""
    found = [order(position) for position in range(start, start + count * length)]
    assert len({epoch for epoch, _, _ in found}) == count
    return np.array([row for _, row, _ in found]).reshape(count, length)


cells = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 75)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(cells, st.integers(0, 2**32), st.integers(2, 40))
def test_a_walk_meets_its_quotas_evenly(cells, seed, many):
    sizes, quotas = zip(*cells)
    plan = walk(sizes, quotas, seed)
    parts = np.split(plan.rows, np.cumsum(sizes)[:-1])
    total = np.zeros(plan.num_rows, int)
    for epoch in range(many):
        counts = plan.counts(epoch)
        assert counts.min() >= 0
        total += counts
        for part, quota in zip(parts, quotas):
            assert counts[part].sum() == quota
            # Within an epoch no image repeats before all others came.
            assert np.ptp(counts[part]) <= 1
            assert np.ptp(total[part]) <= 1  # nor across epochs


def test_a_cell_is_covered_before_it_repeats_and_then_in_another_order():
    plan = walk([60], [15])
    picked = [frozenset(np.flatnonzero(plan.counts(epoch))) for epoch in range(8)]
    assert len(frozenset.union(*picked[:4])) == len(frozenset.union(*picked[4:])) == 60
    assert set(picked[:4]) != set(picked[4:])


def test_cells_and_seeds_have_separate_permutations():
    both = Walk(80, 3, np.arange(80), np.array([40, 40]), np.array([10, 10])).counts(0)
    other = Walk(80, 4, np.arange(80), np.array([40, 40]), np.array([10, 10])).counts(0)
    assert (both[:40] != both[40:]).any() and (both != other).any()


def test_each_row_once_is_the_plain_permutation():
    order = Order(walk([20, 17], [20, 17], seed=5))
    for epoch in (0, 1, 7):
        expected = np.random.default_rng((5, 1, epoch)).permutation(37)
        assert [order(epoch * 37 + i) for i in range(37)] == [(epoch, row, 0) for row in expected]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=40).filter(lambda w: sum(w) > 0.1),
       st.integers(1, 200), st.integers(0, 99))
def test_weights_are_rounded_to_neighbours(weights, length, epoch):
    counts = systematic(weights, length).counts(epoch)
    expected = np.array(weights) * length / sum(weights)
    assert counts.sum() == length
    assert (np.abs(counts - expected) < 1 + 1e-6).all()
    assert not counts[np.array(weights) == 0].any()


def test_whole_weights_are_exact_and_others_right_on_average():
    plan = systematic([3, 0, 1, 2, 4], 10)
    for epoch in range(50):
        np.testing.assert_array_equal(plan.counts(epoch), [3, 0, 1, 2, 4])
    weights = np.random.default_rng(0).uniform(0, 2, 30)
    plan = systematic(weights, 20)
    mean = np.mean([plan.counts(epoch) for epoch in range(2000)], axis=0)
    np.testing.assert_allclose(mean, weights * 20 / weights.sum(), atol=0.05)


@pytest.mark.parametrize('plan', [walk([9, 30], [30, 13]), systematic(np.arange(39), 43)])
def test_the_order_shuffles_what_the_plan_says(plan):
    order = Order(plan, start=100)
    rows = epochs(order, 100, 43, 4)
    for epoch in range(4):
        np.testing.assert_array_equal(np.bincount(rows[epoch], minlength=39), plan.counts(epoch))
    assert (np.sort(rows[0]) != rows[0]).any()


def test_copies_number_the_times_of_a_row_in_an_epoch():
    plan = walk([4, 20], [23, 10])
    order = Order(plan)
    seen = [order(position) for position in range(3 * 33)]
    assert len(set(seen)) == len(seen)
    for epoch, row, copy in seen:
        assert copy < plan.counts(epoch)[row]


def test_a_plan_that_starts_later_leaves_what_was_before():
    plan, start = walk([5, 20], [20, 20]), 60  # two epochs of 25, and 10 examples of the third
    order, plain = Order(plan, start), Order(walk([5, 20], [5, 20]))
    assert [order(p) for p in range(start)] == [plain(p) for p in range(start)]
    assert [order(p)[0] for p in range(start, start + 120)] == [3] * 40 + [4] * 40 + [5] * 40
    np.testing.assert_array_equal(np.bincount(epochs(order, start, 40, 1)[0]), plan.counts(0))


def test_access_pattern_threads_and_pickling_do_not_matter():
    order = Order(walk([7, 40, 3], [20, 20, 20]), start=130)
    expected = [order(position) for position in range(700)]
    positions = np.random.default_rng(0).permutation(700)
    copy = pickle.loads(pickle.dumps(order))
    assert [copy(int(p)) for p in positions] == [expected[p] for p in positions]
    with ThreadPoolExecutor(8) as pool:
        shared = Order(walk([7, 40, 3], [20, 20, 20]), start=130)
        assert list(pool.map(shared, positions)) == [expected[p] for p in positions]
    far = 10**12
    assert copy(far) == Order(walk([7, 40, 3], [20, 20, 20]), start=130)(far)
