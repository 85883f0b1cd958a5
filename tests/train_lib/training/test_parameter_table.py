"""The table of parameters: nothing left out, equal layers together, 80 columns."""

import jax
import numpy as np
import pytest
from flax import nnx

import models
from configs import common
from train_lib.optim import param_groups
from train_lib.training import parameter_table
from train_lib.training.state import Weights


def parameters(name, table=(), layer_decay=1.0, **settings):
    """The overview's input for a model whose weights are shapes only."""
    model = nnx.eval_shape(lambda: models.create_model(name, 10, rngs=nnx.Rngs(0), **settings))
    config = common.get_config().finetune.to_dict() | dict(table=table, layer_decay=layer_decay)
    rules = param_groups.plan(model, config)
    _, params, frozen, batch_stats = param_groups.split(model, rules)
    rates, decay = param_groups.factors(params, rules)
    weights = Weights(params, frozen, batch_stats)
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return parameter_table.parameters_of(weights, rates, decay), total


FROZEN = (('head/.*', {}), ('blocks/2/.*', dict(lr=0.1, wd=0.5)), ('.*', dict(train=False)))


@pytest.fixture(scope='module')
def vit():
    return parameters('vit_tiny_patch16_224', FROZEN, depth=3, img_size=32)[0]


def test_every_array_has_a_line(vit):
    lines = parameter_table.table(vit).splitlines()
    single = [line.split() for line in lines[lines.index('', 2) + 2:]]
    assert [line[0] for line in single] == [one.name for one in vit]
    by_name = {line[0]: line[1:] for line in single}
    assert by_name['blocks/2/mlp/fc1/kernel'] == [
        '(192,', '768)', 'float32', 'trained', '0.1', '0.5', 'whole']
    assert by_name['head/bias'][-4:] == ['trained', '1', '0', 'whole']
    assert by_name['blocks/0/mlp/fc1/kernel'][3] == 'frozen'


def test_equal_layers_stand_together(vit):
    grouped = parameter_table.table(vit).split('\n\n')[1].splitlines()
    line, = (line for line in grouped if line.startswith('blocks/{0..1}/attn/qkv/kernel'))
    assert '2 x (192, 576)' in line and line.endswith('frozen')
    line, = (line for line in grouped if line.startswith('blocks/2/attn/qkv/kernel'))
    assert line.endswith('lr x0.1, decay x0.5')
    assert len(grouped) < len(vit) and max(map(len, grouped)) <= 80


def test_the_summary_is_short_and_adds_up(vit):
    lines = parameter_table.summary(vit)
    sizes = [int(word.replace(',', '')) for line in lines for word in line.split()[1:2]]
    assert lines[0].startswith('blocks/{0..2}') and lines[0].endswith('frozen')
    assert sum(sizes) == sum(one.size for one in vit)


@pytest.mark.parametrize('name, settings', [
    ('vit_base_patch16_224', {}), ('resnet18', {})])
def test_large_models_stay_short(name, settings):
    found, total = parameters(name, layer_decay=0.75, **settings)
    lines = parameter_table.summary(found)
    assert len(lines) <= 7 and max(map(len, lines)) <= 71  # and nine columns before them
    counted = [line.replace(' others', '').split()[1] for line in lines]
    assert sum(int(count.replace(',', '')) for count in counted) == total
    assert max(map(len, parameter_table.table(found).split('\n\n')[1].splitlines())) <= 80


def test_a_stack_shows_the_span_of_its_layers():
    found, _ = parameters('vit_tiny_patch16_224', layer_decay=0.5, depth=3, img_size=32, scan=True)
    one, = (one for one in found if one.name == 'blocks/attn/qkv/kernel')
    assert one.shape == (3, 192, 576) and one.rate == (0.125, 0.5)
    assert 'lr x0.125..0.5' in parameter_table.summary(found)[0]


def test_sharding_is_named():
    mesh = jax.make_mesh((1,), ('fsdp',))
    leaf = jax.device_put(np.zeros((4, 4), np.float32), jax.NamedSharding(
        mesh, jax.P(None, 'fsdp')))
    weights = Weights({'head': {'kernel': leaf}}, {}, {})
    ones = {'head': {'kernel': 1.0}}
    one, = parameter_table.parameters_of(weights, ones, ones)
    assert one.sharding == 'fsdp on axis 1'
    assert 'fsdp on axis 1' in parameter_table.table([one])
