"""Collectives read from HLO text, as the compilers for CUDA and TPU write it."""

import pytest

from train_lib.planning.collectives import read_collectives, summary
from train_lib.planning.hlo_text import read_program

CUDA = '''HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%scatter (p: f32[64,8]) -> f32[8,8] {
  %p = f32[64,8]{1,0} parameter(0)
  ROOT %rs = f32[8,8]{1,0} reduce-scatter(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0}) parameter(0)
  %part = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %scale = f32[2]{0} constant({1, 2})
  %all-gather-start.1 = ((bf16[4,8]{1,0}, /*index=1*/f32[2]{0}), (bf16[32,8]{1,0}, f32[16]{0})) all-gather-start(%part, /*index=1*/%scale), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={0}, metadata={op_name="jit(step)/while/body/dot"}
  %whole = (bf16[32,8]{1,0}, f32[16]{0}) all-gather-done(%all-gather-start.1)
  %wide = f32[64,8]{1,0} custom-call(%whole), custom_call_target="x"
  %rs-start = ((f32[64,8]{1,0}), f32[8,8]{1,0}) async-start(%wide), calls=%scatter
  %rs-done = f32[8,8]{1,0} async-done(%rs-start), calls=%scatter
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%state, %part)
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %loop = (s32[], bf16[4,8]{1,0}) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %moved = (f32[8]{0}, f32[8]{0}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %there = f32[8]{0} collective-permute-done(%moved)
  %half = bf16[8]{0} convert(%there)
  %all-reduce-start = (f32[8]{0}, bf16[8]{0}) all-reduce-start(%x, %half), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add, metadata={op_name="jit(step)/head"}
  ROOT %all-reduce-done = (f32[8]{0}, bf16[8]{0}) all-reduce-done(%all-reduce-start)
}
'''  # noqa: E501

# libtpu writes no number of rounds, splits a product into steps of a loop that send parts around,
# repeats a collective that runs beside products in each of them, and has no reduce-scatter.
TPU = '''HloModule jit_step

%all-reduce-scatter (input: bf16[16,8]) -> bf16[2,8] {
  %input = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.35 = bf16[16,8]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=104, replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = bf16[2,8]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.35, %zero, %zero), dynamic_slice_sizes={2,8}
}

%begin (p: bf16[2,8]) -> (bf16[2,8], bf16[16,8], u32[]) {
  %p = bf16[2,8]{1,0} parameter(0)
  %all-gather.72 = bf16[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=112, replica_groups=[1,8]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %started = (bf16[2,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.72), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.7 (q: bf16[2,8]) -> bf16[16,8] {
  %q = bf16[2,8]{1,0} parameter(0)
  %all-gather.74 = bf16[16,8]{1,0:T(8,128)S(1)} all-gather(%q), channel_id=112, replica_groups=[1,8]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %product = bf16[16,8]{1,0} convolution(%all-gather.74, %q), dim_labels=bf_io->bf
}

%inner (s: (u32[], bf16[2,8])) -> (u32[], bf16[2,8]) {
  %s = (u32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %n = u32[]{:T(128)} get-tuple-element(%s), index=0
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%n, %two)
  %w = bf16[2,8]{1,0} get-tuple-element(%s), index=1
  %collective-permute-start.4 = (bf16[2,8]{1,0:T(8,128)S(1)}, bf16[2,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), channel_id=3, source_target_pairs={{0,7},{1,0}}
  %collective-permute-done.4 = bf16[2,8]{1,0} collective-permute-done(%collective-permute-start.4)
  %fusion.8 = bf16[16,8]{1,0} fusion(%w), kind=kOutput, calls=%async_collective_fusion.7
  ROOT %r = (u32[]{:T(128)}, bf16[2,8]{1,0}) tuple(%next, %collective-permute-done.4)
}

%inner_test (s: (u32[], bf16[2,8])) -> pred[] {
  %four = u32[]{:T(128)} constant(4)
  %s = (u32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %n = u32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%n, %four), direction=LT
}

%outer (s: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %s = (s32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %w = bf16[2,8]{1,0} get-tuple-element(%s), index=1
  %fusion.1 = (bf16[2,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, calls=%begin
  %zero = u32[]{:T(128)} constant(0)
  %first = (u32[]{:T(128)}, bf16[2,8]{1,0}) tuple(%zero, %w)
  %while.2 = (u32[]{:T(128)}, bf16[2,8]{1,0}) while(%first), condition=%inner_test, body=%inner
  ROOT %r = (s32[]{:T(128)}, bf16[2,8]{1,0}) tuple(%next, %w)
}

%outer_test (s: (s32[], bf16[2,8])) -> pred[] {
  %end = s32[]{:T(128)} constant(24)
  %s = (s32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT
}

ENTRY %main (x: bf16[16,8], w: bf16[2,8]) -> bf16[2,8] {
  %x = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[2,8]{1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, bf16[2,8]{1,0}) tuple(%zero, %w)
  %while.1 = (s32[]{:T(128)}, bf16[2,8]{1,0}) while(%first), condition=%outer_test, body=%outer
  ROOT %fusion = bf16[2,8]{1,0:T(8,128)(2,1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
'''  # noqa: E501


def row(kind, loops, count, size, sent, **dtypes):
    return dict(kind=kind, in_loop=bool(loops), loops=loops, count=count, bytes=size,
                bytes_sent=sent, dtypes=dtypes)


def test_collectives_for_cuda():
    gathered = 32 * 8 * 2 + 16 * 4
    assert summary(read_collectives(CUDA)) == [
        row('all-gather', [12], 12, 12 * gathered, 12 * gathered * 7 // 8,
            bf16=12 * 512, f32=12 * 64),
        row('all-reduce', [], 1, 48, 2 * 48 * 3 // 4, bf16=16, f32=32),
        row('collective-permute', [], 1, 32, 32, f32=32),
        row('reduce-scatter', [12], 12, 12 * 2048, 12 * 2048 * 7 // 8, f32=12 * 2048)]


def test_the_operation_that_a_collective_belongs_to():
    assert [each.source for each in read_collectives(CUDA) if each.kind == 'all-reduce'] == [
        'jit(step)/head']


def test_collectives_for_tpu():
    assert summary(read_collectives(TPU)) == [
        row('all-gather', [24], 24, 24 * 256, 24 * 224, bf16=24 * 256),
        row('collective-permute', [24, 2], 48, 48 * 32, 48 * 32, bf16=48 * 32),
        row('reduce-scatter', [], 1, 256, 224, bf16=256)]


@pytest.mark.parametrize('groups,group', [
    ('{{0,1,2,3},{4,5,6,7}}', 4), ('[4,2]<=[8]', 2), ("mesh['a'=2,'b'=4] {'a'}", 2),
    ("mesh['a'=2,'b'=4] {'a', 'b'}", 8), ('{}', 8)])
def test_what_a_device_sends_depends_on_the_group(groups, group):
    text = CUDA.replace('{{0,1,2,3},{4,5,6,7}}', groups)
    reduced, = (each for each in read_collectives(text, 8) if each.kind == 'all-reduce')
    assert reduced.sent == 2 * 48 * (group - 1) / group


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    program = read_program(TPU.replace('direction=LT', 'direction=NE'))
    assert program.loops['inner'] == (0, 0) and program.times['inner'] == 1


def test_no_program():
    assert read_collectives('') == []
