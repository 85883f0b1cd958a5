"""Our forms of a convolution: values and gradients against XLA's, and when each form is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from models.convolutions import conv2d

# form: (channels in, channels out, kernel, settings, height and width of the image)
CASES = {
    'pointwise': (5, 7, 1, {}, (4, 6)),
    'pointwise, bias': (5, 7, 1, dict(bias=True), (4, 6)),
    'patchify': (5, 7, (2, 3), dict(stride=(2, 3), padding='VALID', bias=True), (4, 6)),
    'patchify, without edges': (64, 7, 2, dict(stride=2, padding='VALID'), (5, 7)),
    'depthwise': (6, 6, 3, dict(groups=6, bias=True), (7, 5)),
    'depthwise, stride 2': (6, 6, 3, dict(groups=6, stride=2), (8, 6)),
    'depthwise, stride 2, odd sides': (6, 6, 5, dict(groups=6, stride=2), (7, 9)),
    'depthwise, SAME, stride 2': (6, 6, 3, dict(groups=6, stride=2, padding='SAME'), (8, 7)),
    'depthwise, one-sided padding': (
        6, 6, 3, dict(groups=6, stride=2, padding=((0, 1), (2, 0))), (6, 8)),
    'depthwise, one number as padding': (6, 6, 3, dict(groups=6, padding=2), (5, 4)),
    'depthwise, 1x1': (6, 6, 1, dict(groups=6), (3, 3)),
    'depthwise, padding of the whole kernel': (6, 6, 7, dict(groups=6, padding=7), (2, 2)),
    'depthwise, 7x7, stride 2': (6, 6, 7, dict(groups=6, stride=2), (7, 7)),
    'large': (6, 6, 7, dict(groups=6, bias=True), (9, 5)),
    'large, one pixel': (6, 6, 7, dict(groups=6), (1, 1)),
    'large, one-sided padding': (6, 6, (7, 8), dict(groups=6, padding=((0, 6), (2, 0))), (6, 8)),
    'large, in parts': (512, 512, 7, dict(groups=512), (33, 32)),
    'im2col': (64, 8, 3, dict(bias=True), (3, 3)),
    'im2col, one pixel': (64, 8, 3, {}, (1, 1)),
    'im2col, stride 2, odd sides': (64, 8, 3, dict(stride=2), (5, 3)),
    'im2col, SAME, stride 2': (64, 8, 3, dict(stride=2, padding='SAME'), (4, 6)),
    'im2col, VALID, long kernel': (64, 8, (1, 5), dict(padding='VALID'), (2, 8)),
    'im2col, 1x1, stride 2': (64, 8, 1, dict(stride=2), (4, 4)),
    'convolution': (6, 8, 3, {}, (3, 3)),
    'convolution, larger grid': (64, 8, 3, {}, (2, 5)),
    'convolution, groups': (64, 64, 3, dict(groups=2), (3, 3)),
    'convolution, more than one channel per group': (6, 12, 3, dict(groups=6), (3, 3)),
    'convolution, dilated': (6, 6, 3, dict(groups=6, dilation=2), (5, 5)),
    'convolution, circular padding': (6, 6, 3, dict(groups=6, padding='CIRCULAR'), (4, 4)),
    'convolution, 1x1 with padding': (5, 7, 1, dict(padding=((1, 1), (0, 2))), (3, 3)),
}
OURS = [case for case in CASES if not case.startswith('convolution')]
QUICK = {'xla_backend_optimization_level': 0}  # most of the time is compilation
cases = pytest.mark.parametrize('case', CASES)


def build(case, **more):
    """(a convolution, images of its size)"""
    a, b, kernel, settings, sides = CASES[case]
    conv = conv2d(a, b, kernel, **settings, **more, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(1)
    if conv.bias is not None:
        conv.bias[...] = jnp.asarray(draw.standard_normal(b), jnp.float32)
    return conv, jnp.asarray(draw.standard_normal((2, *sides, a)), jnp.float32)


def both(conv, x):
    """[(outputs, gradients of parameters and images)] of our form and of XLA's convolution."""
    graphdef, params = nnx.split(conv)

    def value_and_gradients(call):
        def loss(params, x):
            y = call(nnx.merge(graphdef, params), x)
            wave = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
            return (y.astype(jnp.float32) * wave).sum(), y

        gradients, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return y, gradients

    return [value_and_gradients(call) for call in (type(conv).__call__, nnx.Conv.__call__)]


