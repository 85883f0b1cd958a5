"""Compiled programs kept between plans: damage, a limited size."""

import os

import jax
import pytest

from train_lib.planning.compiled import CompiledProgram, _kept, compile_for
from train_lib.planning.kept_programs import keep, kept
from train_lib.planning.targets import read_target

NUMBERS = dict(memory={}, refusal='RESOURCE_EXHAUSTED', seconds=1.5, versions=dict(jax='1'))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'atelier/plans'


def test_a_program_comes_back(folder):
    assert kept('key') is None
    keep('key', NUMBERS, 'HloModule x')
    assert kept('key') == (NUMBERS, 'HloModule x')
    assert _kept('key') == CompiledProgram({}, 'RESOURCE_EXHAUSTED', 1.5, dict(jax='1'),
                                           'HloModule x', cached=True)
    assert {path.name for path in folder.iterdir()} == {'key.json', 'key.hlo.gz'}


@pytest.mark.parametrize('end', ['json', 'hlo.gz'])
@pytest.mark.parametrize('content', [b'', b'{"memory": {"argu', b'[]', b'\xff\xfe'])
def test_a_damaged_one_counts_as_none(folder, end, content):
    keep('key', NUMBERS, 'HloModule x')
    (folder / f'key.{end}').write_bytes(content)
    assert kept('key') is None
    keep('key', NUMBERS, 'HloModule x')
    assert kept('key') is not None


def test_half_a_text_counts_as_none(folder):
    keep('key', NUMBERS, 'HloModule x' * 1000)
    text = folder / 'key.hlo.gz'
    text.write_bytes(text.read_bytes()[:-5])
    assert kept('key') is None


@pytest.mark.parametrize('numbers', [
    {}, dict(NUMBERS, memory=dict(arguments=1)), dict(NUMBERS, seconds=None),
    dict(NUMBERS, versions=3)])
def test_numbers_of_another_version_count_as_none(numbers):
    keep('key', numbers, '')
    assert _kept('key') is None


def test_a_folder_that_cannot_be_made_is_not_used(folder):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text('not a folder')
    keep('key', NUMBERS, '')
    assert kept('key') is None


def test_the_oldest_are_dropped(folder):
    for number in range(4):
        keep(f'key{number}', NUMBERS, 'x')
        for path in folder.glob(f'key{number}*'):
            os.utime(path, (number, number))
    size = sum(path.stat().st_size for path in folder.glob('key0*'))
    keep('last', NUMBERS, 'x', largest=2 * size + size // 2)
    assert [key for key in ('key0', 'key1', 'key2', 'key3', 'last') if kept(key)] == [
        'key3', 'last']



def test_other_flags_of_the_compiler_are_another_program(monkeypatch):
    lowered, cpu = jax.jit(lambda x: x + 1).lower(1.0), read_target('cpu')
    for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS'):
        monkeypatch.delenv(name, raising=False)
    assert [compile_for(cpu, lowered).cached for _ in range(2)] == [False, True]
    monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_tpu_scoped_vmem_limit_kib=1024')
    assert not compile_for(cpu, lowered).cached
