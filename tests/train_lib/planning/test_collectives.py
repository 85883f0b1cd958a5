"""Collectives read from HLO text."""

from train_lib.planning.collectives import read_collectives, summary

TEXT = '''HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0}) parameter(0)
  %part = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %all-gather-start.1 = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%part), dimensions={0}
  %whole = bf16[16,8]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%state, %part)
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %loop = (s32[], bf16[4,8]{1,0}) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %all-reduce.2 = f32[8]{0} all-reduce(%x), to_apply=%add, metadata={op_name="jit(step)/head"}
}
'''  # noqa: E501


def test_collectives_of_a_program():
    assert summary(read_collectives(TEXT)) == [
        dict(kind='all-gather', in_loop=True, count=12, bytes=12 * 16 * 8 * 2),
        dict(kind='all-reduce', in_loop=False, count=1, bytes=32)]
    assert read_collectives(TEXT)[-1].source == 'jit(step)/head'
