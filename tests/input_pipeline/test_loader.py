"""The loader: each example once per epoch, the same pixels however the work is done."""

import logging
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_sample_image

from configs.common import get_config
from input_pipeline import geometry, loader, packing, sources, transforms
from input_pipeline.curriculum import make_stages
from input_pipeline.decode import UnreadableImage
from input_pipeline.durations import to_steps
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resampling import make_order

RESAMPLE = get_config().resample.to_dict() | {'start': None}
PHOTO = load_sample_image('china.jpg')[:400, :500]
SPEC = PreprocessSpec(size=24)
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
    course = loader.Course(stages=stages(manifest), steps=options.pop('steps', 18), seed=3)
    iterator = loader.train_iterator(
        manifest, SPEC, course, batch_size=BATCH, shard=options.pop('shard', loader.Shard()),
        loading=loader.LoaderSpec(**options))
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


def test_each_example_comes_once_per_epoch(digits):
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
@pytest.mark.parametrize('workers', [1, 2, 3])
def test_worker_processes_change_no_pixel(digits, workers):
    """17 batches of 57 rows: neither is a multiple of the workers, and each batch is whole."""
    found = batches(digits, workers=workers, steps=17)[0]
    assert len(found) == 17 and all(len(batch['image']) == BATCH for batch in found)
    same(batches(digits, steps=17)[0], found)


def test_hosts_see_their_parts_of_the_same_batches(digits):
    whole = batches(digits)[0]
    parts = [batches(digits, shard=loader.Shard(index, 2))[0] for index in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts)]
    same(whole, joined)


@pytest.mark.parametrize('stop', [1, 6, 13])
def test_an_iterator_continues_where_it_was(digits, stop):
    whole = batches(digits)[0]
    first, state = batches(digits, count=stop)
    rest, _ = batches(digits, state=state, threads=3)
    same(whole, first + rest)


def test_the_curriculum_changes_pictures_stage_by_stage(digits):
    plain = batches(digits)[0]
    pictures = loader.Pictures(digits, SPEC)
    order = make_order(digits, RESAMPLE, seed=3, batch_size=BATCH, to_steps=None)
    for step, touched in ((0, False), (5, False), (6, True), (12, True)):
        row = order(step * BATCH)[1]
        assert (plain[step]['image'][0] != pictures[row]).any() == touched


def test_a_stream_is_that_of_numpy_with_this_key_and_counter():
    key = np.uint64(2**64 - 3)
    plain = np.random.Generator(np.random.Philox(
        counter=np.array([0, 0, 5, key], np.uint64), key=np.array([7, 2 << 56 | 11], np.uint64)))
    ours = loader.example_rng(7, 11, key, 5)
    for draw in (lambda rng: rng.random(3), lambda rng: rng.random(5, np.float32),
                 lambda rng: rng.integers(2**63), lambda rng: rng.uniform(-2, 5, 4)):
        np.testing.assert_array_equal(draw(ours), draw(plain))
    assert geometry.between(ours, -3.5, 8) == plain.uniform(-3.5, 8)


def test_seeds_epochs_and_examples_have_separate_streams():
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


# --- label and picture stay together ------------------------------------------------------------

CLASSES, EACH, SHADE = 6, 4, 40
CROP = ['hflip', 'random_resized_crop', {'kind': 'rotate', 'degrees': 5}]
LAST = ['hflip', {'kind': 'rotate', 'degrees': 15}, 'elastic', 'grid_distortion']


def painted(root):
    """A folder whose pictures have the shade of their class: small PNGs and larger JPEGs."""
    for number in range(CLASSES * EACH):
        label = number % CLASSES
        path = root / f'class{label}' / f'{number:02}.{"png" if number % 4 else "jpg"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (30, 40, 3) if number % 4 else (120, 90, 3)
        cv2.imwrite(str(path), np.full(shape, SHADE * label, np.uint8))
    return root


def from_folder(root, tmp_path):
    return sources.load_source({'source': 'folder', 'folder': str(root)})


def from_csv(root, tmp_path):
    paths = sorted(str(path.relative_to(root)) for path in root.rglob('*.*'))
    pd.DataFrame({'image_path': paths[::-1], 'target': [path[:6] for path in paths[::-1]]}
                 ).to_csv(tmp_path / 'table.csv', index=False)
    return sources.load_source({'source': 'csv', 'csv': str(tmp_path / 'table.csv'),
                                'images': str(root)})


def from_zip(root, tmp_path):
    archive = shutil.make_archive(str(tmp_path / 'archive'), 'zip', root)
    return sources.load_source({'source': 'folder', 'folder': archive})


