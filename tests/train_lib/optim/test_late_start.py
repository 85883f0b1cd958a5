"""Parameters that begin to train later: what the table says, and their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from configs import common
from train_lib.optim import param_groups
from train_lib.optim.late_start import describe, group_name
from train_lib.optim.optimizers import OPTIMIZERS, make_optimizer
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path, joined, part_like, select

CNN = dict(layers=(1, 1), channels=(4, 8))


def settings(**changes):
    return common.get_config().finetune.to_dict() | changes


def plan(model='resnet18', kwargs=CNN, **changes):
    made = nnx.eval_shape(lambda: models.create_model(model, 3, rngs=nnx.Rngs(0), **kwargs))
    return param_groups.plan(made, settings(**changes))


def test_until_unfreeze_only_heads_train():
    rules = plan(unfreeze=dict(epochs=2))
    assert {name for name, rule in rules.items() if rule.start is None} == {
        'head/kernel', 'head/bias'}
    assert {rule.start for rule in rules.values()} == {None, ('epochs', 2)}
    assert all(rule.trains for rule in rules.values())
    assert {rule.start for rule in plan().values()} == {None}


def test_rows_of_the_table_say_when_they_begin():
    rules = plan(unfreeze=dict(percent=10), table=(
        ('head/kernel', dict(start=dict(steps=3))), ('layer2/.*', dict(start=dict(steps=0), lr=.5)),
        ('layer1/.*', dict(start=dict(epochs=1.5))), ('conv1/.*', dict(train=False)), ('.*', {})))
    start = {name: rule.start for name, rule in rules.items()}
    assert start['head/kernel'] == ('steps', 3) and start['head/bias'] is None
    assert start['layer2/0/conv1/kernel'] is None and start['bn1/scale'] == ('percent', 10)
    assert start['layer1/0/conv1/kernel'] == ('epochs', 1.5) and start['conv1/kernel'] is None
    assert rules['layer2/0/conv1/kernel'].rate == .5


@pytest.mark.parametrize(('changes', 'words'), [
    (dict(unfreeze=dict(epoch=2)), 'finetune.unfreeze = .* is not a valid duration'),
    (dict(unfreeze=dict(epochs=-1)), 'finetune.unfreeze.epochs = -1: give a number'),
    (dict(table=(('.*', dict(start=2)),)), r'table\[0\].start = 2 is not a valid duration'),
    (dict(table=(('.*', dict(train=False, start=dict(epochs=2))),)),
     r'table\[0\] has train=False and a start: remove one'),
    (dict(table=(('.*', dict(begin=2)),)),
     "has the key 'begin': a row has lr, wd, train and start"),
    (dict(unfreeze=dict(epochs=2), table=(('head/.*', {}), ('.*', dict(train=False)))),
     'has no effect'),
    (dict(model='vit_tiny_patch16_224', kwargs=dict(depth=2, embed_dim=24, scan=True), table=(
        ('blocks/0/.*', dict(start=dict(epochs=1))), ('.*', {}))), 'scan=False'),
])
def test_wrong_values_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        plan(**changes)


@pytest.mark.parametrize('row', [('.*',), '.*', ('.*', 5), ('.*', dict(start=2)), ('(', {})])
def test_durations_of_a_table_that_is_not_valid_are_refused(row):
    """They are asked for before the model is made."""
    with pytest.raises(ConfigError, match=r'config.finetune.table\[0\].* is not a valid'):
        param_groups.durations(settings(table=(row,)))


def test_stacked_blocks_begin_together():
    rules = plan('vit_tiny_patch16_224', dict(depth=2, embed_dim=24, scan=True),
                 unfreeze=dict(steps=5), layer_decay=0.5)
    rule = rules['blocks/attn/qkv/kernel']
    assert rule.start == ('steps', 5) and np.allclose(rule.rate, [0.25, 0.5])


def test_names_of_groups_tell_all_durations_apart():
    starts = [('epochs', 1), ('epochs', 1.5), ('steps', 1), ('examples', 1000000),
              ('examples', 1000001), ('percent', 10), None]
    assert len({group_name(start) for start in starts}) == len(starts)
    assert describe(('epochs', 1)) == 'after 1 epoch'
    assert describe(('percent', 12.5)) == 'after 12.5% of the run'


PARAMS = {'early': {'kernel': (3, 4)}, 'late': {'kernel': (4, 2), 'bias': (2,)}}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: {key: jnp.asarray(rng.standard_normal(shape), jnp.float32)
                   for key, shape in part.items()} for name, part in PARAMS.items()}


@pytest.mark.parametrize('decay', ['decoupled', 'coupled'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_updates_of_a_late_group_are_those_of_a_fresh_optimizer(name, decay):
    """And the early group's are as if it had been alone, then as if it had trained all along. With
    one count for all, Adam's first updates here would be three times as large."""
    if decay == 'coupled' and name in ('adamw', 'nadamw'):
        pytest.skip('AdamW is decoupled by name')
    config = common.get_config().optimizer.to_dict() | dict(
        name=name, clip_norm=0.0, decay=decay, momentum_decay=0.004 if 'nadam' in name else None)
    plain = make_optimizer(config)
    late = make_optimizer(config, starts={f'late/{key}': ('steps', 30) for key in PARAMS['late']})
    params = draw(0)
    waits = select(params, lambda name: name.startswith('early'))
    state, alone, fresh = late.init(params), plain.init(waits), None
    update, plain_update = jax.jit(late.update), jax.jit(plain.update)
    for step in range(40):
        gradient = draw(step + 1)
        if step < 30:
            gradient = part_like(gradient, waits)
        updates, state = update(gradient, state, part_like(params, gradient))
        wanted, alone = plain_update(part_like(gradient, waits), alone, waits)
        if step >= 30:
            rest = {'late': params['late']}
            fresh = plain.init(rest) if fresh is None else fresh
            more, fresh = plain_update(part_like(gradient, rest), fresh, rest)
            wanted = joined(wanted, more)
        for key, value in by_path(wanted).items():
            np.testing.assert_allclose(by_path(updates)[key], value, rtol=1e-5, atol=1e-6,
                                       err_msg=f'{key} at step {step}')
