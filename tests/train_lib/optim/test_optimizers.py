"""Optimizers: directions against plain calculations, and which parameters are treated how."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from train_lib.optim.optimizers import OPTIMIZERS, make_optimizer
from train_lib.runtime.errors import ConfigError


def make(stacked=False, **settings):
    return make_optimizer(common.get_config().optimizer.to_dict()
                          | {'weight_decay': 0.0, 'clip_norm': 0.0} | settings, stacked=stacked)


def directions(optimizer, params, gradients):
    state, found = optimizer.init(params), []
    for gradient in gradients:
        update, state = jax.jit(optimizer.update)(gradient, state, params)
        found.append(update)
    return found


RATE, STEPS = 0.05, 20
TORCH = {
    'sgd': ('SGD', dict(momentum=0.9), dict(momentum=0.9, nesterov=False)),
    'sgd nesterov l2': ('SGD', dict(momentum=0.9, nesterov=True, weight_decay=0.1),
                        dict(weight_decay=0.1, decay='coupled')),
    'rmsprop': ('RMSprop', dict(eps=1e-2), dict(momentum=0.0, eps=1e-2)),
    'rmsprop momentum l2': ('RMSprop', dict(alpha=0.9, momentum=0.5, weight_decay=0.1),
                            dict(alpha=0.9, momentum=0.5, weight_decay=0.1, decay='coupled')),
    'adam l2': ('Adam', dict(betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1),
                dict(b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.1, decay='coupled')),
    'adamw': ('AdamW', dict(weight_decay=0.1), dict(weight_decay=0.1)),
    'nadam': ('NAdam', {}, dict(momentum_decay=0.004)),
    'nadam l2': ('NAdam', dict(betas=(0.999, 0.999), momentum_decay=0.1, weight_decay=0.1),
                 dict(b1=0.999, momentum_decay=0.1, weight_decay=0.1, decay='coupled')),
    'nadamw': ('NAdam', dict(weight_decay=0.1, decoupled_weight_decay=True),
               dict(momentum_decay=0.004, weight_decay=0.1)),
}


def quadratic():
    """A start [3, 4], and curvatures and minima [20, 3, 4] that change from step to step."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(3, 4)), rng.uniform(0.1, 2.0, (STEPS, 3, 4)),
            rng.normal(size=(STEPS, 3, 4)))


