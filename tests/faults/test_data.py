"""Broken and hostile data through the command line: it works, or one sentence and exit code 2."""

import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import socket
import stat
import struct
import tempfile
import threading
import time
import unicodedata
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from input_pipeline import packing
from input_pipeline.manifest import make_manifest
from input_pipeline.manifest import save as save_manifest
from input_pipeline.splits import save_splits

SECONDS = 20  # by which any answer is there
MEGABYTES = 400  # that an answer may take


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def picture(seed=0, kind='PNG', size=8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    made = b'\x89PNG\r\n\x1a\n'
    for name, content in ((b'IHDR', header), *chunks, (b'IDAT', data), (b'IEND', b'')):
        made += struct.pack('>I', len(content)) + name + content
        made += struct.pack('>I', zlib.crc32(name + content))
    return made


@pytest.fixture
def data(tmp_path):
    """cat/0.png ... dog/3.png"""
    for number, label in enumerate(('cat', 'dog')):
        (tmp_path / 'data' / label).mkdir(parents=True)
        for k in range(4):
            (tmp_path / 'data' / label / f'{k}.png').write_bytes(picture(4 * number + k))
    return tmp_path / 'data'


def call(capfd, *argv) -> tuple[int, str]:
    """(exit code, stderr) of main.py; the answer is there in time and without much memory."""
    Path('/proc/self/clear_refs').write_text('5')  # the peak of the memory starts anew
    before, start = _memory('VmRSS'), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        code = main.main([str(word) for word in argv])
    assert time.perf_counter() - start < SECONDS
    assert _memory('VmHWM') - before < MEGABYTES
    return code, capfd.readouterr().err


def _memory(what: str) -> float:
    return int(re.search(rf'{what}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def pack(capfd, source: str, *overrides) -> tuple[int, str]:
    """Every picture read, and its bytes written, by the verb pack."""
    folder = tempfile.mkdtemp(dir=os.environ['XDG_CACHE_HOME'].removesuffix('cache'))
    return call(capfd, 'pack', f'--config=configs/sketch_cnn.py:{source}',
                f'--config.pack.folder={folder}/packed', *overrides)


def works(capfd, source, images, *overrides):
    code, text = pack(capfd, source, *overrides)
    assert code == 0 and f'packed   {images} images' in text, text


def refused(capfd, source, words, *overrides):
    code, text = pack(capfd, source, *overrides)
    assert code == 2 and 'Traceback' not in text, text
    last = text.strip().splitlines()[-1]
    assert last.startswith('main.py: ') and re.search(words, last), text
    assert len([line for line in text.splitlines() if 'main.py: ' in line]) == 1


# Pictures

BOMB = zlib.compress(bytes(2**29), 9)  # half a gigabyte in half a megabyte
UNREADABLE = {
    'cut': (picture()[:-20], 'is truncated'),
    'empty': (b'', 'is empty'),
    'zeros': (bytes(500), 'nothing but zeros'),
    'html': (b'<!DOCTYPE html><title>404</title>', 'is a web page'),
    'header of a PNG': (png(50_000, 50_000, zlib.compress(b'')), '50000 x 50000 pixels'),
    'header of a GIF': (b'GIF89a\xff\xff\xff\xff\xf0\0\0' + bytes(800) + b',\0\0\0\0\xff\xff'
                        b'\xff\xff\0\x08', 'pixels'),
    'header of a BMP': (b'BM' + struct.pack('<IHHI', 60, 0, 0, 54) + struct.pack(
        '<IiiHHIIiiII', 40, 50_000, 50_000, 1, 24, 0, 0, 1, 1, 0, 0), 'pixels'),
    'header of a WebP': (b'RIFF' + struct.pack('<I', 30) + b'WEBPVP8X' + struct.pack('<I', 10)
                         + bytes(4) + (49_999).to_bytes(3, 'little') * 2 + bytes(9), 'pixels'),
    'header of a JPEG': (b'\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03' + bytes(9)
                         + b'\xff\xda\0\x08' + bytes(6) + b'\xff\xd9', '65535 x 65535 pixels'),
    'text of a PNG': (png(8, 8, zlib.compress(bytes(8 * 25)), (b'zTXt', b'a\0\0' + BOMB)),
                      'too large'),
    'profile of a PNG': (png(8, 8, zlib.compress(bytes(8 * 25)), (b'iCCP', b'a\0\0' + BOMB)),
                         'too large'),
    'Git LFS': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n', 'Git LFS'),
}


@pytest.mark.parametrize('name', UNREADABLE)
def test_an_unreadable_picture_is_named_or_left_out(capfd, data, name):
    content, words = UNREADABLE[name]
    (data / 'cat/0.png').write_bytes(content)
    (data / 'dog/x.jpg').write_bytes(content)
    refused(capfd, f'folder={data}', rf"2 of 9 images .*'cat/0.png' .*{words}.*'dog/x.jpg'")
    works(capfd, f'folder={data}', 7, '--config.data.unreadable=drop')


def test_twentieth_of_the_files_broken(capfd, tmp_path):
    broken = [content for content, _ in UNREADABLE.values()]
    for k in range(200):
        path = tmp_path / f'data/{k % 4}/{k}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(broken[k // 20] if k % 20 == 0 else picture(k))
    refused(capfd, f'folder={tmp_path}/data', '10 of 200 images')
    works(capfd, f'folder={tmp_path}/data', 190, '--config.data.unreadable=drop')


def test_harmless_pictures_work(capfd, data):
    (data / 'cat/png.jpg').write_bytes(picture())
    (data / 'cat/jpeg.png').write_bytes(picture(kind='JPEG'))
    (data / 'cat/SHOUTED.JPEG').write_bytes(picture(kind='JPEG'))
    (data / 'cat/more.png').write_bytes(png(8, 8, BOMB))  # than the header says
    works(capfd, f'folder={data}', 12)


def test_what_is_no_file_never_hangs(capfd, data, tmp_path, monkeypatch):
    os.mkfifo(data / 'cat/pipe.jpg')
    (data / 'cat/loop.jpg').symlink_to('loop.jpg')
    os.truncate(os.open(data / 'dog/huge.jpg', os.O_CREAT | os.O_WRONLY), 2**40)  # takes no disk
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(data)  # a socket's path is short
        server.bind('dog/socket.png')
        refused(capfd, f'folder={data}', r"4 of 12 .*loop.jpg' cannot be opened .*pipe.jpg' is a "
                r"folder, a pipe or a device.*huge.jpg' has 1,099,511,627,776 bytes.*socket.png'")
        works(capfd, f'folder={data}', 8, '--config.data.unreadable=drop')
    (data / 'dog/socket.png').unlink()
    (data / 'dog/huge.jpg').unlink()
    (tmp_path / 't.csv').write_text('image,label\ncat/0.png,a\ncat,a\n/dev/zero,a\ncat/pipe.jpg,b\n'
                                    'dog/0.png,b\n')
    refused(capfd, f'csv={tmp_path}/t.csv,images={data}', "line 4: the image '/dev/zero' lies out")
    refused(capfd, f'csv={tmp_path}/t.csv,images={data}', "3 of 5 .*'cat' is a folder.*/dev/zero' "
            "is a folder, a pipe or a device.*pipe.jpg", '--config.data.allow_outside=True')
    refused(capfd, f'csv={data}/cat/pipe.jpg', 'is no file')


def test_links_stay_in_the_folder_unless_they_may_leave_it(capfd, data, tmp_path):
    (data / 'cat/again').symlink_to('..')  # a loop
    (data / 'cat/4.png').symlink_to('../dog/0.png')
    works(capfd, f'folder={data}', 9)
    (tmp_path / 'secret.png').write_bytes(picture())
    for link in ('cat/5.png', 'cat/readme.txt'):
        (data / link).symlink_to(tmp_path / 'secret.png')
    refused(capfd, f'folder={data}', r"link .*cat/5.png' leads to .*secret.png'.*allow_outside")
    works(capfd, f'folder={data}', 10, '--config.data.allow_outside=True')
    (data / 'out').symlink_to(tmp_path)
    for name in ('cat/5.png', 'out/secret.png', '../secret.png', f'{tmp_path}/secret.png',
                 'cat/../../secret.png'):
        (tmp_path / 't.csv').write_text(f'image,label\ncat/0.png,a\n{name},b\n')
        source = f'csv={tmp_path}/t.csv,images={data}'
        refused(capfd, source, rf"line 3: the image '{re.escape(name)}' lies outside")
        works(capfd, source, 2, '--config.data.allow_outside=True')
    (tmp_path / 't.csv').write_text(f'image,label\ncat/4.png,a\n{data}/dog/../dog/1.png,b\n')
    works(capfd, source, 2)
    (tmp_path / 'linked').symlink_to(data)  # the folder itself may be a link
    works(capfd, f'csv={tmp_path}/t.csv,images={tmp_path}/linked', 2,
          '--config.data.allow_outside=True')


NAMES = ['with space.png', "it's \"quoted\".png", 'comma, semicolon;.png', 'new\nline.png',
         'return\r.png', 'tab\t.png', 'Ärger.png', unicodedata.normalize('NFD', 'Ärger.png'),
         '그림.png', '🖼.png', '<script>alert(1)<:script>.png', '%s {0} $(x) `x`.png',
         '-rf.png', 'x..png..png', 'zip:x.png', "=cmd|' C'!A0.png", 'x' * 251 + '.png']


def test_names_of_all_kinds(capfd, data, tmp_path):
    for k, name in enumerate(NAMES):
        (data / 'cat' / name).write_bytes(picture(k))
    deep = data / 'dog' / '/'.join(['d' * 200] * 15)  # 3,000 signs, of at most 4,096
    deep.mkdir(parents=True)
    (deep / 'x.png').write_bytes(picture())
    count = 8 + len(NAMES) + 1
    works(capfd, f'folder={data}', count)
    # Through a decisions file, a split file and a saved manifest and back.
    from input_pipeline.sources import load_source
    manifest = load_source({'source': 'folder', 'folder': str(data)})
    save_manifest(manifest, str(tmp_path / 'm.csv'))
    works(capfd, f'csv={tmp_path}/m.csv', count)
    manifest = manifest.with_column('split', ['train', 'val', 'test'] * (count // 3)
                                    + ['train'] * (count % 3))
    save_splits(manifest, str(tmp_path / 'split.csv'))
    works(capfd, f'folder={data}', count, f'--config.split.file={tmp_path}/split.csv',
          '--config.split.kind=given')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
        for name in manifest.table['id']:
            file.write(data / name, name)
    works(capfd, f'folder={tmp_path}/a.zip', count)
    for name in NAMES[2:5]:
        (data / 'cat' / name).write_bytes(b'')
    refused(capfd, f'folder={data}', re.escape(repr(f'cat/{NAMES[3]}')) + ' is empty')


def test_names_that_are_no_utf8(capfd, data, tmp_path):
    bad = os.fsencode(data) + b'/cat/\xff.png'
    Path(os.fsdecode(bad)).write_bytes(picture())
    refused(capfd, f'folder={data}', r"'cat/\\udcff.png' is not UTF-8")
    os.remove(bad)
    moved = os.fsdecode(os.fsencode(tmp_path) + b'/data\xff')
    data.rename(moved)
    works(capfd, f'folder={moved}', 8)


def test_accents_composed_in_two_ways(capfd, data, tmp_path):
    nfc, nfd = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
    (data / f'cat/{nfd}.png').write_bytes(picture())
    (tmp_path / 't.csv').write_text(f'image,label\ncat/{nfc}.png,a\ndog/0.png,b\n')
    refused(capfd, f'csv={tmp_path}/t.csv,images={data}', 'is missing .*NFC and NFD')
    for name in (nfc, nfd):
        (data / name).mkdir()
        (data / name / 'x.png').write_bytes(picture())
    refused(capfd, f'folder={data}', "'cafe.u0301' and 'caf.xe9' .* look alike")


def test_hidden_files_and_folders_that_look_like_files(capfd, data):
    for name in ('.DS_Store', 'cat/.DS_Store', 'cat/._0.png', 'cat/Thumbs.db', '__MACOSX/cat/0.png',
                 '.git/x.png', 'cat/.ipynb_checkpoints/0.png', 'cat/notes.txt'):
        (data / name).parent.mkdir(exist_ok=True, parents=True)
        (data / name).write_bytes(b'no picture')
    works(capfd, f'folder={data}', 8)
    (data / 'cat/x.jpg').mkdir()
    refused(capfd, f'folder={data}', r"cat/x.jpg' holds no image")
    (data / 'cat/x.jpg/0.png').write_bytes(picture())
    works(capfd, f'folder={data}', 9)


@contextlib.contextmanager
def as_nobody(folder: Path):
    """Root may read everything; somebody else owns nothing here."""
    if os.geteuid():
        yield folder
        return
    with tempfile.TemporaryDirectory(dir='/tmp') as there:
        os.chmod(there, 0o777)
        shutil.copytree(folder, f'{there}/data')
        os.seteuid(65534)
        try:
            yield Path(there) / 'data'
        finally:
            os.seteuid(0)


def test_permissions(data):
    from input_pipeline.errors import DataError
    from input_pipeline.readable import check_readable
    from input_pipeline.sources import load_source
    (data / 'cat/0.png').chmod(0)
    with as_nobody(data) as folder:
        manifest = load_source({'source': 'folder', 'folder': str(folder)})
        with pytest.raises(DataError, match=r"cat/0.png' cannot be opened .Permission denied"):
            check_readable(manifest)
        assert len(check_readable(manifest, policy='drop')) == 7
    (data / 'dog').chmod(stat.S_IRUSR)
    (data / 'cat').chmod(0)
    with as_nobody(data) as folder, pytest.raises(DataError, match=r"cat' cannot be read .Perm"):
        load_source({'source': 'folder', 'folder': str(folder)})
    for name in ('cat', 'dog'):
        (data / name).chmod(0o755)


# Tables

TABLES = {  # text, images that are packed or words
    'BOM': ('\ufeffimage,label\ncat/0.png,a\ndog/0.png,b\n', 2),
    'CRLF': ('image,label\r\ncat/0.png,a\r\ndog/0.png,b\r\n', 2),
    'CR': ('image,label\rcat/0.png,a\rdog/0.png,b\r', 2),
    'semicolons': ('image;label\ncat/0.png;a,b\ndog/0.png;c\n', 2),
    'tabs': ('image\tlabel\ncat/0.png\ta\ndog/0.png\tb', 2),
    'quotes': ('"image","label"\n"cat/0.png","a ""b"""\ndog/0.png,c\n', 2),
    'quoted names': ('"image";"a,b,c";"label"\ncat/0.png;1;a\ndog/0.png;2;b\n', 2),
    'a missing label': ('image,label\ncat/0.png,a\ncat/1.png,\ndog/0.png,b\n', 3),
    'empty lines': ('\n\nimage,label\n\ncat/0.png,a\n\n\ndog/0.png,b\n\n', 2),
    'UTF-16': ('image,label\ncat/0.png,a\n'.encode('utf-16'), 'not UTF-8'),
    'UTF-16 without a mark': ('image,label\ncat/0.png,a\n'.encode('utf-16-le'), 'UTF-16'),
    'Latin 1': ('image,label\ncat/0.png,é\n'.encode('latin-1'), 'not UTF-8'),
    'a doubled id': ('image,label\ncat/0.png,a\ncat/0.png,b\n', "id 'cat/0.png' in line 2 and in"),
    'a doubled column': ('image,label,label\ncat/0.png,a,b\n', "column 'label' twice"),
    'empty': ('', 'is empty'),
    'blank': ('\n\n', 'is empty'),
    'header only': ('image,label\n', 'no lines below its header'),
    'a missing path': ('image,label\ncat/0.png,a\n,b\n', 'line 3: the image path .* is empty'),
    'a missing field': ('image,label\ncat/0.png,a\ndog/0.png\n', '1 fields in line 3'),
    'a field too many': ('image,label\ncat/0.png,a,b\n', '3 fields in line 2'),
    'no labels': ('image,label\ncat/0.png,\n', 'no label at all'),
    'NaN among numbers': ('image,label\ncat/0.png,1\ndog/0.png,nan\n', "label 'nan' among numbers"),
    'a weight that is no number': ('image,label,weight\ncat/0.png,a,nan\n', "weight 'nan'"),
    'an unknown split': ('image,label,split\ncat/0.png,a,dev\n', "split 'dev' is unknown"),
    'an open quote': ('image,label\n"cat/0.png,a\n', 'no sound CSV near line'),
    'NUL': ('image,label\ncat/0.png\0,a\n', 'line 2: the image path'),
    'a long field': ('image,label\ncat/0.png,' + 'x' * 200_000, 'field larger'),
    'many columns': ((','.join(f'c{k}' for k in range(100_000)) + '\n') * 2,
                     'no column called image .* and 99980 more'),
    'no column': ('picture,kind\ncat/0.png,a\n', 'no column called image .*picture, kind'),
    'binary': (picture(size=40), 'not UTF-8'),
    'HTML': ('<!DOCTYPE html>\n<html></html>\n', 'no column called|fields in line'),
}


@pytest.mark.parametrize('name', TABLES)
def test_tables(capfd, data, tmp_path, name):
    text, outcome = TABLES[name]
    path = tmp_path / 't.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(outcome, int):
        works(capfd, f'csv={path},images={data}', outcome)
    else:
        refused(capfd, f'csv={path},images={data}', f't.csv.*{outcome}')


def test_broken_parquet(capfd, tmp_path, data):
    manifest = make_manifest({'id': ['a', 'b'], 'location': ['cat/0.png', 'dog/0.png'],
                              'label/class': [0, 1]}, {'class': ('x', 'y')}, str(data))
    path = tmp_path / 'm.parquet'
    save_manifest(manifest, str(path))
    works(capfd, f'csv={path}', 2)
    whole = path.read_bytes()
    for damaged in (b'', b'PAR1', whole[:-1], whole[:len(whole) // 2], whole[100:],
                    whole[:-9] + b'\xff\xff\xff\x7fPAR1', b'image,label\n'):
        path.write_bytes(damaged)
        refused(capfd, f'csv={path}', 'm.parquet.* cannot be read')
    manifest.table['label/class'] = np.array([0.0, np.nan])
    manifest.table.assign(location=['cat/0.png', None]).to_parquet(path)
    refused(capfd, f'csv={path},images={data}', 'no location in row 2')
    manifest.table.to_parquet(path)  # a missing label
    works(capfd, f'csv={path},images={data}', 2)


def test_zip_archives(capfd, tmp_path):
    def write(name, **members):
        with zipfile.ZipFile(tmp_path / name, 'w', zipfile.ZIP_DEFLATED) as file, \
                warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for member, content in [('a/0.png', picture(0)), ('b/1.png', picture(1)),
                                    *members.get('more', ())]:
                file.writestr(member, content)
        return bytearray((tmp_path / name).read_bytes())

    source = f'folder={tmp_path}/a.zip'
    whole = write('a.zip')
    works(capfd, source, 2)
    for member in ('../x.png', 'a/../../x.png', '/etc/x.png', 'C:/x.png', '..\\x.png'):
        write('a.zip', more=[(member, picture())])
        refused(capfd, source, 'leads out of it')
    write('a.zip', more=[('a/0.png', picture(2))])
    refused(capfd, source, "'a/0.png' twice")
    write('a.zip', more=[('a/2.bmp', bytes(2**28))])
    refused(capfd, source, r'2.bmp.*zip bomb')
    works(capfd, source, 2, '--config.data.unreadable=drop')
    write('a.zip', more=[('a/2.bmp', bytes(2**25))])  # harmless, and no picture
    refused(capfd, source, r"2.bmp' holds nothing but zeros")
    at = whole.index(b'PK\1\2')
    for offset, value, words in (
            (8, b'\1', 'is encrypted'), (10, b'\x0c', 'method 12'), (16, b'!', 'checksum differs'),
            (23, b'\x7f', 'behind the archive|damaged'), (27, b'\x0f', 'zip bomb'),
            (45, b'\x7f', 'no sound zip|behind')):  # fields of the table of contents
        damaged = bytearray(whole)
        damaged[at + offset:at + offset + 1] = value
        (tmp_path / 'a.zip').write_bytes(damaged)
        refused(capfd, source, words)
    for damaged in (b'', b'PK', whole[:-10], b'PK\3\4' + bytes(100), whole[at:]):
        (tmp_path / 'a.zip').write_bytes(damaged)
        refused(capfd, source, 'no sound zip|no header|damaged')


def test_packed_folders(capfd, data, tmp_path):
    source = f'packed={tmp_path}/packed'
    call(capfd, 'pack', f'--config=configs/sketch_cnn.py:folder={data}',
         f'--config.pack.folder={tmp_path}/packed', '--config.pack.shard_records=4')
    shards = sorted((tmp_path / 'packed').glob('*.array_record'))
    assert len(shards) == 2
    works(capfd, source, 8)
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-100])
    refused(capfd, source, r'images-00001.* has .* bytes: copy it again')
    shards[1].unlink()
    refused(capfd, source, r'images-00001.* has 0 of')
    draw = random.Random(0)
    for _ in range(20):  # bits flipped: named, and never another picture
        damaged = bytearray(whole)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        shards[1].write_bytes(damaged)
        code, text = pack(capfd, source)
        assert (code == 2 and 'damaged' in text) or code == 0, text
        with pytest.raises(ValueError, match='images-00001'):
            packing.verify(str(tmp_path / 'packed'))
    shards[1].write_bytes(whole)
    index = tmp_path / 'packed/index.json'
    sound = index.read_text()
    for text in ('', '{}', '[]', '[' * 9999, sound.replace('"version": 1', '"version": 2'),
                 json.dumps(json.loads(sound) | {'shards': 3})):
        index.write_text(text)
        refused(capfd, source, 'packed')
    index.write_text(sound)
    (tmp_path / 'packed/manifest.parquet').unlink()
    refused(capfd, source, 'manifest.parquet.* is missing or damaged')


@pytest.mark.parametrize('text, words', [
    ('id,split\ncat/0.png,train\ncat/9.png,val\n', "cat/9.png"),
    ('id,split\ncat/0.png,train\n', 'are not in the file'),
    ('id,split\ncat/0.png,dev\n', "split 'dev' is unknown"),
    ('id,side\ncat/0.png,train\n', "no column 'split'"),
    ('', 'is empty'), ('\xff', 'not UTF-8')])
def test_split_files(capfd, data, tmp_path, text, words):
    (tmp_path / 's.csv').write_bytes(text.encode('latin-1'))
    code, err = call(capfd, 'train', f'--config=configs/sketch_cnn.py:folder={data}',
                     '--config.split.kind=given', f'--config.split.file={tmp_path}/s.csv',
                     f'--workdir={tmp_path}/run')
    assert code == 2 and re.search(words, err.strip().splitlines()[-1]), err


@pytest.mark.parametrize('text, words', [
    ('id,action\ncat/9.png,drop\n', "id 'cat/9.png', which the data do not have"),
    ('id,action\ncat/0.png,delete\n', "action 'delete'"),
    ('id,action,label\ncat/0.png,keep,cow\n', "'cow', which is no class"),
    ('id,action,weight\ncat/0.png,keep,nan\n', "weight 'nan'"),
    ('id,action\n' * 2, "action 'action'"),
    ('', 'is empty'), ('\xff', 'not UTF-8')])
def test_decisions(capfd, data, tmp_path, text, words):
    (tmp_path / 'd.csv').write_bytes(text.encode('latin-1'))
    refused(capfd, f'folder={data}', words, f'--config.data.decisions={tmp_path}/d.csv')


def test_missing_files(capfd, data, tmp_path):
    refused(capfd, f'folder={tmp_path}/dato', 'does not exist .*did you mean .*data')
    refused(capfd, f'folder={data}', 'cannot be opened',
            f'--config.data.decisions={tmp_path}/d.csv')
    refused(capfd, f'csv={tmp_path}/t.csv', 'does not exist')
    refused(capfd, f'packed={tmp_path}/p', 'does not exist')


@pytest.mark.faults
def test_files_that_go_or_change_while_a_run_reads_them(capfd, tmp_path):
    for k in range(40):
        path = tmp_path / f'data/{k % 2}/{k}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k))
    metrics = tmp_path / 'run/metrics.jsonl'

    def harm():
        while not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.002)
        with open(tmp_path / 'run/split.csv', newline='') as file:
            ids = [row['id'] for row in csv.DictReader(file) if row['split'] == 'train']
        for name, harmed in zip(ids, (
                Path.unlink, lambda path: path.write_bytes(b'<html>'),
                lambda path: (path.unlink(), os.mkfifo(path)),
                lambda path: (path.unlink(), path.mkdir()),
                lambda path: os.truncate(path, 2**40),
                lambda path: (path.unlink(), path.symlink_to('/dev/zero')))):
            harmed(tmp_path / 'data' / name)

    thread = threading.Thread(target=harm)
    thread.start()
    code = main.main([
        'train', f'--config=configs/sketch_cnn.py:folder={tmp_path}/data', '--config.image.size=16',
        '--config.image.cache_mb=0', '--config.batch_size=8', '--config.duration.steps=300',
        '--config.model=dict(name="small_cnn", width=4, stages=1)', '--config.curriculum=()',
        '--config.log=dict(every=dict(steps=1), tensorboard=False)',
        '--config.eval.every.steps=300',
        '--config.checkpoint.every.steps=300', '--config.report.heat_maps=False',
        '--config.data.unreadable=drop', f'--workdir={tmp_path}/run'])
    thread.join()
    assert code == 0
    assert json.loads((tmp_path / 'run/result.json').read_text())['pictures_replaced'] == 6
    assert capfd.readouterr().err.count('is shown in its place') == 6


# Many rows

def test_an_unknown_id_among_many_is_answered_at_once(tmp_path):
    """Looking for the nearest of a million names would take a minute."""
    from input_pipeline.curation.decisions import apply_decisions
    from input_pipeline.errors import DataError
    ids = [f'class{k % 1000}/picture-{k:07}.png' for k in range(200_000)]
    manifest = make_manifest({'id': ids, 'location': ids, 'label/class': np.zeros(len(ids), int)},
                             {'class': ('x',)})
    (tmp_path / 'd.csv').write_text('id,action\nclass1/picture-x.png,drop\n')
    start = time.process_time()
    with pytest.raises(DataError, match='picture-x'):
        apply_decisions(manifest, [str(tmp_path / 'd.csv')])
    assert time.process_time() - start < 5


@pytest.mark.faults
def test_a_table_of_a_million_rows(capfd, tmp_path):
    path = tmp_path / 't.csv'
    with open(path, 'w') as file:
        file.write('image,label,group\n')
        file.writelines(f'{k % 1000:04}/picture-{k:07}.jpg,class {k % 1000:04},p{k % 50_000}\n'
                        for k in range(1_000_000))
    from input_pipeline.manifest import digest
    from input_pipeline.sources import load_source
    from input_pipeline.splits import assign_splits

    def measured(name, action, *args, **kwargs):
        Path('/proc/self/clear_refs').write_text('5')
        before, start = _memory('VmRSS'), time.process_time()
        found = action(*args, **kwargs)
        seconds, most = time.process_time() - start, _memory('VmHWM') - before
        print(f'{name}: {seconds:.1f} s, {most:.0f} MB at most, '
              f'{_memory("VmRSS") - before:.0f} kept')
        assert seconds < 60 and most < 2500
        return found

    manifest = measured('load', load_source, {'source': 'csv', 'csv': str(path)})
    assert len(manifest) == 1_000_000
    split = measured('split', assign_splits, manifest, {}, seed=0)
    measured('digest', digest, split)
    measured('save', save_manifest, split, str(tmp_path / 'm.csv'))
    measured('load the saved', load_source, {'source': 'csv', 'csv': str(tmp_path / 'm.csv')})
