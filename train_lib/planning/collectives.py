"""The exchange between devices in a compiled program, read from its HLO text."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
         'collective-broadcast')
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'c64': 64, 'c128': 128}
_ARRAY = re.compile(r'\b(pred|bf16|f8\w+|[sufc]\d+)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(')
_CALLED = re.compile(r'(?:calls|body|condition|to_apply|branch_computations|called_computations)='
                     r'(?:%?([\w.\-]+)|\{([^}]*)\})')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
        kind: one of KINDS. A TPU's fused all-reduce and slice is a reduce-scatter.
        bytes: of the larger of its operands and its results, on one device.
        dtypes: of the arrays that are exchanged, e.g. ('bf16', 'f32').
        times: how often it runs per step; in a loop that is its number of rounds.
        in_loop: whether it is within a loop.
        source: the operation of the model that it belongs to, as JAX names it; '' if unknown.
    """

    kind: str
    bytes: int
    dtypes: tuple[str, ...]
    times: int
    in_loop: bool
    source: str


def read_collectives(text: str) -> list[Collective]:
    """The collectives of an optimised HLO module in text form."""
    lines = dict(_computations(text))
    times, looped = _executions(lines)
    found = []
    for name, body in lines.items():
        shapes = {match[1]: match[2] for line in body if (match := _INSTRUCTION.match(line))}
        for line in body:
            match = _INSTRUCTION.match(line)
            if not match or match[3].removesuffix('-start') not in KINDS:
                continue
            kind = match[3].removesuffix('-start')
            operands = line[match.end():].partition(')')[0]
            given = sum(_bytes(shapes.get(operand, operand)) for operand in
                        re.findall(r'%?([\w.\-]+)', re.sub(r'\S+\[[\d,]*\]\S* ', '', operands)))
            result = _bytes(match[2]) - (given if match[3].endswith('-start')
                                         and kind != 'all-reduce' else 0)
            if kind == 'all-reduce' and 'all-reduce-scatter' in name:
                kind = 'reduce-scatter'
            source = re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(
                kind, max(given, result),
                tuple(sorted({array[1] for array in _ARRAY.finditer(match[2])})),
                times[name], name in looped, source[1] if source else ''))
    return found


def summary(collectives: list[Collective]) -> list[dict]:
    """By kind and place: dict(kind, in_loop, count, bytes), where count and bytes are per step."""
    totals: Mapping = defaultdict(lambda: [0, 0])
    for each in collectives:
        total = totals[each.kind, each.in_loop]
        total[0] += each.times
        total[1] += each.times * each.bytes
    return [dict(kind=kind, in_loop=in_loop, count=count, bytes=size)
            for (kind, in_loop), (count, size) in sorted(totals.items())]


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, body = '', []
    for line in text.splitlines():
        if line.startswith('}'):
            yield name, body
        elif line[:1] not in ('', ' ', '}'):
            match = _COMPUTATION.match(line)
            if match:
                name, body = match[1], []
        else:
            body.append(line)


def _executions(lines: Mapping[str, list[str]]) -> tuple[dict[str, int], set[str]]:
    """({computation: how often it runs per step}, computations within loops)"""
    callers: dict[str, list[tuple[str, int, bool]]] = defaultdict(list)
    for name, body in lines.items():
        for line in body:
            trips = _TRIPS.search(line)
            loop = ' while(' in line
            for one, several in _CALLED.findall(line):
                for called in re.findall(r'[\w.\-]+', one or several):
                    callers[called].append((name, int(trips[1]) if trips and loop else 1, loop))
    times: dict[str, int] = {}
    looped: set[str] = set()

    def count(name: str) -> int:
        if name not in times:
            times[name] = 0  # a circle would end here
            calls = callers.get(name)
            times[name] = 1 if not calls else sum(count(caller) * trips
                                                  for caller, trips, _ in calls)
            if any(loop or caller in looped for caller, _, loop in calls or ()):
                looped.add(name)
        return times[name]

    for name in lines:
        count(name)
    return times, looped


def _bytes(shape: str) -> int:
    total = 0
    for dtype, sizes in _ARRAY.findall(shape):
        bits = _BITS.get(dtype) or (8 if dtype.startswith('f8') else int(dtype[1:]))
        count = 1
        for size in filter(None, sizes.split(',')):
            count *= int(size)
        total += count * bits // 8
    return total
