"""What a CPU stores, models/stored.py: values and gradients, and that no loop reaches through."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import stored
from tests.models.test_plain_attention import close


@pytest.mark.parametrize('form', [stored.value, stored.gradient])
def test_it_changes_neither_a_value_nor_a_gradient(form):
    x = jax.random.normal(jax.random.key(0), (4, 5))
    plain = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(x) ** 2))
    kept = jax.jit(jax.value_and_grad(lambda x: jnp.sum(form(jnp.sin(form(x))) ** 2)))
    close(kept(x), plain(x))
    assert np.isnan(kept(x.at[0, 0].set(jnp.nan))[1][0, 0])
    assert np.isfinite(kept(x.at[0, 0].set(jnp.nan))[1][1:]).all()


def widest_loop(blocks: int, form) -> int:
    """Arrays that the widest fused loop reads in the gradient of a residual stream."""
    def loss(x):
        for _ in range(blocks):
            x = form(x)
            x = x + jnp.tanh(x - jnp.mean(x, -1, keepdims=True))
        return jnp.sum(x ** 2)

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((64, 256))).compile().as_text()
    return max(len(re.findall(r'%', line.split(' fusion(')[1].split('), kind')[0]))
               for line in text.splitlines() if ' fusion(' in line and 'kind=kLoop' in line)


def test_the_gradient_of_a_residual_stream_is_not_computed_anew_in_each_block():
    assert widest_loop(12, stored.gradient) <= 8
    assert widest_loop(12, lambda x: x) > 12  # else XLA has learned it, and stored.py can go
