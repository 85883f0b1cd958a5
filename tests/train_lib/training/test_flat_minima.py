"""Sharpness-aware gradients and averages of weights: their formulas, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import models
from configs import common
from train_lib.optim.optimizers import make_optimizer
from train_lib.optim.schedules import Tail, make_schedule
from train_lib.optim.sharpness import Sharpness, ascended, read_sharpness
from train_lib.runtime.errors import ConfigError
from train_lib.training.run_spec import Alternating, Programs
from train_lib.training.state import MovingAverage, Weights, make_state
from train_lib.training.step import StepOptions, make_normalise, make_train_step, split_model
from train_lib.training.weight_averages import Averaging, read_averaging

VIT = dict(name='vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=1,
           num_heads=2, num_classes=3)
CNN = dict(name='small_cnn', width=4, stages=1, num_classes=3)
SGD = common.get_config().optimizer.to_dict() | dict(
    name='sgd', momentum=0.0, nesterov=False, clip_norm=0.0, weight_decay=0.0)
NORMALISE = make_normalise((0.5,) * 3, (0.5,) * 3, jnp.float32)


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


def close(left, right, **tolerance):
    tolerance = dict(rtol=2e-5, atol=2e-6) | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


def same(left, right) -> bool:
    return all((a == b).all() for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right),
                                              strict=True))


def batch(size=12, seed=0):
    rng = np.random.default_rng(seed)
    return {'image': rng.integers(0, 256, (size, 16, 16, 3)).astype(np.uint8),
            'label/kind': rng.integers(0, 3, size).astype(np.int32)}


def make(settings, rate=0.1, optimizer=None, **options):
    """(step, a function that makes the state before it, the loss as a function of the weights)"""
    settings = dict(settings)
    model = models.create_model(settings.pop('name'), rngs=nnx.Rngs(0), **settings)
    graphdef, params, batch_stats = split_model(model)
    optimizer, averaging = optimizer or make_optimizer(SGD), options.get('averaging')
    step = make_train_step(graphdef, optimizer, lambda step: jnp.float32(rate), NORMALISE,
                           StepOptions(heads=('kind',), seed=0, **options))

    def state():
        return make_state(copied(Weights(params, {}, batch_stats)), optimizer, ('kind',),
                          ema=averaging is not None,
                          counted=averaging is not None and averaging.counted)

    def loss(params, shown):
        logits = nnx.merge(graphdef, params, batch_stats)(
            NORMALISE(shown['image']), rngs=nnx.Rngs(dropout=0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, shown['label/kind']).mean()

    return step, state, loss


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize('settings', [pytest.param(VIT, marks=pytest.mark.slow), CNN],
                         ids=['vit', 'cnn'])
def test_sam_steps_by_the_gradient_at_the_ascended_weights(settings):
    step, state, loss = make(settings, sharpness=Sharpness('sam', rho=0.3))
    before = copied(state().params)
    after, shown = step(state(), batch())
    first = jax.grad(loss)(before, batch())
    there = jax.tree.map(lambda p, g: p + 0.3 * g / norm(first), before, first)
    second = jax.grad(loss)(there, batch())
    close(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, before, second), atol=1e-5)
    plain_step, plain_state, _ = make(settings)
    plain, plain_loss = plain_step(plain_state(), batch())
    # The loss, the hits and the statistics of BatchNorm are those of the first pass.
    np.testing.assert_allclose(shown, plain_loss, rtol=1e-6)
    close(after.metric_sums, plain.metric_sums)
    close(after.batch_stats, plain.batch_stats)
    moved = jax.tree.map(jnp.subtract, plain.params, after.params)
    assert norm(moved) > 1e-3 * norm(plain.params)


def test_sam_is_that_of_optax():
    """optax.contrib.sam with one ascent per step, SGD inside and outside."""
    step, state, loss = make(VIT, sharpness=Sharpness('sam', rho=0.2))
    ours, params = state(), state().params
    theirs = optax.contrib.sam(optax.sgd(0.1), optax.chain(
        optax.contrib.normalize(), optax.sgd(0.2)), sync_period=2, opaque_mode=True)
    memory = theirs.init(params)
    for seed in range(3):
        shown = batch(seed=seed)
        gradient_of = jax.grad(lambda params, _, shown=shown: loss(params, shown))
        ours, _ = step(ours, shown)
        updates, memory = theirs.update(gradient_of(params, 0), memory, params,
                                        grad_fn=gradient_of)
        params = optax.apply_updates(params, updates)
    close(ours.params, params, atol=1e-5)


def test_asam_measures_in_units_of_the_weights():
    rng = np.random.default_rng(0)
    params = {'a': {'kernel': rng.normal(size=(3, 4)), 'bias': rng.normal(size=4)},
              'b': {'kernel': rng.normal(size=(4, 2))}}
    params, gradient = (jax.tree.map(jnp.float32, tree) for tree in (
        params, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)))
    sizes = {'a': {'kernel': np.abs(params['a']['kernel']) + 0.01, 'bias': np.ones(4)},
             'b': {'kernel': np.abs(params['b']['kernel']) + 0.01}}
    scaled = jax.tree.map(np.multiply, sizes, gradient)
    wanted = jax.tree.map(lambda p, t, g: p + 0.5 * t * g / norm(scaled), params, sizes, scaled)
    close(ascended(Sharpness('asam', 0.5), params, gradient), wanted)
    # A layer 100 times as large, with as much smaller a gradient: its relative move stays.
    scales = {'a': {'kernel': 100.0, 'bias': 1.0}, 'b': {'kernel': 1.0}}
    for kind, keeps in (('asam', True), ('sam', False)):
        moves = []
        for factor in (jax.tree.map(lambda _: 1.0, params), scales):
            there = jax.tree.map(jnp.multiply, params, factor)
            slope = jax.tree.map(jnp.divide, gradient, factor)
            moved = ascended(Sharpness(kind, 0.5), there, slope)
            moves.append((moved['a']['kernel'] - there['a']['kernel']) / there['a']['kernel'])
        error = np.median(np.abs(moves[1] / moves[0] - 1))
        assert (error < 0.1) == keeps, (kind, error)


def test_the_parts_of_a_batch_share_one_ascent():
    found = []
    for parts in (1, 3):
        step, state, _ = make(VIT, sharpness=Sharpness('sam', 0.3), accumulate=parts)
        found.append(step(state(), batch())[0].params)
    close(*found, atol=1e-5)


def test_only_the_steps_that_are_due_take_a_second_gradient():
    due = Sharpness('sam', 0.3, start=2, every=3)
    assert [due.is_due(k) for k in range(9)] == [k in (2, 5, 8) for k in range(9)]
    (always, state, _), plain = make(VIT, sharpness=Sharpness('sam', 0.3)), make(VIT)[0]
    programs = Programs(Alternating(always, plain, due.is_due), None, None, None)
    now = state()
    for k in range(4):
        left, right = (step(copied(now), batch(seed=k))[0].params for step in (always, plain))
        now, _ = programs.at(k)[0](now, batch(seed=k))
        wanted, other = (left, right) if k == 2 else (right, left)
        close(now.params, wanted, atol=1e-6)
        assert norm(jax.tree.map(jnp.subtract, now.params, other)) > 1e-4


def test_what_waits_is_not_ascended():
    head = frozenset(('head/kernel', 'head/bias'))
    optimizer = make_optimizer(SGD, starts=dict.fromkeys(head, ('epochs', 1)))
    step, state, loss = make(VIT, sharpness=Sharpness('sam', 0.3), waiting=head,
                             optimizer=optimizer)
    before = copied(state().params)
    after, _ = step(state(), batch())
    first = jax.grad(loss)(before, batch())
    length = norm({name: leaf for name, leaf in first.items() if name != 'head'})
    there = {name: leaf if name == 'head' else jax.tree.map(
        lambda p, g: p + 0.3 * g / length, leaf, first[name]) for name, leaf in before.items()}
    second = jax.grad(loss)(there, batch())
    assert same(after.params['head'], before['head'])
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, before, second) | dict(head=before['head'])
    close(after.params, wanted, atol=1e-5)


def test_a_second_gradient_that_is_not_finite_changes_nothing():
    step, state, _ = make(VIT, sharpness=Sharpness('sam', 1e38), guarded=True)
    before = state()
    after, loss = step(copied(before), batch())
    assert np.isnan(loss) and same(before.params, after.params) and after.step == 1


def history(averaging, steps=9, settings=CNN, **options):
    """The states after each step, the first one before them."""
    step, state, _ = make(settings, averaging=averaging, **options)
    states = [state()]
    for k in range(steps):
        states.append(step(copied(states[-1]), batch(seed=k))[0])
    return states


def test_swa_is_the_mean_of_the_weights_that_count():
    states = history(Averaging('swa', start=3, every=2))
    assert jax.tree.leaves(states[0].batch_stats)
    for done, state in enumerate(states[1:], 1):
        weights = state.weights
        if done <= 3:  # before there is a mean, predictions come from the weights themselves
            assert same(weights.params, state.params)
            assert same(weights.batch_stats, state.batch_stats)
            continue
        counted = [states[k] for k in range(3, done + 1, 2)]
        assert state.ema.total == len(counted)
        for name in ('params', 'batch_stats'):
            mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64),
                                *(getattr(one, name) for one in counted))
            close(getattr(weights, name), mean)
    plain_step, plain_state, _ = make(CNN)
    plain = plain_state()
    for k in range(9):
        plain, _ = plain_step(plain, batch(seed=k))
    close(plain.params, states[-1].params)  # the training goes its way without it


def test_swa_leaves_a_step_out_that_changed_nothing():
    """The mean is of the weights there were; a skipped step does not count them twice."""
    step, state, _ = make(CNN, averaging=Averaging('swa', start=1, every=1), guarded=True)
    first, _ = step(state(), batch())
    bad = batch(seed=1) | {'weight': np.full(12, np.nan, np.float32)}
    second, loss = step(copied(first), bad)
    assert np.isnan(loss) and same(second.ema, first.ema) and second.ema.total == 1


def test_lookahead_is_that_of_optax():
    states = history(Averaging('lookahead', every=3, share=0.5), steps=7, settings=VIT)
    _, state, loss = make(VIT)
    params = optax.LookaheadParams.init_synced(state().params)
    theirs = optax.lookahead(optax.sgd(0.1), sync_period=3, slow_step_size=0.5)
    memory = theirs.init(params)
    for k in range(7):
        gradient = jax.grad(loss)(params.fast, batch(seed=k))
        updates, memory = theirs.update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
        close(states[k + 1].params, params.fast, atol=1e-5)
        close(states[k + 1].weights.params, params.slow, atol=1e-5)


def test_schedule_free_is_that_of_optax():
    states = history(Averaging('schedule_free', share=0.9), steps=7, settings=VIT)
    _, state, loss = make(VIT)
    theirs = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9)
    params = state().params
    memory = theirs.init(params)
    for k in range(7):
        gradient = jax.grad(loss)(params, batch(seed=k))
        updates, memory = theirs.update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
        close(states[k + 1].params, memory.z, atol=1e-5)
        close(states[k + 1].weights.params,
              optax.contrib.schedule_free_eval_params(memory, params), atol=2e-5)


def test_schedule_free_weighs_by_the_square_of_the_rate():
    averaging, params = Averaging('schedule_free', share=0.9), {'a': jnp.zeros(2)}
    average, points, rates = MovingAverage(params, {}, jnp.float32(0)), [], [0.0, 1.0, 2.0, 0.5]
    for k, rate in enumerate(rates):
        points.append(np.full(2, 3.0 ** k))
        _, average = averaging.after({'a': jnp.float32(points[-1])}, {}, average,
                                     jnp.int32(k + 1), jnp.float32(rate))
    weights = np.square(rates)
    close(average.params['a'], np.average(points, axis=0, weights=weights))


def test_the_rate_of_swa():
    config = common.get_config().schedule.to_dict() | dict(lr=0.2)
    steps = lambda duration, key: duration.get('steps', 0)
    plain = make_schedule(config, 20, steps)
    cyclic = make_schedule(config, 20, steps, tail=Tail(8, 0.5, 0.1, 4))
    constant = make_schedule(config, 20, steps, tail=Tail(8, 0.5, 0.5, 4))
    for k in range(20):
        share = 0.5 + (0.1 - 0.5) * ((k - 8) % 4 + 1) / 4  # Izmailov et al., equation of alpha(i)
        wanted = plain(k) if k < 8 else 0.2 * share
        np.testing.assert_allclose(cyclic(k), wanted, rtol=1e-6)
        np.testing.assert_allclose(constant(k), plain(k) if k < 8 else 0.1, rtol=1e-6)


STEPS = dict(percent=lambda n, total: n * total // 100, steps=lambda n, total: n,
             epochs=lambda n, total: 10 * n)


def to_steps(duration, key):
    (unit, number), = dict(duration).items()
    return STEPS[unit](number, 100)


FREE = {'schedule_free.beta': 0.9, 'optimizer.b1': 0.0, 'schedule.name': 'constant'}


@pytest.mark.parametrize(('changes', 'message'), [
    ({'sharpness.kind': 'smart'}, r"config\.sharpness\.kind = 'smart'"),
    ({'sharpness.kind': 'sam', 'sharpness.rho': 0.0}, r'config\.sharpness\.rho = 0\.0'),
    ({'sharpness.kind': 'sam', 'sharpness.every': 0}, r'config\.sharpness\.every = 0'),
    ({'swa.start': dict(percent=50), 'ema.decay': 0.9}, r'config\.ema\.decay and config\.swa'),
    ({'swa.start': dict(percent=50), 'lookahead.every': 5}, 'one average of the weights'),
    ({'swa.start': dict(percent=100)}, 'that is step 100, and the run has 100'),
    ({'swa.start': dict(steps=5), 'swa.schedule': 'cycle'}, r"config\.swa\.schedule = 'cycle'"),
    ({'swa.start': dict(steps=5), 'swa.lr': 0.0}, r'config\.swa\.lr = 0\.0'),
    ({'swa.start': dict(steps=5), 'schedule.cooldown': dict(steps=3)}, 'cooldown has no effect'),
    ({'swa.start': dict(steps=5), 'swa.statistics': -1}, r'config\.swa\.statistics = -1'),
    ({'lookahead.every': -1}, r'config\.lookahead\.every = -1'),
    ({'lookahead.every': 5, 'lookahead.alpha': 1.5}, r'config\.lookahead\.alpha = 1\.5'),
    (FREE | {'schedule_free.beta': 1.0}, r'config\.schedule_free\.beta = 1\.0'),
    (FREE | {'optimizer.b1': 0.9}, r'config\.optimizer\.b1 = 0\.9: schedule_free'),
    (FREE | {'optimizer.name': 'lion'}, 'not lion'),
    (FREE | {'schedule.name': 'cosine'}, r"config\.schedule\.name='constant'"),
    (FREE | {'finetune.unfreeze': dict(epochs=1)}, 'begin to train later')])
def test_what_contradicts_itself_is_refused(changes, message):
    config = common.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        read_sharpness(config.sharpness.to_dict(), to_steps)
        read_averaging(config, 100, to_steps)
