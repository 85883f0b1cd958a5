import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline import loader, packing
from input_pipeline.curation.measures import measure
from input_pipeline.decode import NoTransparency, UnreadableImage, decode
from input_pipeline.encode import encode
from input_pipeline.errors import DataError
from input_pipeline.manifest import digest
from input_pipeline.packing import PackSpec, pack
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.readable import check_readable
from input_pipeline.resize import resize
from input_pipeline.sources import array_records, load_source, read_bytes, read_image
from input_pipeline.sources.array_records import verify


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(23):
        side = 'train' if k % 3 else 'test'
        path = tmp_path / f'source/{side}/{"ab"[k % 2]}/{k:02d}_{k % 5}.{"jpg" if k % 4 else "png"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(small, (40 + k, 60), interpolation=cv2.INTER_CUBIC))
    return load_source({'source': 'folder', 'folder': str(tmp_path / 'source'),
                        'group_regex': r'_(\d)'})


def packed_source(folder):
    return load_source({'source': 'packed', 'packed': str(folder)})


def test_a_packed_source_is_the_source(source, tmp_path):
    written = pack(source, read_bytes, str(tmp_path / 'p'), PackSpec(shard_records=5))
    packed = packed_source(tmp_path / 'p')
    assert digest(packed) == digest(written) == digest(source)
    assert packed.table['split'].tolist() == source.table['split'].tolist()
    for a, b in zip(source.table['location'], packed.table['location']):
        assert read_bytes(source.root, a) == read_bytes(packed.root, b)
    assert sorted(os.listdir(tmp_path / 'p')) == [
        *(f'images-{k:05d}.array_record' for k in range(5)), 'index.json', 'manifest.parquet']
    assert check_readable(packed, cache_dir=str(tmp_path / 'cache')) is packed
    (tmp_path / 'p').rename(tmp_path / 'moved')
    moved = verify(str(tmp_path / 'moved'))
    assert read_image(moved.root, moved.table['location'][22]).shape[0] == 60
    left, right = ([batch['image'] for batch in loader.eval_dataset(
        manifest, PreprocessSpec(size=16), batch_size=8)()] for manifest in (source, moved))
    np.testing.assert_array_equal(np.concatenate(left), np.concatenate(right))


@pytest.mark.parametrize('side, first', [('longest', (32, 21)), ('shortest', (48, 32)),
                                         ('both', (32, 32))])
def test_sizes(source, tmp_path, side, first):
    pack(source, read_bytes, str(tmp_path / 'p'), PackSpec(size=32, side=side, quality='lossless'))
    packed = packed_source(tmp_path / 'p')
    picked = packed.table.index[packed.table['id'] == 'test/a/00_0.png'][0]
    image = read_image(packed.root, packed.table['location'][picked])
    assert image.shape[:2] == first
    full = read_image(source.root, source.table['location'][picked])
    want = resize(full, image.shape[:2])
    np.testing.assert_array_equal(image, want)


def test_raw_pictures_are_those_that_a_model_of_that_size_sees(source, tmp_path):
    written = pack(source, read_bytes, str(tmp_path / 'p'),
                   PackSpec(size=24, side='both', quality='raw'))
    packed = packed_source(tmp_path / 'p')
    assert digest(packed) == digest(written) == digest(source)
    assert check_readable(packed, cache_dir=str(tmp_path / 'cache')) is packed
    assert set(measure(packed).table['file_type']) == {'PPM'}
    spec = PreprocessSpec(size=24)
    left, right = (np.concatenate([batch['image'] for batch in loader.eval_dataset(
        manifest, spec, batch_size=23)()]) for manifest in (source, packed))
    np.testing.assert_array_equal(left, right)
    about = array_records.packed_as(packed)
    again = packing.repack_like(about)
    for a, b in zip(source.table['location'], packed.table['location']):
        data = read_bytes(packed.root, b)
        assert len(data) == len(b'P6\n24 24\n255\n') + 24 * 24 * 3
        assert again(read_bytes(source.root, a), a) == data
        opened = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(opened, decode(data, name=b))


def test_raw_pictures_keep_every_pixel_of_a_small_one(source, tmp_path):
    packed = pack(source, read_bytes, str(tmp_path / 'p'), PackSpec(size=99, quality='raw'))
    for a, b in zip(source.table['location'], packed.table['location']):
        np.testing.assert_array_equal(read_image(source.root, a), read_image(packed.root, b))
        assert read_bytes(packed.root, b).startswith(b'P6')


@pytest.mark.parametrize('data', [
    encode(np.zeros((4, 5, 3), np.uint8), 'raw')[:-1],
    encode(np.zeros((4, 5, 3), np.uint8), 'raw') + b'0', b'P6\n0 5\n255\n'])
def test_a_raw_picture_of_another_length_is_refused(data):
    with pytest.raises(UnreadableImage, match=r"'a\.jpg' is truncated"):
        decode(data, name='a.jpg')


def test_a_raw_picture_has_no_transparency():
    with pytest.raises(NoTransparency, match=r'a\.ppm'):
        decode(encode(np.zeros((4, 5, 3), np.uint8), 'raw'), name='a.ppm', alpha=True)


def test_small_pictures_stay_as_they_are(source, tmp_path):
    packed = pack(source, read_bytes, str(tmp_path / 'p'), PackSpec(size=61, quality=50))
    kept = [read_bytes(source.root, a) == read_bytes(packed.root, b)
            for a, b in zip(source.table['location'], packed.table['location'])]
    assert kept == [read_image(source.root, a).shape[1] <= 61 for a in source.table['location']]
    assert 0 < sum(kept) < 23
    data = read_bytes(packed.root, packed.table['location'][kept.index(False)])
    assert Image.open(io.BytesIO(data)).format == 'JPEG' and max(decode(data, name='').shape) == 61


