"""Files that appear whole or not at all."""

import json
import os
import socket

import pytest

from input_pipeline.atomic_files import atomic_open, atomic_path, write_json, write_text


@pytest.mark.parametrize('durable', [False, True])
@pytest.mark.parametrize('shared', [False, True])
def test_the_file_takes_its_name_at_the_end(tmp_path, shared, durable):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with atomic_open(path, shared=shared, durable=durable) as file:
        file.write('new\r\n')
        file.flush()
        other, = {one.name for one in tmp_path.iterdir()} - {'a.txt'}
        assert path.read_text() == 'old' and other == (
            f'a.txt.{socket.gethostname()}.{os.getpid()}.tmp' if shared else 'a.txt.tmp')
    assert path.read_bytes() == b'new\r\n' and list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    with pytest.raises(ZeroDivisionError), atomic_open(path, 'wb') as file:
        file.write(b'half of the n')
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), atomic_path(path):
        raise KeyboardInterrupt  # before anything was written
    with pytest.raises(OSError), atomic_path(tmp_path / 'none/b'):
        pass
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_a_leftover_is_replaced(tmp_path):
    (tmp_path / 'a.txt.tmp').write_text('left by a process that was killed')
    write_text(tmp_path / 'a.txt', 'ö\n')
    assert [one.name for one in tmp_path.iterdir()] == ['a.txt']
    assert (tmp_path / 'a.txt').read_bytes() == 'ö\n'.encode()


def test_a_path_that_is_not_utf8_is_written_as_an_escape(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'path': 'ö'})
    assert path.read_text('utf-8') == '{\n  "path": "ö"\n}\n'
    write_json(path, {'path': 'ö\udcff'})
    assert path.read_text('utf-8') == '{\n  "path": "\\u00f6\\udcff"\n}\n'
    assert json.loads(path.read_text('utf-8')) == {'path': 'ö\udcff'}
