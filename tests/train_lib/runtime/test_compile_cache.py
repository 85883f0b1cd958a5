"""Compiled programs are found again, bad ones are removed, and a file in place of the folder does
no harm."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import main
from train_lib.runtime import compile_cache
from train_lib.runtime.compile_cache import use_compile_cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of our own; afterwards JAX has that of the tests again."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    yield tmp_path / 'cache/atelier/xla'
    use_compile_cache(False)
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()


def programs(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob('*-cache')}


def compute():
    jax.clear_caches()
    return jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((3, 3)))


@pytest.mark.slow
def test_a_second_start_finds_every_program_and_computes_the_same(home, tmp_path):
    argv = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
            '--config.model=dict(name="small_cnn", width=8, stages=2, drop_rate=0.2)',
            '--config.duration.steps=3', '--config.batch_size=32', '--config.curriculum=()',
            '--config.optimizer.name=sgd']
    kept = []
    for name in ('first', 'second'):
        jax.clear_caches()
        assert main.main([*argv, f'--workdir={tmp_path / name}']) == 0
        kept.append(programs(home))
    assert len(kept[0]) > 5 and any(name.startswith('jit_train_step') for name in kept[0])
    assert kept[0] == kept[1]
    one, other = (tmp_path / name for name in ('first', 'second'))
    assert (one / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes()
    with np.load(one / 'predictions/test.npz') as x, np.load(other / 'predictions/test.npz') as y:
        np.testing.assert_array_equal(x['logits'], y['logits'])


def test_half_written_programs_are_replaced(home):
    use_compile_cache(True)
    expected = compute()
    victim = next(path for path in home.glob('*-cache') if 'lambda' in path.name)
    good = victim.read_bytes()
    victim.write_bytes(good[:len(good) // 2])
    (home / 'jit_x-0-cache').write_bytes(b'')
    use_compile_cache(False)
    use_compile_cache(True)
    assert not victim.exists() and not (home / 'jit_x-0-cache').exists()
    np.testing.assert_array_equal(compute(), expected)
    assert victim.exists()


def test_those_not_used_for_longest_go_first(tmp_path):
    for i, name in enumerate(('old', 'read', 'new')):
        (tmp_path / f'{name}-cache').write_bytes(bytes(10))
        os.utime(tmp_path / f'{name}-cache', (100 + i, 100 + i))
    os.utime(tmp_path / 'read-cache', (500, 99))  # written first, read last
    compile_cache._drop_oldest(tmp_path, 20)
    assert sorted(programs(tmp_path)) == ['new-cache', 'read-cache']


def test_a_folder_that_cannot_be_written_is_left_alone(home, tmp_path, monkeypatch, caplog):
    caplog.set_level('INFO')
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    use_compile_cache(True)
    assert 'cannot be written to' in caplog.text
    assert jax.config.jax_compilation_cache_dir is None
    compute()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(compile_cache.os, 'access', lambda path, mode: False)
    use_compile_cache(True)
    assert jax.config.jax_compilation_cache_dir is None


def test_the_users_own_choice_stays(home, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
    use_compile_cache(True)
    assert not home.exists()
