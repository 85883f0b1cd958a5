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

from train_lib.runtime.cpu_program import set_up_cpu

set_up_cpu()  # as main.py does

OURS = r'(main|configs|models|input_pipeline|train_lib|tests)(\.|$)'


def pytest_addoption(parser):
    """--update-docs: tests that measure a table of the docs write it anew."""
    parser.addoption('--update-docs', action='store_true', default=False)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the options
def pytest_cmdline_main(config):
    """The whole suite runs in two processes, each of which takes whole files, so that fixtures of a
    file are made once; `-n 0` runs it in this one, as single files do."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    a_worker = hasattr(config, 'workerinput')
    unsaid = getattr(config.option, 'numprocesses', 0) is None  # 0 without pytest-xdist
    if whole and unsaid and not a_worker and not config.option.usepdb:
        config.option.numprocesses, config.option.dist = 2, 'loadfile'


@pytest.fixture(autouse=True)
def our_warnings_are_errors():
    """A warning that is raised from one of our own modules fails the test."""
    warnings.filterwarnings('error', module=OURS)
