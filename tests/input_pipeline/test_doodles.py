"""The built-in drawings: the same on every machine, with correct counts and labels."""

import concurrent.futures
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.errors import DataError
from input_pipeline.manifest import class_counts, digest
from input_pipeline.sources import doodles
from input_pipeline.sources.doodles import CLASSES, TOOLS, load, plants, read


def _small(image: np.ndarray) -> np.ndarray:
    """Mean grey of 4 by 4 fields."""
    side = len(image) // 4
    return image.mean(2).reshape(4, side, 4, side).mean((1, 3))


def _means(seed: int) -> np.ndarray:
    """Mean 16 by 16 picture of each class, [48, 256]."""
    table = load(per_class=12, writers=12, size=32, seed=seed).table
    images = np.stack([read(place).mean(2) for place in table['location']])
    return images.reshape(48, 12, 16, 2, 16, 2).mean((1, 3, 5)).reshape(48, 256)


def test_pictures_are_rgb_on_nearly_white_paper():
    for size in (32, 96, 160):
        manifest = load(classes=6, per_class=3, size=size)
        for place in manifest.table['location']:
            image = read(place)
            assert image.shape == (size, size, 3)
            assert image.dtype == np.uint8
            assert np.median(image) >= 235
            assert image.min() < 160
            edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert edges.min() > 120  # nothing is cut off


def test_threads_and_repetition_give_the_same_bytes():
    places = load(per_class=2, wild_writers=10, near_duplicates=.2, photos=.1, size=64,
                  writers=20).table['location'].tolist()
    alone = [read(place).tobytes() for place in places]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = [image.tobytes() for image in pool.map(read, reversed(places))]
    assert alone == together[::-1]
    assert len(set(alone)) == len(alone)


def test_fresh_process_gives_the_same_bytes(tmp_path):
    manifest = load(classes=8, per_class=2, size=48, near_duplicates=.3, photos=.2)
    places = manifest.table['location'].tolist()
    program = ('import sys, numpy as np\n'
               'from input_pipeline.sources.doodles import read\n'
               'np.save(sys.argv[1], np.stack([read(p) for p in sys.argv[2:]]))\n')
    path = tmp_path / 'pictures.npy'
    subprocess.run([sys.executable, '-c', program, str(path), *places], check=True)
    there = np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(there, np.stack([read(p) for p in places]))


@pytest.mark.parametrize('place, recorded', [
    ('doodles:seed=0,size=96,class=cup,writer=5,drawing=0,tool=pen',
     [242, 231, 251, 251, 209, 190, 241, 251, 224, 233, 199, 251, 217, 215, 233, 251]),
    ('doodles:seed=3,size=64,class=spider,writer=38,drawing=1,tool=brush,wild=1',
     [241, 213, 247, 245, 198, 136, 153, 201, 203, 172, 185, 214, 247, 247, 239, 246]),
    ('doodles:seed=0,size=96,class=leaf,writer=1,drawing=0,tool=pencil,alter=flip',
     [255, 219, 224, 255, 255, 217, 205, 228, 255, 224, 197, 237, 255, 255, 227, 255]),
    ('doodles:seed=0,size=96,photo=4',
     [82, 103, 154, 150, 61, 97, 70, 127, 65, 98, 59, 104, 70, 69, 63, 93]),
])
def test_pictures_have_not_changed_since_they_were_recorded(place, recorded):
    # Published numbers refer to these pictures; another OpenCV may round slightly differently.
    np.testing.assert_allclose(_small(read(place)).ravel(), recorded, atol=2.5)


def test_counts_groups_and_heads():
    manifest = load(classes=5, per_class=7, writers=3, heads=('class', 'tool'))
    table = manifest.table
    assert manifest.heads == ('class', 'tool')
    assert manifest.classes['class'] == CLASSES[:5]
    assert manifest.classes['tool'] == TOOLS
    assert class_counts(manifest, 'class').tolist() == [7] * 5
    assert table['group'].tolist() == [f'w{i % 3:02d}' for i in range(7)] * 5
    assert table['id'][4] == 'house/w01-01'
    named = table['location'].str.extract(r'class=([^,]+),.*tool=(\w+)')
    assert named[0].tolist() == [CLASSES[c] for c in manifest.labels('class')]
    assert named[1].tolist() == [TOOLS[t] for t in manifest.labels('tool')]
    only = load(classes=5, per_class=7, heads='tool')
    assert only.heads == ('tool',)
    assert 'label/class' not in only.table


