"""What a CPU needs to be told before JAX is imported, train_lib/runtime/cpu_program.py."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train_lib.runtime import cpu_program

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith(('MALLOC_', 'GLIBC_'))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    return monkeypatch


def test_flags_of_the_user_stay(no_settings):
    no_settings.setattr(importlib.metadata, 'version', lambda name: '0.10.2')
    no_settings.setenv('XLA_FLAGS', '--xla_dump_to=/x')
    assert cpu_program.convolve_on_all_cores()
    assert os.environ['XLA_FLAGS'] == (
        '--xla_dump_to=/x --xla_cpu_experimental_ynn_fusion_type=-individual_convolution')
    assert cpu_program.convolve_on_all_cores()  # not twice
    assert os.environ['XLA_FLAGS'].count('ynn') == 1
    no_settings.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=-reduce')
    assert cpu_program.convolve_on_all_cores()
    assert os.environ['XLA_FLAGS'] == '--xla_cpu_experimental_ynn_fusion_type=-reduce'


def test_a_jaxlib_that_was_not_tried_gets_no_flag(no_settings):
    no_settings.setattr(importlib.metadata, 'version', lambda name: '99.0')
    assert not cpu_program.convolve_on_all_cores()
    assert 'XLA_FLAGS' not in os.environ


def test_an_allocator_that_the_user_set_up_stays(no_settings):
    no_settings.setenv('MALLOC_ARENA_MAX', '4')
    assert not cpu_program.keep_freed_memory()


PROGRAM = """
import resource, sys
from train_lib.runtime.cpu_program import set_up_cpu
if sys.argv[1] == 'on':
    set_up_cpu()
import jax, jax.numpy as jnp
def f(x):
    rows = [x @ x * i for i in range(4)]
    return sum(jnp.sum(a @ b) for a in rows for b in rows)
f, x = jax.jit(f), jnp.ones((1000, 1000))
print(f.lower(x).compile().memory_analysis().temp_size_in_bytes, file=sys.stderr)
for _ in range(8):  # each thread has an arena of its own, which it fills when it first has work
    f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='the allocator is that of glibc, on Linux')
def test_the_buffers_of_a_program_are_not_fetched_anew_for_each_run(no_settings):
    faults = {}
    for which in ('on', 'off'):
        done = subprocess.run([sys.executable, '-c', PROGRAM, which], cwd=ROOT, text=True,
                              capture_output=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
        assert not done.returncode, done.stderr
        faults[which] = int(done.stdout)
    assert faults['on'] < 0.3 * faults['off'], faults
