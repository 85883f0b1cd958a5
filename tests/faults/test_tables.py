"""Broken and hostile tables, archives and packs: they work, or one sentence and exit code 2."""

import json
import random
import re
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from configs import common
from input_pipeline.manifest import make_manifest
from input_pipeline.manifest_files import save as save_manifest
from input_pipeline.sources import array_records
from tests.faults.broken_data import call, memory, pack, picture, refused, works

pytestmark = pytest.mark.usefixtures('own_cache')

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
    'a weight that is not a number': ('image,label,weight\ncat/0.png,a,nan\n', "weight 'nan'"),
    'an unknown split': ('image,label,split\ncat/0.png,a,dev\n', "split 'dev' is unknown"),
    'an open quote': ('image,label\n"cat/0.png,a\n', 'not a valid CSV near line'),
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
            (23, b'\x7f', 'after the end of the archive|damaged'), (27, b'\x0f', 'zip bomb'),
            (45, b'\x7f', 'not a valid zip|after the end')):  # fields of the table of contents
        damaged = bytearray(whole)
        damaged[at + offset:at + offset + 1] = value
        (tmp_path / 'a.zip').write_bytes(damaged)
        refused(capfd, source, words)
    for damaged in (b'', b'PK', whole[:-10], b'PK\3\4' + bytes(100), whole[at:]):
        (tmp_path / 'a.zip').write_bytes(damaged)
        refused(capfd, source, 'not a valid zip|no header|damaged')


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
            array_records.verify(str(tmp_path / 'packed'))
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
    ('id,action,label\ncat/0.png,keep,cow\n', "'cow', which is not a class"),
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
        before, start = memory('VmRSS'), time.process_time()
        found = action(*args, **kwargs)
        seconds, most = time.process_time() - start, memory('VmHWM') - before
        print(f'{name}: {seconds:.1f} s, {most:.0f} MB at most, '
              f'{memory("VmRSS") - before:.0f} kept')
        assert seconds < 60 and most < 2500
        return found

    manifest = measured('load', load_source, {'source': 'csv', 'csv': str(path)})
    assert len(manifest) == 1_000_000
    split = measured('split', assign_splits, manifest, common.get_config().split, seed=0)
    measured('digest', digest, split)
    measured('save', save_manifest, split, str(tmp_path / 'm.csv'))
    measured('load the saved', load_source, {'source': 'csv', 'csv': str(tmp_path / 'm.csv')})
