"""create_model and eval_view: names, settings, and how a training step uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models import ModelError, create_model, eval_view, list_models, model_settings
from models.registry import MODELS

SMALL = {
    'small_cnn': dict(width=4, stages=2, drop_rate=0.1, drop_path=0.1),
    'vit_tiny_patch16_224': dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2,
                                 stem='conv', drop_path=0.1),
}
infer = jax.jit(lambda model, x: eval_view(model)(x))
small_models = pytest.mark.parametrize('name', sorted(SMALL))


def small(name, num_classes=3, seed=0):
    return create_model(name, num_classes, rngs=nnx.Rngs(seed), **SMALL[name])


def images(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_an_unknown_name_suggests_the_closest():
    with pytest.raises(ModelError, match=r"'vit_tinny_patch16_224'.*'vit_tiny_patch16_224'"):
        create_model('vit_tinny_patch16_224', rngs=nnx.Rngs(0))
    with pytest.raises(ModelError, match=r'use one of .*small_cnn'):
        create_model('zzz', rngs=nnx.Rngs(0))


@pytest.mark.parametrize('name, wrong, right', [
    ('small_cnn', 'in_chans', 'in_channels'),
    ('vit_tiny_patch16_224', 'drop_path_rate', 'drop_path'),
    ('vit_tiny_patch16_224', 'head_hiden', 'head_hidden'),
])
def test_an_unknown_setting_is_named_with_the_closest(name, wrong, right):
    with pytest.raises(ModelError, match=f"{name}.*'{wrong}'.*'{right}'"):
        create_model(name, 3, rngs=nnx.Rngs(0), **{wrong: 1})


def test_settings_are_those_of_the_name_and_not_of_the_family():
    assert model_settings('vit_tiny_patch16_384')['embed_dim'] == 192
    assert model_settings('vit_tiny_patch16_384')['img_size'] == 384
    assert model_settings('small_cnn')['head'] == 'linear'


def test_every_model_can_be_built_abstractly():
    assert 'small_cnn' in list_models()
    assert len(list_models('vit_huge_patch14_clip_*')) == 5
    families, built = set(), set()
    for name, (family, defaults) in MODELS.items():
        settings = {'depth': 1} if model_settings(name).get('depth') else {}
        # Of transformers those whose options differ in more than sizes; others take seconds.
        options = family, *((key, value) for key, value in defaults.items()
                            if isinstance(value, (str, bool)) or key.endswith('tokens'))
        if (settings and options not in built) or family not in families:
            built.add(options)
            model = nnx.eval_shape(lambda name=name, settings=settings: create_model(
                name, 7, rngs=nnx.Rngs(0), **settings))
            assert model.head.kernel.shape == (model.num_features, 7)
            families.add(family)
    assert families == {family for family, _ in MODELS.values()}


@small_models
def test_same_seed_same_parameters(name):
    same, other = nnx.state(small(name, seed=0)), nnx.state(small(name, seed=1))
    for a, b in zip(jax.tree.leaves(nnx.state(small(name))), jax.tree.leaves(same)):
        assert np.array_equal(a, b)
    assert any(not np.array_equal(a, b)
               for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(other)))


@small_models
def test_all_state_is_parameters_and_batch_statistics_in_float32(name):
    _, params, batch_stats, others = nnx.split(small(name), nnx.Param, nnx.BatchStat, ...)
    assert not jax.tree.leaves(others)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, batch_stats))} == {jnp.dtype('float32')}


@small_models
def test_a_jitted_step_learns_and_updates_the_batch_statistics(name):
    graphdef, params, batch_stats = nnx.split(small(name), nnx.Param, ...)
    x, y = images(8, 16, 16, 3), jnp.arange(8) % 3

    def loss(params, batch_stats, key):
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        logits = model(x, rngs=nnx.Rngs(dropout=key))
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()
        return loss, nnx.state(model, nnx.BatchStat)

    @jax.jit
    def step(params, batch_stats, key):
        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(
            params, batch_stats, key)
        params = jax.tree.map(lambda p, g: p - 0.02 * jnp.sign(g), params, grads)
        return params, batch_stats, value, grads

    first = jax.tree.leaves(batch_stats)
    losses = []
    for i in range(30):
        params, batch_stats, value, grads = step(params, batch_stats, jax.random.key(i))
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert all(not np.array_equal(a, b) for a, b in zip(first, jax.tree.leaves(batch_stats)))
    logits = jax.jit(lambda *state: eval_view(nnx.merge(graphdef, *state))(x))(params, batch_stats)
    assert logits.shape == (8, 3)


@small_models
def test_every_parameter_gets_a_gradient(name):
    # A scale of 0 at the end of a block hides the layers before it, so we start from 1.
    model = small(name)
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] == 'scale':
            param[...] = jnp.ones_like(param[...])
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    x = images(4, 16, 16, 3)

    def total(params, batch_stats):
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        logits = model(x, rngs=nnx.Rngs(dropout=3))
        return (jax.nn.log_softmax(logits) * jnp.arange(3)).sum()

    for path, grad in nnx.to_flat_state(jax.jit(jax.grad(total))(params, batch_stats)):
        assert np.abs(grad[...]).max() > 0, path


@small_models
def test_the_view_shares_variables_and_the_model_stays_in_training_mode(name):
    model = small(name)
    view = eval_view(model)
    x = images(2, 16, 16, 3)
    before = infer(view, x)
    model.head.bias[...] = model.head.bias[...] + 1
    assert np.allclose(infer(view, x), before + 1, atol=1e-6)
    with pytest.raises(ModelError, match='no random key'):
        jax.eval_shape(lambda m, x: m(x), model, x)


@small_models
def test_models_of_one_config_share_a_compiled_step(name):
    assert nnx.graphdef(small(name, seed=0)) == nnx.graphdef(small(name, seed=1))
    assert nnx.graphdef(small(name)) != nnx.graphdef(eval_view(small(name)))


def test_public_names_are_exported():
    assert all(hasattr(models, name) for name in models.__all__)
