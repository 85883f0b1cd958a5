"""Training that is no longer finite: what it ends with, and that no such checkpoint is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import main
from train_lib.run_dir import checkpoints
from train_lib.training import step as step_module

RUN = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=8',
       '--config.model=dict(name="small_cnn", width=4, stages=1)', '--config.batch_size=16',
       '--config.duration.steps=12', '--config.data.long_tail.largest=10',
       '--config.split.val=0.03', '--config.split.test=0.02', '--config.log.tensorboard=false',
       '--config.log.every.steps=12', '--config.eval.every.steps=4',
       '--config.checkpoint.every.steps=2', '--config.checkpoint.keep=9', '--config.curriculum=()']


def train(capfd, workdir, *more) -> tuple[int, str]:
    capfd.readouterr()
    code = main.main([*RUN, f'--workdir={workdir}', *more])
    return code, capfd.readouterr().err


def assert_all_finite(workdir) -> list[int]:
    """Of every checkpoint, which must say so too: the steps."""
    steps = checkpoints.committed_steps(workdir / 'checkpoints')
    for step in steps:
        found = checkpoints.read_weights(workdir / f'checkpoints/{step}')
        for leaf in jax.tree.leaves(found):
            assert np.isfinite(leaf).all(), step
    return steps


@pytest.fixture
def bad_batch(monkeypatch):
    """The loss of the sixth step is a NaN."""
    head_loss = step_module.head_loss
    monkeypatch.setattr(step_module, 'head_loss', lambda spec, logits, targets, weights, step,
                        *divisor: jnp.where(step == 5, jnp.nan, head_loss(
                            spec, logits, targets, weights, step, *divisor)))


def test_a_bad_batch_ends_the_run_before_it_is_saved(tmp_path, capfd, bad_batch):
    """Though the next log line, which would show it, is far away."""
    for _ in range(2):  # the second start goes on, to the same end
        code, said = train(capfd, tmp_path)
        assert code == 1
        assert ('or the weights are not finite at step 6' in said.splitlines()[-1]
                and 'the last checkpoint is of step 4' in said.splitlines()[-1])
        assert assert_all_finite(tmp_path) == [2, 4]
    assert 'resume: from step 4' in said


def test_a_rate_that_diverges_leaves_no_checkpoint_of_it(tmp_path, capfd):
    code, said = train(capfd, tmp_path, '--config.optimizer.name=sgd', '--config.schedule.lr=1e30',
                       '--config.optimizer.clip_norm=0', '--config.schedule.warmup.percent=0')
    assert code == 1
    assert 'not finite' in said.splitlines()[-1] and 'lower config.schedule.lr' in said
    assert_all_finite(tmp_path)
