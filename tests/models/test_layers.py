"""Shared layers: dropout, drop path, initialisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from models import ModelError, create_model, eval_view
from models.layers import ACTIVATIONS, Dropout, drop_path_rates, normal

infer = jax.jit(lambda model, x: eval_view(model)(x))
train = jax.jit(
    lambda model, x, seed: model(x, rngs=nnx.Rngs(dropout=jax.random.key(seed))))


def test_drop_path_keeps_or_drops_whole_examples_and_keeps_the_mean():
    drop = Dropout(0.3, per_example=True)
    y = np.asarray(drop(jnp.ones((4000, 3, 2)), nnx.Rngs(dropout=0)))
    assert (y == y[:, :1, :1]).all()
    kept = y[:, 0, 0] > 0
    assert np.allclose(y[kept], 1 / 0.7)
    # 4,000 draws at rate .3: the standard deviation of the fraction is .0072
    assert abs(kept.mean() - 0.7) < 5 * 0.0072


def test_dropout_draws_each_entry_and_keeps_the_dtype():
    y = Dropout(0.5)(jnp.ones((10, 1000), jnp.bfloat16), nnx.Rngs(dropout=0))
    assert y.dtype == jnp.bfloat16
    kept = (np.asarray(y, np.float32) > 0).mean(-1)
    assert (abs(kept - 0.5) < 0.1).all()
    assert kept.std() > 0


def test_two_layers_draw_differently_from_one_rngs():
    rngs, x = nnx.Rngs(dropout=0), jnp.ones((8, 100))
    assert not np.array_equal(Dropout(0.5)(x, rngs), Dropout(0.5)(x, rngs))


@given(last=st.floats(0, 0.9), depth=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_drop_path_rates_rise_in_equal_steps_from_zero(last, depth):
    rates = drop_path_rates(last, depth)
    assert len(rates) == depth
    assert rates[0] == 0
    assert np.allclose(np.diff(rates), last / (depth - 1))


@pytest.mark.parametrize('kwargs', [
    dict(drop_path=0.5), dict(drop_rate=0.1), dict(attn_drop_rate=0.1), dict(proj_drop_rate=0.1),
    dict(pos_drop_rate=0.1)])
def test_each_rate_needs_a_key_in_training_and_is_off_in_inference(kwargs):
    sizes = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    model = create_model('vit_tiny_patch16_224', 3, rngs=nnx.Rngs(0), **sizes, **kwargs)
    plain = create_model('vit_tiny_patch16_224', 3, rngs=nnx.Rngs(0), **sizes)
    x = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
    with pytest.raises(ModelError, match=r'rngs=nnx\.Rngs\(dropout=key\)'):
        model(x)
    a, b, c = (train(model, x, seed) for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.allclose(infer(model, x), infer(plain, x), atol=1e-6)


def test_gelu_is_exact():
    # 0.5 * x * (1 + erf(x / sqrt(2))); the tanh form gives .841192 at 1.
    assert np.isclose(ACTIVATIONS['gelu'](1.0), 0.8413447, atol=1e-6)


def test_initial_values_have_the_given_standard_deviation_and_depend_on_the_key():
    init = normal(0.02)
    a, b = (np.asarray(init(jax.random.key(seed), (150, 70))) for seed in (0, 1))
    assert abs(a.std() / 0.02 - 1) < 0.04
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05
    # He: 2 / fan_out, which is 3 * 3 * 64 for this kernel
    he = np.asarray(normal()(jax.random.key(0), (3, 3, 16, 64)))
    assert abs(he.std() / np.sqrt(2 / 576) - 1) < 0.04


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_gelu_keeps_small_values_in_half_precision(dtype):
    x = jnp.asarray([-4.0, -3.0, -2.5], dtype)
    exact = [-1.267e-4, -4.050e-3, -1.5524e-2]  # x times the normal distribution function
    # By 1 + erf they are -0 and up to 45 % off.
    np.testing.assert_allclose(ACTIVATIONS['gelu'](x).astype(float), exact, rtol=0.1)
