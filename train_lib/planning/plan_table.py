"""What the verb plan prints, in 80 columns."""

import re
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from train_lib.planning.collectives import summary
from train_lib.planning.compiled import largest_allocations
from train_lib.planning.step_plan import StepPlan
from train_lib.planning.token_padding import TokenPadding
from train_lib.runtime.progress import COLUMNS, in_columns

_GIB, _MIB = 1 << 30, 1 << 20
_SHOWN = 8  # largest weights, and allocations of a program that is too large
_PRECISIONS = {'bf16': 'bfloat16', 'f32': 'float32', 'f16': 'float16'}
_INSTALL = 'pip install -r requirements-plan.txt'


def table(planned: StepPlan, config: ConfigDict, padding: TokenPadding | None = None) -> str:
    """All of one plan; `padding`: of the model's tokens, if it has any."""
    tokens = [str(padding)] if padding else []
    return '\n'.join([*_head(planned, config), *tokens, '', *_memory(planned), '',
                      *_program(planned, config), *_exchange(planned), *_large(planned), '',
                      *_weights(planned), '', _verdict(planned)])


def mesh_table(plans: Sequence[StepPlan], best: StepPlan) -> str:
    """A line per candidate."""
    lines = [f'{"data":>6}{"fsdp":>6}{"batch":>8}{"per device":>14}{"fits":>6}'
             f'{"sent per step":>16}{"per picture":>14}']
    for each in plans:
        need = size_text(each.program.needed) if each.program.needed else 'too much'
        lines.append(f'{each.mesh["data"]:6}{each.mesh["fsdp"]:6}{each.batch_size:8}{need:>14}'
                     f'{"yes" if each.fits else "no":>6}'
                     + (f'{"":30}' if each.program.refusal else
                        f'{size_text(each.sent):>16}{size_text(each.sent / each.batch_size):>14}')
                     + ('  best' if each is best and each.fits else ''))
    if not best.fits:
        lines.append('None of them fits; below is the one that takes least memory.')
    return '\n'.join(lines)


def size_text(size: float) -> str:
    """Bytes as text, such as '1.50 GiB'."""
    return f'{size / _GIB:.2f} GiB' if size >= _GIB else f'{size / _MIB:.2f} MiB'


def _head(planned: StepPlan, config: ConfigDict) -> Iterator[str]:
    place, program = planned.place, planned.program
    named = f' ({place.target.name})' if place.target.chip else ''
    yield f'plan     {config.model.name}, {config.precision}, a batch of {planned.batch_size}'
    yield (f'devices  {planned.devices} x {planned.device}{named}: '
           f'{", ".join(f"{axis} {size}" for axis, size in planned.mesh.items())}')
    if place.missing:
        yield from in_columns(f'compiler that of the CPU, as {place.missing} is not installed: '
                              f'memory and exchange will differ on the target ({_INSTALL})')
    yield from in_columns('compiler ' + ', '.join(map(' '.join, program.versions.items())) + (
        f'; {program.seconds:.1f} s' + ' when it compiled, kept since' * program.cached))


def _memory(planned: StepPlan) -> Iterator[str]:
    total = planned.program.needed
    rows = [*planned.arrays, ('batch', 0, 0, planned.batch)]
    rest = total - sum(row[3] for row in rows)
    if total:
        rows += [('gradients, activations', 0, 0, max(rest, 0)), ('total', 0, 0, total)]
    yield f'{"":24}{"parameters":>16}{"total":>12}{"per device":>12}'
    for name, count, size, part in rows:
        yield (f'{name:24}{f"{count:,}" if count else "":>16}{size_text(size) if size else "":>12}'
               f'{size_text(part):>12}')


