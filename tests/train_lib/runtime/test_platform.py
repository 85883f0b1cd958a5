"""The platform is chosen before JAX is there, and TensorFlow stays out of training."""

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest

from train_lib.runtime import platform

ROOT = Path(__file__).parents[3]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with the given plugins and device files; returns what JAX_PLATFORMS becomes."""
    def build(plugins=(), gpu=False, libtpu=False, chosen=None):
        for name in plugins:
            (tmp_path / name).mkdir()
        spec = importlib.machinery.ModuleSpec('jax_plugins', None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        found = {'jax_plugins': spec if plugins else None, 'libtpu': libtpu or None}
        monkeypatch.setattr(platform.importlib.util, 'find_spec', found.get)
        monkeypatch.setattr(platform.glob, 'glob', lambda pattern: ['/dev/nvidia0'] * gpu)
        monkeypatch.setattr(platform.os.path, 'exists', lambda path: False)
        environment = {'JAX_PLATFORMS': chosen} if chosen else {}
        monkeypatch.setattr(platform.os, 'environ', environment)
        platform.choose_platform()
        return environment.get('JAX_PLATFORMS')
    return build


@pytest.mark.parametrize('having, expected', [
    (dict(), None),
    (dict(plugins=['xla_cuda13']), 'cpu'),
    (dict(plugins=['xla_cuda13'], gpu=True), None),
    (dict(plugins=['xla_cuda13', 'xla_rocm'], gpu=False), None),
    (dict(plugins=['xla_cuda13'], libtpu=True), None),
    (dict(plugins=['xla_cuda13'], chosen='cuda'), 'cuda')])
def test_the_cpu_is_chosen_only_where_cuda_cannot_be(machine, having, expected):
    assert machine(**having) == expected


def test_main_imports_no_tensorflow():
    code = 'import sys, main, train_lib.training.run; sys.exit("tensorflow" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
