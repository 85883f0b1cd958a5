"""Convolutions, flash attention, large arrays and memory traffic read from HLO text."""

import jax
import jax.numpy as jnp
import pytest

from train_lib.planning.compiled import CompiledProgram, largest_allocations
from train_lib.planning.hlo_text import arrays_of, read_program
from train_lib.planning.program_facts import read_facts

# A loop over 6 blocks that reads a slice of stacked weights, calls cuDNN's attention and fills a
# stack; a convolution in bfloat16 and one in float32.
CUDA = '''HloModule jit_step

%cut (stack: f32[6,4,4], i: s32[]) -> f32[4,4] {
  %stack = f32[6,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,4,4]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,4,4}
  ROOT %flat = f32[4,4]{1,0} bitcast(%slice)
}

%fill (stack: bf16[6,8], row: bf16[8], i: s32[]) -> bf16[6,8] {
  %stack = bf16[6,8]{1,0} parameter(0)
  %row = bf16[8]{0} parameter(1)
  %i = s32[] parameter(2)
  %one = bf16[1,8]{1,0} bitcast(%row)
  %zero = s32[] constant(0)
  ROOT %set = bf16[6,8]{1,0} dynamic-update-slice(%stack, %one, %i, %zero), metadata={op_name="jit(step)/jvp()/while/body/dynamic_update_slice"}
}

%body (s: (s32[], f32[6,4,4], bf16[6,8])) -> (s32[], f32[6,4,4], bf16[6,8]) {
  %s = (s32[], f32[6,4,4]{2,1,0}, bf16[6,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %weights = f32[6,4,4]{2,1,0} get-tuple-element(%s), index=1
  %stack = bf16[6,8]{1,0} get-tuple-element(%s), index=2
  %weight = f32[4,4]{1,0} fusion(%weights, %i), kind=kLoop, calls=%cut
  %out = (bf16[8]{0}, u8[0]{0}) custom-call(%weight), custom_call_target="__cudnn$fmhaSoftmax"
  %row = bf16[8]{0} get-tuple-element(%out), index=0
  %filled = bf16[6,8]{1,0} fusion(%stack, %row, %i), kind=kLoop, calls=%fill
  ROOT %r = (s32[], f32[6,4,4]{2,1,0}, bf16[6,8]{1,0}) tuple(%i, %weights, %filled)
}

%test (s: (s32[], f32[6,4,4], bf16[6,8])) -> pred[] {
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: bf16[2,4,4,8], w: bf16[3,3,8,8], y: f32[2,4,4,8], v: f32[3,3,8,8], k: f32[6,4,4]) -> f32[2,8,4,4] {
  %x = bf16[2,4,4,8]{3,2,1,0} parameter(0)
  %w = bf16[3,3,8,8]{3,2,1,0} parameter(1)
  %y = f32[2,4,4,8]{3,2,1,0} parameter(2)
  %v = f32[3,3,8,8]{3,2,1,0} parameter(3)
  %k = f32[6,4,4]{2,1,0} parameter(4)
  %half = (bf16[2,4,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/conv_general_dilated"}
  %whole = (f32[2,4,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%y, %v), custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(step)/conv_general_dilated"}
  %empty = bf16[6,8]{1,0} broadcast(%w), dimensions={}, metadata={op_name="jit(step)/broadcast_in_dim"}
  %n = s32[] constant(0)
  %t = (s32[], f32[6,4,4]{2,1,0}, bf16[6,8]{1,0}) tuple(%n, %k, %empty)
  %loop = (s32[], f32[6,4,4]{2,1,0}, bf16[6,8]{1,0}) while(%t), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  ROOT %gradient = f32[16]{0} custom-call(%k), custom_call_target="__cudnn$fmhaSoftmaxBackward"
}
'''  # noqa: E501


def test_convolutions_and_attention():
    facts = read_facts(read_program(CUDA))
    assert facts.convolutions == {'bf16': 1, 'f32': 1}
    assert facts.attention == {'cuDNN forward': 6, 'cuDNN backward': 1}


