"""Models with random weights as `read_models` gives them, without a training."""

import zlib
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import models
from configs import common
from input_pipeline.pictures import PreprocessSpec
from train_lib.serving.trained_models import TrainedModel
from train_lib.training.network import make_model

CLASSES = ('ash', 'birch', 'cedar', 'dogwood', 'elm')


def random_values(model, seed: int = 0) -> None:
    """Fills a model, abstract or not, with values that keep activations near 1."""
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        name = '/'.join(map(str, path))
        rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
        value = rng.standard_normal(variable.shape).astype(np.float32)
        kind = str(path[-1])
        if kind in ('scale', 'var'):
            value = 1 + 0.1 * np.abs(value)
        elif kind == 'kernel':
            value /= np.sqrt(np.prod(variable.shape[:-1]))
        else:
            value *= 0.1
        variable.set_value(jax.numpy.asarray(value))


def by_recipe(name: str, *, size=64, precision='float32', offsets=None, prepare=None,
              classes=None, **settings) -> TrainedModel:
    """The TrainedModel of `create_model(name, **settings)` for pictures of `size`.

    Args:
        offsets: of the logits; None for none.
        prepare: settings of PreprocessSpec.
        classes: {head: names}.
    """
    config = common.get_config()
    config.image.size, config.precision = size, precision
    config.model = dict(name=name, **settings)
    classes = classes or {'class': CLASSES}
    model = nnx.eval_shape(lambda: make_model(config, classes, jax.devices()[0]))
    random_values(model)
    channels = settings.get('in_channels', 3)
    spec = PreprocessSpec(size=size, **dict(
        mean=(0.4, 0.5, 0.6, 0.5)[:channels], std=(0.2, 0.25, 0.3, 0.5)[:channels],
    ) | (prepare or {}))
    zeros = {head: np.zeros(len(names), np.float32) for head, names in classes.items()}
    return TrainedModel(Path('/nowhere/run'), config, classes, spec, models.eval_view(model),
                        offsets or zeros, 12, 'digest')


def pictures(trained: TrainedModel, count: int) -> np.ndarray:
    """Random pictures, uint8 [count, H, W, C]."""
    shape = (count, *trained.preprocess.frame, trained.preprocess.channels)
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)
