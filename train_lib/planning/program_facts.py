"""What a compiled program is made of: convolutions, flash attention, arrays, memory traffic."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from train_lib.planning.hlo_text import Array, Computation, Instruction, Program

# Neither read nor write an array.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
         'call', 'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'optimization-barrier',
         'domain', 'add-dependency', 'iota')
_CONVOLUTIONS = ('__cudnn$conv', '__onednn$conv')
_FLASH = {'__cudnn$fmha': 'cuDNN', 'tpu_custom_call': 'Mosaic'}


@dataclasses.dataclass(frozen=True)
class LargeArray:
    """Arrays of one shape that a program makes.

    Attributes:
        bytes: of one.
        shape: such as 'bf16[12,32,197,768]'.
        count: operations that make one.
        sources: the operations of the model, as JAX names them; () if unknown.
    """

    bytes: int
    shape: str
    count: int
    sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of a compiled program.

    Attributes:
        convolutions: {dtype of the operands: how often one runs per step}; those of the model,
            not the products that a TPU computes as convolutions.
        attention: {'cuDNN forward', 'cuDNN backward' or 'Mosaic': how often such a kernel runs
            per step}; Mosaic kernels are those written in Pallas.
        largest: arrays, the largest first; they need not exist at the same time.
        traffic: bytes per step that operations read from and write to the memory of one device,
            as if nothing stayed in a cache and no tile were padded; see `_traffic`.
    """

    convolutions: Mapping[str, int]
    attention: Mapping[str, int]
    largest: tuple[LargeArray, ...]
    traffic: int


def read_facts(program: Program, shown: int = 6) -> Facts:
    """The facts of a program; `shown`: how many of the largest arrays."""
    convolutions: Counter[str] = Counter()
    attention: Counter[str] = Counter()
    for name, each in program.instructions():
        body, times = program.computations[name], program.times[name]
        if _is_convolution(each):
            convolutions[_multiplied(each, body)] += times
        for mark, kernel in _FLASH.items():
            if f'custom_call_target="{mark}' in each.line:
                way = (' backward' if 'Backward' in each.line else ' forward') if (
                    kernel == 'cuDNN') else ''
                attention[kernel + way] += times
    return Facts(dict(convolutions), dict(attention), tuple(_largest(program)[:shown]),
                 sum(_traffic(each, program.computations[name], program) * program.times[name]
                     for name, each in program.instructions(fused=False)))


def _is_convolution(each: Instruction) -> bool:
    if each.op == 'custom-call':
        return any(f'custom_call_target="{mark}' in each.line for mark in _CONVOLUTIONS)
    return each.op == 'convolution' and 'conv_general_dilated' in each.source


def _multiplied(each: Instruction, body: Computation) -> str:
    """The dtype of what a convolution multiplies."""
    given = [array.dtype for name in each.operands[:2] if name in body
             for array in body[name].arrays[:1]]
    return '+'.join(sorted(set(given))) or each.arrays[0].dtype


def _largest(program: Program) -> list[LargeArray]:
    """By shape, of all computations that run as such. An array that a loop fills part by part is
    made once, and its source is that of the parts."""
    made: dict[str, list[int]] = defaultdict(list)
    sources: dict[str, list[str]] = defaultdict(list)
    filled: dict[str, list[str]] = defaultdict(list)
    for _, each in program.instructions(fused=False):
        if each.op in _FREE or each.op.endswith(('-done', '-update')):
            continue
        for array, part in zip(each.arrays, _parts(each, program)):
            if part is not None and part.op == 'dynamic-update-slice':
                filled[str(array)].append(part.source or each.source)
            else:
                made[str(array)].append(array.bytes)
                sources[str(array)].append(each.source)
    rows = [LargeArray(sizes[0], shape, len(sizes),
                       tuple(dict.fromkeys(filter(None, filled.get(shape) or sources[shape]))))
            for shape, sizes in made.items()]
    return sorted(rows, key=lambda row: (-row.bytes, row.shape))


def _parts(each: Instruction, program: Program) -> Iterator[Instruction | None]:
    """What makes each array of the result: the instruction itself, or those inside a fusion; then
    None for ever."""
    inside = program.computations.get(next(iter(each.called('calls')), '')) if (
        each.op == 'fusion') else None
    root = next((one for one in inside.values() if one.root), None) if inside else each
    if root is not None and inside is not None:
        for name in root.operands if root.op == 'tuple' else (root.name,):
            yield _behind_bitcasts(inside[name], inside) if name in inside else None
    else:
        yield root
    while True:
        yield None


def _behind_bitcasts(value: Instruction, inside: Computation) -> Instruction:
    while value.op == 'bitcast' and value.operands and value.operands[0] in inside:
        value = inside[value.operands[0]]
    return value


def _traffic(each: Instruction, body: Computation, program: Program) -> int:
    """Bytes that an instruction reads from and writes to HBM.

    Each operand is read once and each result written once; of an operand that is only sliced, the
    slices; of an array that is changed in place, the change. What lies in a TPU's VMEM is not
    counted. XLA's own count ('bytes accessed' of a cost analysis) does the same, but counts the
    body of a loop once."""
    if each.op in _FREE or each.op.endswith(('-done', '-update')):
        return 0
    operands = [body[name].arrays for name in each.operands if name in body]
    if each.op in ('dynamic-slice', 'slice', 'gather'):
        return 2 * _hbm(each.arrays)
    if each.op in ('dynamic-update-slice', 'scatter'):
        return 2 * _hbm(operands[1] if len(operands) > 1 else ())
    inside = program.computations.get(next(iter(each.called('calls')), '')) if (
        each.op == 'fusion') else None
    if inside is None:
        given = sum(map(_hbm, operands))
        if each.op.endswith('-start'):  # its result repeats the operands
            return given + max(_hbm(each.arrays) - given, 0)
        return given + _hbm(each.arrays)
    users: dict[str, list[Instruction]] = defaultdict(list)
    for user in inside.values():
        for name in dict.fromkeys(user.operands):
            users[name].append(user)
    total = 0
    parameters = {int(one.line.partition(' parameter(')[2].partition(')')[0]): one
                  for one in inside.values() if one.op == 'parameter'}
    for index, arrays in enumerate(operands):
        whole = _hbm(arrays)
        parameter = parameters.get(index)
        total += min(whole, _read(parameter, users, inside)) if parameter and whole else whole
    root = next((one for one in inside.values() if one.root), None)
    return total + (min(_hbm(each.arrays), _written(root, inside)) if root else _hbm(each.arrays))


def _read(value: Instruction, users: Mapping[str, list[Instruction]], inside: Computation) -> int:
    """What a fusion reads of a parameter."""
    total = 0
    for user in users[value.name]:
        if user.op in ('dynamic-slice', 'slice', 'gather'):
            total += user.bytes
        elif user.op == 'dynamic-update-slice' and user.operands[0] == value.name:
            continue  # the rest of it stays where it is
        elif user.op == 'bitcast':
            total += _read(user, users, inside)
        else:
            return value.bytes
    return total


def _written(root: Instruction, inside: Computation) -> int:
    """What a fusion writes."""
    root = _behind_bitcasts(root, inside)
    if root.op == 'tuple':
        return sum(_written(inside[name], inside) for name in root.operands if name in inside)
    if root.op == 'dynamic-update-slice' and root.operands[1] in inside:
        return inside[root.operands[1]].bytes
    return root.bytes


def _hbm(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if not array.space)
