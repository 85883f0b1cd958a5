"""A cluster for the tests here, started once."""

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope='session')
def cluster(tmp_path_factory):
    """A Slurm of the nodes n1 and n2. At the end no process of it is left."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    found = Cluster(tmp_path_factory.mktemp('slurm'))
    try:
        found.start()
        yield found
    finally:
        left = found.stop()
    assert left == []