@pytest.mark.parametrize('case', TORCH)
def test_twenty_steps_as_torch_takes_them(case):
    torch = pytest.importorskip('torch')
    theirs, their_settings, ours = TORCH[case]
    start, curvatures, minima = quadratic()
    weight = torch.nn.Parameter(torch.tensor(start))  # float64: the difference is ours
    peer = getattr(torch.optim, theirs)([weight], lr=RATE, **their_settings)
    optimizer = make(name=case.split()[0], **ours)
    params = {'kernel': jnp.asarray(start, jnp.float32)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for curvature, minimum in zip(curvatures, minima):
        weight.grad = torch.tensor(curvature) * (weight.detach() - torch.tensor(minimum))
        peer.step()
        gradient = jnp.asarray(curvature, jnp.float32) * (params['kernel'] - minimum)
        change, state = update({'kernel': gradient}, state, params)
        params = {'kernel': params['kernel'] - RATE * change['kernel']}
        expected = weight.detach().numpy() - start
        difference = np.linalg.norm(np.asarray(params['kernel'], np.float64) - start - expected)
        assert difference <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(('name', 'peer'), [
    # b2 = 0.9, as optax's 1 - b2^t is exact to 1e-5 only for one near 1
    ('nadam', optax.nadam(1.0, b2=0.9)), ('nadamw', optax.nadamw(1.0, b2=0.9, weight_decay=0.1)),
    ('lion', optax.lion(1.0, b2=0.9, weight_decay=0.1)),
    ('lamb', optax.lamb(1.0, b2=0.9, eps=1e-8, weight_decay=0.1)),
])
def test_directions_as_optax_has_them(name, peer):
    params = {'kernel': jnp.arange(1.0, 13.0).reshape(3, 4)}
    gradients = [{'kernel': jnp.asarray(one, jnp.float32)} for one in quadratic()[2][:3]]
    ours = directions(make(name=name, b2=0.9, weight_decay=0.0 if name == 'nadam' else 0.1),
                      params, gradients)
    for mine, theirs in zip(ours, directions(peer, params, gradients)):
        np.testing.assert_allclose(mine['kernel'], -theirs['kernel'], rtol=1e-5, atol=1e-5)


def test_sgd_with_nesterov_momentum():
    found = directions(make(name='sgd', momentum=0.5, nesterov=True), {'bias': jnp.zeros(1)},
                       [{'bias': jnp.array([1.0])}, {'bias': jnp.array([2.0])}])
    # velocity 1, then 2.5; Nesterov looks half a velocity ahead
    np.testing.assert_allclose([float(update['bias'][0]) for update in found], [1.5, 3.25])


def test_adamw_s_first_step_is_the_sign():
    found, = directions(make(name='adamw'), {'bias': jnp.zeros(3)},
                        [{'bias': jnp.array([3.0, -0.01, 0.5])}])
    np.testing.assert_allclose(found['bias'], [1, -1, 1], rtol=1e-5)


def test_coupled_decay_comes_after_clipping_as_in_torch():
    """torch: clip_grad_norm_ makes the gradient [0.6, 0.8] of [3, 4], then SGD adds the decay."""
    params = {'kernel': jnp.array([[10.0, -20.0]])}
    gradients = [{'kernel': jnp.array([[3.0, 4.0]])}]
    settings = dict(name='sgd', momentum=0.0, weight_decay=0.1, decay='coupled', clip_norm=1.0)
    found, = directions(make(**settings), params, gradients)
    np.testing.assert_allclose(found['kernel'], [[1.6, -1.2]], rtol=1e-6)
    older, = directions(make(**settings, clip_first=False), params, gradients)
    np.testing.assert_allclose(older['kernel'], np.array([[4.0, 2.0]]) / np.sqrt(20), rtol=1e-6)
    for more in (dict(clip_value=0.5), dict(clip_adaptive=0.01)):
        found, = directions(make(**settings | dict(clip_norm=0.0) | more), params, gradients)
        free, = directions(make(**settings | dict(clip_norm=0.0, weight_decay=0.0) | more), params,
                           gradients)
        np.testing.assert_allclose(found['kernel'], free['kernel'] + 0.1 * params['kernel'],
                                   rtol=1e-6)


def test_coupled_decay_goes_through_the_momentum():
    optimizer = make(name='sgd', momentum=0.5, nesterov=False, weight_decay=0.1, decay='coupled')
    params = {'kernel': jnp.full((2, 2), 10.0)}
    found = directions(optimizer, params, [{'kernel': jnp.ones((2, 2))}] * 2)
    np.testing.assert_allclose([update['kernel'][0, 0] for update in found], [2, 3])
    with pytest.raises(ConfigError, match=r'optimizer\.decay'):
        make(name='sgd', weight_decay=0.1, decay='l2')


def test_decay_is_added_to_the_direction_of_kernels():
    params = {'a': {'kernel': jnp.full((2, 2), 10.0), 'bias': jnp.full(2, 10.0)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, = directions(make(name='sgd', weight_decay=0.1), params, [zeros])
    np.testing.assert_allclose(found['a']['kernel'], 1.0)
    np.testing.assert_allclose(found['a']['bias'], 0.0)


def test_clipping():
    found, = directions(make(name='sgd', momentum=0.0, clip_norm=1.0), {'bias': jnp.zeros(2)},
                        [{'bias': jnp.array([30.0, 40.0])}])
    np.testing.assert_allclose(found['bias'], [0.6, 0.8], rtol=1e-6)


def test_clipping_by_value():
    found, = directions(make(name='sgd', momentum=0.0, clip_value=2.0), {'bias': jnp.zeros(3)},
                        [{'bias': jnp.array([30.0, -4.0, 1.0])}])
    np.testing.assert_allclose(found['bias'], [2, -2, 1])


def test_adaptive_clipping_by_output_unit():
    params = {'conv': {'kernel': jnp.ones((2, 2, 1, 2)), 'bias': jnp.zeros(2)},
              'head': {'kernel': jnp.zeros((2, 2))}}
    gradient = {'conv': {'kernel': jnp.ones((2, 2, 1, 2)) * jnp.array([0.01, 10.0]),
                         'bias': jnp.array([3.0, 4.0])},
                'head': {'kernel': jnp.full((2, 2), 100.0)}}
    found, = directions(make(name='sgd', momentum=0.0, clip_adaptive=0.1), params, [gradient])
    np.testing.assert_allclose(found['conv']['kernel'][0, 0, 0], [0.01, 0.1], rtol=1e-6)
    np.testing.assert_allclose(found['conv']['bias'], [0.6e-4, 0.8e-4], rtol=1e-6)
    np.testing.assert_allclose(found['head']['kernel'], 100.0)


@pytest.mark.parametrize('settings', [dict(name='lamb', weight_decay=0.1),
                                      dict(name='sgd', clip_adaptive=0.1)])
def test_layers_of_a_stack_are_treated_one_by_one(settings):
    rng = np.random.default_rng(1)
    params, gradient = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree) for tree in
                        [{'blocks': {'kernel': rng.normal(size=(2, 3, 4)) * [[[1]], [[9]]],
                                     'bias': rng.normal(size=(2, 4))}} for _ in range(2)])
    stacked, = directions(make(stacked=True, **settings), params, [gradient])
    for i in range(2):
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (params, gradient)]
        one, = directions(make(**settings), layers[0], layers[1:])
        for name, leaf in one['blocks'].items():
            np.testing.assert_allclose(stacked['blocks'][name][i], leaf, rtol=1e-5)