def from_packed(root, tmp_path):
    packing.pack(from_folder(root, tmp_path), sources.read_bytes, str(tmp_path / 'packed'),
                 packing.PackSpec(size=32, quality=95, shard_records=7))
    return sources.load_source({'source': 'packed', 'packed': str(tmp_path / 'packed')})


PLACES = [from_folder, from_csv, from_zip, from_packed]


def shown_labels(manifest, specs, **options):
    """Asserts that every picture has the shade of its label; returns all labels."""
    replaced = options.pop('replaced', None)
    course = loader.Course(
        stages=make_stages([{'until': {'steps': 3}}, {'transforms': specs}],
                           lambda duration, key: 3),
        steps=15, seed=1, order=options.pop('order', None))
    iterator = loader.train_iterator(
        manifest, options.pop('spec', SPEC), course, batch_size=8,
        loading=loader.LoaderSpec(**options), replaced=replaced)
    labels = []
    for batch in iterator:
        middle = batch['image'][:, 10:14, 10:14].mean((1, 2, 3))
        np.testing.assert_allclose(middle, SHADE * batch['label/class'], atol=4)
        labels += batch['label/class'].tolist()
    iterator.close()
    return np.array(labels)


@pytest.mark.parametrize('specs', [LAST, CROP])
@pytest.mark.parametrize('cache_mb', [0, 64])
@pytest.mark.parametrize('place', PLACES)
def test_a_painted_label_stays_with_its_picture(tmp_path, place, cache_mb, specs):
    manifest = place(painted(tmp_path / 'data'), tmp_path)
    labels = shown_labels(manifest, specs, cache_mb=cache_mb)
    assert (np.bincount(labels) == 15 * 8 // CLASSES).all()
    spec = PreprocessSpec(size=24, resize='crop' if cache_mb else 'pad')
    shown_labels(manifest, [{'kind': 'center_crop', 'share': 0.4}], spec=spec, cache_mb=cache_mb)
    for batch in loader.eval_dataset(manifest, SPEC, batch_size=7,
                                     loading=loader.LoaderSpec(cache_mb=cache_mb))():
        np.testing.assert_allclose(batch['image'][:, 12, 12, 0], SHADE * batch['label/class'],
                                   atol=4)


@pytest.mark.slow
@pytest.mark.parametrize('place', PLACES)
def test_a_painted_label_stays_with_its_picture_in_workers(tmp_path, place):
    manifest = place(painted(tmp_path / 'data'), tmp_path)
    for specs in (LAST, CROP):
        shown_labels(manifest, specs, workers=2)


def test_over_sampling_shows_copies_that_differ(tmp_path):
    manifest = from_folder(painted(tmp_path / 'data'), tmp_path)
    kept = manifest.select(np.flatnonzero((manifest.labels('class') != 2)
                                          | (np.arange(len(manifest)) % 4 == 0)))
    order = make_order(kept, RESAMPLE | {'kind': 'over'}, seed=1, batch_size=8, to_steps=None)
    labels = shown_labels(kept, CROP, order=order)
    assert (np.bincount(labels) == 15 * 8 // CLASSES).all()
    epoch, row, _ = next(found for found in map(order, range(100)) if found[2])
    draws = {loader.example_rng(1, epoch, row, copy).random() for copy in (0, 1)}
    assert len(draws) == 2


# --- pictures that become unreadable ------------------------------------------------------------


def spoiled(manifest, rows):
    for row in rows:
        with open(f'{manifest.root}/{manifest.table["location"][row]}', 'wb') as file:
            file.write(b'no picture')


@pytest.mark.parametrize('specs', [LAST, CROP])
def test_an_unreadable_picture_is_replaced_by_the_next_of_its_class(tmp_path, caplog, specs):
    manifest = from_folder(painted(tmp_path / 'data'), tmp_path).with_column(
        'weight', np.arange(float(CLASSES * EACH)))
    bad = [0, 4, 5, 11]  # the first of a class; two in a row; the last, after which comes the first
    spoiled(manifest, bad)
    replaced = {}
    with caplog.at_level(logging.WARNING):
        labels = shown_labels(manifest, specs, unreadable='drop', replaced=replaced)
    assert (np.bincount(labels) == 15 * 8 // CLASSES).all()
    assert replaced == {0: 1, 4: 6, 5: 6, 11: 8}
    assert sorted(record.args[0] for record in caplog.records) == sorted(
        manifest.table['location'][bad])
    options = {'unreadable': 'drop', 'steps': 12}
    whole = batches(manifest, **options)[0]
    assert not {row for batch in whole for row in batch['weight'].tolist()} & set(bad)
    first, state = batches(manifest, count=7, **options)
    same(whole, first + batches(manifest, state=state, threads=1, **options)[0])


def test_an_unreadable_picture_is_an_error(tmp_path):
    manifest = from_folder(painted(tmp_path / 'data'), tmp_path)
    spoiled(manifest, [5])
    with pytest.raises(UnreadableImage, match=r'class1.*is not an image'):
        shown_labels(manifest, LAST)
    spoiled(manifest, [4, 6, 7])
    with pytest.raises(DataError, match="class 'class1' can be read any more"):
        shown_labels(manifest, LAST, unreadable='drop')


# --- crops --------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """One photograph: upright, and stored on its side with an EXIF note."""
    cv2.imwrite(str(tmp_path / 'a.jpg'), PHOTO[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    turned = cv2.imencode('.jpg', cv2.rotate(PHOTO[..., ::-1], cv2.ROTATE_90_COUNTERCLOCKWISE),
                          [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    note = b'Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    (tmp_path / 'b.jpg').write_bytes(
        turned[:2] + b'\xff\xe1' + (len(note) + 2).to_bytes(2, 'big') + note + turned[2:])
    return make_manifest({'id': ['a', 'b'], 'location': ['a.jpg', 'b.jpg'],
                          'label/class': [0, 0]}, {'class': ('x',)}, str(tmp_path))


def views(manifest, specs, spec=SPEC, row=0, **options):
    stage = make_stages([{'transforms': specs}], None)[0]
    pictures = loader.Pictures(manifest, spec, **options)
    return [pictures.augmented(row, stage, loader.example_rng(0, epoch, 7)).astype(int)
            for epoch in range(4)]


@pytest.mark.parametrize('row', [0, 1])
@pytest.mark.parametrize('share', [0.25, 0.8])
def test_a_crop_shows_the_detail_of_the_file(photos, row, share):
    top, left = (round(side * (1 - share) / 2) for side in PHOTO.shape[:2])
    window = PHOTO[top:400 - top, left:500 - left]
    want = cv2.resize(window, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    found = views(photos, [{'kind': 'center_crop', 'share': share}], PreprocessSpec(size=64),
                  row)[0]
    squashed = cv2.resize(PHOTO, (64, 64), interpolation=cv2.INTER_AREA)
    inside = round(64 * (1 - share) / 2)
    blurred = cv2.resize(squashed[inside:64 - inside, inside:64 - inside], (64, 64)).astype(int)
    assert np.abs(found - want).mean() < np.abs(blurred - want).mean() / 2


def test_the_crop_of_a_turned_picture_is_that_of_the_upright_one(photos):
    spec = PreprocessSpec(size=64)
    for a, b in zip(views(photos, CROP, spec, 0), views(photos, CROP, spec, 1)):
        assert np.abs(a - b).mean() < 2


@pytest.mark.parametrize('resize', ['squash', 'pad', 'crop'])
def test_a_crop_keeps_the_frame_of_its_resize_mode(photos, resize):
    spec = PreprocessSpec(size=64, resize=resize, crop_pct=0.9)
    specs = [{'kind': 'random_crop', 'share': 0.7}]
    stage = make_stages([{'transforms': specs}], None)[0]
    frame = loader.Pictures(photos, spec)[0]
    for epoch, sharp in enumerate(views(photos, specs, spec)):
        plan = transforms.draw(stage.transforms, loader.example_rng(0, epoch, 7), (64, 64))
        soft = transforms.apply(plan, frame, (64, 64))
        # Shifted by six pixels, they would differ by 22 or more.
        assert np.abs(cv2.blur((sharp - soft).astype(np.float32), (9, 9))).mean() < 8


def test_caches_and_reduced_decoding_of_crops(photos):
    small = PreprocessSpec(size=260)  # the file has less than twice as many
    for a, b, c in zip(*(views(photos, CROP, small, cache_mb=size) for size in (0, 1, 1000))):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    kept = loader.Pictures(photos, small, 1)
    stage = make_stages([{'transforms': CROP}], None)[0]
    first = [kept.augmented(row, stage, loader.example_rng(0, 0, 1)) for row in (0, 1)]
    again = [kept.augmented(row, stage, loader.example_rng(0, 0, 1)) for row in (0, 1)]
    np.testing.assert_array_equal(first, again)
    full, reduced = (views(photos, [{'kind': 'center_crop', 'share': 0.9}], PreprocessSpec(
        size=32, reduced_decode=flag))[0] for flag in (False, True))
    assert 0 < np.abs(full - reduced).mean() < 3
