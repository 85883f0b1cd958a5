"""Spellings of targets, and what is said of wrong ones."""

import math

import pytest

from train_lib.planning.chips import CHIPS
from train_lib.planning.target_names import TOPOLOGIES
from train_lib.planning.targets import memory_of, read_target
from train_lib.runtime.errors import ConfigError

PLAIN = {
    'v5e:4x4': 'v5e:4x4', ' V5E:4X4 ': 'v5e:4x4', 'v5litepod-16': 'v5e:4x4', 'v5e-16': 'v5e:4x4',
    'v5e:16': 'v5e:4x4', 'v5e:8': 'v5e:2x4', 'v5e:4x2': 'v5e:2x4', 'v5e:4x4x1': 'v5e:4x4',
    'v5e:1x1': 'v5e:1x1', 'v5litepod-1': 'v5e:1x1', 'ct5lp-hightpu-8t': 'v5e:2x4',
    'tpu-v5-lite-podslice:4x4': 'v5e:4x4', 'v6e-8': 'v6e:2x4', 'v6e:2x4': 'v6e:2x4',
    'v6e-256': 'v6e:16x16', 'ct6e-standard-4t': 'v6e:2x2',
    'v5p-8': 'v5p:2x2x1', 'v5p:2x2x1': 'v5p:2x2x1', 'v5p:4': 'v5p:2x2x1', 'v5p-128': 'v5p:4x4x4',
    'v4-8': 'v4:2x2x1', 'v4-32': 'v4:2x2x4', 'v3-8': 'v3:2x2', 'v3-32': 'v3:4x4',
    'tpu7x-8': 'tpu7x:2x2x1', 'tpu7x:2x2x1': 'tpu7x:2x2x1', 'v5e:4x4*2': 'v5e:4x4*2',
    'h100': 'h100:1x1x1', 'H100:8': 'h100:1x1x8', '8xH100': 'h100:1x1x8', 'h100-8': 'h100:1x1x8',
    'h100:1x1x8': 'h100:1x1x8', 'h100:2x8': 'h100:1x2x8', 'h100:16': 'h100:1x2x8',
    'a3-highgpu-8g': 'h100:1x1x8', 'a3-highgpu-8g*2': 'h100:1x2x8', 'a2-ultragpu-1g': 'a100:1x1x1',
    'a2-megagpu-16g': 'a100-40gb:1x1x16', 'p4de.24xlarge': 'a100:1x1x8',
    'p4d.24xlarge': 'a100-40gb:1x1x8', 'p5.48xlarge': 'h100:1x1x8', 'p5en.48xlarge': 'h200:1x1x8',
    'Standard_ND96isr_H100_v5': 'h100:1x1x8', 'g2-standard-48': 'l4:1x1x4',
    'g5.xlarge': 'a10g:1x1x1', 'g4dn.12xlarge': 't4:1x1x4', 'a100-40gb:4': 'a100-40gb:1x1x4',
    'a100-40': 'a100-40gb:1x1x1', 'a100-80:8': 'a100:1x1x8', 'h100-80': 'h100:1x1x1',
    'a100-80gb:1x1x8': 'a100:1x1x8', 'nvidia-tesla-t4': 't4:1x1x1', 'cpu': 'cpu', 'CPU:8': 'cpu:8',
    '': '',
}
WRONG = {
    'v5litepod-12': 'v5litepod-16 (v5e:4x4)', 'v5p-6': 'v5p-8 (v5p:2x2x1)', 'v6e-7': 'v6e-8',
    'v5e:9': 'v5e:2x4', 'v5p:4x4': 'v5p:2x2x4', 'v5e': 'v5e:2x2', 'v5x:4x4': 'v5e:4x4',
    'h10:1x1x8': 'h100:1x1x8', 'h100:9': 'h100:1xHOSTSxGPUS', 'h100:1x1x0': 'h100:1x1x',
    'v5e:2x': 'v5e:2x', 'v5e:-1x4': 'v5e:', 'tpu': 'v5e:4x4', 'gpu': 'h100:1x1x8',
    'nonsense': 'v5e:4x4', 'cpux': 'cpu', 'cpu:0': 'cpu', 'v5e:4x4*x': 'v5e:4x4*2',
    'v2-8': 'v4-8', 'a3-highgpu-3g': 'a3-highgpu-8g', 'v5e:1x1x1x1': 'v5e:1x1', 'v5e-0': 'v5e-1',
    'v5litepod-²': 'did you mean v5e:', 'v5e:': 'did you mean v5e:', 'v5e:4x4*': 'v5e:4x4*2',
    'h100-': 'h100:', 'h100:99999x99999x99999': 'at most 65,536', 'v5e:4x4*9999': 'at most 65,536',
}


@pytest.mark.parametrize('text', PLAIN)
def test_spellings(text):
    target = read_target(text)
    assert target.name == PLAIN[text]
    assert read_target(target.name) == target


@pytest.mark.parametrize('text', WRONG)
def test_a_wrong_one_is_answered_with_the_nearest(text):
    with pytest.raises(ConfigError) as refused:
        read_target(text)
    assert WRONG[text] in str(refused.value)
    assert str(refused.value).startswith(f'config.plan.target = {text!r}: ')


@pytest.mark.parametrize('kind', TOPOLOGIES)
def test_the_number_of_an_accelerator_type_counts_chips_or_cores(kind):
    for topology in TOPOLOGIES[kind]:
        target = read_target(f'{kind}:{topology}')
        number = math.prod(target.topology) * (1 if kind in ('v5e', 'v6e') else 2)
        assert read_target(f'{kind}-{number}') == target
        assert read_target(f'{kind}:{target.devices}') == target


def test_devices_as_jax_counts_them():
    counts = {'v3-8': 8, 'v4-8': 4, 'v5p-8': 4, 'v5e-8': 8, 'tpu7x-8': 8, 'v5e:2x4*2': 16,
              'h100:2x8': 16, 'cpu:8': 8, 'cpu': 0, '': 0}
    assert {name: read_target(name).devices for name in counts} == counts


def test_memory_is_what_a_run_would_have(monkeypatch):
    settings = dict(margin=0.1)
    for name in ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'):
        monkeypatch.delenv(name, raising=False)
    v5e, h100 = read_target('v5e:2x2'), read_target('h100')
    assert memory_of(v5e, settings, 80.0).usable == int(15.75 * 2**30 * 0.9)
    assert memory_of(h100, settings, 80.0).usable == int(CHIPS['h100'].memory * 0.75 * 0.9)
    assert memory_of(read_target('cpu'), settings, 2.0).usable == 2 * 2**30
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
    assert memory_of(h100, settings, 80.0).share == 0.9
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', 'much')
    with pytest.raises(ConfigError, match='XLA_PYTHON_CLIENT_MEM_FRACTION'):
        memory_of(h100, settings, 80.0)
    with pytest.raises(ConfigError, match=r'config\.plan\.margin = 1'):
        memory_of(v5e, dict(margin=1.0), 80.0)
