"""What the training step can do besides training: parts of a batch, averages, the guard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from configs import common
from train_lib.losses import losses as losses_module
from train_lib.losses.losses import LossSpec, Mixed, head_loss, total_weight
from train_lib.losses.mixing import make_mixings
from train_lib.optim.optimizers import make_optimizer
from train_lib.runtime.errors import ConfigError
from train_lib.training import step as step_module
from train_lib.training.state import MovingAverage, Weights, make_state, start_of_ema
from train_lib.training.step import (
    StepOptions,
    make_ema_decay,
    make_normalise,
    make_train_step,
    split_model,
)

CLASSES = {'kind': ('a', 'b', 'c'), 'tool': ('x', 'y')}
HEADS = tuple(CLASSES)
WEIGHTED = {'kind': LossSpec(class_weights=(1.0, 5.0, 0.2), label_smoothing=0.1),
            'tool': LossSpec(name='focal', class_weights=(0.3, 2.0))}
VIT = dict(name='vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=1,
           num_heads=2, num_classes={head: len(names) for head, names in CLASSES.items()})
CNN = dict(name='small_cnn', width=4, stages=1, num_classes=VIT['num_classes'])


def make(settings, heads=HEADS, optimizer='sgd', ema=0.0, plateau=False, **options):
    """(step, a function that makes the state before it)"""
    settings = dict(settings)
    model = models.create_model(settings.pop('name'), rngs=nnx.Rngs(0), **settings)
    graphdef, params, batch_stats = split_model(model)
    config = common.get_config().optimizer.to_dict() | dict(
        name=optimizer, momentum=0.0, nesterov=False, clip_norm=0.0, weight_decay=0.0)
    optimizer = make_optimizer(config)
    decay = make_ema_decay(dict(decay=ema, warmup=True))
    step = make_train_step(graphdef, optimizer, lambda step: 1.0,
                           make_normalise((0.5,) * 3, (0.5,) * 3, jnp.float32),
                           StepOptions(heads=heads, seed=0, ema_decay=decay, **options))

    def state():
        return make_state(copied(Weights(params, {}, batch_stats)), optimizer, heads,
                          ema=decay is not None, plateau=plateau)

    return step, state


def batch(size=24, seed=0):
    rng = np.random.default_rng(seed)
    return {'image': rng.integers(0, 256, (size, 16, 16, 3)).astype(np.uint8),
            'label/kind': rng.integers(-1, 3, size).astype(np.int32),
            'label/tool': np.where(np.arange(size) < size // 2, -1,
                                   rng.integers(0, 2, size)).astype(np.int32),
            'weight': rng.uniform(0, 3, size).astype(np.float32)}


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


def same(left, right):
    return all((a == b).all() for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right),
                                              strict=True))


def test_parts_of_a_batch_have_the_gradient_of_the_batch():
    """Mixed pictures, class and example weights, unlabelled examples, two heads: the divisors are
    the batch's.

    In float32; the parts' sums are rounded otherwise, to 2e-6 of the largest gradient.
    """
    mixings = make_mixings(['mixup'], CLASSES, None)
    found = {}
    for parts in (1, 4):
        step, state = make(VIT, accumulate=parts, losses=WEIGHTED, mixings=mixings,
                           head_weights=(1.0, 0.5))
        before = jax.device_get(state().params)
        after, loss = step(state(), batch())
        gradient = jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params))
        found[parts] = gradient, loss, after.metric_sums
    whole, parts = found[1], found[4]
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[0]))
    for a, b in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(parts[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * scale)
    np.testing.assert_allclose(whole[1], parts[1], rtol=2e-6)
    for name, value in whole[2].items():
        np.testing.assert_allclose(value, parts[2][name], rtol=2e-6, err_msg=name)


def test_parts_are_of_equal_size_and_hold_every_example_once():
    parts = step_module._in_parts(jnp.arange(24), 4)
    assert parts.shape == (4, 6)
    assert sorted(np.ravel(parts)) == list(range(24))
    # Split over 3 devices, each part takes from every device the same number of its own.
    assert all((np.bincount(np.asarray(part) // 8) == 2).all() for part in parts)


@pytest.mark.parametrize('spec', WEIGHTED.values(), ids=WEIGHTED)
def test_the_weight_of_a_batch_is_what_its_losses_are_divided_by(spec):
    classes = len(spec.class_weights)
    rng = np.random.default_rng(1)
    logits = jnp.array(rng.normal(size=(8, classes)), jnp.float32)
    labels = jnp.array(rng.integers(-1, classes, 8))
    dense = jnp.array(rng.uniform(0, 1, (8, classes)), jnp.float32)
    weights = jnp.array(rng.uniform(0, 2, 8), jnp.float32)
    mixed = Mixed(labels, labels[::-1], jnp.array(rng.uniform(0, 1, 8), jnp.float32))
    factors = np.array(spec.class_weights)
    for targets, given in ((labels, weights), (labels, None), (dense, weights), (mixed, weights),
                           (mixed, jnp.stack([weights, weights[::-1]], axis=1))):
        spread = np.asarray(losses_module._dense(targets, given, classes), np.float64)
        np.testing.assert_allclose(total_weight(spec, targets, given), (spread * factors).sum(),
                                   rtol=1e-6)
        halves = [jax.tree.map(lambda leaf, i=i: leaf[i::2], (logits, targets, given))
                  for i in range(2)]
        total = total_weight(spec, targets, given)
        np.testing.assert_allclose(sum(head_loss(spec, *half, divisor=total) for half in halves),
                                   head_loss(spec, logits, targets, given), rtol=1e-6)


@pytest.fixture(scope='module')
def averaged():
    """A CNN's step with a moving average and a factor, and its states before and after 3 steps."""
    step, state = make(CNN, optimizer='adam', ema=0.5, plateau=True)
    states = [state()]
    for i in range(3):
        states.append(step(copied(states[-1]), batch(seed=i))[0])
    return step, states


