"""The verb plan, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import main
from train_lib.commands import command_line, plan
from train_lib.planning.absent_devices import missing
from train_lib.planning.targets import read_target
from train_lib.runtime.errors import ConfigError
from train_lib.training.data import load_manifest

HOME = Path(main.__file__).parent
# Of a run that needs no data from outside; a model that compiles in a second.
SMALL = ['plan', f'--config={HOME}/configs/sketch_vit.py', '--config.data.source=digits',
         '--config.image.size=16', '--config.batch_size=16']
VIT = '--config.model=dict(name="vit_tiny_patch16_224",patch_size=8,embed_dim=32,depth=2,' \
      'num_heads=2,scan=True)'
CONTRACT = {'target', 'devices', 'memory_per_device_bytes', 'hbm_bytes', 'fits', 'flops_per_step',
            'collectives'}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def planned(folder, *argv) -> dict:
    assert main.main([*SMALL, VIT, f'--workdir={folder}', *argv]) == 0
    return json.loads((folder / 'plan.json').read_text())


def alone(folder, *argv, python=sys.executable, **environment) -> tuple[int, str, str]:
    """In a process of its own, which may simulate devices."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('JAX_PLATFORMS', 'XLA_FLAGS')} | environment
    done = subprocess.run([python, 'main.py', *SMALL, VIT, f'--workdir={folder}', *argv],
                          cwd=HOME, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > 80]


def test_a_plan_for_the_cpu(tmp_path, capfd):
    found = planned(tmp_path, '--config.plan.target=cpu')
    text = capfd.readouterr().out
    assert set(found) >= CONTRACT and found['target'] == 'cpu' and found['devices'] == 1
    assert found['fits'] is True and found['hbm_bytes'] == 80 * 2**30
    parts = found['memory']
    assert found['memory_per_device_bytes'] == (
        parts['arguments'] + parts['outputs'] - parts['aliased'] + parts['temporaries']
        + parts['code']) > 0
    assert found['collectives'] == [] and found['versions']['jax'] == jax.__version__
    assert 'it fits' in text and 'flash attention: none' in text and wide(text) == []
    assert found['cached'] is False
    assert planned(tmp_path, '--config.plan.target=cpu')['cached'] is True
    assert planned(tmp_path, '--config.plan.target=cpu',
                   '--config.compile_cache=False')['cached'] is False


def test_what_does_not_fit_is_no_error(tmp_path, capfd):
    found = planned(tmp_path, '--config.plan.target=cpu', '--config.plan_memory_gb=0.0005')
    assert found['fits'] is False and 'it does not fit' in capfd.readouterr().out


@pytest.mark.parametrize('argv,said', [
    (['--config.plan.target=v5litepod-12'], 'v5litepod-16 (v5e:4x4)'),
    (['--config.plan.target=h10'], 'did you mean h100'),
    (['--config.plan.margin=2'], 'config.plan.margin = 2'),
    (['--config.plan.meshes=date=4'], "'date=4': did you mean data?"),
    (['--config.plan.meshes=data=x'], "'data=x' is not a number"),
    (['--config.plan.meshes=auto,data=2'], 'auto chooses data and fsdp'),
    (['--config.plan.meshes=data=4,data=2'], "'data=4,data=2' names data twice"),
    (['--config.probe.heads=[dict(kind="linear")]'], 'config.probe.heads')])
def test_refusals_are_one_sentence(tmp_path, capfd, argv, said):
    assert main.main([*SMALL, VIT, f'--workdir={tmp_path}/run', *argv]) == 2
    text = capfd.readouterr().err
    assert said in text and text.count('\n') == 1 and not (tmp_path / 'run').exists()


def test_a_compiler_that_fails_is_one_sentence(tmp_path, capfd, monkeypatch):
    def fail(*args):
        raise jax.errors.JaxRuntimeError('INTERNAL: no such instruction:\n  %dot.3 = ...')

    monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
    assert main.main([*SMALL, VIT, f'--workdir={tmp_path}', '--config.plan.target=cpu']) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith('main.py: The compiler for cpu cannot compile vit_tiny_patch16_224 ('
                           'data 1, fsdp 1) (no such instruction): ')
    assert f'jax {jax.__version__}' in last and not (tmp_path / 'plan.json').exists()


