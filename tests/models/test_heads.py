"""Heads: one, several, none; linear and mlp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view

infer = jax.jit(lambda model, x: eval_view(model)(x))
train = jax.jit(
    lambda model, x, seed: model(x, rngs=nnx.Rngs(dropout=jax.random.key(seed))))
pooled = jax.jit(lambda model, x: eval_view(model).forward_head(
    eval_view(model).forward_features(x), pre_logits=True))
X = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))


def shape_of(model, x):
    return jax.eval_shape(lambda model, x: model(x), model, x).shape


def small(num_classes, **kwargs):
    return create_model('small_cnn', num_classes, rngs=nnx.Rngs(0), width=4, stages=2, **kwargs)


def paths(model):
    return {'.'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def test_without_a_head_a_model_returns_pooled_features():
    model = small(0)
    features = infer(model, X)
    assert features.shape == (4, model.num_features) == (4, 8)
    with_head = small(3)
    assert np.allclose(features, pooled(with_head, X), atol=1e-6)
    head = with_head.head
    assert np.allclose(infer(with_head, X), features @ head.kernel[...] + head.bias[...],
                       atol=1e-6)
    assert not any('head' in path for path in paths(model))


def test_named_heads_return_a_dict():
    model = small({'mask': 3, 'age': 2})
    logits = infer(model, X)
    assert {name: value.shape for name, value in logits.items()} == {'mask': (4, 3), 'age': (4, 2)}
    assert {'heads.mask.kernel', 'heads.age.bias'} <= paths(model)


def test_mlp_is_linear_act_linear():
    model = small(3, head='mlp', head_hidden=6, head_act='relu')
    features = pooled(model, X)
    first, last = model.head.hidden[0], model.head.out
    hidden = jnp.maximum(features @ first.kernel[...] + first.bias[...], 0)
    assert first.kernel.shape == (8, 6)
    assert np.allclose(infer(model, X), hidden @ last.kernel[...] + last.bias[...], atol=1e-6)


def test_an_mlp_can_have_several_hidden_widths():
    model = small(3, head='mlp', head_hidden=(7, 5))
    assert [layer.kernel.shape for layer in model.head.hidden] == [(8, 7), (7, 5)]
    assert model.head.out.kernel.shape == (5, 3)
    assert shape_of(model, X) == (4, 3)


@pytest.mark.parametrize('head', ['linear', 'mlp'])
def test_zero_init_starts_with_zero_logits(head):
    assert not small(3, head=head, head_init='zeros').head(jnp.ones((2, 8))).any()


@pytest.mark.parametrize('kwargs', [
    dict(drop_rate=0.5), dict(head_dropout=0.5), dict(head='mlp', head_dropout=0.5)])
def test_dropout_of_the_head_acts_in_training_only(kwargs):
    model = small(3, **kwargs)
    once, again, other = (train(model, X, seed) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert np.array_equal(infer(model, X), train(eval_view(model), X, 1))


def test_new_heads_replace_the_old_ones():
    model = small({'a': 2, 'b': 2})
    model.add_heads(7, rngs=nnx.Rngs(1))
    assert shape_of(model, X) == (4, 7)
    assert not any('heads' in path for path in paths(model))


@pytest.mark.parametrize('num_classes, kwargs, words', [
    (-1, {}, 'num_classes=-1'),
    (2.5, {}, 'num_classes=2.5'),
    (True, {}, 'num_classes=True'),
    ({}, {}, 'empty'),
    ({'a': 0}, {}, r"num_classes\['a'\]=0"),
    ({'items': 2}, {}, "'items' cannot be the name"),
    (3, dict(head='mpl'), "'mpl'.*'mlp'"),
    (3, dict(head='mlp', head_act='rellu'), "'rellu'.*'relu'"),
    (3, dict(head='mlp', head_hidden=()), 'head_hidden'),
    (3, dict(head_init='zero'), "'zero'.*'zeros'"),
    (3, dict(drop_rate=1.5), 'drop_rate=1.5'),
])
def test_a_wrong_value_is_named(num_classes, kwargs, words):
    with pytest.raises(ModelError, match=words):
        small(num_classes, **kwargs)
