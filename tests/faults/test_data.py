"""Broken and hostile pictures: they work, or main.py ends with one sentence and exit code 2."""

import contextlib
import csv
import json
import os
import re
import shutil
import socket
import stat
import struct
import tempfile
import threading
import time
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pytest

import main
from input_pipeline.manifest_files import save as save_manifest
from input_pipeline.splits import save_splits
from tests.faults.broken_data import pack, picture, png, refused, works

pytestmark = pytest.mark.usefixtures('own_cache')

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
    refused(capfd, f'csv={data}/cat/pipe.jpg', 'is not a file')


def test_links_stay_in_the_folder_unless_they_may_leave_it(capfd, data, tmp_path):
    (data / 'cat/again').symlink_to('..')  # a loop
    (data / 'cat/4.png').symlink_to('../dog/0.png')
    works(capfd, f'folder={data}', 9)
    (tmp_path / 'secret.png').write_bytes(picture(99))
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
    code, text = pack(capfd, f'folder={data}')
    assert code == 0 and 'packed   11 images' in text
    assert r"'cafe\u0301', 'caf\xe9'" in text and 'they are one class' in text


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
