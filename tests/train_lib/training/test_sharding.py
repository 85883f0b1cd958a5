"""Rules and meshes; and the same run on one device and on eight pretended ones."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

import models
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import AXES, make_layout, make_mesh

ROOT = Path(__file__).parents[3]
MESH = AbstractMesh((2, 8), AXES)


def layout(rules='auto', min_size=0):
    return make_layout(dict(rules=rules, min_size=min_size), MESH)


@pytest.mark.parametrize(('name', 'settings'), [
    ('vit_tiny_patch16_224', {}), ('vit_tiny_patch16_224', dict(scan=True)),
    ('eva02_small_patch14_224', dict(depth=3)), ('eva02_base_patch14_448', dict(depth=3)),
    ('eva_giant_patch14_224', dict(depth=3, scan=True)), ('resnet18', {}),
    ('densenet121', {}), ('efficientnet_b0', {}), ('mobilenetv3_large_100', {}),
    ('resnet_inception', {})])
def test_every_family_is_split_nearly_evenly(name, settings):
    model = nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0), **settings))
    whole = part = 0
    auto = layout(min_size=4096)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        sharding = auto.of('/'.join(map(str, path)), leaf.shape)
        whole += leaf.size
        part += math.prod(sharding.shard_shape(leaf.shape))
        if settings.get('scan') and path[0] == 'blocks':
            assert not sharding.spec or sharding.spec[0] is None  # the scan walks along it
    assert part < 1.2 * whole / 8


@dataclasses.dataclass(frozen=True)
class Tpu:
    """What JAX asks a TPU for when it arranges a mesh."""

    device_kind: str
    coords: tuple[int, ...]
    slice_index: int
    id: int
    platform: str = 'tpu'
    core_on_chip: int = 0
    process_index: int = 0


def tpus(kind: str, sides: tuple[int, int, int], slices: int) -> list[Tpu]:
    chips = list(itertools.product(*(range(side) for side in reversed(sides))))
    return [Tpu(kind, chip[::-1], part, part * len(chips) + number)
            for part in range(slices) for number, chip in enumerate(chips)]


@pytest.mark.parametrize(('kind', 'sides', 'slices', 'data', 'fsdp'), [
    ('TPU v6 lite', (4, 8, 1), 1, 16, 2), ('TPU v5', (4, 4, 4), 1, 8, 8),
    ('TPU v5 lite', (4, 4, 1), 2, 16, 2), ('TPU v6 lite', (4, 8, 1), 2, 4, 16)])
def test_sizes_that_are_no_sides_of_a_slice_of_tpus(kind, sides, slices, data, fsdp):
    """Each device is used once, and weights are split within slices only."""
    devices = tpus(kind, sides, slices)
    found = make_mesh(dict(data=data, fsdp=fsdp), devices).devices
    assert found.shape == (data, fsdp) and set(found.ravel()) == set(devices)
    assert all(len({one.slice_index for one in row}) == 1 for row in found)


@pytest.mark.parametrize(('slices', 'sizes', 'words'), [
    (1, dict(data=5, fsdp=1), '5 of the 8 TPUs are not a rectangle'),
    (2, dict(data=2, fsdp=5), 'takes a part of a slice of TPUs only: give .* multiple of 8'),
    (2, dict(data=1, fsdp=-1), 'config.mesh.data = 1 cannot be shared by 2 slices')])
def test_parts_of_tpus_that_are_no_mesh(slices, sizes, words):
    with pytest.raises(ConfigError, match=words):
        make_mesh(sizes, tpus('TPU v5 lite', (2, 4, 1), slices))


def test_rules():
    rows = layout([('.*/fc/kernel', (None, 'fsdp')), ('conv/.*', ('data', None, 'fsdp', None)),
                   ('.*/kernel', 'largest'), ('.*', ())])
    found = {(name, shape): rows.of(name, shape).spec for name, shape in (
        ('a/fc/kernel', (64, 8)), ('a/fc/kernel', (3, 64, 8)), ('a/fc/kernel', (64, 7)),
        ('conv/kernel', (2, 3, 8, 8)), ('b/kernel', (16, 64, 9)), ('blocks/b/kernel', (64, 8, 16)),
        ('blocks/0/b/kernel', (64, 8, 16)), ('b/kernel', (7, 9)), ('b/bias', (64,)))}
    specs = [PartitionSpec(None, 'fsdp'), PartitionSpec(None, None, 'fsdp'),
             PartitionSpec(None, None), PartitionSpec('data', None, 'fsdp', None),
             PartitionSpec(None, 'fsdp', None), PartitionSpec(None, None, 'fsdp'),
             PartitionSpec('fsdp', None, None), PartitionSpec(None, None), PartitionSpec(None)]
    assert list(found.values()) == specs
    assert layout(min_size=65).of('kernel', (8, 8)).spec == PartitionSpec()


def test_what_belongs_to_a_weight_lies_as_it_does():
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    state = dict(
        params={'a': {'kernel': leaf(8, 16)}}, frozen={'f': {'kernel': leaf(8, 8)}},
        batch_stats={'bn': {'mean': leaf(7)}}, step=leaf(),
        opt_state=({'mu': {'a': {'kernel': leaf(8, 16)}}}, leaf(), {'a': {'kernel': leaf(16)}}),
        ema=dict(params={'a': {'kernel': leaf(8, 16)}}))
    found = jax.tree.map(lambda sharding: sharding.spec, layout().of_state(state))
    split = PartitionSpec(None, 'fsdp')
    assert found['opt_state'] == ({'mu': {'a': {'kernel': split}}}, PartitionSpec(),
                                  {'a': {'kernel': PartitionSpec()}})  # another shape: whole
    assert found['ema']['params'] == found['params'] == {'a': {'kernel': split}}
    assert found['frozen'] == {'f': {'kernel': split}}
    assert found['batch_stats'] == {'bn': {'mean': PartitionSpec(None)}}


@pytest.mark.parametrize(('rules', 'words'), [
    ('most', "'auto'"), ([('(', ())], 'rules[0]'), ([('.*', 'biggest')], "'largest'"),
    ([('.*', ('model',))], 'fsdp'), ([('.*', ('fsdp', 'fsdp'))], 'twice'), ([3], 'rules[0]'),
    ([('x', ())], 'does not cover a/kernel'), ([('.*', (None, None, 'fsdp'))], '2 dimensions')])
def test_mistakes_in_rules(rules, words):
    with pytest.raises(ConfigError) as error:
        layout(rules).of('a/kernel', (8, 8))
    assert 'config.sharding.rules' in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(('sizes', 'words'), [
    ((-1, -1), 'config.mesh = dict(data=-1, fsdp=-1)'), ((0, 1), 'config.mesh ='),
    ((-1, 64), 'config.mesh.data = -1 with fsdp = 64'), ((64, 1), 'config.mesh.data = 64')])
def test_mistakes_in_the_mesh(sizes, words):
    with pytest.raises(ConfigError) as error:
        make_mesh(dict(zip(AXES, sizes)))
    assert words in str(error.value) and 'device' in str(error.value)


def on_eight_devices(argument) -> dict:
    # Programs that are compiled without optimisation are ready in half the time.
    flags = ('--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 '
             '--xla_llvm_disable_expensive_passes=true')
    done = subprocess.run(
        [sys.executable, '-m', 'tests.train_lib.training.eight_devices', str(argument)], cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}, capture_output=True,
        text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
    return on_eight_devices(tmp_path_factory.mktemp('eight'))


def assert_alike(runs: dict) -> None:
    one, *others = runs.values()
    for run in others:
        assert run['started_otherwise'] == []
        np.testing.assert_allclose(run['losses'], one['losses'], rtol=1e-5)
        np.testing.assert_allclose(run['logits'], one['logits'], atol=1e-3)
    assert np.std(one['losses']) > 0.01  # it has moved


def test_split_weights_give_the_run_of_one_device(eight):
    assert_alike(eight['vit'])
    assert_alike(eight['cnn'])  # with the BatchNorm of the whole batch


@pytest.mark.slow
def test_every_mesh_gives_the_run_of_one_device():
    found = on_eight_devices('all')
    assert_alike(found['vit'])
    assert_alike(found['resnet18'])


def test_a_device_holds_its_share(eight):
    assert eight['batch'] == [4, 4]
    assert eight['kept']
    for run, least in ((eight['cnn']['fsdp'], 1 / 8), (eight['vit']['both'], 1 / 4)):
        for share in (*run['share'].values(), run['share_after']):
            assert least <= share < least + 0.02
    assert eight['moved']['frozen_share'] < 0.14


def test_weights_of_a_layer_are_collected_and_not_the_batch(eight):
    assert eight['vit']['one']['gathered'] == 0
    # A kernel of one of the stacked layers; the tokens of a batch are 4 times as many numbers.
    assert eight['vit']['both']['gathered'] == 32 * 128


def test_file_weights_and_adapters_are_those_of_one_device(eight):
    assert eight['moved']['started_otherwise'] == []


@pytest.mark.parametrize('mesh', ['one', 'both'])
def test_a_checkpoint_moves_to_another_mesh(eight, mesh):
    assert eight['moved'][mesh] == dict(differ=[], next=2, moved=[])


def test_weights_of_another_run_are_split_too(eight):
    assert eight['moved']['adopted'] == []
    assert eight['moved']['adopted_share'] < 0.14


def test_the_plan(eight):
    lines = {line[:22].strip(): line.split() for line in eight['plan'].splitlines() if line}
    whole, part = (float(lines['weights that train'][i]) for i in (4, 6))
    assert 0.1 < part / whole < 0.16
    assert 'fsdp 8' in eight['plan'] and 'it does not fit' in eight['plan']
    flops = float(eight['plan'].partition('FLOPs per step: ')[2].split()[0])
    assert 1e7 < flops < 1e9
