import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from input_pipeline import readable
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.readable import check_readable
from input_pipeline.sources import folder


@pytest.fixture
def data(tmp_path):
    root = tmp_path / 'data'
    for label in ('cat', 'dog'):
        (root / label).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f'{number}.png')
    return root


def spoil(path):
    path.write_bytes(path.read_bytes()[:40])


def test_readable_data_pass_and_drawn_data_are_skipped(data):
    manifest = folder.load(str(data))
    assert check_readable(manifest) is manifest
    drawn = make_manifest({'id': ['a'], 'location': ['doodles:0'], 'label/class': [0]},
                          {'class': ('x',)})
    assert check_readable(drawn) is drawn


def test_error_names_files_and_the_remedy(data):
    manifest = folder.load(str(data))
    spoil(data / 'cat' / '3.png')
    (data / 'dog' / '1.png').write_bytes(b'')
    (data / 'dog' / '2.png').unlink()
    with pytest.raises(DataError) as error:
        check_readable(manifest)
    text = str(error.value)
    assert text.startswith('3 of 10 images')
    assert "'cat/3.png' is truncated" in text and "'dog/1.png' is empty" in text
    assert "'dog/2.png' is missing" in text and '--config.data.unreadable=drop' in text


def test_error_lists_twenty(data):
    for number in range(30):
        (data / 'cat' / f'bad{number:02d}.jpg').write_bytes(b'')
    with pytest.raises(DataError, match=r'30 of 40.*and 10 more') as error:
        check_readable(folder.load(str(data)))
    assert str(error.value).count('is empty') == 20


def test_drop(data, caplog):
    manifest = folder.load(str(data))
    spoil(data / 'cat' / '3.png')
    with caplog.at_level(logging.WARNING):
        kept = check_readable(manifest, policy='drop')
    assert len(kept) == 9 and 'cat/3.png' not in set(kept.table['id'])
    assert kept.classes == manifest.classes and 'cat/3.png' in caplog.text
    for number in range(5):
        (data / 'cat' / f'{number}.png').write_bytes(b'')
    with pytest.raises(DataError, match=r"Class 'cat' .*no readable image"):
        check_readable(manifest, policy='drop')
    for number in range(5):
        (data / 'dog' / f'{number}.png').unlink()
    with pytest.raises(DataError, match='no image is left'):
        check_readable(manifest, policy='drop')
    with pytest.raises(DataError, match='error, drop'):
        check_readable(manifest, policy='ignore')


def test_answers_are_kept_until_a_file_changes(data, tmp_path, monkeypatch):
    manifest = folder.load(str(data))
    cache = tmp_path / 'cache'
    asked, problem = [], readable.problem
    monkeypatch.setattr(readable, 'problem', lambda data: asked.append(0) or problem(data))
    done = []
    check_readable(manifest, cache_dir=str(cache), progress=lambda *step: done.append(step))
    assert len(asked) == 10 and done[-1] == (10, 10)
    check_readable(manifest, cache_dir=str(cache))
    assert len(asked) == 10
    # The same size, but another modification time.
    os.utime(data / 'dog' / '0.png', ns=(1, 1))
    check_readable(manifest, cache_dir=str(cache))
    assert len(asked) == 11
    spoil(data / 'cat' / '0.png')
    for _ in range(2):
        with pytest.raises(DataError, match=r'cat/0.png'):
            check_readable(manifest, cache_dir=str(cache))
    assert len(asked) == 12
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize('text', [
    '', 'no json', '[]', '{"version": 1}', '{"version": 0, "files": {}}',
    '{"version": 1, "files": {"cat/0.png": 3}}',
    '{"version": 1, "files": {"cat/0.png": [1, "x"]}}'])
def test_damaged_cache_is_ignored(data, tmp_path, text):
    manifest = folder.load(str(data))
    check_readable(manifest, cache_dir=str(tmp_path / 'cache'))
    file, = (tmp_path / 'cache').iterdir()
    file.write_text(text)
    spoil(data / 'cat' / '0.png')
    with pytest.raises(DataError, match='1 of 10'):
        check_readable(manifest, cache_dir=str(tmp_path / 'cache'))
    assert len(json.loads(file.read_text())['files']) == 10


def test_unwritable_cache_does_not_stop(data, tmp_path, caplog):
    (tmp_path / 'file').write_text('')
    manifest = folder.load(str(data))
    assert check_readable(manifest, cache_dir=str(tmp_path / 'file')) is manifest
    assert 'could not be kept' in caplog.text
