"""For every test: the repository on the path, and JAX on the CPU before it is imported.

The tests compare numbers with each other and with references, so they run on one platform;
`JAX_PLATFORMS=cuda pytest` runs them on a GPU.

Programs that were compiled for the tests are kept for the next time, as those of runs are: a
program is found by what it computes, for which machine and by which version, so what was changed
is compiled anew. JAX_COMPILATION_CACHE_DIR says where (pytest sets it unless it is set).
"""

import contextlib
import os
import sys
import warnings
from pathlib import Path

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(Path(__file__).parent))
from train_lib.runtime.cache_folder import cache_folder

os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{cache_folder()}/tests')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

from train_lib.runtime.cpu_program import convolve_on_all_cores

convolve_on_all_cores()  # as main.py does

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


def pytest_sessionstart(session):
    """Drops programs that a killed test left half written, and the oldest beyond 4 GB."""
    folder = Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
    if folder.is_dir() and not hasattr(session.config, 'workerinput'):
        from train_lib.runtime import compile_cache

        with contextlib.suppress(OSError):  # a full disk: the cache only saves time
            compile_cache._drop_broken(folder)
            compile_cache._drop_oldest(folder, compile_cache.LARGEST)


@pytest.fixture(autouse=True)
def our_warnings_are_errors():
    """A warning that is raised from one of our own modules fails the test."""
    warnings.filterwarnings('error', module=OURS)
