"""For every test: the repository on the path, and JAX on the CPU before it is imported.

The tests compare numbers with each other and with references, so they run on one platform;
`JAX_PLATFORMS=cuda pytest` runs them on a GPU.
"""

import os
import sys
import warnings
from pathlib import Path

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(Path(__file__).parent))

OURS = r'(main|configs|models|input_pipeline|train_lib|tests)(\.|$)'


def pytest_addoption(parser):
    """--update-docs: tests that measure a table of the docs write it anew."""
    parser.addoption('--update-docs', action='store_true', default=False)


@pytest.fixture(autouse=True)
def our_warnings_are_errors():
    """A warning that is raised from one of our own modules fails the test."""
    warnings.filterwarnings('error', module=OURS)