def test_tools_are_all_used_and_look_different():
    manifest = load(heads=('tool',))
    assert np.bincount(manifest.labels('tool'), minlength=4).min() > .15 * len(manifest)
    place = 'doodles:seed=0,size=96,class=cup,writer=7,drawing=1,tool='
    ink = [(255. - read(place + tool)).sum() for tool in TOOLS]
    assert ink[0] < ink[1] < min(ink[2], ink[3])


def test_a_drawing_does_not_depend_on_the_size_of_the_data_set():
    small = load(classes=3, per_class=8, writers=8).table
    large = load(classes=9, per_class=40, writers=8, imbalance=5, wrong_labels=.1).table
    both = small.merge(large, on='id')
    assert len(both) > 8
    assert (both['location_x'] == both['location_y']).all()


def test_imbalance_is_exponential_and_keeps_two():
    manifest = load(classes=10, per_class=40, imbalance=10)
    counts = class_counts(manifest, 'class')
    np.testing.assert_array_equal(counts, np.rint(40 * 10 ** (-np.arange(10) / 9)))
    assert class_counts(load(classes=10, per_class=40, imbalance=1000), 'class').min() == 2
    rare = manifest.table[manifest.labels('class') == 9]
    assert set(rare['group']) != {'w00', 'w01', 'w02', 'w03'}


def test_only_the_last_writers_are_wild():
    manifest = load(per_class=10, writers=10, size=32, wild_writers=3)
    tame = load(per_class=10, writers=10, size=32)
    wild = manifest.table['truth/wild'].to_numpy()
    np.testing.assert_array_equal(wild, manifest.table['group'].isin(['w07', 'w08', 'w09']))
    assert not tame.table['truth/wild'].any()
    same = (manifest.table['location'] == tame.table['location']).to_numpy()
    np.testing.assert_array_equal(same, ~wild)
    for row in np.flatnonzero(wild)[::11]:
        first, second = read(manifest.table['location'][row]), read(tame.table['location'][row])
        assert np.abs(first.astype(int) - second).mean() > 1


def test_near_duplicates_are_recorded_truthfully():
    manifest = load(classes=12, per_class=20, writers=10, size=48, near_duplicates=.25,
                    wrong_labels=.2, wild_writers=2)
    table = manifest.table.set_index('id')
    copies = table[table['truth/duplicate_of'] != '']
    originals = table.loc[copies['truth/duplicate_of']]
    assert len(copies) == 60
    assert len(table) == 300
    assert set(copies['truth/alteration']) == set(plants.ALTERATIONS)
    assert (table['truth/alteration'] != '').sum() == 60
    for column in ('label/class', 'truth/class', 'truth/wild'):
        assert (copies[column].to_numpy() == originals[column].to_numpy()).all()
    assert (copies['group'].to_numpy() != originals['group'].to_numpy()).all()
    assert (copies['group'].isin(['w08', 'w09']) == copies['truth/wild']).all()
    for copy, original in list(zip(copies.itertuples(index=False), originals['location']))[:20]:
        alteration = copy[list(copies.columns).index('truth/alteration')]
        expected = plants.alter(read(original), alteration)
        picture = read(copy[list(copies.columns).index('location')])
        np.testing.assert_array_equal(picture, expected)
        assert (picture != read(original)).any()


def test_alterations_do_what_their_names_say():
    image = read('doodles:seed=0,size=96,class=train,writer=3,drawing=0,tool=brush')
    np.testing.assert_array_equal(plants.alter(image, 'flip'), image[:, ::-1])
    np.testing.assert_allclose(plants.alter(image, 'brightness-0.8'), image * .8, atol=.51)
    np.testing.assert_allclose(plants.alter(image, 'brightness-1.2'),
                               np.minimum(image * 1.2, 255), atol=.51)
    assert 0 < np.abs(plants.alter(image, 'jpeg-50').astype(int) - image).mean() < 8
    ink = (255. - image).sum()
    for name, share in (('crop-3', .03), ('crop-10', .10)):
        grown = (255. - plants.alter(image, name)).sum() / ink
        assert grown == pytest.approx((1 - share) ** -2, rel=.05)


def test_wrong_labels_are_wrong_and_the_right_ones_are_known():
    manifest = load(classes=7, per_class=40, wrong_labels=.15)
    table = manifest.table
    right = table['location'].str.extract('class=([^,]+)')[0].map(CLASSES.index)
    np.testing.assert_array_equal(table['truth/class'], right)
    assert (table['label/class'] != table['truth/class']).sum() == round(.15 * 280)
    clean = load(classes=7, per_class=40).table
    assert (clean['label/class'] == clean['truth/class']).all()


