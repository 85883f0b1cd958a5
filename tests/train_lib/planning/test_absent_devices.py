"""Devices that are not there, in a process that may start their compilers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train_lib.planning.absent_devices import missing
from train_lib.planning.targets import read_target

ROOT = Path(__file__).parents[3]
CODE = '''
import json, os, sys
import jax
from train_lib.planning.absent_devices import stay_on_cpu, target_devices
from train_lib.planning.targets import read_target
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import make_mesh
stay_on_cpu()
found = {}
for name, data, fsdp in json.loads(sys.argv[1]):
    before = dict(os.environ)
    target = read_target(name)
    try:
        devices = target_devices(target)
        assert len(devices) == target.devices, len(devices)
        mesh = make_mesh(dict(data=data, fsdp=fsdp), devices)
        found[name] = [[getattr(one, 'slice_index', 0) for one in row] for row in mesh.devices]
    except ConfigError as error:
        found[name] = str(error)
    changed = set(os.environ.items()) ^ set(before.items())
    assert not {name for name, _ in changed} & {'ALLOW_MULTIPLE_LIBTPU_LOAD'}, changed
found['here'] = [one.platform for one in jax.devices()]
print(json.dumps(found))
'''


def devices_of(*wanted: tuple[str, int, int]) -> dict:
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('JAX_PLATFORMS', 'XLA_FLAGS')}
    done = subprocess.run([sys.executable, '-c', CODE, json.dumps(wanted)], cwd=ROOT,
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''  # libtpu warns at length on a machine without a TPU
    found = json.loads(done.stdout)
    assert found.pop('here') == ['cpu']  # nothing of this machine was touched
    return found


@pytest.mark.skipif(bool(missing(read_target('v5e:2x2'))), reason='libtpu is not installed')
def test_tpus():
    found = devices_of(('v5e:1x1', 1, 1), ('v5litepod-16', 4, 4), ('v3-8', -1, 1), ('v4-8', 1, -1),
                       ('v5p-8', 2, 2), ('tpu7x-8', 2, 4), ('v6e-8', 8, 1), ('v5e:2x2*2', 2, 4),
                       ('v5e:4x4*2', 1, 32), ('v5e:3x3', 1, -1))
    assert 'did you mean v5e:2x4?' in found.pop('v5e:3x3')
    assert 'config.mesh.data = 1 cannot be shared by 2 slices' in found.pop('v5e:4x4*2')
    assert found.pop('v5e:2x2*2') == [[0] * 4, [1] * 4]  # a batch is split between slices
    assert {name: (len(rows), len(rows[0])) for name, rows in found.items()} == {
        'v5e:1x1': (1, 1), 'v5litepod-16': (4, 4), 'v3-8': (8, 1), 'v4-8': (1, 4),
        'v5p-8': (2, 2), 'tpu7x-8': (2, 4), 'v6e-8': (8, 1)}


@pytest.mark.skipif(bool(missing(read_target('h100'))), reason='the CUDA plugin is not installed')
def test_gpus():
    found = devices_of(('h100', 1, 1), ('a100:8', 1, 8), ('a2-megagpu-16g', 16, 1), ('t4:4', 4, 1),
                       ('h100:2x8', 2, 8), ('b200:8', 1, -1))
    assert {name: (len(rows), len(rows[0])) for name, rows in found.items()} == {
        'h100': (1, 1), 'a100:8': (1, 8), 'a2-megagpu-16g': (16, 1), 't4:4': (4, 1),
        'h100:2x8': (2, 8), 'b200:8': (1, 8)}