def test_lamb_leaves_biases_as_adam_has_them():
    params = {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.full(2, 3.0)}
    found, = directions(make(name='lamb'), params, [jax.tree.map(jnp.ones_like, params)])
    np.testing.assert_allclose(found['bias'], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found['kernel'], 3.0, rtol=1e-5)


@pytest.mark.parametrize('shape', [(16, 32), (3, 3, 4, 20)])
def test_muon_makes_kernels_orthogonal_and_leaves_heads_to_adam(shape):
    rng = np.random.default_rng(0)
    params = {'block': {'kernel': jnp.zeros(shape), 'bias': jnp.zeros(4)},
              'head': {'kernel': jnp.zeros((4, 4))}}
    gradient = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape), jnp.float32),
                            params)
    found, = directions(make(name='muon'), params, [gradient])
    matrix = np.asarray(found['block']['kernel']).reshape(-1, shape[-1])
    values = np.linalg.svd(matrix, compute_uv=False)
    assert values.min() > 0.5 * values.max()  # five Newton-Schulz steps are not exact
    raw = np.asarray(gradient['block']['kernel']).reshape(matrix.shape)
    assert np.sum(matrix * raw) > 0
    assert np.sqrt(np.mean(matrix ** 2)) == pytest.approx(0.2, rel=0.35)
    for path in (('block', 'bias'), ('head', 'kernel')):
        update, sign = found[path[0]][path[1]], np.sign(gradient[path[0]][path[1]])
        np.testing.assert_allclose(update, 1.4737 * sign, rtol=1e-3)  # Adam, looking ahead


@pytest.mark.parametrize('settings, words', [
    (dict(name='adamm'), "'adamm': did you mean adam"),
    (dict(name='xyz'), ', '.join(OPTIMIZERS)),
    (dict(decay='couple'), 'did you mean coupled or decoupled'),
    (dict(name='nadamw', decay='coupled', weight_decay=0.1), r'optimizer\.name=nadam\.'),
    (dict(clip_value=-1.0), r'clip_value = -1\.0'),
    (dict(b2=1.0), r'b2 = 1\.0'),
    (dict(name='adam', momentum_decay=0.004), 'adam does not use it'),
    (dict(name='nadam', momentum_decay='fast'), "momentum_decay = 'fast'"),
])
def test_mistakes_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        make(**settings)
