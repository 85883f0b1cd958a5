"""Optimizers: directions against plain calculations, and which parameters are treated how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from train_lib.errors import ConfigError
from train_lib.optimizers import make_optimizer


def make(**settings):
    return make_optimizer(common.get_config().optimizer.to_dict()
                          | {'weight_decay': 0.0, 'clip_norm': 0.0} | settings)


def directions(optimizer, params, gradients):
    state, found = optimizer.init(params), []
    for gradient in gradients:
        update, state = jax.jit(optimizer.update)(gradient, state, params)
        found.append(update)
    return found


def test_sgd_with_nesterov_momentum():
    found = directions(make(name='sgd', momentum=0.5, nesterov=True), {'bias': jnp.zeros(1)},
                       [{'bias': jnp.array([1.0])}, {'bias': jnp.array([2.0])}])
    # velocity 1, then 2.5; Nesterov looks half a velocity ahead
    np.testing.assert_allclose([float(update['bias'][0]) for update in found], [1.5, 3.25])


def test_adamw_s_first_step_is_the_sign():
    found, = directions(make(name='adamw'), {'bias': jnp.zeros(3)},
                        [{'bias': jnp.array([3.0, -0.01, 0.5])}])
    np.testing.assert_allclose(found['bias'], [1, -1, 1], rtol=1e-5)


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


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match='adamm'):
        make(name='adamm')
