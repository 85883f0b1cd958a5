"""Flips that swap labels: the label changes with the very flip that is drawn, however it is
loaded."""

import shutil

import cv2
import numpy as np
import pytest

from input_pipeline import loader, packing, sources
from input_pipeline.curriculum import make_stages
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.mirrored_labels import (
    mirror,
    mirrored,
    permutation,
    read_swap,
    warn_of,
)
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.transforms import make_transform

SIZE, CLASSES = 16, ('Korean/left', 'Korean/right', 'up')
SWAP = {'Korean/left': 'Korean/right'}
SPEC = PreprocessSpec(size=SIZE)


def arrow(kind: int) -> np.ndarray:
    """Bright on the left, on the right, or above."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[[np.s_[:, :5], np.s_[:, -5:], np.s_[:5]][kind]] = 250
    return image


@pytest.fixture(scope='module')
def arrows(tmp_path_factory):
    folder = tmp_path_factory.mktemp('arrows')
    kinds = np.arange(30) % 3
    for number, kind in enumerate(kinds):
        cv2.imwrite(str(folder / f'{number:02d}.png'), arrow(kind))
    names = [f'{number:02d}.png' for number in range(30)]
    return make_manifest({'id': names, 'location': names, 'label/class': kinds,
                          'label/again': np.where(kinds == 2, -1, kinds)},
                         {'class': CLASSES, 'again': CLASSES[:2]}, str(folder))


def stages(*transforms):
    return make_stages([dict(transforms=transforms)], lambda duration, key: 1)


def batches(manifest, transforms, first=0, steps=9, replaced=None, **loading):
    course = loader.Course(stages=stages(*transforms), steps=steps, seed=5)
    iterator = loader.train_iterator(manifest, SPEC, course, batch_size=10, replaced=replaced,
                                     loading=loader.LoaderSpec(**loading))
    iterator.set_state({'next_index': first})
    found = list(iterator)
    iterator.close()
    return found


def seen(batch) -> np.ndarray:
    """The class that the pixels of each picture show."""
    image = batch['image'][..., 0].astype(float)
    sides = [image[:, 6:, :4], image[:, 6:, -4:], image[:, :4, 6:-6]]
    return np.stack([side.mean((1, 2)) for side in sides], 1).argmax(1)


def hflip(**more):
    return dict(kind='hflip', swap={'class': SWAP, 'again': SWAP}, **more)


@pytest.mark.parametrize('transforms', [
    [hflip()], [dict(kind='rotate', degrees=5), hflip(p=0.7), dict(kind='vflip', p=0.2)],
    [hflip(), hflip(p=0.4)], [dict(kind='random_resized_crop', scale=(0.9, 1)), hflip()],
    [dict(kind='rand_augment', magnitude=1), hflip(p=1)]])
def test_a_label_says_what_the_picture_shows(arrows, transforms):
    found = batches(arrows, transforms)
    labels = np.concatenate([batch['label/class'] for batch in found])
    shown = np.concatenate([seen(batch) for batch in found])
    sideways = labels < 2
    np.testing.assert_array_equal(shown[sideways], labels[sideways])
    plain = np.concatenate([batch['label/class'] for batch in batches(arrows, [])])
    assert 0.2 < np.mean(labels[plain < 2] != plain[plain < 2]) < 1.01
    np.testing.assert_array_equal(labels[plain == 2], 2)
    again = np.concatenate([batch['label/again'] for batch in found])
    np.testing.assert_array_equal(again, np.where(labels == 2, -1, labels))


def test_without_swap_nothing_changes(arrows):
    """And the pixels are the same with and without, so old runs are what they were."""
    with_swap, without = batches(arrows, [hflip()]), batches(arrows, ['hflip'])
    for one, other, plain in zip(with_swap, without, batches(arrows, [])):
        np.testing.assert_array_equal(one['image'], other['image'])
        np.testing.assert_array_equal(other['label/class'], plain['label/class'])


@pytest.mark.parametrize('loading', [dict(threads=4, prefetch=1), dict(workers=2),
                                     dict(cache_mb=100)])
def test_threads_workers_caches_packed_pictures_and_resuming_change_nothing(arrows, loading,
                                                                           tmp_path):
    wanted = batches(arrows, [hflip()])
    packing.pack(arrows, sources.read_bytes, str(tmp_path / 'packed'),
                 packing.PackSpec(shard_records=7))
    packed = sources.load_source({'source': 'packed', 'packed': str(tmp_path / 'packed')})
    cases = [(packed, 4)] if 'workers' in loading else [(arrows, 0), (arrows, 4), (packed, 4)]
    for rows, start in cases:
        found = batches(rows, [hflip()], first=start, **loading)
        for one, other in zip(wanted[start:], found, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])


def test_a_picture_shown_in_place_of_a_broken_one_has_the_label_that_it_shows(arrows, tmp_path):
    for name in arrows.table['id']:
        shutil.copy(f'{arrows.root}/{name}', tmp_path / name)
    (tmp_path / '03.png').write_bytes(b'broken')
    broken = make_manifest({column: arrows.table[column] for column in arrows.table},
                           arrows.classes, str(tmp_path))
    replaced: dict[int, int] = {}
    found = batches(broken, [dict(kind='random_resized_crop', scale=(0.9, 1)), hflip()],
                    unreadable='drop', replaced=replaced)
    assert replaced == {3: 6}
    for batch in found:
        sideways = batch['label/class'] < 2
        np.testing.assert_array_equal(seen(batch)[sideways], batch['label/class'][sideways])


@pytest.mark.parametrize(('swap', 'words'), [
    ({'Korean/lef': 'Korean/right'}, r"config\.curriculum\.swap names the class 'Korean/lef', "
                                     r"which the head 'class' does not have: did you mean "
                                     r"'Korean/left'\?"),
    ({'up': 'down'}, r"names the class 'down'"), ({'clas': {'up': 'up'}}, r"head 'clas'")])
def test_unknown_names_are_refused(arrows, swap, words):
    with pytest.raises(DataError, match=words):
        batches(arrows, [dict(kind='hflip', swap=swap)])


@pytest.mark.parametrize(('spec', 'words'), [
    (dict(kind='hflip', swap={'a': 'b', 'b': 'c'}), "the class 'b' two partners, 'a' and 'c'"),
    (dict(kind='vflip', swap='left'), r"vflip with swap='left': give classes"),
    (dict(kind='vflip', swap={'a': 1}), 'give names of classes'),
    (dict(kind='rotate90', swap={'a': 'b'}), "rotate90 has no parameter 'swap'")])
def test_a_wrong_swap_is_refused(spec, words):
    with pytest.raises(DataError, match=words):
        make_transform(spec, 'here')


def test_a_head_with_several_labels_has_its_targets_swapped():
    columns = {'target/tags': np.array([[1, 0, 1], [0, 1, 0], [-1, -1, -1]], np.float32),
               'label/tags': np.array([7, 8, -1]), 'label/class': np.array([0, 2, -1]),
               'teacher/class': np.array([[.7, .2, .1], [.1, .2, .7], [0, 0, 0]], np.float32)}
    changed = {'swap': {'tags': np.array([1, 0, 2]), 'class': np.array([1, 0, 2])}}
    mirror(columns, [['swap'], ['swap', 'swap', 'swap'], ['swap']], changed, ['tags'])
    np.testing.assert_array_equal(columns['target/tags'],
                                  [[0, 1, 1], [1, 0, 0], [-1, -1, -1]])
    np.testing.assert_array_equal(columns['label/tags'], [7, 8, -1])  # numbers of sets
    np.testing.assert_array_equal(columns['label/class'], [1, 2, -1])
    np.testing.assert_array_equal(columns['teacher/class'].astype('f4'), np.float32(
        [[.2, .7, .1], [.2, .1, .7], [0, 0, 0]]))


def test_several_flips_compose():
    classes = {'class': ('ne', 'nw', 'se', 'sw')}
    across = make_transform(dict(kind='hflip', swap={'ne': 'nw', 'se': 'sw'}), '')
    down = make_transform(dict(kind='vflip', swap={'ne': 'se', 'nw': 'sw'}), '')
    found = permutation([across, down], classes)['class']
    np.testing.assert_array_equal(found, [3, 2, 1, 0])  # north-east becomes south-west
    np.testing.assert_array_equal(mirrored(np.array([0, -1, 2]), found), [3, -1, 1])
    assert permutation([make_transform('hflip', '')], classes) == {}
    assert read_swap((), '') == ()


@pytest.mark.parametrize(('kind', 'names', 'said'), [
    ('hflip', ('left', 'right', 'up'), 'hflip without swap mirrors left/right (1 pair)'),
    ('hflip', ('turn_Left', 'turn_Right'), 'hflip without swap mirrors left/right (1 pair)'),
    ('vflip', ('left', 'right'), ''), ('hflip', ('cleft', 'bright'), ''),
    ('hflip', ('좌회전', '우회전', '왼손', '오른손'),
     'hflip without swap mirrors 왼/오른 (2 pairs)'),
    ('vflip', ('clockwise', 'counterclockwise'),
     'vflip without swap mirrors clockwise/counterclockwise (1 pair)'),
    ('hflip', ('anti-clockwise', 'clockwise'),
     'hflip without swap mirrors clockwise/anti-clockwise (1 pair)'),
    ('vflip', ('arrow/up', 'arrow/down'), 'vflip without swap mirrors up/down (1 pair)'),
    ('rotate90', ('left', 'right'), 'rotate90 turns left/right (1 pair)')])
def test_mirrored_words_are_noticed(kind, names, said):
    transform = make_transform(kind, '')
    found = warn_of([transform, transform], {'head': ('x',), 'class': names})
    assert found == [said] * bool(said)
    assert all(len(f'stages   {one}') <= 80 for one in found)
    if said.startswith(('hflip', 'vflip')) and len(names) < 4:
        swap = {kind: dict([sorted(names)[:2] if 'up' not in names else names[:2]])}
        assert warn_of([make_transform(dict(kind=kind, swap=swap[kind]), '')],
                       {'class': names}) == []
    assert warn_of([make_transform(dict(kind=kind, p=0), '')], {'class': names}) == []
