"""The loader: each example once an epoch, the same pixels however the work is done."""

import numpy as np
import pytest

from input_pipeline import loader, sources
from input_pipeline.curriculum import make_stages
from input_pipeline.durations import to_steps

SPEC = loader.ImageSpec(24)
BATCH = 10


@pytest.fixture(scope='module')
def digits():
    return sources.load_source({'source': 'digits'}).select(np.arange(57))


def stages(manifest):
    return make_stages(
        [{'until': {'epochs': 1}}, {'until': {'steps': 12}, 'transforms': ['rotate']},
         {'transforms': ['hflip', 'rotate', 'elastic', 'grid_distortion']}],
        lambda duration, key: to_steps(duration, key=key, examples_per_epoch=len(manifest),
                                       batch_size=BATCH))


def batches(manifest, state=None, count=None, **options):
    options = {'steps': 18, 'batch_size': BATCH, 'seed': 3, **options}
    iterator = loader.train_iterator(manifest, SPEC, stages(manifest), **options)
    if state:
        iterator.set_state(state)
    found = []
    for batch in iterator:
        found.append(batch)
        if count and len(found) == count:
            break
    state = iterator.get_state()
    iterator.close()
    return found, state


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_each_example_comes_once_an_epoch(digits):
    marked = digits.with_column('weight', np.arange(57.0))
    found, _ = batches(marked, steps=17)
    rows = np.concatenate([batch['weight'] for batch in found]).astype(int)
    for epoch in range(2):
        assert sorted(rows[epoch * 57:(epoch + 1) * 57]) == list(range(57))
    assert list(rows[:57]) != list(rows[57:114])
    labels = np.concatenate([batch['label/class'] for batch in found])
    np.testing.assert_array_equal(labels, digits.labels('class')[rows])


@pytest.mark.parametrize('options', [{'threads': 1}, {'threads': 5, 'prefetch': 20},
                                     {'cache_mb': 64}])
def test_threads_and_caches_change_no_pixel(digits, options):
    same(batches(digits)[0], batches(digits, **options)[0])


@pytest.mark.slow
def test_worker_processes_change_no_pixel(digits):
    same(batches(digits)[0], batches(digits, workers=2)[0])


def test_hosts_see_their_parts_of_the_same_batches(digits):
    whole = batches(digits)[0]
    parts = [batches(digits, shard=(index, 2))[0] for index in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts)]
    same(whole, joined)


@pytest.mark.parametrize('stop', [1, 6, 13])
def test_an_iterator_goes_on_where_it_was(digits, stop):
    whole = batches(digits)[0]
    first, state = batches(digits, count=stop)
    rest, _ = batches(digits, state=state, threads=3)
    same(whole, first + rest)


def test_the_curriculum_changes_pictures_stage_by_stage(digits):
    plain = batches(digits)[0]
    pictures = loader.Pictures(digits, SPEC)
    order = loader.Order(57, 3)
    for step, touched in ((0, False), (5, False), (6, True), (12, True)):
        row = order(step * BATCH)[1]
        assert (plain[step]['image'][0] != pictures[row]).any() == touched


def test_seeds_epochs_and_examples_have_streams_of_their_own():
    keys = [(seed, epoch, row) for seed in range(3) for epoch in range(3) for row in range(3)]
    draws = {key: loader.example_rng(*key).random() for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert draws == {key: loader.example_rng(*key).random() for key in keys}


@pytest.mark.parametrize('batch_size', [10, 57, 64])
def test_evaluation_sees_every_example_once(digits, batch_size):
    rows, padded = [], 0
    for batch in loader.eval_dataset(digits, SPEC, batch_size=batch_size)():
        assert batch['image'].shape == (batch_size, 24, 24, 3)
        rows += batch['row'][batch['mask']].tolist()
        padded += (~batch['mask']).sum()
    assert rows == list(range(57))
    assert padded == -57 % batch_size
