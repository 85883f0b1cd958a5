"""The forms for CPUs of attention and of a linear layer's product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention, matrix_product, plain_attention


def close(ours, theirs, rtol=2e-6):
    """Compares trees by their largest entries."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(jnp.max(jnp.abs(b))))


def with_gradients(function, *arrays):
    output, pull = jax.vjp(function, *arrays)
    return output, pull(jnp.cos(jnp.arange(output.size, dtype=output.dtype)).reshape(output.shape))


@pytest.mark.parametrize('shape', [(2, 17, 3, 8), (1, 1, 1, 4), (3, 5, 2, 1)])
@pytest.mark.parametrize('size', [1.0, 5.0])  # 5: some weights are close to one
def test_attention_is_that_of_jax(shape, size):
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [size * jax.random.normal(key, shape) for key in keys]
    theirs = with_gradients(lambda *x: jax.nn.dot_product_attention(*x, implementation='xla'),
                            *arrays)
    close(with_gradients(plain_attention.attention, *arrays), theirs, 1e-5)


def test_scores_too_large_for_exp_are_no_trouble():
    q, v = jnp.full((1, 2, 1, 4), 1e3), jnp.ones((1, 2, 1, 4))
    assert np.isfinite(with_gradients(plain_attention.attention, q, q, v)[0]).all()


@pytest.mark.parametrize('dtype, is_plain', [(jnp.float32, True), (jnp.bfloat16, False)])
@pytest.mark.parametrize('impl', ['auto', 'xla'])
def test_only_float32_on_a_cpu_has_this_form(dtype, is_plain, impl):
    x = jnp.ones((16, 16, 1, 8), dtype)
    text = jax.jit(lambda x: attention.attend(x, x, x, impl=impl)).lower(x).as_text(
        debug_info=True)
    assert ('models/plain_attention.py' in text) == is_plain
    for_tpu = jax.jit(lambda x: attention.attend(x, x, x, impl=impl)).trace(x).lower(
        lowering_platforms=('tpu',)).as_text(debug_info=True)
    assert 'models/plain_attention.py' not in for_tpu


@pytest.mark.parametrize('a, b', [(3, 8), (8, 3), (4, 4)])
def test_a_product_and_its_gradients(a, b):
    x = jax.random.normal(jax.random.key(0), (300, a))
    kernel = jax.random.normal(jax.random.key(1), (a, b))
    close(jax.jit(lambda x, k: with_gradients(matrix_product.product, x, k))(x, kernel),
          with_gradients(jnp.matmul, x, kernel))


def test_the_narrower_matrix_is_transposed_on_a_cpu():
    def of_kernel(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(matrix_product.product(x, kernel) ** 2))(kernel)

    text = jax.jit(of_kernel).lower(jnp.ones((256, 48)), jnp.ones((48, 16))).compile().as_text()
    assert 'f32[16,48]' in text  # [256, 16] transposed times [256, 48]
