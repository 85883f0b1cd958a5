"""The training step against a plain calculation, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import models
from configs import common
from train_lib.losses.losses import cross_entropy
from train_lib.optim.optimizers import decay_mask, make_optimizer
from train_lib.training.state import Weights, make_state
from train_lib.training.step import (
    StepOptions,
    make_eval_step,
    make_normalise,
    make_train_step,
    split_model,
)

HEADS = ('class',)


def pieces(name='small_cnn', seed=0, **settings):
    model = models.create_model(name, num_classes=3, rngs=nnx.Rngs(0), **settings)
    graphdef, params, batch_stats = split_model(model)
    optimizer = make_optimizer(common.get_config().optimizer.to_dict())
    normalise = make_normalise((0.5,) * 3, (0.5,) * 3, jnp.float32)
    step = make_train_step(graphdef, optimizer, lambda step: 0.01, normalise,
                           StepOptions(heads=HEADS, seed=seed))
    return graphdef, normalise, step, make_state(Weights(params, {}, batch_stats), optimizer,
                                                 HEADS)


def batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {'image': rng.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8),
            'label/class': rng.integers(0, 3, size).astype(np.int32)}


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_cross_entropy_is_optax_s(smoothing):
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(size=(6, 4)), jnp.float32)
    labels = jnp.array([0, 1, 2, 3, -1, 1])
    weights = jnp.array([1, 2, 1, 1, 5, 0.5])
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 4), smoothing)
    each = optax.softmax_cross_entropy(logits, targets)[jnp.array([0, 1, 2, 3, 5])]
    kept = weights[jnp.array([0, 1, 2, 3, 5])]
    np.testing.assert_allclose(cross_entropy(logits, labels, weights, smoothing),
                               jnp.sum(each * kept) / kept.sum(), rtol=1e-6)


def test_unlabelled_batches_cost_nothing():
    assert cross_entropy(jnp.ones((2, 3)), jnp.array([-1, -1])) == 0


def test_normalisation():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    found = make_normalise((0.5, 0.4, 0.3), (0.5, 0.2, 0.1), jnp.float32)(images)
    expected = (images / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.5, 0.2, 0.1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_loss_falls_and_the_statistics_move():
    _, _, step, state = pieces()
    before = jax.tree.leaves(jax.device_get(state.batch_stats))
    losses = []
    for _ in range(10):
        state, loss = step(state, batch())
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    after = jax.tree.leaves(jax.device_get(state.batch_stats))
    assert any((a != b).any() for a, b in zip(before, after))
    assert state.step == 10
    np.testing.assert_allclose(state.metric_sums['loss'], np.sum(losses), rtol=1e-5)
    assert state.metric_sums['labelled/class'] == 80


def test_dropout_is_a_function_of_seed_and_step():
    def first_losses(seed):
        _, _, step, state = pieces('vit_tiny_patch16_224', seed, img_size=32, patch_size=8,
                                   embed_dim=32, depth=2, num_heads=2, drop_path=0.5)
        losses = []
        for _ in range(2):
            state, loss = step(state, batch())
            losses.append(float(loss))
        return losses

    assert first_losses(0) == first_losses(0)
    assert first_losses(0) != first_losses(1)


def test_evaluation_changes_nothing_and_ignores_company():
    graphdef, normalise, _, state = pieces()
    evaluate = make_eval_step(graphdef, normalise, HEADS)
    images = batch()['image']
    whole = evaluate(state.weights, images)['class']
    alone = evaluate(state.weights, images[:1])['class']
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-4, atol=1e-5)


def test_decay_spares_norms_biases_and_embeddings():
    model = models.create_model('vit_tiny_patch16_224', num_classes=3, img_size=32, depth=1,
                                rngs=nnx.Rngs(0))
    _, params, _ = split_model(model)
    mask = decay_mask(params)
    decayed = {jax.tree_util.keystr(path, simple=True, separator='/')
               for path, value in jax.tree_util.tree_flatten_with_path(mask)[0] if value}
    assert decayed == {'patch_embed/proj/kernel', 'blocks/0/attn/qkv/kernel',
                       'blocks/0/attn/proj/kernel', 'blocks/0/mlp/fc1/kernel',
                       'blocks/0/mlp/fc2/kernel', 'head/kernel'}
