"""One training step against torch and timm: loss, logits, updates and running statistics.

The reference was computed in float64 (reference/make_train_step.py), so the tolerances cover only
the rounding of our float32.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from timm_reference import FOLDER, by_recipe

from models import create_model
from models.layers import batch_norm
from models.pretrained import load_timm, timm_targets, to_timm, to_torch

sys.path.insert(0, str(FOLDER))
from make_train_step import LEARNING_RATE, MODELS, batch, digest


@jax.jit
def train_step(model, images, labels):
    """(loss, logits, the model with new statistics, and SGD's updates in place of parameters)"""
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss_of(params, statistics):
        model = nnx.merge(graph, params, statistics, copy=True)
        logits = model(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, nnx.state(model, nnx.BatchStat))

    (loss, (logits, after)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, statistics)
    optimizer = optax.sgd(LEARNING_RATE)
    updates, _ = optimizer.update(grads, optimizer.init(params))
    return loss, logits, nnx.merge(graph, updates, after)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * name.startswith(
        ('vit_x', 'vit_g', 'convnext', 'beit', 'efficientnet'))) for name in MODELS])
def test_a_training_step_equals_that_of_torch(name):
    reference = np.load(FOLDER / f'train_{name}.npz', allow_pickle=False)
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **MODELS[name]))
    old = {key: by_recipe(key, to_torch(target.variable.shape), 0)
           for target in timm_targets(model) for key in target.keys}
    load_timm(model, old)
    images, labels = batch()
    with jax.default_matmul_precision('highest'):
        loss, logits, added = train_step(model, images.transpose(0, 2, 3, 1), labels)
    assert abs(loss / reference['loss'] - 1) < 1e-6
    assert np.abs(logits - reference['logits']).max() < 5e-5 * reference['logits'].std()

    added = {key: value - (old[key] if 'running' in key else 0)
             for key, value in to_timm(added).items()}
    assert set(added) == set(reference['keys'].tolist())
    for key, expected in zip(reference['keys'].tolist(), reference['digests']):
        ours, root = digest(added[key]), added[key].size ** 0.5
        # In units of the root mean square of the change. The floor is for biases that the next
        # BatchNorm cancels: their gradient is zero except for rounding.
        unit = expected[1] / root + 1e-5
        assert abs(ours[1] - expected[1]) < 1e-4 * unit * root, f'norm of {key}'
        assert abs(ours[0] - expected[0]) < 3e-4 * unit * root, f'sum of {key}'
        assert np.abs(ours[2:] - expected[2:]).max() < 3e-4 * unit, f'entries of {key}'


def test_the_running_variance_is_unbiased_and_the_output_uses_the_biased_one():
    x = np.random.default_rng(0).normal(2, 3, (3, 1, 2, 4)).astype(np.float32)
    norm = batch_norm(4, rngs=nnx.Rngs(0))
    y = norm(jnp.asarray(x))
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    assert np.allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    assert np.allclose(norm.mean[...], 0.1 * mean, atol=1e-6)
    assert np.allclose(norm.var[...], 0.9 + 0.1 * var * 6 / 5, atol=1e-5)
    norm(jnp.asarray(x[:1, :, :1]))  # one value per channel: its variance is 0, not NaN
    assert np.allclose(norm.var[...], 0.9 * (0.9 + 0.1 * var * 6 / 5), atol=1e-5)
    before = norm.var[...]
    nnx.view(norm, use_running_average=True)(jnp.asarray(x))
    assert np.array_equal(norm.var[...], before)
