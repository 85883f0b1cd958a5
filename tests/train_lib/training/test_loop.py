"""Ways in which a run can end, in this process: diverged, with the last weights, without scores."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import common
from tests.faults.running import assert_same_run
from train_lib.run_dir.checkpoints import committed_steps, read_host
from train_lib.runtime.errors import ConfigError, DivergedError
from train_lib.training import finish, loop, run
from train_lib.training import step as step_module
from train_lib.training.data import load_data


def config_of(**sections):
    config = common.get_config()
    config.data.source = 'digits'
    config.image.size = 16
    config.model = dict(name='small_cnn', width=4, stages=1)
    config.batch_size = 16
    config.duration = dict(steps=12)
    config.eval.every = dict(steps=4)
    config.checkpoint.every = dict(steps=4)
    config.log.update(every=dict(steps=4), tensorboard=False)
    for section, values in sections.items():
        with config.ignore_type():
            config[section].update(values)
    return config


def train(workdir, **sections):
    config = config_of(**sections)
    return run.train_one(config, load_data(config), workdir)[0]


def lines(workdir, split):
    rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [row for row in rows if row['split'] == split]


@pytest.fixture
def harm(monkeypatch):
    """harm(condition): the loss of the steps for which it holds becomes NaN."""
    def plant(condition):
        inner = step_module.head_loss
        monkeypatch.setattr(step_module, 'head_loss', lambda *given: jnp.where(
            condition(given[4]), jnp.nan, inner(*given)))
    return plant


def test_a_run_that_stays_not_finite_goes_back_to_its_start_and_ends(harm, tmp_path):
    harm(lambda step: step >= 0)
    with pytest.raises(DivergedError, match=r'2 steps in a row, up to step 4, .* 1 roll-backs'):
        train(tmp_path, guard=dict(skip=2, rollbacks=1))
    assert committed_steps(tmp_path / 'checkpoints') == [0]
    assert not (tmp_path / 'result.json').exists()


def test_checkpoints_of_undone_steps_are_written_anew(harm, tmp_path):
    harm(lambda step: (step == 8) | (step == 9))
    result = train(tmp_path, guard=dict(skip=2))
    assert (result['rollbacks'], result['steps_skipped']) == (1, 3)
    assert committed_steps(tmp_path / 'checkpoints')[-2:] == [8, 12]
    assert read_host(tmp_path / 'checkpoints/8')['guard']['ranges'] == [[7, 10]]
    assert [row['step'] for row in lines(tmp_path, 'train')] == [4, 8, 12]


def test_without_a_guard_the_log_says_so(harm, tmp_path):
    harm(lambda step: step == 2)
    with pytest.raises(DivergedError, match=r'training loss is nan at step 4'):
        train(tmp_path)


@pytest.mark.parametrize('at', [8, 12])
def test_a_stop_in_an_evaluation_changes_nothing(at, monkeypatch, tmp_path):
    def stopped(step, variables, split, mesh, stop):
        evaluations.append(split)
        if at == 4 * len(evaluations):
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(step, variables, split, mesh, stop)

    evaluations, predict = [], loop.predict
    settings = dict(guard=dict(skip=2), ema=dict(decay=0.9),
                    checkpoint=dict(every=dict(steps=4), keep=1))
    train(tmp_path / 'unbroken', **settings)
    monkeypatch.setattr(loop, 'predict', stopped)
    with pytest.raises(loop.Stopped):
        train(tmp_path / 'run', **settings)
    saved = read_host(tmp_path / f'run/checkpoints/{at}')
    assert (saved['evaluated'], saved['guard']['good'][-1][0]) == (at - 4, at - 4)
    monkeypatch.undo()
    train(tmp_path / 'run', **settings)
    assert_same_run(tmp_path / 'unbroken', tmp_path / 'run')


def test_the_last_weights_count_if_asked_for_and_they_are_the_averaged_ones(
        tmp_path, monkeypatch):
    """With a frozen part, another metric, and logits that are not finite, then bad."""
    used, factors = [], [1, np.nan, -9]
    predict, in_loop = finish.predict, loop.predict

    def recording(eval_step, weights, *given):
        used.append(jax.device_get(weights))
        return predict(eval_step, weights, *given)

    def broken(*given):
        factor = factors.pop(0)
        return {head: factor * values for head, values in in_loop(*given).items()}

    monkeypatch.setattr(finish, 'predict', recording)
    monkeypatch.setattr(loop, 'predict', broken)
    result = train(tmp_path, ema=dict(decay=0.9), eval=dict(metric='nll'),
                   early_stopping=dict(restore_best=False),
                   schedule=dict(lr=1e-2),
                   finetune=dict(table=(('head/.*|stages/.*', {}), ('.*', dict(train=False)))))
    assert result['best_step'] == result['steps'] == 12
    assert not result['stopped_early']
    found = lines(tmp_path, 'val')
    assert [row['nll'] is None for row in found] == [False, True, False]
    assert found[1]['accuracy'] is None
    assert found[2]['nll'] > found[0]['nll']
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(tmp_path / 'checkpoints/12/state', restore_args=None)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(state['params']),
                                              jax.tree.leaves(state['ema']['params'])))
    for weights in used:
        for ours, key in ((weights.params, 'params'), (weights.batch_stats, 'rest')):
            jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(ours),
                         jax.tree.leaves(state['ema'][key]))
        assert jax.tree.leaves(weights.frozen)


@pytest.mark.parametrize('sections, message', [
    (dict(early_stopping=dict(patience=3)),
     r'early_stopping\.patience = 3 is not a valid duration'),
    (dict(schedule=dict(plateau=dict(patience=dict(epochs=1))), split=dict(val=0.0)),
     r'schedule\.plateau\.patience needs a validation split'),
    (dict(eval=dict(metric='f1')), r"eval\.metric = 'f1': choose one of .*f1_macro"),
    (dict(guard=dict(skip=-1)), r'guard\.skip = -1'),
    (dict(ema=dict(decay=1.5)), r'ema\.decay = 1\.5')])
def test_mistakes_are_one_sentence(sections, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, **sections)


def test_a_batch_must_be_divisible_into_its_parts(tmp_path):
    config = config_of()
    config.accumulate = 5
    with pytest.raises(ConfigError, match=r'batch_size = 16 cannot be done in config.accumulate'):
        run.train_one(config, load_data(config), tmp_path)


def test_nothing_is_judged_in_the_warm_up_and_each_cut_is_logged(monkeypatch, tmp_path, caplog):
    """The scores stay equal, and the likelihood is best in the second validation."""
    factors, predict = iter([1.0, 2.0, 0.5, 0.25, 0.1, 0.0]), loop.predict

    def equal(eval_step, weights, split, *given):
        factor = next(factors)
        labels = split.manifest.labels('class')
        return {head: factor * np.eye(values.shape[1], dtype=np.float32)[labels]
                for head, values in predict(eval_step, weights, split, *given).items()}

    monkeypatch.setattr(loop, 'predict', equal)
    plateau = dict(patience=dict(steps=2), factor=0.5)
    settings = dict(eval=dict(every=dict(steps=2)), log=dict(every=dict(steps=1)),
                    report=dict(heat_maps=False), schedule=dict(
                        name='constant', lr=1e-4, warmup=dict(percent=50), plateau=plateau))
    with caplog.at_level('INFO'):
        result = train(tmp_path, **settings)
    rates = [row['lr'] for row in lines(tmp_path, 'train')]
    np.testing.assert_allclose(rates, 1e-4 * np.array([1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 3, 3]) / 6,
                               rtol=1e-5)
    said = [line for line in caplog.messages if line.startswith('plateau ')]
    assert said == ['plateau  step 10: val accuracy has not improved; lr x 0.5, in all x 0.5'], said
    assert result['best_step'] == 4
    np.testing.assert_allclose(read_host(tmp_path / 'checkpoints/12')['best_nll'],
                               np.log1p(9 * np.exp(-2)), rtol=1e-5)
