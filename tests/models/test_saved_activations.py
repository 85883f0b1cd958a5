"""What stacked blocks keep for the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from configs import common
from models.layers import Linear
from models.lora import add_lora
from models.target import Target, aim
from models.transformer import Transformer
from train_lib.run_dir.before import BEFORE
from train_lib.runtime.errors import ConfigError
from train_lib.training.network import _choose_saved

DEPTH, WIDTH, TOKENS = 3, 24, 17
FAMILIES = {
    'vit_tiny_patch16_224': dict(patch_size=8, num_heads=2),
    'eva02_base_patch14_224': dict(patch_size=8, num_heads=2),
    'eva_giant_patch14_224': dict(patch_size=8, num_heads=2, mlp_ratio=4.0)}


def gradient_of(name, saved, dtype, lora=0, target=None, size=32, width=WIDTH, **settings):
    """(function (params, images) -> gradient, params, images) of a small model; `lora`: the rank of
    adapters; `target`: what it is for; `size`: of the images."""
    own = FAMILIES.get(name, dict(patch_size=8, num_heads=2))
    model = models.create_model(name, 3, rngs=nnx.Rngs(0), img_size=size, embed_dim=width,
                                depth=DEPTH, scan=True, dtype=dtype, **own, **settings)
    if lora:
        add_lora(model, r'blocks/.*', rank=lora, rngs=nnx.Rngs(1))
    aim(model, target)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Transformer):
            module.saved = saved
        if isinstance(module, Linear):
            module.float32_sums = True
    graphdef, params = nnx.split(model)

    def loss(params, images):
        y = nnx.merge(graphdef, params)(images, rngs=nnx.Rngs(dropout=jax.random.key(0)))
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    images = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
    return jax.grad(loss), params, images


def kept(name, saved, **settings):
    """Shapes and dtypes of what the scan keeps of each block, without numbers per token and the
    weights of the attention (float32 in XLA's form, as its softmax is)."""
    gradient, *arguments = gradient_of(name, saved, 'bfloat16', **settings)
    program = jax.make_jaxpr(gradient)(*arguments)
    scan = next(eqn for eqn in program.eqns if eqn.primitive.name == 'scan')
    stacked = [var.aval for var in scan.outvars if var.aval.shape[:1] == (DEPTH,)]
    return [aval for aval in stacked if aval.shape[-1] not in (1, TOKENS)]


@pytest.mark.parametrize('name', FAMILIES)
def test_no_float32_copy_of_the_activations_is_kept(name):
    elements = 4 * TOKENS * WIDTH * DEPTH
    wide = lambda saved: [aval for aval in kept(name, saved)
                          if aval.dtype == jnp.float32 and aval.size >= elements]
    assert not wide('products')
    assert len(wide('all')) >= 6  # three of each LayerNorm
    size = lambda saved: sum(aval.size * aval.dtype.itemsize for aval in kept(name, saved))
    assert size('products') < 0.45 * size('all')


def test_no_attention_weights_are_kept():
    def squares(saved):
        gradient, *arguments = gradient_of('vit_tiny_patch16_224', saved, 'bfloat16',
                                           target=Target('cuda', '7.5'), size=64, width=80)
        scan = next(eqn for eqn in jax.make_jaxpr(gradient)(*arguments).eqns
                    if eqn.primitive.name == 'scan')
        return [var.aval for var in scan.outvars if var.aval.shape[-2:] == (65, 65)]

    assert squares('all') and not squares('products')


def test_no_bias_of_the_scores_is_kept():
    gradient, *arguments = gradient_of('beit_base_patch16_224', 'products', 'bfloat16')
    scan = next(eqn for eqn in jax.make_jaxpr(gradient)(*arguments).eqns
                if eqn.primitive.name == 'scan')
    assert not [var.aval for var in scan.outvars if var.aval.shape[-2:] == (TOKENS, TOKENS)]


@pytest.mark.parametrize('name', FAMILIES)
def test_adapters_keep_little_more(name):
    size = lambda **settings: sum(aval.size * aval.dtype.itemsize for aval in kept(
        name, 'products', **settings) if aval.size >= 4 * TOKENS * WIDTH * DEPTH)
    assert size(lora=2) <= size()


# EVA giant has the parts of both.
@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', pytest.param(
    'eva02_base_patch14_224', marks=pytest.mark.slow)])
def test_the_gradient_stays(name):
    drop = dict(proj_drop_rate=0.1, drop_path=0.2)
    found = {}
    for saved in ('all', 'products'):
        gradient, *arguments = gradient_of(name, saved, 'float32', **drop)
        found[saved] = jax.tree.leaves(jax.jit(gradient)(*arguments))
    for a, b in zip(found['all'], found['products'], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))


def test_the_config_decides_and_older_runs_keep_all():
    config = common.get_config()
    model = nnx.eval_shape(lambda: models.create_model('vit_tiny_patch16_224', rngs=nnx.Rngs(0)))
    _choose_saved(model, config)
    assert model.saved == 'products'
    config.saved_activations = BEFORE['saved_activations']
    _choose_saved(model, config)
    assert model.saved == 'all'
    config.saved_activations = 'some'
    with pytest.raises(ConfigError, match="= 'some': choose one of products, all"):
        _choose_saved(model, config)