def test_drawn_pictures_pack_without_loss(tmp_path):
    digits = load_source({'source': 'digits'}).select(np.arange(30))
    pack(digits, read_bytes, str(tmp_path / 'p'))
    packed = packed_source(tmp_path / 'p')
    assert digest(packed) == digest(digits)
    np.testing.assert_array_equal(read_image(packed.root, packed.table['location'][17]),
                                  read_image('', 'digits:17'))


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_forked_process_is_refused(source, tmp_path):
    # It would hang or crash in the library's threads.
    packed = pack(source, read_bytes, str(tmp_path / 'p'))
    assert read_bytes(packed.root, 'packed:0:0')
    with (multiprocessing.get_context('fork').Pool(1) as pool,
          pytest.raises(DataError, match='spawn')):
        pool.apply_async(read_bytes, (packed.root, 'packed:0:0')).get(10)


KILLED = '''
import sys, time
sys.path.insert(0, {home!r})
from input_pipeline import packing, sources
manifest = sources.load_source(dict(source='folder', folder={folder!r}, group_regex=r'_(\\d)'))
def slowly(root, location):
    time.sleep(.02)
    return sources.read_bytes(root, location)
packing.pack(manifest, slowly, {out!r}, packing.PackSpec(shard_records=5, quality=80), workers=1)
'''


def test_a_killed_run_continues(source, tmp_path):
    out = tmp_path / 'p'
    home = os.path.dirname(os.path.dirname(packing.__file__))
    code = KILLED.format(home=home, folder=source.root, out=str(out))
    process = subprocess.Popen([sys.executable, '-c', code])
    while process.poll() is None and not (out / 'images-00001.json').exists():
        time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / 'images-00002.array_record.tmp').write_bytes(b'half of a shard')
    with pytest.raises(DataError, match='not finished'):
        packed_source(out)
    with pytest.raises(DataError, match=r'another quality \(80, not 90\)'):
        pack(source, read_bytes, str(out), PackSpec(shard_records=5, quality=90))
    done, read = (out / 'images-00001.array_record').stat().st_mtime_ns, []

    def recorded(root, location):
        read.append(location)
        return read_bytes(root, location)
    pack(source, recorded, str(out), PackSpec(shard_records=5, quality=80))
    assert (out / 'images-00001.array_record').stat().st_mtime_ns == done
    assert len(read) == 13  # the finished 10 of 23 are not read again
    whole = pack(source, read_bytes, str(tmp_path / 'whole'), PackSpec(shard_records=5, quality=80))
    for location in whole.table['location']:
        assert read_bytes(str(out), location) == read_bytes(whole.root, location)
    assert digest(verify(str(out))) == digest(source)
    assert not list(out.glob('*.tmp')) and not (out / 'plan.json').exists()


def test_damage_is_found_and_repaired(source, tmp_path):
    packed = pack(source, read_bytes, str(tmp_path / 'p'), PackSpec(shard_records=5))
    shard = tmp_path / 'p/images-00002.array_record'
    whole = shard.read_bytes()
    data = bytearray(whole)
    data[data.index(read_bytes(packed.root, 'packed:2:3')) + 40] ^= 1
    shard.write_bytes(data)
    packed_source(tmp_path / 'p')  # the size is the same, so reading finds it
    with pytest.raises(DataError, match=r"'packed:2:\d' in .*images-00002.*damaged"):
        [read_bytes(packed.root, f'packed:2:{row}') for row in range(5)]
    with pytest.raises(DataError, match=r'1 file .*damaged \(images-00002'):
        verify(packed.root)
    shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r'images-00002.* bytes: copy it again'):
        packed_source(tmp_path / 'p')
    shard.unlink()
    manifest = tmp_path / 'p/manifest.parquet'
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(DataError, match=r'manifest.parquet.*missing or damaged'):
        packed_source(tmp_path / 'p')
    pack(source, read_bytes, packed.root, PackSpec(shard_records=5))
    assert digest(verify(packed.root)) == digest(source)
    with pytest.raises(DataError, match='another digest'):
        pack(source.with_column('group', 'x'), read_bytes, packed.root, PackSpec(shard_records=5))


def test_what_fails_is_said_in_one_line(source, tmp_path, monkeypatch):
    def full(root, location):
        raise OSError('disk full\nreally')
    with pytest.raises(DataError, match=r'50%s.*could not be written \(disk full really\): free'):
        pack(source, full, str(tmp_path / '50%s'))

    def broken(image, quality):
        return cv2.imencode('.nothing', image)
    monkeypatch.setattr(packing, 'encode', broken)
    with pytest.raises(DataError, match=r'cannot be encoded .*: leave it out') as error:
        pack(source, read_bytes, str(tmp_path / 'p'), PackSpec(size=8, quality=80))
    assert '\n' not in str(error.value)


def test_foreign_folders_and_bad_settings(source, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.tex').write_text('')
    with pytest.raises(DataError, match=r'not empty.*thesis.tex'):
        pack(source, read_bytes, str(tmp_path / 'mine'))
    with pytest.raises(DataError, match='not a packed folder'):
        packed_source(tmp_path / 'mine')
    for settings, words in ((dict(size=9), 'pack.quality'), (dict(quality=101), '101'),
                            (dict(quality='best'), 'best'), (dict(side='width'), 'width')):
        with pytest.raises(DataError, match=words):
            pack(source, read_bytes, str(tmp_path / 'new'), PackSpec(**settings))
    assert not (tmp_path / 'new').exists()
    with packing._locked(str(tmp_path / 'mine')), pytest.raises(DataError, match='Another process'):
        pack(source, read_bytes, str(tmp_path / 'mine'))
