"""Rows that only train: how often, when and with which columns batches have them."""

import dataclasses
import shutil
from fractions import Fraction

import cv2
import numpy as np
import pytest

from input_pipeline import loader
from input_pipeline.curriculum import make_stages
from input_pipeline.extra_rows import Extra, SoftRows
from input_pipeline.manifest import make_manifest
from input_pipeline.order import Joined, Order, Walk
from input_pipeline.pictures import PreprocessSpec

SPEC = PreprocessSpec(size=8)
ROWS, MORE, BATCH = 9, 5, 6


def order_of(count):
    return Order(Walk(count, 3, np.arange(count), np.array([count]), np.array([count])))


def pictures(folder, count, first):
    """Pictures of one shade each, by which a row is known again; two classes."""
    folder.mkdir()
    for k in range(count):
        cv2.imwrite(str(folder / f'{k}.png'), np.full((8, 8, 3), first + 10 * k, np.uint8))
    names = [f'{k}.png' for k in range(count)]
    return make_manifest({'id': [f'{folder.name}/{name}' for name in names], 'location': names,
                          'label/class': np.arange(count) % 2}, {'class': ('a', 'b')}, str(folder))


@pytest.fixture
def rows(tmp_path):
    """Labelled rows of the shades 10, 20, ... and extra ones of 130, 140, ..."""
    own, more = pictures(tmp_path / 'own', ROWS, 10), pictures(tmp_path / 'more', MORE, 130)
    soft = SoftRows(np.array([[.7, .3], [.2, .8]], np.float32), np.array([0, -1, 1, -1, -1]))
    return own, Extra(more, {'class': soft}, 0.5, Fraction(1, 3))


def batches(own, extra, *, state=None, steps=12, loading=None, **course):
    iterator = loader.train_iterator(own, SPEC, loader.Course(
        stages=make_stages([], lambda duration, key: 0), steps=steps, seed=0, extra=extra,
        **course), batch_size=BATCH, loading=loading or loader.LoaderSpec(threads=1))
    if state:
        iterator.set_state(state)
    found = [next(iterator) for _ in range(steps - (state or {'next_index': 0})['next_index'])]
    iterator.close()
    return found


@pytest.mark.parametrize('share', [Fraction(1, 3), Fraction(5, 14), Fraction(9, 10)])
def test_the_share_is_kept_and_rows_come_equally_often(share):
    order = Joined(order_of(ROWS), order_of(MORE), start=20, share=share)
    found = [order(position) for position in range(1020)]
    assert all(row < ROWS for _, row, _ in found[:20])
    later = np.array([row for _, row, _ in found[20:]])
    for count in (7, 100, 1000):  # from the start on, at any length
        assert abs((later[:count] >= ROWS).sum() - count * share) < 1
    times = np.bincount(later, minlength=ROWS + MORE)
    assert np.ptp(times[ROWS:]) <= 1
    # The labelled ones go on as if nobody had come between.
    plain = order_of(ROWS)
    assert [one for one in found if one[1] < ROWS] == [
        plain(position) for position in range(sum(row < ROWS for _, row, _ in found))]


def test_a_batch_says_what_an_extra_row_is(rows):
    own, extra = rows
    batch = {name: np.concatenate([one[name] for one in batches(own, extra)])
             for name in batches(own, extra, steps=1)[0]}
    shade = batch['image'][:, 0, 0, 0].astype(int)
    is_extra = shade >= 130
    number = np.where(is_extra, (shade - 130) // 10, (shade - 10) // 10)
    assert is_extra.mean() == pytest.approx(1 / 3)
    assert batch['label/class'].tolist() == (number % 2).tolist()
    assert batch['factor'].tolist() == np.where(is_extra, 0.5, 1.0).tolist()
    wanted = np.zeros((len(shade), 2), np.float32)
    wanted[is_extra & (number == 0)] = .7, .3
    wanted[is_extra & (number == 2)] = .2, .8
    np.testing.assert_array_equal(batch['target/class'], wanted)


def test_before_the_start_there_are_none(rows):
    own, extra = rows
    found = batches(own, dataclasses.replace(extra, start=3 * BATCH))
    shades = [one['image'][:, 0, 0, 0] for one in found]
    assert max(map(np.max, shades[:3])) < 130 <= min(map(np.max, shades[3:]))


def test_a_teacher_speaks_of_labelled_rows_alone(rows):
    own, extra = rows
    taught = SoftRows(np.eye(2, dtype=np.float32)[[1]], np.where(np.arange(ROWS) == 4, 0, -1))
    for one in batches(own, extra, teacher={'class': taught}):
        at = one['image'][:, 0, 0, 0] == 50
        np.testing.assert_array_equal(one['teacher/class'], at[:, None] * [[0, 1]])


@pytest.mark.parametrize('threads', [1, 3])
def test_resuming_is_exact(rows, threads):
    own, extra = rows
    loading = loader.LoaderSpec(threads=threads)
    extra = dataclasses.replace(extra, start=2 * BATCH)
    whole = batches(own, extra)
    for first in (1, 2, 7):
        rest = batches(own, extra, state={'next_index': first}, loading=loading)
        for one, other in zip(whole[first:], rest, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_broken_extra_picture_is_replaced_by_another_of_its_label(rows, tmp_path):
    own, extra = rows
    extra = dataclasses.replace(extra, soft={}, weight=1.0)
    shutil.copy(__file__, tmp_path / 'more' / '1.png')
    found = batches(own, extra, loading=loader.LoaderSpec(threads=1, unreadable='drop'))
    shades = np.concatenate([one['image'][:, 0, 0, 0] for one in found])
    assert 140 not in shades and {160} < set(shades[shades >= 130].tolist())
    times = dict(zip(*np.unique(shades, return_counts=True)))
    assert times[160] > times[130]  # of class b, as the broken one
    assert 'factor' not in found[0]
