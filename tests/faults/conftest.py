"""What several tests of broken data share."""

import pytest

from tests.faults.broken_data import picture


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def data(tmp_path):
    """cat/0.png ... dog/3.png"""
    for number, label in enumerate(('cat', 'dog')):
        (tmp_path / 'data' / label).mkdir(parents=True)
        for k in range(4):
            (tmp_path / 'data' / label / f'{k}.png').write_bytes(picture(4 * number + k))
    return tmp_path / 'data'
