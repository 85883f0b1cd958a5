"""BatchNorm statistics that are estimated anew are those of the pictures, whatever was there."""

import jax
import numpy as np
import pytest
from flax import nnx

import main
import models
from configs import common
from input_pipeline import loader
from models.cnn import _space_to_depth
from train_lib.run_dir import checkpoints
from train_lib.runtime.sharding import make_mesh, replicate
from train_lib.runtime.trees import by_path
from train_lib.training.batch_statistics import make_estimate, make_statistics_step
from train_lib.training.data import load_data, split_data
from train_lib.training.preprocess_spec import loader_spec, preprocess_spec
from train_lib.training.run_spec import Inputs
from train_lib.training.state import Weights
from train_lib.training.step import make_normalise, split_model

MODEL = dict(name='small_cnn', width=8, stages=2)


def tiny() -> tuple:
    """(config, training rows, how pictures are prepared and loaded)"""
    config = common.get_config()
    config.image.size, config.model, config.split.seed = 16, MODEL, 0
    config.data.doodles.update(classes=3, per_class=20)
    rows = split_data(config, load_data(config)).parts['train']
    return config, rows, Inputs(preprocess_spec(config), loader_spec(config))


def pixels(rows, inputs, count: int) -> np.ndarray:
    """The pictures that count, float32 [count, 16, 16, 3]."""
    chosen = rows.select(np.random.default_rng(0).permutation(len(rows))[:count])
    batch, = loader.eval_dataset(chosen, inputs.preprocess, batch_size=count,
                                 loading=inputs.loading)()
    return ((batch['image'] / 255 - 0.5) / 0.5).astype(np.float32)


def test_they_are_those_of_whole_batches_without_dropout():
    config, rows, inputs = tiny()
    model = models.create_model(**MODEL, num_classes=3, drop_rate=0.5, rngs=nnx.Rngs(0))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):  # what was there before does not count
            module.mean[...] += 7
            module.var[...] *= 9
    model.stages[1][0].bn1.use_running_average = True  # frozen: keeps its own
    graphdef, params, batch_stats = split_model(model)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    weights = replicate(Weights(params, {}, batch_stats), mesh)
    step = make_statistics_step(graphdef, make_normalise((0.5,) * 3, (0.5,) * 3, np.float32))
    estimate = make_estimate(step, mesh, rows, inputs, pictures=len(rows), batch_size=16)
    found, again = by_path(estimate(weights)), by_path(estimate(weights))
    count = len(rows) // 16 * 16
    assert count < len(rows)
    wanted = np.asarray(model.conv1(_space_to_depth(pixels(rows, inputs, count))))
    np.testing.assert_allclose(found['bn1/mean'], wanted.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found['bn1/var'], wanted.var((0, 1, 2)), rtol=0.01)
    before = by_path(batch_stats)
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name])
        frozen = name.startswith('stages/1/0/bn1/')
        assert frozen == np.array_equal(value, before[name]), name


def test_fewer_pictures_than_devices_are_not_enough():
    config, rows, inputs = tiny()
    few = rows.select(np.arange(0))
    assert make_estimate(None, make_mesh(config.mesh), few, inputs, pictures=9,
                         batch_size=4) is None


@pytest.mark.slow
def test_the_moving_average_has_statistics_of_its_own(tmp_path):
    """In the checkpoint that is scored, which other commands read."""
    argv = ['--config=configs/common.py', '--config.image.size=16', f'--config.model={MODEL}',
            '--config.data.doodles.classes=3', '--config.data.doodles.per_class=20',
            '--config.split.seed=0', '--config.batch_size=16', '--config.duration.steps=4',
            '--config.eval.every.steps=2', '--config.log.tensorboard=false',
            '--config.report.heat_maps=false', '--config.ema.decay=0.9',
            '--config.schedule.lr=0.05', '--config.checkpoint.every.steps=2']
    assert main.main([*argv, '--config.ema.statistics=-1', f'--workdir={tmp_path}/no']) == 2
    assert main.main([*argv, '--config.ema.statistics=32', f'--workdir={tmp_path}/run']) == 0
    _, rows, inputs = tiny()
    for step in checkpoints.committed_steps(tmp_path / 'run/checkpoints'):
        stored = checkpoints.read_weights(tmp_path / f'run/checkpoints/{step}')
        found = by_path(stored['params']) | by_path(stored['rest'])
        model = models.create_model(**MODEL, num_classes=3, rngs=nnx.Rngs(0))
        model.conv1.kernel.set_value(found['conv1/kernel'])
        wanted = np.asarray(model.conv1(_space_to_depth(pixels(rows, inputs, 32))))
        np.testing.assert_allclose(found['bn1/mean'], wanted.mean((0, 1, 2)), atol=1e-4)
        np.testing.assert_allclose(found['bn1/var'], wanted.var((0, 1, 2)), rtol=0.02)
