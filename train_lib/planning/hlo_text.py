"""Optimised HLO in its text form: instructions, and how often each computation runs per step.

The compilers write loops in two ways. Those for CPU and CUDA note the number of rounds beside the
loop; that for TPU does not, and the number is read from the loop's condition, its start and its
step, as far as these are constants.
"""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's2': 2, 'u2': 2, 'bf16': 16}
_ARRAY = re.compile(r'\b(pred|bf16|f4\w+|f8\w+|[sufc]\d+)\[([\d,]*)\](\{[^{}]*\})?')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(')
_CALLED = re.compile(r'(calls|body|condition|to_apply|branch_computations|called_computations|'
                     r'true_computation|false_computation)=(?:%?([\w.\-]+)|\{([^}]*)\})')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a shape's text.

    Attributes:
        dtype: such as 'bf16'.
        sizes: of its dimensions.
        space: of the memory it lies in; 0 is HBM, a TPU's VMEM is 1.
    """

    dtype: str
    sizes: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Without the padding of tiles."""
        bits = _BITS.get(self.dtype) or (4 if self.dtype.startswith('f4') else
                                         8 if self.dtype.startswith('f8') else
                                         int(self.dtype[1:]))
        for size in self.sizes:
            bits *= size
        return -(-bits // 8)

    def __str__(self) -> str:
        return f'{self.dtype}[{",".join(map(str, self.sizes))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO.

    Attributes:
        name, op: such as 'fusion.3' and 'fusion'.
        arrays: of its result; several where it is a tuple.
        operands: names of instructions of the same computation.
        line: the whole line.
        root: whether it is the result of its computation.
    """

    name: str
    op: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @functools.cached_property
    def source(self) -> str:
        """The operation of the model that it belongs to, as JAX names it; '' if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ''

    def called(self, *kinds: str) -> list[str]:
        """Names of the computations that it calls as one of `kinds`, such as 'body'."""
        return [name for kind, one, several in _CALLED.findall(self.line) if kind in kinds
                for name in re.findall(r'[\w.\-]+', one or several)]


Computation = dict[str, Instruction]  # by name, in their order


@dataclasses.dataclass(frozen=True)
class Program:
    """An HLO module.

    Attributes:
        computations: by name.
        loops: {computation: rounds of the loops around it, the outermost first}; a number of
            rounds that is not known is 0.
        times: {computation: how often it runs per step}, where a loop of unknown length counts
            as one round and both branches of a condition count.
        fused: computations that are only the inside of an instruction.
    """

    computations: Mapping[str, Computation]
    loops: Mapping[str, tuple[int, ...]]
    times: Mapping[str, int]
    fused: frozenset[str]

    def instructions(self, *, fused: bool = True) -> Iterator[tuple[str, Instruction]]:
        """(computation, instruction) of those that run; `fused`: those inside others too."""
        for name, body in self.computations.items():
            if self.times[name] and (fused or name not in self.fused):
                yield from ((name, each) for each in body.values())


def read_program(text: str) -> Program:
    """Parses `jax.stages.Compiled.as_text()`; '' is a program without instructions."""
    computations = dict(_computations(text))
    entry = re.search(r'^ENTRY %?([\w.\-]+)', text, re.M)
    callers: dict[str, list[tuple[str, int | None, bool]]] = defaultdict(list)
    fused = set()
    for name, body in computations.items():
        for each in body.values():
            if each.op.endswith(('-done', '-update')):
                continue  # names what its start has called
            if each.op == 'while':
                rounds = _rounds(each, body, computations)
                for called in each.called('body', 'condition'):
                    callers[called].append((name, rounds, True))
                continue
            inside = each.called('calls', 'to_apply', 'called_computations')
            for called in inside + each.called('branch_computations', 'true_computation',
                                               'false_computation'):
                callers[called].append((name, 1, False))
            if each.op not in ('call', 'conditional') and not each.op.startswith('async'):
                fused.update(inside)
    times: dict[str, int] = {}
    loops: dict[str, tuple[int, ...]] = {}

    def count(name: str) -> None:
        if name in times:
            return
        times[name], loops[name] = int(not entry or name == entry[1]), ()
        for caller, rounds, loop in callers.get(name, ()):
            count(caller)
            times[name] += times[caller] * (rounds or 1)
            around = loops[caller] + ((rounds or 0,) if loop else ())
            loops[name] = max(loops[name], around, key=len)

    for name in computations:
        count(name)
    return Program(computations, loops, times, frozenset(fused))


def arrays_of(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape such as '(bf16[4,8]{1,0:T(8,128)S(1)}, u32[])'."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        space = re.search(r'S\((\d+)\)', layout)
        found.append(Array(dtype, tuple(int(size) for size in sizes.split(',') if size),
                           int(space[1]) if space else 0))
    return tuple(found)


def _computations(text: str) -> Iterator[tuple[str, Computation]]:
    name: str | None = None
    body: Computation = {}
    for line in text.splitlines():
        if line.startswith('}'):
            if name is not None:
                yield name, body
            name = None
        elif line[:1] not in ('', ' '):
            match = _COMPUTATION.match(line)
            if match:
                name, body = match[1], {}
        elif match := _INSTRUCTION.match(line):
            operands = tuple(_NAME.findall(_in_brackets(line, match.end())))
            body[match[2]] = Instruction(match[2], match[4], arrays_of(match[3]), operands, line,
                                         bool(match[1]))


def _in_brackets(line: str, start: int) -> str:
    """What stands before the bracket that closes the one before `start`."""
    depth = 1
    for match in re.compile(r'[()]').finditer(line, start):
        depth += 1 if match[0] == '(' else -1
        if not depth:
            return line[start:match.start()]
    return line[start:]


def _rounds(loop: Instruction, around: Computation, computations: Mapping[str, Computation]
            ) -> int | None:
    """How often the body of a loop runs; None where its text does not say."""
    known = _TRIPS.search(loop.line)
    if known:
        return int(known[1])
    condition = computations.get(next(iter(loop.called('condition')), ''), {})
    body = computations.get(next(iter(loop.called('body')), ''), {})
    test = _root(condition.values())
    if (test is None or test.op != 'compare' or 'direction=LT' not in test.line
            or len(test.operands) != 2):
        return None
    counter, end = (condition.get(name) for name in test.operands)
    limit = _constant(end)
    if counter is None or counter.op != 'get-tuple-element' or limit is None:
        return None
    index = int(re.search(r'index=(\d+)', counter.line)[1])  # type: ignore[index]
    first = around.get(loop.operands[0]) if loop.operands else None
    begin = _constant(around.get(first.operands[index])) if (
        first is not None and first.op == 'tuple' and index < len(first.operands)) else None
    return -(-(limit - (begin or 0)) // (_step(body, index) or 1))


def _step(body: Computation, index: int) -> int | None:
    """What a loop adds to its counter in one round."""
    result = _root(body.values())
    if result is None or result.op != 'tuple' or index >= len(result.operands):
        return None
    added = body.get(result.operands[index])
    if added is None or added.op != 'add':
        return None
    return next((value for name in added.operands
                 if (value := _constant(body.get(name))) is not None), None)


def _root(instructions: Iterable[Instruction]) -> Instruction | None:
    return next((each for each in instructions if each.root), None)


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.op != 'constant':
        return None
    found = re.search(r' constant\((-?\d+)\)', instruction.line)
    return int(found[1]) if found else None