def test_a_mesh_that_is_larger_than_its_target(tmp_path, monkeypatch):
    config = command_line.parse([*SMALL, VIT, f'--workdir={tmp_path}', '--config.mesh.fsdp=8',
                                 '--config.plan.target=cpu:4']).config
    monkeypatch.setattr(plan, '_devices', lambda place, wanted: [None] * wanted)
    monkeypatch.setattr(plan, 'make_mesh', lambda sizes, devices: SimpleNamespace(size=8))
    with pytest.raises(ConfigError, match=r'use 8 devices, and cpu:4 has 4: .* name a larger'):
        plan.show_plan(config, load_manifest(config))


@pytest.mark.slow  # four compilations
def test_meshes_are_compared(tmp_path):
    code, out, err = alone(tmp_path, '--config.plan.target=cpu:4',
                           '--config.plan.meshes=auto; data=2,fsdp=2,batch=32',
                           '--config.sharding.min_size=0')
    assert code == 0, err
    found = json.loads((tmp_path / 'plan.json').read_text())
    rows = found['meshes']
    assert [(row['mesh']['data'], row['mesh']['fsdp'], row['batch_size']) for row in rows] == [
        (4, 1, 16), (2, 2, 16), (1, 4, 16), (2, 2, 32)]
    best, = (row for row in rows if row['best'])
    assert best['fits'] and best['bytes_sent_per_picture'] == min(
        row['bytes_sent_per_picture'] for row in rows)
    assert found['mesh'] == best['mesh'] and found['devices'] == 4
    kinds = {row['mesh']['fsdp']: {each['kind'] for each in row['collectives']} for row in rows}
    assert kinds[1] == {'all-reduce'} and 'all-gather' in kinds[4]
    assert out.count('  best\n') == 1 and wide(out) == []


@pytest.mark.parametrize('name,package', [
    ('v5e:2x2', 'libtpu'),
    pytest.param('h100:1x1x4', 'jax-cuda13-plugin', marks=pytest.mark.slow)])
def test_a_target_without_its_compiler_is_answered_by_the_cpu(tmp_path, name, package):
    if not missing(read_target(name)):
        pytest.skip(f'{package} is installed')
    code, out, err = alone(tmp_path, f'--config.plan.target={name}')
    assert code == 0, err
    found = json.loads((tmp_path / 'plan.json').read_text())
    assert found['target'] == name and found['devices'] == 4
    assert found['compiler'] == 'cpu' and found['compiler_missing'] == package
    assert found['hbm_bytes'] > 15 * 2**30 and 'requirements-plan.txt' in out


@pytest.mark.slow  # 10 s for CUDA, 40 s for TPU
@pytest.mark.parametrize('name,wanted', [
    ('h100:1x1x2', 'jax-cuda13-plugin'), ('v5e:2x2', 'libtpu')])
def test_a_plan_for_absent_devices(tmp_path, name, wanted):
    if missing(read_target(name)):
        pytest.skip(f'{wanted} is not installed')
    code, out, err = alone(tmp_path, f'--config.plan.target={name.upper()}',
                           '--config.mesh.data=1', '--config.mesh.fsdp=-1',
                           '--config.sharding.min_size=0', '--config.precision=bfloat16')
    assert code == 0, err
    found = json.loads((tmp_path / 'plan.json').read_text())
    assert set(found) >= CONTRACT and found['target'] == name and found['fits'] is True
    assert found['mesh'] == dict(data=1, fsdp=found['devices']) and wanted in found['versions']
    assert found['compiler'] == {'h': 'cuda', 'v': 'tpu'}[name[0]]
    assert found['hbm_bytes'] > found['usable_bytes'] > found['memory_per_device_bytes'] > 0
    assert any(row['loops'][:1] == [2] for row in found['collectives'])
    assert found['flops_per_step'] > 1e6 and found['memory_traffic_bytes'] > 0
    assert wide(out) == []
    assert all(line.startswith(('compile ', 'wrote ')) for line in err.splitlines()), err
