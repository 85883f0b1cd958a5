"""JSON files that may be damaged."""

import pytest

from input_pipeline.atomic_files import write_json
from train_lib.run_dir.json_files import json_digest, read_json


def test_what_was_written_is_read(tmp_path):
    write_json(tmp_path / 'a.json', {'a': [1, None], 'ä': 'ö'})
    assert read_json(tmp_path / 'a.json') == {'a': [1, None], 'ä': 'ö'}


@pytest.mark.parametrize('text', ['', '{', '[1]', 'null', '{"a":' * 100_000, '\xff'])
def test_anything_but_an_object_is_refused(tmp_path, text):
    (tmp_path / 'a.json').write_text(text, encoding='latin-1')
    with pytest.raises(ValueError):
        read_json(tmp_path / 'a.json')


def test_the_digest_leaves_itself_out_and_ignores_the_order():
    content = {'b': 1, 'a': {'c': 2.5}}
    assert json_digest(content) == json_digest({'a': {'c': 2.5}, 'sha256': 'x', 'b': 1})
    assert json_digest(content) != json_digest({'a': {'c': 2.5}, 'b': 2})
