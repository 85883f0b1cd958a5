import logging
import struct
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.readable import check_readable
from input_pipeline.sources import load_source, read_bytes, read_image, stamp
from input_pipeline.sources.zip_names import found_encoding
from tests.input_pipeline.test_zip import picture

KOREAN = {'고양이': 3, '강아지': 2, '작은 새': 1}


class RawName(zipfile.ZipInfo):
    """A member whose name is written in an encoding that the archive does not declare."""

    raw = b''

    def _encodeFilenameFlags(self):
        return self.raw, 0


def raw_zip(path, names, encoding, unicode_path=False):
    """An archive as other programs write it; picture k has the value k everywhere."""
    with zipfile.ZipFile(path, 'w') as file:
        for k, name in enumerate(names):
            member = RawName(f'{k}.png')
            member.raw = name.encode(encoding)
            if unicode_path:
                data = name.encode()
                crc = zlib.crc32(member.raw) ^ (unicode_path == 'of another name')
                member.extra = struct.pack('<HHBL', 0x7075, len(data) + 5, 1, crc) + data
            file.writestr(member, picture(k))
    return str(path)


def load(path, **data):
    return load_source({'source': 'folder', 'folder': str(path)} | data)


def korean(form='NFC'):
    return [unicodedata.normalize(form, f'{name}/그림 {k}.png') for name, count in KOREAN.items()
            for k in range(count)]


@pytest.mark.parametrize('encoding, form', [('cp949', 'NFC'), ('utf-8', 'NFC'), ('utf-8', 'NFD')])
@pytest.mark.parametrize('given', [False, True])
def test_korean_names(tmp_path, caplog, encoding, form, given):
    names = korean(form)
    path = raw_zip(tmp_path / 'a.zip', names, encoding)
    with caplog.at_level(logging.INFO):
        manifest = load(path, zip_encoding=encoding if given else '')
    assert set(manifest.table['id']) == set(names)  # as the archive has them
    assert {unicodedata.normalize('NFC', name) for name in manifest.classes['class']} == set(KOREAN)
    for name, location in zip(manifest.table['id'], manifest.table['location']):
        assert read_image(path, location)[0, 0, 0] == names.index(name)
        assert stamp(path, location)[0] > 0
    assert given or f'they are read as {encoding} (such as' in caplog.text
    inside = load(f'{path}/{names[0].partition("/")[0]}', labelled=False)
    assert len(inside) == 3 and read_image(path, inside.table['location'][0])[0, 0, 0] < 3


def test_japanese_and_western_names(tmp_path):
    for k, (names, encoding) in enumerate([
            (['ねこ/1.png', 'いぬ/2.png', '表/3.png'], 'cp932'),  # 表 ends with a backslash byte
            (['猫/1.png', '犬/2.png'], 'cp932'), (['カメラ/1.png', 'テレビ/2.png'], 'cp932'),
            (['Müller/é.png', 'Äpfel/ö.png'], 'cp437'), (['señal/1.png', 'niño/2.png'], 'cp437')]):
        path = raw_zip(tmp_path / f'{k}.zip', names, encoding)
        assert set(load(path).table['id']) == set(names), names
    assert set(load(raw_zip(tmp_path / 'c.zip', ['狗/1.png', '猫咪/2.png'], 'gbk'),
                    zip_encoding='gbk').table['id']) == {'狗/1.png', '猫咪/2.png'}


@pytest.mark.parametrize('encoding', ['cp949', 'cp932', 'utf-8', 'cp437'])
def test_trial(encoding):
    text = {'cp949': '대한민국 사람', 'cp932': '日本の人', 'utf-8': 'Ärger 그림',
            'cp437': 'à la façon de Noël'}
    assert found_encoding([text[encoding].encode(encoding)]) == encoding


def test_names_that_are_declared(tmp_path):
    names = korean()
    with zipfile.ZipFile(tmp_path / 'flag.zip', 'w') as file:  # zipfile sets the flag
        for k, name in enumerate(names):
            file.writestr(name, picture(k))
    assert set(load(tmp_path / 'flag.zip', zip_encoding='cp932').table['id']) == set(names)
    path = raw_zip(tmp_path / 'extra.zip', ['猫/1.png', 'ねこ/2.png'], 'gbk', unicode_path=True)
    assert set(load(path).table['id']) == {'猫/1.png', 'ねこ/2.png'}
    stale = raw_zip(tmp_path / 'stale.zip', names, 'cp949', unicode_path='of another name')
    assert set(load(stale, zip_encoding='cp949').table['id']) == set(names)


def test_a_run_of_older_rules_keeps_its_names(tmp_path):
    path = raw_zip(tmp_path / 'a.zip', korean(), 'cp949')
    with zipfile.ZipFile(path) as file:
        before = file.namelist()
    for older in (load(path, rules=1), load(path, zip_encoding='cp437')):
        assert set(older.table['id']) == set(before)
        assert check_readable(older) is not None
    # A manifest that was saved then has the older names as locations.
    assert read_bytes(path, f'zip:{before[2]}') == picture(2)


def test_wrong_settings_and_missing_names(tmp_path):
    path = raw_zip(tmp_path / 'a.zip', korean('NFD'), 'utf-8')
    for encoding, words in {'klingon': 'is not a valid encoding: use cp949',
                            'utf-16': 'is not a valid encoding: use cp949', 'ascii':
                            'which is not ascii: correct data.zip_encoding'}.items():
        with pytest.raises(DataError, match=words):
            load(path, zip_encoding=encoding)
    composed = korean()[0]
    with pytest.raises(DataError, match=r'is missing .*Unicode NFC and NFD'):
        read_bytes(path, f'zip:{composed}')
    with pytest.raises(DataError, match=r'has no folder .*Unicode NFC and NFD'):
        load(f'{path}/고양이')


@pytest.mark.parametrize('settings', [{}, {'zip_encoding': 'cp949'}])
def test_a_table_names_members_of_a_folder_in_an_archive(tmp_path, settings):
    names = [f'모음/train/{name}' for name in korean()]
    raw_zip(tmp_path / 'a.zip', names, 'cp949')
    (tmp_path / 't.csv').write_text('image,label\n' + ''.join(
        f'{name},{name[0]}\n' for name in korean()), 'utf-8')
    data = {'source': 'csv', 'csv': str(tmp_path / 't.csv'),
            'images': str(tmp_path / 'a.zip/모음/train')} | settings
    manifest = check_readable(load_source(data))
    assert manifest.table['id'].tolist() == korean()
    for k, location in enumerate(manifest.table['location']):
        assert np.all(read_image(manifest.root, location) == k)
    with pytest.raises(DataError, match=r"no folder '모음/trian' .*'모음/train'.*data\.images"):
        load_source(data | {'images': str(tmp_path / 'a.zip/모음/trian')})
