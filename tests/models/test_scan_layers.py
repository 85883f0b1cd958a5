"""Blocks under a scan and recomputed blocks give the results of plain blocks."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import ModelError, create_model, eval_view
from models.layers import Dropout
from models.pretrained import load_timm, to_timm
from models.scan_layers import run_blocks, stack_blocks, stack_params, unstack_params

TINY = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=4)
NAMES = ('vit_tiny_patch16_224', 'eva02_tiny_patch14_224')
# These share the blocks of EVA-02.
MORE = ('vit_tiny_patch16_dinov3_qkvb', 'beit_base_patch16_224')
OWN = {name: dict(init_values=0.5) for name in MORE}  # so that every gradient is seen
families = pytest.mark.parametrize('name', [
    *NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
X = np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype(np.float32)


def build(name, seed=0, **kwargs):
    return create_model(name, 5, rngs=nnx.Rngs(seed),
                        **{**TINY, **OWN.get(name, {}), **kwargs})


def abstract(name, **kwargs):
    return nnx.eval_shape(lambda: build(name, **kwargs))


def pure(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@functools.cache
def weights(name):
    """Parameters of an unstacked model."""
    return jax.device_get(pure(build(name)))


def loss(params, graphdef):
    logits = nnx.merge(graphdef, params)(X)
    return (jax.nn.log_softmax(logits) * jnp.arange(5)).sum(), logits


# Nearly all of the time is compilation.
graded = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1,
                 compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def outcome(name, **settings):
    """(logits, unstacked gradients) with `weights(name)`."""
    graphdef = nnx.graphdef(abstract(name, **settings))
    params = stack_params(weights(name)) if settings.get('scan') else weights(name)
    (_, logits), gradients = jax.device_get(graded(params, graphdef))
    return logits, unstack_params(gradients) if settings.get('scan') else gradients


def close(a, b, tolerance):
    """Whether the paths agree, and all leaves up to `tolerance` of their largest entry."""
    pairs = jax.tree.map(lambda x, y: np.abs(x - y).max() <= tolerance * np.abs(y).max() + 1e-9,
                         a, b)
    return all(jax.tree.leaves(pairs))


@families
def test_a_scan_has_the_logits_and_gradients_of_plain_blocks(name):
    (logits, gradients), (others, other_gradients) = outcome(name), outcome(name, scan=True)
    assert np.abs(logits - others).max() < 1e-5
    assert close(other_gradients, gradients, 1e-5)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))


@families
@pytest.mark.parametrize('scan', [False, True])
def test_recomputed_blocks_have_the_logits_and_gradients_of_plain_blocks(name, scan):
    logits, gradients = outcome(name)
    others, other_gradients = outcome(name, scan=scan, remat=True)
    assert np.abs(logits - others).max() < 1e-5
    assert close(other_gradients, gradients, 1e-5)


@families
@pytest.mark.parametrize('scan', [False, True])
def test_every_block_is_recomputed_and_a_scan_has_one(name, scan):
    def program(**settings):
        model = abstract(name, scan=scan, **settings)
        graphdef = nnx.graphdef(model)
        return str(jax.make_jaxpr(jax.grad(lambda params: loss(params, graphdef)[0]))(pure(model)))

    kept, recomputed = program(depth=2), program(depth=2, remat=True)
    assert ('scan[' in kept) == ('scan[' in recomputed) == scan
    marks = [len(re.findall(r'\b(?:remat2?|checkpoint)\[', text)) for text in (kept, recomputed)]
    assert marks == [0, 1 if scan else 2]


def test_parameters_are_stacked_in_order_and_unstacked_again():
    params = {'head': {'bias': np.ones(3)},
              'blocks': {i: {'fc': {'bias': np.full(2, i), 'kernel': np.full((2, 3), i)}}
                         for i in (10, 11, *range(10))}}  # 10 comes after 9, not after 1
    stacked = stack_params(params)
    assert stacked['blocks']['fc']['kernel'].shape == (12, 2, 3)
    assert np.array_equal(stacked['blocks']['fc']['bias'][:, 0], range(12))
    back = unstack_params(stacked)
    assert list(back['blocks']) == list(range(12))
    for i, block in params['blocks'].items():
        assert np.array_equal(back['blocks'][i]['fc']['kernel'], block['fc']['kernel'])
    assert back['head'] is params['head']


@families
@pytest.mark.parametrize('depth', [1, 2])
def test_a_scanned_model_loads_and_exports_the_weights_of_timm(name, depth):
    plain = build(name, seed=1, depth=depth)
    scanned = abstract(name, depth=depth, scan=True)
    load_timm(scanned, to_timm(plain))
    expected = stack_params(pure(plain))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, pure(scanned), expected)))
    back = to_timm(scanned)
    assert set(back) == set(to_timm(plain))
    assert all(np.array_equal(back[key], value) for key, value in to_timm(plain).items())


def test_a_layer_that_the_weights_lack_is_named():
    weights = to_timm(build(NAMES[0]))
    del weights['blocks.1.mlp.fc1.bias']
    with pytest.raises(ModelError, match=r'blocks\.1\.mlp\.fc1\.bias is missing \(1 in total\)'):
        load_timm(abstract(NAMES[0], scan=True), weights)


class Step(nnx.Module):
    """Adds its value, unless its drop path drops it."""

    def __init__(self, value, rate):
        self.value = nnx.Param(jnp.array(value))
        self.drop_path = Dropout(rate, per_example=True)

    def __call__(self, x, rngs=None, extra=0.0, *, drop_path=None):
        step = jnp.broadcast_to(self.value[...], x.shape) + extra
        return x + self.drop_path(step, rngs, drop_path)


RATES = (0.0, 0.25, 0.5)


@functools.partial(jax.jit, static_argnames=('train', 'remat', 'count'))
def add_up(blocks, key, *, train=True, remat=False, count=4000):
    blocks = blocks if train else eval_view(blocks)
    return run_blocks(blocks, jnp.zeros((count, 2)), nnx.Rngs(dropout=key), rates=RATES,
                      scan=not isinstance(blocks, nnx.List), remat=remat)


@pytest.mark.parametrize('scan', [False, True])
def test_each_block_drops_examples_independently_and_at_its_own_rate(scan):
    blocks = nnx.List(Step(value, rate) for value, rate in zip((1.0, 7.5, 50.0), RATES))
    blocks = stack_blocks(blocks) if scan else blocks
    sums = np.asarray(add_up(blocks, jax.random.key(0)))
    assert np.array_equal(sums[:, 0], sums[:, 1])  # an example is dropped as a whole
    # A kept step is scaled by 1 / (1 - rate): 1, 10 and 100.
    outcomes, counts = np.unique(sums[:, 0].round(3), return_counts=True)
    assert outcomes.tolist() == [1, 11, 101, 111]
    assert np.abs(counts / 4000 - [0.125, 0.375, 0.125, 0.375]).max() < 0.03
    assert np.array_equal(add_up(blocks, jax.random.key(0)), sums)
    assert not np.array_equal(add_up(blocks, jax.random.key(1)), sums)
    assert np.allclose(add_up(blocks, jax.random.key(0), train=False), 58.5)


@pytest.mark.parametrize('scan', [False, True])
def test_recomputed_blocks_drop_the_same_examples(scan):
    blocks = nnx.List(Step(value, rate) for value, rate in zip((1.0, 7.5, 50.0), RATES))
    graphdef, params = nnx.split(stack_blocks(blocks) if scan else blocks)

    def squares(params, remat):
        y = add_up(nnx.merge(graphdef, params), jax.random.key(0), remat=remat, count=50)
        return (y ** 2).sum()

    kept, again = (jax.grad(squares)(params, remat) for remat in (False, True))
    assert close(nnx.to_pure_dict(again), nnx.to_pure_dict(kept), 1e-6)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('remat', [False, True])
def test_extras_reach_every_block(scan, remat):
    blocks = nnx.List(Step(value, 0.0) for value in (1.0, 2.0, 3.0))
    y = run_blocks(stack_blocks(blocks) if scan else blocks, jnp.zeros((1, 2)), None,
                   jnp.array([10.0, 20.0]), rates=(0.0,) * 3, scan=scan, remat=remat)
    assert np.array_equal(y, [[36, 66]])


def test_a_scanned_model_with_drop_path_needs_a_key_in_training():
    model = abstract(NAMES[0], scan=True, drop_path=0.5)
    with pytest.raises(ModelError, match=r'rate 0\.5'):
        jax.eval_shape(lambda model: model(X), model)
    assert jax.eval_shape(lambda model: eval_view(model)(X), model).shape == (8, 5)
