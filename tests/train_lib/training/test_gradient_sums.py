"""The dtype in which devices add the gradients of float32 weights, in a bfloat16 run.

Compiled for a TPU v5e:2x2 (libtpu 0.0.42.1), a ViT of two blocks adds 1,039,104 of its 1,043,146
gradients in bfloat16 with 'compute', and 3,264 with 'float32': those of its tokens and positions.
"""

import importlib.util
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies

import models
from configs import common
from input_pipeline.manifest import make_manifest
from models.convolutions import Conv
from models.layers import Linear
from train_lib.planning.chips import CHIPS, gpu_description
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import make_mesh
from train_lib.training import network
from train_lib.training.data import split_data
from train_lib.training.setup import assemble, lower_step

VIT = dict(name='vit_tiny_patch16_224', patch_size=8, embed_dim=24, depth=1, num_heads=2)


def lowered(tmp_path, **changes):
    """The training step as it is given to the compiler."""
    return lower(tmp_path, None, **changes).as_text()


def lower(tmp_path, devices, **changes):
    config = common.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({
            'split.kind': 'given', 'split.val': 0.0, 'split.test': 0.0, 'batch_size': 4,
            'image.size': 16, 'model': VIT, 'duration': dict(steps=4),
            'precision': 'bfloat16'} | changes)
    manifest = make_manifest({'id': [f'{k}' for k in range(8)], 'location': '',
                              'label/class': [0, 1] * 4, 'split': ['train'] * 8},
                             {'class': ('a', 'b')})
    data = split_data(config, manifest)
    job = assemble(config, data, make_mesh(config.mesh, devices), None, tmp_path,
                   abstract=True)
    job.iterator.close()
    return lower_step(job.run, job.state, data.parts)


def rounded(text, shapes):
    """Arrays of these shapes that the program turns from bfloat16 into float32."""
    found = re.findall(r'stablehlo\.convert .*\(tensor<([\dx]+)xbf16>\) -> tensor<\1xf32>', text)
    return sorted(shape for shape in found if shape in shapes)


def test_no_gradient_of_a_kernel_or_bias_is_rounded_before_it_is_added(tmp_path, monkeypatch):
    shapes = ('24x72', '24x24', '24x96', '96x24', '8x8x3x24', '72', '96')
    assert set(rounded(lowered(tmp_path), shapes)) == set(shapes)  # one device adds nothing
    choose = network._choose_sums
    monkeypatch.setattr(network, '_choose_sums',
                        lambda model, config, devices: choose(model, config, 4))
    assert rounded(lowered(tmp_path), shapes) == []
    before = rounded(lowered(tmp_path, **{'mesh.gradients': 'compute'}), shapes)
    assert set(before) == set(shapes)  # as in runs of older versions
    with pytest.raises(ConfigError, match=r"mesh\.gradients = 'bf16': choose one of float32, com"):
        lowered(tmp_path, **{'mesh.gradients': 'bf16'})


def absent_devices(platform):
    """Four of them, for the compiler of the platform; skips the test where it is missing."""
    try:
        if platform == 'cuda':
            return topologies.get_topology_desc(
                platform='cuda', topology_name='', topology='1x1x4',
                target_config=gpu_description('h100', CHIPS['h100'])).devices
        if importlib.util.find_spec('libtpu') is None:
            pytest.skip('libtpu is not installed')
        return topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
    except (RuntimeError, ValueError) as error:
        pytest.skip(f'no compiler for {platform} ({str(error)[:80]})')


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_the_knob_is_seen_in_the_compiled_program(tmp_path, monkeypatch, platform):
    for name in ('ALLOW_MULTIPLE_LIBTPU_LOAD', 'TPU_SKIP_MDS_QUERY'):
        monkeypatch.setenv(name, '1')
    devices, share = absent_devices(platform), {}
    options = {'xla_gpu_enable_triton_gemm': False} if platform == 'cuda' else {}
    for wanted in ('float32', 'compute'):
        text = lower(tmp_path, devices, **{'mesh.gradients': wanted}).compile(options).as_text()
        added = Counter()
        for line in text.splitlines():
            shape, found, _ = line.partition(' all-reduce')
            if found and ' = ' in shape:
                for dtype, sizes in re.findall(r'(bf16|f32)\[([\d,]+)\]', shape.split(' = ')[1]):
                    added[dtype] += math.prod(map(int, sizes.split(',')))
        share[wanted] = added['bf16'] / added.total()
    assert share['float32'] < 0.05 < 0.9 < share['compute'], share


@pytest.mark.parametrize('kind', ['linear', 'convolution', *(
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ('pointwise', 'patchify', 'depthwise', 'im2col', 'dilated'))])
def test_the_product_stays_and_the_gradient_is_that_of_a_float32_sum(kind):
    shape = (8, 2, 2, 64) if kind == 'im2col' else (8, 8, 8, 8)
    given = dict(dtype=jnp.bfloat16)
    make = {
        'linear': lambda rngs: Linear(8, 16, rngs=rngs, **given),
        'pointwise': lambda rngs: Conv(8, 16, (1, 1), rngs=rngs, **given),
        'patchify': lambda rngs: Conv(8, 16, (2, 2), strides=2, padding='VALID', rngs=rngs,
                                      **given),
        'convolution': lambda rngs: Conv(8, 16, (3, 3), strides=2, padding=((1, 1), (1, 1)),
                                         rngs=rngs, **given),
        'depthwise': lambda rngs: Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs, **given),
        'im2col': lambda rngs: Conv(64, 64, (3, 3), rngs=rngs, **given),
        'dilated': lambda rngs: Conv(8, 16, (3, 3), kernel_dilation=2, rngs=rngs, **given)}[kind]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    found = {}
    for name in ('compute', 'float32', 'exact'):
        layer = make(nnx.Rngs(0))
        layer.float32_sums = name == 'float32'
        if name == 'exact':
            layer.dtype = jnp.float32
        graphdef, params = nnx.split(layer)

        def loss(params, x, graphdef=graphdef):
            y = nnx.merge(graphdef, params)(x)
            wanted = jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(jnp.bfloat16)
            return jnp.sum((y * wanted).astype(jnp.float32)), y

        gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, y), (of_params, of_x) = gradient(params, x)
        found[name] = y, of_x, nnx.to_pure_dict(of_params)
    for part in (0, 1):  # the same products, added in another order
        np.testing.assert_allclose(np.float32(found['float32'][part]),
                                   np.float32(found['compute'][part]), rtol=0.02, atol=0.02)
    for name in ('kernel', 'bias'):
        ours, before, exact = (np.asarray(found[key][2][name])
                               for key in ('float32', 'compute', 'exact'))
        assert ours.dtype == np.float32
        scale = np.abs(exact).max()
        assert np.abs(ours - exact).max() < 1e-5 * scale
        # For a convolution XLA leaves out the rounding to bfloat16 on a CPU.
        if name == 'kernel' and kind not in ('convolution', 'dilated'):
            assert np.abs(before - exact).max() > 1e-3 * scale
        assert (np.float32(jnp.bfloat16(ours)) != ours).any()


def test_only_reduced_precision_changes():
    model = nnx.eval_shape(lambda: models.create_model('resnet18', 3, rngs=nnx.Rngs(0)))
    assert not any(module.float32_sums for _, module in nnx.iter_modules(model)
                   if isinstance(module, Linear | Conv))
