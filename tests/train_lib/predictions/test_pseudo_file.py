"""Files of pseudo-labels: what is written is read, and what was touched is refused."""

import json
import re

import numpy as np
import pytest

from train_lib.predictions import pseudo_file
from train_lib.runtime.errors import ConfigError

COLUMNS = {'id': ['a,1', 'b', 'b'], 'image': ['x/a.png', 'b.png', 'b.png'],
           'fold': ['0', '0', '1'], 'label': ['cat', 'dog', 'cat'],
           'confidence': ['0.9000', '0.5000', '0.6000']}
ABOUT = dict(classes=[['class', ['cat', 'dog']]], images='/there', members=[], ancestors=[],
             round=1, earlier=[], not_checked=[])
SEEN = {'0': {'r1': 'ann', 'r2': ''}, '1': {'r2': '', 'r 3': 'bob'}}


@pytest.fixture
def written(tmp_path):
    pseudo_file.write(tmp_path / 'deep' / 'p.csv', COLUMNS, ABOUT, SEEN)
    return tmp_path / 'deep' / 'p.csv'


def test_what_is_written_is_read(written):
    found = pseudo_file.read(written)
    assert found.columns == COLUMNS and found.seen == SEEN
    assert found.classes == {'class': ('cat', 'dog')} and found.folds == ['0', '1']
    assert len(found) == 3 and found.about['format'] == pseudo_file.FORMAT
    assert len(found.digest) == 64


def test_a_distribution_keeps_what_counts():
    values = np.array([0.0004, 0.7, 0.25, 0.0496])
    text = pseudo_file.soft_text(values)
    assert text == '1:0.7 2:0.25 3:0.0496'
    np.testing.assert_allclose(pseudo_file.soft_row(text, 4), [0, .70028, .2501, .04962], atol=1e-5)
    for wrong in ('1:x', '', '1:-0.5', '0:0'):
        with pytest.raises(ValueError):
            pseudo_file.soft_row(wrong, 4)


@pytest.mark.parametrize(('file', 'old', 'new'), [
    ('p.csv', 'dog', 'cat'), ('p.rows.csv', 'r1', 'r9'), ('p.json', '/there', '/here')])
def test_an_edited_file_is_refused(written, file, old, new):
    path = written.with_name(file)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=f'{re.escape(file)} has changed since it was written'):
        pseudo_file.read(written)


@pytest.mark.parametrize('file', ['p.json', 'p.rows.csv'])
def test_a_file_without_its_provenance_is_refused(written, file):
    written.with_name(file).unlink()
    with pytest.raises(ConfigError, match=f'lacks {re.escape(file)} beside it'):
        pseudo_file.read(written)


def test_a_missing_file_and_a_newer_one_are_refused(written):
    with pytest.raises(ConfigError, match='there is no such file'):
        pseudo_file.read(written.with_name('q.csv'))
    path = written.with_suffix('.json')
    content = json.loads(path.read_text()) | {'format': 99}
    content['sha256'] = pseudo_file.json_digest(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match='it has format 99'):
        pseudo_file.read(written)