@functools.cache
def outcomes():
    """`both` for every case, compiled once."""
    built = {case: build(case) for case in OURS}
    with jax.default_matmul_precision('highest'):
        return jax.device_get(jax.jit(lambda built: {
            case: both(conv, x) for case, (conv, x) in built.items()},
            compiler_options=QUICK)(built))


@pytest.mark.parametrize('case', OURS)
def test_values_and_gradients_are_those_of_a_convolution(case):
    (ours, our_gradients), (theirs, gradients) = outcomes()[case]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 5e-6 * np.abs(theirs).max()
    leaves = list(zip(jax.tree.leaves(our_gradients), jax.tree.leaves(gradients), strict=True))
    assert len(leaves) == 2 + ('bias' in CASES[case][3])
    for mine, other in leaves:
        assert np.abs(mine - other).max() < 1e-5 * np.abs(other).max()


def lowered(case, platform) -> str:
    """The program of a convolution and its gradients, lowered for a platform that may be absent."""
    conv, x = build(case)
    graphdef, params = nnx.split(conv)
    gradient = jax.jit(jax.grad(lambda params, x: nnx.merge(graphdef, params)(x).sum(), (0, 1)))
    return gradient.trace(params, x).lower(lowering_platforms=(platform,)).as_text()


@cases
def test_a_cpu_gets_the_fastest_form(case):
    conv, x = build(case)
    form = case.partition(',')[0]
    assert conv._form(x, cpu=True) == form
    assert ('stablehlo.convolution' in lowered(case, 'cpu')) == (form == 'convolution')


@cases
def test_other_machines_convolve_unless_it_is_one_matrix_product(case):
    conv, x = build(case)
    form = case.partition(',')[0]
    product = form in ('pointwise', 'patchify')
    assert conv._form(x, cpu=False) == (form if product else 'convolution')
    for platform in ('cuda', 'tpu'):
        assert ('stablehlo.convolution' in lowered(case, platform)) != product


@pytest.mark.parametrize('case', ['pointwise, bias', 'patchify', 'depthwise', 'large', 'im2col'])
def test_half_precision_stays_half(case):
    conv, x = build(case, dtype=jnp.bfloat16)
    (ours, our_gradients), (theirs, _) = jax.jit(both, compiler_options=QUICK)(conv, x)
    assert ours.dtype == theirs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(our_gradients)} == {jnp.dtype('float32')}
    ours, theirs = (np.asarray(y, np.float32) for y in (ours, theirs))
    assert ours.any()
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_our_forms_contain_no_convolution_of_xla():
    # That is their purpose, in the gradient too.
    for case in ('depthwise, stride 2', 'large', 'im2col'):
        conv, x = build(case)
        graphdef, params = nnx.split(conv)
        form = conv._form(x, cpu=True)
        program = jax.make_jaxpr(jax.grad(lambda params, x, graphdef=graphdef, form=form: nnx.merge(
            graphdef, params)._by(form, x).sum()))(params, x)
        assert 'conv_general_dilated' not in str(program)


def test_a_batch_on_several_devices_is_not_gone_through_image_by_image():
    conv, x = build('large')
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ('data',))):
        assert conv._form(x, cpu=True) == 'depthwise'


def test_the_gradient_of_a_depthwise_convolution_keeps_the_images_alone():
    conv, x = build('depthwise, stride 2, odd sides')
    graphdef, params = nnx.split(conv)
    kept = jax.vjp(lambda params, x: nnx.merge(graphdef, params)._by('depthwise', x), params, x)[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) <= x.size + conv.kernel.size
    # Autodiff of a sum keeps one shifted image per element of the kernel, 25 here.


@pytest.mark.parametrize('width', [1, 8, 11, 17])
def test_the_gradient_of_a_depthwise_kernel_for_any_width(width):
    """Its columns are added in blocks of at most 8."""
    conv, _ = build('depthwise')
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, width, 6)), jnp.float32)
    (_, ours), (_, theirs) = jax.jit(both, compiler_options=QUICK)(conv, x)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(mine - other).max() < 1e-5 * np.abs(other).max()
