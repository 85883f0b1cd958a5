"""Two views of unlabelled pictures: a function of (seed, epoch, id), however the work is done."""

import logging

import cv2
import numpy as np
import pytest

from input_pipeline import loader, sources, two_views
from input_pipeline.curriculum import Stage, make_list
from input_pipeline.decode import UnreadableImage
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.two_views import STRONG, TRUTH, WEAK, ViewSpec

SPEC = PreprocessSpec(size=12)
TURN, BEND = make_list(['rotate'], 'weak'), make_list(['rotate', 'cutout'], 'strong')
WEAKENED = (Stage(0, ()), Stage(4, TURN))
LABELLED, UNLABELLED, STEPS = 6, 10, 9


@pytest.fixture(scope='module')
def rows():
    digits = sources.load_source({'source': 'digits'})
    return digits.select(np.arange(20)), digits.select(np.arange(100, 123))


def batches(rows, first=0, *, seed=3, shard=None, truth=True, **options):
    labelled, unlabelled = rows
    shard = shard or loader.Shard()
    loading = loader.LoaderSpec(**options)
    views = ViewSpec(batch_size=UNLABELLED, weak=WEAKENED, strong=BEND, seed=seed, truth=truth)
    iterator = loader.train_iterator(
        labelled, SPEC, loader.Course(stages=(Stage(0, ()),), steps=STEPS, seed=seed),
        batch_size=LABELLED, shard=shard, loading=loading,
        beside=two_views.two_views(unlabelled, SPEC, views, shard=shard, loading=loading))
    iterator.set_state({'next_index': first})
    found = list(iterator)
    iterator.close()
    return found


@pytest.fixture(scope='module')
def plain(rows):
    return batches(rows)


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize('options', [dict(threads=1, prefetch=1), dict(threads=4), dict(workers=2),
                                     dict(cache_mb=0.001)], ids=str)
def test_threads_workers_and_memory_change_nothing(rows, plain, options):
    same(plain, batches(rows, **options))


def test_it_resumes_anywhere(rows, plain):
    for step in (1, 5, STEPS - 1):
        same(plain[step:], batches(rows, step))


def test_processes_have_parts_of_the_batch(rows, plain):
    parts = [batches(rows, shard=loader.Shard(index, 2)) for index in range(2)]
    same(plain, [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts)])


def test_every_picture_comes_once_per_epoch(rows, plain):
    names = rows[1].labels('class')
    shown = np.concatenate([batch[TRUTH + 'class'] for batch in plain])
    for epoch in range(len(shown) // len(names)):
        part = shown[epoch * len(names):][:len(names)]
        assert sorted(part) == sorted(names)
    assert (shown[:len(names)] != shown[len(names):2 * len(names)]).any()  # in another order


def test_the_views_are_of_one_picture(rows, plain):
    """Without transforms the weak view is the picture itself, and the strong one is none of it."""
    pictures = loader.Pictures(rows[1], SPEC)
    first = plain[0]
    order = two_views.two_views(rows[1], SPEC, ViewSpec(
        batch_size=UNLABELLED, weak=WEAKENED, strong=(), seed=3), shard=loader.Shard(),
        loading=loader.LoaderSpec())
    for place in range(UNLABELLED):
        row = order.order(place)[1]
        np.testing.assert_array_equal(first[WEAK][place], pictures[row])
        assert (first[STRONG][place] != pictures[row]).any()
    assert (first[STRONG] == first[WEAK]).mean() > 0.1  # but of the same size and background
    # Later a stage turns it too, by other random numbers than the strong view.
    later = plain[5]
    assert (later[WEAK] != later[STRONG]).any(axis=(1, 2, 3)).all()


def test_labelled_pictures_stay_as_they_are(rows, plain):
    iterator = loader.train_iterator(
        rows[0], SPEC, loader.Course(stages=(Stage(0, ()),), steps=STEPS, seed=3),
        batch_size=LABELLED)
    alone = list(iterator)
    iterator.close()
    same(alone, [{name: batch[name] for name in alone[0]} for batch in plain])
    assert set(plain[0]) - set(alone[0]) == {WEAK, STRONG, TRUTH + 'class'}


def test_seeds_differ_and_truth_can_stay_away(rows, plain):
    other = batches(rows, seed=4, truth=False)
    assert (other[0][WEAK] != plain[0][WEAK]).any() and TRUTH + 'class' not in other[0]


def test_broken_pictures_raise_or_make_room(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for k in range(4):
        cv2.imwrite(str(tmp_path / f'{k}.png'), rng.integers(0, 255, (12, 12, 3), np.uint8))
    names = [f'{k}.png' for k in range(4)]
    manifest = make_manifest({'id': names, 'location': names, 'label/class': [0, 1, 0, 1]},
                             {'class': ('a', 'b')}, root=str(tmp_path))
    (tmp_path / '2.png').write_bytes(b'broken')
    views = ViewSpec(batch_size=4, weak=(Stage(0, ()),), strong=BEND, seed=0, truth=True)

    def first(unreadable):
        return two_views.two_views(manifest, SPEC, views, shard=loader.Shard(),
                                   loading=loader.LoaderSpec(unreadable=unreadable))(0)

    with pytest.raises(UnreadableImage):
        first('error')
    with caplog.at_level(logging.WARNING):
        found = first('drop')
    assert '2.png' in caplog.text and found[WEAK].shape == (4, 12, 12, 3)
    assert sorted(found[TRUTH + 'class']) == [0, 1, 1, 1]  # row 3 came in the place of row 2
    for name in names:
        (tmp_path / name).write_bytes(b'broken')
    with pytest.raises(DataError, match='No unlabelled image'):
        first('drop')
