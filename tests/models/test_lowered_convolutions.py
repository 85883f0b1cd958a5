"""The convolutions of whole models in programs for machines that are not here: as many as the model
has, in bfloat16, and with the channels last, as GPUs and TPUs compute them fastest."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from models import create_model, eval_view

# model: those that are not matrix products (1x1 of stride 1), and those that a CPU computes as such
# at 64 px: all but depthwise ones, and those of many channels on a grid of 2x2
COUNTS = {'efficientnet_b0': (17, 1), 'mobilenetv3_large_100': (16, 1), 'densenet121': (9, 7),
          'resnet50': (20, 16)}
SETTINGS = {'densenet121': dict(block_config=(2, 2, 2, 2))}  # of 58 layers
NHWC = '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]'
_CONVOLUTION = re.compile(r'stablehlo\.convolution\(.*dim_numbers = (.*?), window.*: '
                          r'\(tensor<\S+x(\w+)>, tensor<\S+x(\w+)>\) -> tensor<\S+x(\w+)>')


def traced(name, *, gradient):
    model = nnx.eval_shape(lambda: create_model(name, 10, rngs=nnx.Rngs(0), dtype='bfloat16',
                                                **SETTINGS.get(name, {})))
    graphdef, params, rest = nnx.split(eval_view(model), nnx.Param, ...)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)

    def total(params, rest, images):
        return nnx.merge(graphdef, params, rest)(images).sum()

    return jax.jit(jax.grad(total) if gradient else total).trace(params, rest, images)


def convolutions(text) -> list[tuple[str, ...]]:
    """(dimensions, dtypes of images, kernel and result) of each."""
    found = _CONVOLUTION.findall(text)
    assert len(found) == text.count('stablehlo.convolution(')
    return found


@pytest.mark.parametrize('name', COUNTS)
def test_absent_accelerators_get_whole_convolutions_of_bfloat16(name):
    program = traced(name, gradient=False)
    for platform in ('cuda', 'tpu'):
        text = program.lower(lowering_platforms=(platform,)).as_text()
        assert convolutions(text) == [(NHWC, 'bf16', 'bf16', 'bf16')] * COUNTS[name][0]
    text = program.lower(lowering_platforms=('cpu',)).as_text()
    assert len(convolutions(text)) == COUNTS[name][1]


@pytest.mark.slow
@pytest.mark.parametrize('name', COUNTS)
def test_so_do_their_gradients(name):
    """Each convolution has a gradient of its kernel, and all but the first one of its images."""
    program = traced(name, gradient=True)
    for platform in ('cuda', 'tpu'):
        found = convolutions(program.lower(lowering_platforms=(platform,)).as_text())
        assert len(found) == 3 * COUNTS[name][0] - 1
        assert {dtype for _, *dtypes in found for dtype in dtypes} == {'bf16'}
        assert sum(dimensions == NHWC for dimensions, *_ in found) == COUNTS[name][0]