def test_the_average_of_weights_and_statistics(averaged):
    _, states = averaged
    expected = start_of_ema(states[0])
    for t, state in enumerate(states[1:]):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected,
                                MovingAverage(state.params, state.batch_stats))
    assert jax.tree.leaves(expected.batch_stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 expected, states[-1].ema)
    weights = states[-1].weights
    assert same(weights.params, states[-1].ema.params)
    assert same(weights.batch_stats, states[-1].ema.batch_stats)
    assert not same(weights.params, states[-1].params)


def test_a_decay_is_below_1():
    assert make_ema_decay(dict(decay=0.0, warmup=True)) is None
    assert make_ema_decay(dict(decay=0.9, warmup=False))(0) == 0.9
    np.testing.assert_allclose(make_ema_decay(dict(decay=0.9, warmup=True))(0), 0.1)
    with pytest.raises(ConfigError, match=r'config\.ema\.decay = 1\.0'):
        make_ema_decay(dict(decay=1.0, warmup=True))


def test_the_factor_of_the_plateau_multiplies_the_rate(averaged):
    step, (start, plain, *_) = averaged
    lower, _ = step(copied(start).replace(lr_factor=jnp.float32(0.25)), batch())
    assert lower.lr_factor == 0.25
    jax.tree.map(lambda start, a, b: np.testing.assert_allclose(0.25 * (a - start), b - start,
                                                                rtol=1e-3, atol=1e-6),
                 start.params, plain.params, lower.params)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counter(averaged, monkeypatch):
    bad = {1: lambda loss: jnp.nan,
           # The value is the loss as it was; its gradient is 0 x infinity.
           2: lambda loss: loss + jnp.sqrt(loss * 0),
           # A finite gradient of 1e30 has an infinite square, in Adam's moments.
           3: lambda loss: loss * 1e30}

    def harmed(spec, logits, targets, weights, step, divisor=None):
        loss = head_loss(spec, logits, targets, weights, step, divisor)
        for at, harm in bad.items():
            loss = jax.lax.cond(step == at, harm, lambda loss: loss, loss)
        return loss

    monkeypatch.setattr(step_module, 'head_loss', harmed)
    step, state = make(CNN, optimizer='adam', ema=0.5, guarded=True)
    first, loss = step(state(), batch())
    assert np.isfinite(loss)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 first.params, averaged[1][1].params)
    after = copied(first)
    for number in bad:
        after, loss = step(after, batch(seed=number))
        assert np.isnan(loss), number
        assert after.step == number + 1
        assert same(first.replace(step=after.step), after), number
    last, loss = step(copied(after), batch(seed=4))
    assert np.isfinite(loss)
    assert last.metric_sums['steps'] == 2
    assert not same(last.params, after.params)


def test_weights_of_examples_count_until_rows_are_drawn_by_them():
    whole = batch()
    plain = whole | dict(weight=np.ones_like(whole['weight']))
    (with_end, state), (usual, _) = make(CNN, weights_end=1), make(CNN)
    first, loss = with_end(state(), whole)
    wanted, wanted_loss = usual(state(), whole)
    assert loss == wanted_loss and same(first.params, wanted.params)
    second, third = (step(copied(first), what)[1] for step, what in (
        (with_end, whole), (usual, plain)))
    np.testing.assert_allclose(second, third, rtol=1e-6)
    assert abs(second - usual(copied(first), whole)[1]) > 1e-3


def test_the_guard_is_found_once_and_not_in_every_loop_that_obeys_it():
    """Of a chain of `and` XLA's CPU backend makes a copy for each array: 40 x 40 x 2 of them."""
    def step(old, gradient):
        new = [a - b * a for a, b in zip(old, gradient)]
        finite = step_module.is_finite((new, gradient))
        return [jnp.where(finite, a, b) for a, b in zip(new, old)]

    arrays = [np.ones((4, 2 + k % 3), np.float32) for k in range(40)]
    compiled = jax.jit(step).lower(arrays, arrays).compile()
    assert compiled.as_text().count(' and(') < 10 * len(arrays)
    for spoilt in (None, 0, 39):
        gradient = [np.full_like(array, np.nan if k == spoilt else 0.5)
                    for k, array in enumerate(arrays)]
        wanted = 1.0 if spoilt is not None else 0.5
        assert all((np.asarray(array) == wanted).all() for array in compiled(arrays, gradient))


@pytest.mark.parametrize(('platform', 'parts', 'loops'), [
    ('cpu', 4, 0), ('cpu', 24, 1), ('tpu', 4, 1)])
def test_parts_of_a_batch_are_no_loop_on_a_cpu(platform, parts, loops):
    """In a loop its convolutions are slow; too many parts would take too long to compile."""
    step, state = make(CNN, accumulate=parts)
    traced = step.trace(state(), batch())
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count('stablehlo.while') == loops


def test_one_part_of_a_batch_is_in_memory_at_a_time():
    sizes = []
    for parts in (1, 4):
        step, state = make(CNN, accumulate=parts)
        program = step.lower(state(), batch(64)).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.6 * sizes[0]
