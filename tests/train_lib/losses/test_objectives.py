"""Losses that know how often classes come, under resampling and a weight per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from input_pipeline.manifest import make_manifest
from train_lib.losses.losses import head_loss, split_loss, weights_at
from train_lib.losses.objectives import Shown, example_weights_end, head_weights, objectives
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import make_mesh
from train_lib.training.checks import check_values
from train_lib.training.data import split_data
from train_lib.training.setup import assemble

COUNTS = {'class': np.array([60, 6, 3])}
EQUAL = {'class': np.array([23.0, 23.0, 23.0])}
CLASSES = {'class': ('a', 'b', 'c')}
LOGITS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
LABELS = np.arange(9) % 3


def config_of(**changes):
    config = common.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def spec_of(shown, **changes):
    config = config_of(**changes)
    return objectives(config, CLASSES, COUNTS, lambda duration, key: 5, shown)['class']


def loss_at(spec, step):
    return jax.jit(head_loss, static_argnums=0)(spec, LOGITS, jnp.array(LABELS), None,
                                                jnp.int32(step))


@pytest.mark.parametrize('changes', [
    {'loss.name': 'balanced_softmax'}, {'loss.name': 'logit_adjustment'},
    {'loss.class_weights.kind': 'balanced'}, {'loss.class_weights.kind': 'effective'},
    {'loss.class_weights.kind': 'sqrt'}])
@pytest.mark.parametrize('start', [0, 20])
def test_classes_that_resampling_balances_are_not_balanced_again(changes, start):
    spec = spec_of(Shown(start, EQUAL), **changes)
    by_data = spec_of(None, **changes)
    late = {'loss.class_weights.start': dict(steps=5)}
    plain = loss_at(spec_of(None), 0)
    np.testing.assert_allclose(loss_at(spec, start), plain, rtol=1e-5)
    np.testing.assert_allclose(split_loss(spec, LOGITS, LABELS), plain, rtol=1e-5)
    assert abs(loss_at(by_data, start + 5) - plain) > 0.01
    if start:  # until then the data are shown as they are
        np.testing.assert_allclose(loss_at(spec, start - 1), loss_at(by_data, start - 1))
    for without in (None, Shown(start, EQUAL)):  # as in runs of older versions
        assert spec_of(without, **changes, **late, **{'loss.counts': 'data'}) == spec_of(
            None, **changes, **late)


def test_ldam_and_manual_weights_stay_those_of_the_data():
    for changes in ({'loss.name': 'ldam'}, {'loss.class_weights.kind': 'manual',
                                            'loss.class_weights.manual': {'a': 2.0}}):
        spec, by_data = spec_of(Shown(3, EQUAL), **changes), spec_of(None, **changes)
        for step in (0, 10):
            np.testing.assert_allclose(loss_at(spec, step), loss_at(by_data, step), rtol=1e-6)


def test_a_mixed_share_is_that_of_the_sampler():
    shown = Shown(0, {'class': np.array([30.0, 20.0, 10.5])})
    spec = spec_of(shown, **{'loss.class_weights.kind': 'balanced'})
    np.testing.assert_allclose(weights_at(spec), 60.5 / 3 / np.array([30.0, 20.0, 10.5]), rtol=1e-6)


@pytest.mark.parametrize('changes, wanted', [
    ({}, None), ({'resample.kind': 'over'}, None), ({'resample.kind': 'weighted'}, 7),
    ({'resample.kind': 'weighted', 'resample.column': 'weight'}, 7),
    ({'resample.kind': 'weighted', 'resample.column': 'other'}, None),
    ({'resample.kind': 'weighted', 'loss.example_weights': True}, None),
    ({'loss.example_weights': False}, 0)])
def test_a_weight_counts_once(changes, wanted, caplog):
    with caplog.at_level('INFO'):
        assert example_weights_end(config_of(**changes), 7) == wanted
    said = ['weights  rows are drawn by `weight` (resample), the loss leaves it out']
    assert caplog.messages == (said if wanted == 7 else [])


def test_wrong_values_are_refused():
    with pytest.raises(ConfigError, match=r"loss\.counts = 'all': choose one of shown, data"):
        spec_of(None, **{'loss.counts': 'all'})
    with pytest.raises(ConfigError, match=r"example_weights = 'yes': give 'auto', True or False"):
        example_weights_end(config_of(**{'loss.example_weights': 'yes'}), 0)
    twice = {'eval.adjust_tau': 1.0, 'resample.kind': 'balanced'}
    with pytest.raises(ConfigError, match=r'adjust_tau.*resample\.kind.*keep one of them'):
        check_values(config_of(**twice), 1)
    check_values(config_of(**twice, **{'loss.counts': 'data'}), 1)


def test_a_run_asks_its_sampler(tmp_path):
    """Balanced from step 4 on: 12 images of three classes, 4 of each per epoch."""
    labels = [0] * 8 + [1] * 3 + [2]
    manifest = make_manifest(
        {'id': [f'{k}' for k in range(16)], 'location': '', 'label/class': [*labels, 0, 1, 2, 2],
         'split': ['train'] * 12 + ['val'] * 4, 'weight': np.ones(16)}, CLASSES)
    config = config_of(**{
        'split.kind': 'given', 'split.test': 0.0, 'resample.kind': 'balanced',
        'resample.start': dict(steps=4),
        'loss.name': 'balanced_softmax', 'duration': dict(steps=8), 'batch_size': 4,
        'image.size': 16, 'model': dict(name='small_cnn', width=4, stages=1)})
    job = assemble(config, split_data(config, manifest), make_mesh(config.mesh), None, tmp_path,
                   abstract=True)
    job.iterator.close()
    spec = job.run.scoring.losses['class']
    assert (spec.counts, spec.shown_start, spec.shown_counts) == ((8, 3, 1), 4, (4, 4, 4))


@pytest.mark.parametrize(('given', 'wanted'), [
    ((), ()), (('1', '0.5'), (1.0, 0.5)), ((2, 0), (2.0, 0.0))])
def test_weights_of_heads_are_numbers(given, wanted):
    assert head_weights(config_of(**{'loss.head_weights': given}), ('a', 'b')) == wanted


@pytest.mark.parametrize(('given', 'words'), [
    ((1.0,), 'has 1 numbers for 2 heads'), ((1.0, 1.0, 1.0), 'has 3 numbers for 2 heads'),
    (('1', 'half'), "'half' is not a number of 0 or more"), ((1.0, -1.0), '-1.0 is not a number')])
def test_other_weights_of_heads_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        head_weights(config_of(**{'loss.head_weights': given}), ('a', 'b'))
