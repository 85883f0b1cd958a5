"""Exported programs: the logits of the evaluation, on platforms that are not here too."""

import dataclasses

import jax
import numpy as np
import pytest
from exported import SMALL, convolutions, evaluated, pictures, small
from flax import nnx
from jax import export

from models import attention
from train_lib.serving.exported_program import PLATFORMS, make_program

FAST = ('small_cnn', 'vit', 'plain_cnn')


@pytest.mark.parametrize('name, precision', [
    pytest.param(name, precision, marks=[] if name in FAST and precision == 'float32'
                 else pytest.mark.slow)
    for precision in ('float32', 'bfloat16') for name in SMALL])
def test_every_family_answers_as_in_its_evaluation(name, precision):
    trained = small(name, precision)
    program = make_program(trained)
    content = program.exported.serialize()
    assert b'.py' not in content  # where this project lies on the machine
    loaded, images = export.deserialize(content), pictures(trained)
    own = evaluated(trained, images)['class']
    assert np.array_equal(loaded.call(program.weights, images), own)
    assert own.std() > 1e-4
    # XLA may sum in another order for another size, and bfloat16 then rounds to another number.
    bound = 1e-4 if precision == 'float32' else 0.05
    alone = np.concatenate([loaded.call(program.weights, images[row:row + 1])
                            for row in range(len(images))])
    assert np.abs(alone - own).max() < bound * own.std()
    assert {value.dtype for value in program.weights.values()} == {np.dtype('float32')}


def test_each_platform_gets_its_own_form_of_a_convolution():
    """A CPU computes depthwise convolutions and those on tiny grids otherwise; the form of the
    machine that exports must not go to accelerators."""
    trained = small('efficientnet')
    text = make_program(trained).exported.mlir_module()
    graphdef, state = nnx.split(trained.model)
    images = jax.ShapeDtypeStruct((4, *trained.preprocess.frame, 3), np.float32)
    alone = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images)).trace(state, images)
    wanted = [alone.lower(lowering_platforms=(one,)).as_text().count('stablehlo.convolution')
              for one in PLATFORMS]
    assert [convolutions(text, number) for number in range(len(PLATFORMS))] == wanted
    assert wanted[0] < wanted[1] == wanted[2]


def test_attention_calls_no_library_of_one_platform(monkeypatch):
    """attn_impl=auto may take cuDNN, in whose place stands a function that is easily seen."""
    trained = small('vit', 'bfloat16')
    monkeypatch.setattr(attention, 'cudnn_refusal', lambda query, target: '')
    monkeypatch.setattr(attention, 'cudnn_attention',
                        lambda query, key, value, target: jax.lax.erf_inv(query))
    graphdef, state = nnx.split(trained.model)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), np.float32)
    own = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images)).trace(state, images)
    assert 'erf_inv' in own.lower(lowering_platforms=('cuda',)).as_text()
    exported = make_program(trained).exported
    assert 'erf_inv' not in exported.mlir_module()
    assert {module.impl for _, module in nnx.iter_modules(trained.model)
            if isinstance(module, attention.Attention)} == {'auto'}  # it is as it was


def test_heads_and_offsets_are_inside():
    classes = {'shape': ('a', 'b', 'c'), 'tool': ('d', 'e')}
    trained = small('small_cnn', classes=classes)
    images = pictures(trained, 3)
    plain = evaluated(trained, images)
    offsets = {'shape': np.array([1, 2, -3], np.float32), 'tool': np.zeros(2, np.float32)}
    program = make_program(dataclasses.replace(trained, offsets=offsets))
    found = export.deserialize(program.exported.serialize()).call(program.weights, images)
    assert set(found) == set(classes)
    assert np.array_equal(found['shape'], plain['shape'] + offsets['shape'])
    assert np.array_equal(found['tool'], plain['tool'])


def test_pictures_of_another_size_are_refused():
    trained = small('small_cnn')
    program = make_program(trained)
    with pytest.raises(ValueError, match='16'):
        program.exported.call(program.weights, np.zeros((2, 17, 16, 3), np.uint8))
