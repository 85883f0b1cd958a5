"""What a program is made for, and that this process has no say in it."""

import re
import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn

from models import ModelError, attention, create_model, cudnn
from models.attention import attend, cudnn_refusal
from models.target import Target, aim, target_of


def device(platform, **more):
    return types.SimpleNamespace(platform=platform, **more)


@pytest.mark.parametrize(('given', 'target'), [
    (device('cpu'), Target('cpu')), (device('tpu'), Target('tpu')),
    (device('gpu', compute_capability='9.0'), Target('cuda', '9.0')),
    (device('gpu', compute_capability='10.3'), Target('cuda', '10.3')),
    (device('gpu', compute_capability='gfx942'), Target('rocm', 'gfx942'))])
def test_a_device_says_what_it_is(given, target):
    assert target_of(given) == target


def test_capabilities_are_numbers():
    assert Target('cuda', '10.3').numbers == (10, 3) > Target('cuda', '9.0').numbers
    assert Target('cpu').numbers == Target('rocm', 'gfx942').numbers == ()
    for wrong in ('', '9', 'sm_90'):
        with pytest.raises(ValueError, match="needs the compute capability"):
            Target('cuda', wrong)


def calls(target, dim=64, platform='cuda', **settings):
    """Names of cuDNN's calls in a program of attention."""
    arrays = [jax.ShapeDtypeStruct((2, 5, 3, dim), jnp.bfloat16)] * 3
    lowered = jax.jit(lambda *arrays: attend(*arrays, target=target, **settings)).trace(
        *arrays).lower(lowering_platforms=(platform,))
    return set(re.findall(r'__cudnn\$\w+', lowered.as_text()))


@pytest.mark.parametrize(('target', 'most'), [
    (None, 128), (Target('cuda', '7.5'), 0), (Target('cuda', '8.0'), 128),
    (Target('cuda', '8.9'), 128), (Target('cuda', '9.0'), 256), (Target('cuda', '10.3'), 256),
    (Target('cpu'), 0), (Target('tpu'), 0), (Target('rocm', 'gfx942'), 0)])
def test_the_target_decides_what_cudnn_takes(target, most):
    for dim in (64, 128, 256):
        assert bool(calls(target, dim)) == (dim <= min(most, 128))  # which works on all of them
        if dim <= most:
            assert calls(target, dim, impl='cudnn')
        else:
            with pytest.raises(ModelError, match=r"attn_impl='cudnn' cannot work here.*'auto'"):
                calls(target, dim, impl='cudnn')


def process(monkeypatch, *, capability):
    """This process has such a GPU and JAX's plugin for it; or none at all, for ''."""
    own = tuple(map(int, capability.split('.'))) if capability else ()
    plugin = types.SimpleNamespace(cudnn_get_version=lambda: 91500)
    monkeypatch.setattr(jax_cudnn, 'cuda_versions', plugin if capability else None)
    client = types.SimpleNamespace(platform_version='cuda' if own else 'cpu')
    monkeypatch.setattr(jax_cudnn.xla_bridge, 'get_backend', lambda *_: client)
    monkeypatch.setattr(jax_cudnn.xla_bridge, 'local_devices', lambda **_: [
        types.SimpleNamespace(compute_capability=capability)])
    attention._jax_refusal.cache_clear()


@pytest.mark.parametrize('here', ['', '7.5', '8.0', '9.0', '10.3'])
def test_the_gpu_of_this_process_does_not_decide(here, monkeypatch):
    for target, dim, wanted in ((Target('cuda', '7.5'), 64, False),
                                (Target('cuda', '8.0'), 64, True),
                                (Target('cuda', '8.0'), 256, False),
                                (Target('cuda', '9.0'), 256, True), (Target('cpu'), 64, False)):
        process(monkeypatch, capability=here)
        query = jax.ShapeDtypeStruct((2, 5, 3, dim), jnp.bfloat16)
        assert (cudnn_refusal(query, target) == '') == wanted
    attention._jax_refusal.cache_clear()


def test_without_a_plugin_cudnn_9_12_is_assumed(monkeypatch):
    """JAX wants 9.11 on a GPU of capability 10.3, and says so where the plugin has less."""
    query = jax.ShapeDtypeStruct((2, 5, 3, 64), jnp.bfloat16)
    process(monkeypatch, capability='')
    assert cudnn.ASSUMED_VERSION == 91200
    assert cudnn_refusal(query, Target('cuda', '10.3')) == ''
    process(monkeypatch, capability='9.0')
    monkeypatch.setattr(jax_cudnn.cuda_versions, 'cudnn_get_version', lambda: 91000)
    assert '10.3 requires cuDNN version >= 9.11' in cudnn_refusal(query, Target('cuda', '10.3'))
    attention._jax_refusal.cache_clear()


def test_jax_answers_others_as_before(monkeypatch):
    process(monkeypatch, capability='8.0')
    assert not cudnn_refusal(jax.ShapeDtypeStruct((2, 5, 3, 256), jnp.bfloat16),
                             Target('cuda', '9.0'))
    assert jax_cudnn.check_compute_capability('8.0')
    assert not jax_cudnn.check_compute_capability('9.0')
    assert jax_cudnn.is_cuda_compute_capability_equal('8.0')
    assert jax_cudnn.check_cudnn_version() == 91500
    monkeypatch.setattr(jax_cudnn, 'cuda_versions', None)
    with pytest.raises(RuntimeError, match='not detected'):
        jax_cudnn.check_cudnn_version()
    attention._jax_refusal.cache_clear()


def test_a_target_is_part_of_a_model_s_definition():
    """So what JAX has cached for one target is not taken for another."""
    model = nnx.eval_shape(lambda: create_model('vit_tiny_patch16_224', 3, rngs=nnx.Rngs(0),
                                                depth=1, dtype='bfloat16'))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.bfloat16)
    infer = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state)(x), static_argnums=0)
    found = []
    for target in (None, Target('cuda', '7.5'), Target('cuda', '9.0'), Target('cpu')):
        aim(model, target)
        lowered = infer.trace(*nnx.split(model), images).lower(lowering_platforms=('cuda',))
        found.append('__cudnn' in lowered.as_text())
    assert found == [True, False, True, False]