def test_a_loop_reads_slices_and_fills_in_place():
    weight, row = 4 * 4 * 4, 8 * 2
    # %weight: a slice is read and written, and i; attention; %filled: the row, i, and the change
    inside = (weight + 4 + weight) + (weight + row) + (row + 4 + row)
    x, w, y, v, k = (2 * 4 * 4 * 8 * 2, 9 * 64 * 2, 2 * 4 * 4 * 8 * 4, 9 * 64 * 4, 6 * 16 * 4)
    outside = (x + w + x) + (y + v + y) + (w + 6 * 8 * 2) + (k + 16 * 4)
    assert read_facts(read_program(CUDA)).traffic == 6 * inside + outside


def test_large_arrays():
    facts = read_facts(read_program(CUDA), shown=20)
    assert [each.shape for each in facts.largest][:2] == ['f32[2,4,4,8]', 'bf16[2,4,4,8]']
    stack, = (each for each in facts.largest if each.shape == 'bf16[6,8]')
    assert stack.count == 1 and stack.bytes == 96
    assert stack.sources == ('jit(step)/jvp()/while/body/dynamic_update_slice',)


def test_products_on_a_tpu_are_no_convolutions():
    line = ('  ROOT %c = f32[8,8]{1,0} convolution(%x, %x), dim_labels=bf_io->bf, '
            'metadata={op_name="jit(step)/KIND"}\n}\n')
    text = ('ENTRY %main (x: bf16[8,8]) -> f32[8,8] {\n'
            '  %x = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)\n')
    product = read_facts(read_program(text + line.replace('KIND', 'dot_general')))
    convolution = read_facts(read_program(text + line.replace('KIND', 'conv_general_dilated')))
    assert product.convolutions == {} and convolution.convolutions == {'bf16': 1}
    assert product.traffic == 8 * 8 * 4  # what lies in VMEM is not HBM traffic


def test_the_traffic_is_that_of_xla_where_there_is_no_loop():
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w).lower(shape, shape).compile()
    expected = compiled.cost_analysis()['bytes accessed']
    assert read_facts(read_program(compiled.as_text())).traffic == pytest.approx(expected, rel=0.01)


def test_arrays_of_a_shape():
    found = arrays_of('(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f8e4m3fn[3], pred[], s4[3])')
    assert [(str(each), each.bytes, each.space) for each in found] == [
        ('bf16[4,8]', 64, 1), ('f8e4m3fn[3]', 3, 0), ('pred[]', 1, 0), ('s4[3]', 2, 0)]


REFUSAL = '''RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 22.50G of 15.75G hbm. Exceeded hbm capacity by 6.75G.

  Largest program allocations in hbm:

  1. Size: 3.00G
     Operator: op_name="jit(train_step)/jvp()/while/body/dot_general" source_file="x.py"
     Shape: bf16[12,512,197,768]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 2.50G
     XLA label: fusion.3 = fusion(...)
     Allocation type: HLO temp
     ==========================

  2. Size: 512.5M
     Shape: f32[8,8]{1,0}
     Allocation type: HLO temp
     ==========================
'''  # noqa: E501


def test_what_a_refusal_lists():
    assert largest_allocations(REFUSAL) == [
        (3 << 30, 'bf16[12,512,197,768]', 'jit(train_step)/jvp()/while/body/dot_general'),
        (int(512.5 * 2**20), 'f32[8,8]', '')]
    assert CompiledProgram({}, REFUSAL, 1.0, {}).needed == int(22.5 * 2**30)
    early = ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
             'temporaries (1.50T) exceeds available HBM (15.75G).')
    assert CompiledProgram({}, early, 1.0, {}).needed == int(1.5 * 2**40)
    assert largest_allocations(early) == []
    assert CompiledProgram({}, 'RESOURCE_EXHAUSTED', 1.0, {}).needed == 0
