"""Kinds of resampling: how often each class comes in an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.common import get_config
from input_pipeline.descriptors import cluster_rows
from input_pipeline.durations import to_steps
from input_pipeline.errors import DataError
from input_pipeline.label_sets import numbered
from input_pipeline.manifest import class_counts, make_manifest
from input_pipeline.resampling import RESAMPLINGS, make_order

SECTION = get_config().resample.to_dict() | {'start': None}
SIZES = (40, 10, 0, 25)  # the third class has no images
BATCH = 10


def make(sizes=SIZES, unlabelled=0, **columns):
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist() + [-1] * unlabelled
    rng = np.random.default_rng(0)
    labels = np.array(labels)[rng.permutation(len(labels))]
    return make_manifest(
        {'id': [f'i{n}' for n in range(len(labels))], 'location': '', 'label/class': labels,
         'label/other': np.zeros(len(labels), int), **columns},
        {'class': ('ant', 'bee', 'cow', 'dog')[:len(sizes)], 'other': ('all',)})


def order_of(manifest, seed=0, **resample):
    return make_order(
        manifest, SECTION | resample, seed=seed, batch_size=BATCH,
        to_steps=lambda duration, key: to_steps(duration, key=key, batch_size=BATCH,
                                                examples_per_epoch=len(manifest)))


def rows_of(order, epoch=0):
    """Rows of one epoch of an order that starts at once."""
    length = next(n for n in range(10**6) if order(n)[0] == 1)
    return np.array([order(epoch * length + i)[1] for i in range(length)])


def classes_of(manifest, order, epoch=0):
    labels = manifest.labels('class')[rows_of(order, epoch)]
    return np.bincount(labels, minlength=4).tolist()


@pytest.mark.parametrize('resample, expected', [
    ({'kind': 'none'}, [40, 10, 0, 25]),
    ({}, [40, 10, 0, 25]),
    ({'kind': 'none', 'length': 15}, [8, 2, 0, 5]),
    ({'kind': 'over'}, [40, 40, 0, 40]),
    ({'kind': 'over', 'target': 30}, [40, 30, 0, 30]),
    ({'kind': 'over', 'length': 30}, [10, 10, 0, 10]),
    ({'kind': 'under'}, [10, 10, 0, 10]),
    ({'kind': 'under', 'target': 20}, [20, 10, 0, 20]),
    ({'kind': 'multiply', 'multipliers': {'bee': 2.0, 'dog': 0.5, 'ant': 0}}, [0, 20, 0, 13]),
    ({'kind': 'multiply', 'multipliers': {'bee': 0.01}}, [40, 1, 0, 25]),
    ({'kind': 'random'}, [40, 10, 0, 25]),
    ({'kind': 'random', 'n': 20}, [20, 10, 0, 20]),
    ({'kind': 'random', 'n': 20, 'redraw': False}, [20, 10, 0, 20]),
    ({'kind': 'sqrt'}, [33, 16, 0, 26]),  # 75 times 6.32, 3.16, 5 / 14.49: 32.7, 16.4, 25.9
    ({'kind': 'effective', 'beta': 0.0}, [40, 10, 0, 25]),
    ({'kind': 'effective', 'beta': 1 - 1e-9}, [25, 25, 0, 25]),
    ({'kind': 'effective', 'beta': 0.95}, [33, 18, 0, 24]),  # n / (1 - .95^n): 45.9, 24.9, 34.6
    ({'kind': 'balanced'}, [25, 25, 0, 25]),
    ({'kind': 'balanced', 'length': 3000}, [1000, 1000, 0, 1000]),
    ({'kind': 'repeat_factor'}, [40, 10, 0, 25]),
    ({'kind': 'over', 'head': 'other'}, [40, 10, 0, 25])])
def test_classes_come_as_often_as_configured(resample, expected):
    manifest = make()
    order = order_of(manifest, **resample)
    for epoch in range(3):
        assert classes_of(manifest, order, epoch) == expected


def test_unlabelled_rows_are_kept():
    manifest = make(unlabelled=7)
    clusters = manifest.with_column('cluster', np.arange(len(manifest)) % 2)
    for kind in set(RESAMPLINGS) - {'weighted'}:
        rows = rows_of(order_of(clusters, kind=kind, n=4))
        unlabelled = rows[clusters.labels('class')[rows] < 0]
        assert len(unlabelled) == len(set(unlabelled)) == 7, kind


@pytest.mark.parametrize('kind', ['none', 'under', 'weighted'])
def test_seeds_draw_differently(kind):
    manifest = make(weight=0.5 + np.arange(75) % 5)
    first, again, other = (rows_of(order_of(manifest, seed, kind=kind)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (set(first) != set(other)) == (kind != 'none')


def test_random_images_are_redrawn_or_always_the_same():
    manifest = make()
    first, again = (order_of(manifest, kind='random', n=10, redraw=redraw)
                    for redraw in (False, True))
    assert set(rows_of(first)) == set(rows_of(first, 1)) == set(rows_of(first, 5))
    assert set(rows_of(first)) != set(rows_of(order_of(manifest, 1, kind='random', n=10,
                                                       redraw=False)))
    ants = manifest.labels('class') == 0
    assert set().union(*(rows_of(again, epoch) for epoch in range(4))) > set(np.flatnonzero(ants))
    halved = order_of(manifest, kind='random', n=10, redraw=False, length=15)
    assert len(set(rows_of(halved)) | set(rows_of(halved, 1))) == 30


def test_clusters_give_the_same_number_each():
    rng = np.random.default_rng(0)
    sizes, places = (30, 12), rng.normal(0, 100, (2, 3, 4))
    manifest = make(sizes)
    labels = manifest.labels('class')
    planted = np.select([labels == 0, labels == 1], [np.cumsum(labels == 0) % 7 // 3,
                                                     np.cumsum(labels == 1) % 4 % 3])
    features = places[labels, planted] + rng.normal(0, 1, (len(labels), 4))
    clusters = cluster_rows(features, labels, k=3, seed=0)
    for label in range(2):  # the same partition, whatever the numbers
        pairs = set(zip(clusters[labels == label], planted[labels == label]))
        assert len(pairs) == len(set(planted[labels == label]))
    names = np.array(['x', 'y', 'z'], object)[clusters]
    for column in (clusters, names):
        order = order_of(manifest.with_column('mode', column), kind='cluster', column='mode', n=2)
        for epoch in range(3):
            rows = rows_of(order, epoch)
            found = dict(zip(*np.unique(labels[rows] * 3 + planted[rows], return_counts=True)))
            sizes = dict(zip(*np.unique(labels * 3 + planted, return_counts=True)))
            assert found == {cell: min(2, size) for cell, size in sizes.items()}


def test_few_different_rows_make_few_clusters():
    labels = np.array([0, 0, 0, -1, 1])
    clusters = cluster_rows(np.array([[1.], [1.], [5.], [9.], [2.]], np.float32), labels, k=10)
    assert clusters[0] == clusters[1] != clusters[2]
    assert clusters[3] == -1 and clusters[4] == 0


def test_weights_of_rows():
    manifest = make(weight=np.where(np.arange(75) < 25, 2.0, 0.5))
    counts = np.bincount(rows_of(order_of(manifest, kind='weighted')), minlength=75)
    assert counts.sum() == 75 and (counts[:25] == 2).all() and counts[25:].max() == 1
    whole = manifest.with_column('times', np.arange(75) % 3)
    order = order_of(whole, kind='weighted', column='times', length=75)
    np.testing.assert_array_equal(np.bincount(rows_of(order)), np.arange(75) % 3)


def test_a_deferred_start_counts_epochs_of_the_data():
    manifest = make()
    order, plain = order_of(manifest, kind='over', start={'epochs': 2}), order_of(manifest)
    assert [order(p) for p in range(150)] == [plain(p) for p in range(150)]
    rows = [order(p)[1] for p in range(150, 150 + 120)]
    assert np.bincount(manifest.labels('class')[rows]).tolist() == [40, 40, 0, 40]
    none = order_of(manifest, kind='none', start={'steps': 3})
    assert [none(p) for p in range(150)] == [plain(p) for p in range(150)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=4).filter(any),
       st.sampled_from(['none', 'over', 'under', 'sqrt', 'effective', 'balanced']),
       st.integers(4, 500), st.integers(0, 9))
def test_any_length_is_met_and_no_class_is_lost(sizes, kind, length, seed):
    manifest = make(sizes)
    found = rows_of(order_of(manifest, seed, kind=kind, length=length))
    assert len(found) == length
    assert set(manifest.labels('class')[found]) == set(np.flatnonzero(sizes))


@pytest.mark.parametrize('resample, words', [
    ({'kind': 'overr'}, "resample.kind='overr' is unknown: did you mean 'over'"),
    ({'kind': 'smote'}, 'use one of none, over, under'),
    ({'kinds': 'over'}, "resample.kinds is unknown: did you mean 'kind'"),
    ({'head': 'age'}, "resample.head='age' is not a head: use one of class, other"),
    ({'kind': 'random', 'n': 0}, 'resample.n=0: give a whole number'),
    ({'kind': 'over', 'target': 2.5}, 'resample.target=2.5'),
    ({'kind': 'over', 'length': True}, 'resample.length=True'),
    ({'kind': 'balanced', 'length': 2}, 'resample.length=2 is less than the 3 classes'),
    ({'kind': 'multiply', 'multipliers': {'bees': 2}}, "'bees', which .* did you mean 'bee'"),
    ({'kind': 'multiply', 'multipliers': {'bee': -1}}, r"multipliers\['bee'\] = -1"),
    ({'kind': 'multiply', 'multipliers': {'bee': float('nan')}}, r"multipliers\['bee'\] = nan"),
    ({'kind': 'multiply', 'multipliers': dict.fromkeys(['ant', 'bee', 'dog'], 0)}, 'no image'),
    ({'kind': 'effective', 'beta': 1}, 'resample.beta=1:'),
    ({'kind': 'cluster'}, "kind=cluster needs the column 'cluster', .* 'label|id"),
    ({'kind': 'cluster', 'column': 'holes'}, "'i3' has no value in the column 'holes'"),
    ({'kind': 'weighted'}, "needs the column 'weight'"),
    ({'kind': 'weighted', 'column': 'id'}, "'id', which resample.column names, holds text"),
    ({'kind': 'weighted', 'column': 'zero'}, "Every value in the column 'zero' is 0"),
    ({'kind': 'weighted', 'column': 'minus'}, "'i0' has minus=-1"),
    ({'start': {'years': 1}, 'kind': 'over'}, 'config.resample.start')])
def test_mistakes_are_one_sentence(resample, words):
    holes = np.where(np.arange(75) == 3, np.nan, 1.0)
    manifest = make(holes=holes, zero=0.0, minus=-1.0)
    with pytest.raises(DataError, match=words) as error:
        order_of(manifest, **resample)
    assert str(error.value).replace('e.g. ', '').count('. ') == 0
    assert str(error.value)[-1] in '.?'


@pytest.mark.parametrize('resample', [
    {'kind': kind} for kind in ('none', 'over', 'under', 'sqrt', 'effective', 'balanced')] + [
    {'kind': 'random', 'n': 7}, {'kind': 'random', 'n': 7, 'redraw': False},
    {'kind': 'multiply', 'multipliers': {'bee': 2.5, 'ant': 0}},
    {'kind': 'repeat_factor', 'target': 60}, {'kind': 'weighted', 'column': 'w'}])
def test_how_often_a_row_comes_is_known_beforehand(resample):
    manifest = make(unlabelled=4, w=np.linspace(0, 3, 79))
    plan = order_of(manifest, **resample).plan
    epochs = 400
    seen = sum(plan.counts(epoch) for epoch in range(epochs)) / epochs
    np.testing.assert_allclose(plan.mean_counts(), seen, atol=0.12)
    assert plan.mean_counts().sum() == pytest.approx(plan.length)
    by_class = class_counts(manifest, 'class', plan.mean_counts())
    np.testing.assert_allclose(by_class, class_counts(manifest, 'class', seen), atol=0.25)
    assert class_counts(manifest, 'other', plan.mean_counts()) == pytest.approx(plan.length)


def tagged(sets, names=('ant', 'bee', 'cow')):
    """A manifest whose rows have sets of classes; None: unlabelled."""
    numbers, found = numbered(sets, len(names))
    return make_manifest({'id': [f'i{n}' for n in range(len(sets))], 'location': '',
                          'label/tags': numbers}, {'tags': names}, label_sets={'tags': found})


def test_rows_of_several_labels_come_for_the_rarest_of_them():
    """n: 64 of 'ant', 16 of 'bee', 4 of 'cow'; target 64: factors 1, 2 and 4."""
    manifest = tagged([(0,)] * 44 + [(0, 1)] * 14 + [(0, 1, 2)] * 2 + [(0, 2)] * 2 + [(0,)] * 2
                      + [()] * 3 + [None] * 5)
    order = order_of(manifest, kind='repeat_factor', target=64)
    times = [1] * 44 + [2] * 14 + [4] * 4 + [1] * 10
    assert order.plan.length == sum(times)
    for epoch in range(3):
        assert np.bincount(rows_of(order, epoch), minlength=len(times)).tolist() == times
    np.testing.assert_allclose(class_counts(manifest, 'tags', order.plan.mean_counts()),
                               [46 + 28 + 16, 28 + 8, 16])


def test_repeat_factors_are_rounded_by_chance_and_never_leave_a_row_out(caplog):
    manifest = tagged([(0,)] * 30 + [(1,)] * 10 + [None] * 4)
    order = order_of(manifest, kind='repeat_factor', target=20)  # sqrt(2) for a bee
    seen = [np.bincount(rows_of(order, epoch), minlength=44) for epoch in range(60)]
    assert {len(rows_of(order, epoch)) for epoch in range(5)} == {30 + 14 + 4}
    assert all((one[:30] == 1).all() and (one[40:] == 1).all() for one in seen)
    bees = np.array(seen)[:, 30:40]
    assert set(bees.ravel()) == {1, 2} and np.abs(bees.mean(0) - 1.4).max() < 0.25
    half = order_of(manifest, kind='repeat_factor', target=20, length=24)
    assert len(rows_of(half)) == 24
    assert not caplog.records or 'nothing is repeated' not in caplog.text
    plain = order_of(manifest, kind='repeat_factor')
    assert np.bincount(rows_of(plain)).tolist() == [1] * 44
    assert 'no class is rare enough for target=0.04: nothing is repeated' in caplog.text


def test_other_kinds_name_the_one_that_takes_several_labels():
    with pytest.raises(DataError, match='use the kind repeat_factor or weighted'):
        order_of(tagged([(0,), (1, 2)]), kind='balanced')