def _program(planned: StepPlan, config: ConfigDict) -> Iterator[str]:
    chip, facts = planned.place.target.chip, planned.facts
    yield (f'FLOPs per step: {planned.flops:.4g} on all devices together, '
           f'{planned.flops / planned.devices:.4g} on each')
    if planned.intensity is not None:
        yield (f'memory traffic: {size_text(facts.traffic)} per step and device, each operand and '
               f'result once')
        yield (f'arithmetic intensity: {planned.intensity:.0f} FLOPs per byte of it'
               + (f' (ridge point of the chip: {chip.flops / chip.bandwidth:.0f})'
                  if chip else ''))
        kernels = ', '.join(f'{count} {kernel}' for kernel, count in facts.attention.items())
        yield f'flash attention: {f"{kernels} calls per step" if kernels else "none"}'
        convolutions = ', '.join(f'{count} in {_PRECISIONS.get(dtype, dtype)}'
                                 for dtype, count in sorted(facts.convolutions.items()))
        yield f'convolutions: {f"{convolutions}, per step" if convolutions else "none"}'
    if chip and not chip.bfloat16 and config.precision == 'bfloat16':
        yield 'This GPU does not multiply bfloat16: XLA computes in float32 there.'


def _exchange(planned: StepPlan) -> Iterator[str]:
    if planned.program.refusal or planned.devices == 1:
        return
    rows = summary(planned.collectives)
    yield ''
    yield f'{"exchange per step and device":36}{"count":>7}{"bytes":>12}{"sent":>12}  dtypes'
    for row in rows:
        rounds = ' x '.join(str(each or '?') for each in row['loops'])
        where = f'{row["kind"]:20}' + (f'loop of {rounds}' if rounds else '')
        yield (f'{where:36}{row["count"]:7,}{size_text(row["bytes"]):>12}'
               f'{size_text(row["bytes_sent"]):>12}  {", ".join(row["dtypes"])}')
    yield (f'{"all":36}{sum(row["count"] for row in rows):7,}'
           f'{size_text(sum(row["bytes"] for row in rows)):>12}{size_text(planned.sent):>12}')
    if any(0 in row['loops'] for row in rows):
        yield 'A loop of ? rounds counts as one round.'


def _large(planned: StepPlan) -> Iterator[str]:
    allocations = largest_allocations(planned.program.refusal)[:_SHOWN]
    if allocations:
        yield from ('', 'largest allocations, as the compiler lists them')
        for size, shape, source in allocations:
            yield _cut(f'{size_text(size):>12}  {shape}  {_short(source)}')
    elif planned.facts.largest:
        yield from ('', 'largest arrays that the program makes (not all at the same time)')
        for each in planned.facts.largest:
            times = f' x {each.count}' if each.count > 1 else ''
            names = list(dict.fromkeys(map(_short, each.sources)))
            yield _cut(f'{size_text(each.bytes):>12}  {each.shape}{times}  {", ".join(names)}'
                       .rstrip())


def _weights(planned: StepPlan) -> Iterator[str]:
    yield 'largest weights, and the mesh axes that split their dimensions'
    for name, leaf in planned.weights[:_SHOWN]:
        axes = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
        yield _cut(f'{name:40}{leaf.shape!s:>24}  {", ".join(axis or "-" for axis in axes)}')


def _verdict(planned: StepPlan) -> str:
    memory, needed = planned.place.memory, planned.program.needed
    lines = []
    if memory.share < 1:
        lines.append(f'memory   {size_text(memory.total)}, of which JAX takes '
                     f'{memory.share:.0%}, less a margin of {memory.margin:.0%}')
    elif memory.margin:
        lines.append(f'memory   {size_text(memory.total)}, less a margin of {memory.margin:.0%}')
    if planned.program.refusal:
        lines.append('The compiler refuses the program, as it is too large.')
    lines.append(f'{size_text(needed) if needed else "More than there is"} of '
                 f'{size_text(memory.usable)}: it {"fits" if planned.fits else "does not fit"}.')
    return '\n'.join(lines)


def _short(source: str) -> str:
    """An operation as JAX names it, without what says nothing."""
    if 'dynamic_update_slice' in source and 'while' in source:
        way = 'backward' if 'transpose(' in source else 'forward'
        return f'filled by a loop of the {way} pass'
    return re.sub(r'jit\(train_step\)/?|closed_call/|body/|checkpoint/', '', source)


def _cut(line: str) -> str:
    return line if len(line) <= COLUMNS else line[:COLUMNS - 3] + '...'