def test_photos_are_marked_and_unlike_paper():
    manifest = load(classes=6, per_class=20, photos=.5, size=64, heads=('class', 'tool'))
    table = manifest.table
    photos = table[table['truth/photo']]
    assert len(photos) == 60
    assert (photos['truth/class'] == -1).all()
    assert photos['label/class'].nunique() == 6
    assert photos['location'].str.contains('photo=').all()
    assert not table[~table['truth/photo']]['location'].str.contains('photo=').any()
    for place in photos['location'][:12]:
        image = read(place)
        assert (image > 235).mean() == 0  # no paper
        assert len(np.unique(image.mean(2).round())) > 60  # shades rather than ink


def test_classes_differ_from_each_other():
    first, second = _means(0), _means(1)
    distance = np.linalg.norm(first[:, None] - first[None], axis=2)
    assert (distance + 1e9 * np.eye(48)).min() > 60
    # The nearest mean of other writers is the right class far more often than by chance (1/48).
    nearest = np.linalg.norm(first[:, None] - second[None], axis=2).argmin(1)
    assert (nearest == np.arange(48)).mean() > .25


def test_digest_follows_the_seed():
    assert digest(load(classes=4, per_class=4)) == digest(load(classes=4, per_class=4))
    one, two = (load(classes=4, per_class=20, heads=('tool',), seed=s) for s in (0, 1))
    assert digest(one) != digest(two)
    assert (read(one.table['location'][0]) != read(two.table['location'][0])).any()


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(1, 48), per_class=st.integers(1, 9), writers=st.integers(2, 12),
       wild=st.integers(0, 2), duplicates=st.floats(0, 1), photos=st.floats(0, 1),
       imbalance=st.floats(1, 100))
def test_every_load_is_consistent(classes, per_class, writers, wild, duplicates, photos,
                                   imbalance):
    manifest = load(classes=classes, per_class=per_class, writers=writers, wild_writers=wild,
                    near_duplicates=duplicates, photos=photos, imbalance=imbalance)
    table = manifest.table
    copies, pictures = table['truth/duplicate_of'] != '', table['truth/photo']
    drawn = table[~copies & ~pictures]
    assert copies.sum() == round(duplicates * len(drawn))
    assert pictures.sum() == round(photos * len(drawn))
    assert drawn['label/class'].nunique() == classes
    assert table['group'].nunique() <= writers
    for place in table['location'][::max(1, len(table) // 3)]:
        assert doodles._parse(place)['size'] == 96


@pytest.mark.parametrize('key, arguments', [
    ('classes', dict(classes=49)), ('classes', dict(classes=0)), ('classes', dict(classes=2.5)),
    ('per_class', dict(per_class=0)), ('writers', dict(writers=0)), ('size', dict(size=8)),
    ('seed', dict(seed=-1)), ('heads', dict(heads=('class', 'colour'))), ('heads', dict(heads=())),
    ('imbalance', dict(imbalance=.5)), ('imbalance', dict(imbalance=float('nan'))),
    ('wild_writers', dict(wild_writers=41)), ('near_duplicates', dict(near_duplicates=1.5)),
    ('near_duplicates', dict(near_duplicates=.5, writers=1)),
    ('wrong_labels', dict(wrong_labels=-.1)), ('wrong_labels', dict(wrong_labels='some')),
    ('wrong_labels', dict(wrong_labels=.1, heads=('tool',))), ('photos', dict(photos=2)),
])
def test_bad_values_are_named(key, arguments):
    with pytest.raises(DataError, match=rf'data\.doodles\.{key} is .*: (use|set) ') as caught:
        load(**arguments)
    assert '\n' not in str(caught.value)


GOOD = 'doodles:seed=0,size=96,class=house,writer=7,drawing=1,tool=pen'


@pytest.mark.parametrize('place', [
    '', 'doodles:', 'house.png', GOOD.replace('doodles', 'digits'), GOOD.replace('house', 'horse'),
    GOOD.replace('pen', 'quill'), GOOD.replace('size=96', 'size=9'), GOOD.replace('=7', '=-7'),
    GOOD.replace('seed=0,', ''), GOOD + ',tool=pen', GOOD + ',alter=melt', GOOD + ',wild=2',
    GOOD + ',mood=1', GOOD.replace('=7', '=²'), 'doodles:seed=0,size=96,photo=x',
    'doodles:seed=0,size=96,photo=1,writer=2',
])
def test_nonsense_locations_are_refused(place):
    with pytest.raises(DataError, match='is not that of a doodle'):
        read(place)
