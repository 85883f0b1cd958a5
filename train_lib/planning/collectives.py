"""The exchange between devices in a compiled program, read from its HLO text."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from train_lib.planning.hlo_text import Array, Instruction, Program, read_program

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
         'collective-broadcast')
_CHANNEL = re.compile(r'channel_id=(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
        kind: one of KINDS. A TPU's fused all-reduce and slice is a reduce-scatter.
        bytes: of the larger of its operands and its results, on one device.
        sent: bytes that one device sends at least, see `_sent`.
        by_dtype: (dtype, bytes) of the arrays that make up `bytes`, e.g. (('bf16', 512),).
        times: how often it runs per step; in a loop that is its number of rounds.
        loops: rounds of the loops around it, the outermost first; 0 where they are not known.
        source: the operation of the model that it belongs to, as JAX names it; '' if unknown.
    """

    kind: str
    bytes: int
    sent: int
    by_dtype: tuple[tuple[str, int], ...]
    times: int
    loops: tuple[int, ...]
    source: str

    @property
    def in_loop(self) -> bool:
        return bool(self.loops)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(dtype for dtype, _ in self.by_dtype)


def read_collectives(program: Program | str, devices: int = 0) -> list[Collective]:
    """The collectives of an optimised HLO module.

    A TPU spreads one collective over several fused computations, which repeat it with its channel
    (async collective fusion); it counts once.

    Args:
        program: the module, or its text.
        devices: that run it; of a collective whose text names no groups.
    """
    program = read_program(program) if isinstance(program, str) else program
    found: dict[tuple, Collective] = {}
    for name, each in program.instructions():
        kind = each.op.removesuffix('-start')
        if kind not in KINDS:
            continue
        given = _data(array for operand in each.operands
                      if operand in program.computations[name]
                      for array in program.computations[name][operand].arrays)
        result = _data(each.arrays)
        if each.op.endswith('-start') and kind != 'all-reduce':
            result = result[len(given):]  # the operands come first
        if kind == 'all-reduce' and 'all-reduce-scatter' in name:
            kind = 'reduce-scatter'
        larger = max(given, result, key=_bytes)
        by_dtype: dict[str, int] = defaultdict(int)
        for array in larger:
            by_dtype[array.dtype] += array.bytes
        one = Collective(kind, _bytes(larger), _sent(kind, _bytes(larger), _group(each, devices)),
                         tuple(sorted(by_dtype.items())), program.times[name],
                         program.loops[name], each.source)
        channel = _CHANNEL.search(each.line)
        spread = channel and 'async_collective_fusion_config' in each.line
        key = (kind, channel[1]) if channel and spread else (name, each.name)
        if key not in found or one.times < found[key].times:  # as often as its start
            found[key] = one
    return list(found.values())


def summary(collectives: Iterable[Collective]) -> list[dict]:
    """By kind and place: dict(kind, in_loop, loops, count, bytes, bytes_sent, dtypes), where all
    numbers are per step, and `dtypes` is {dtype: bytes}."""
    totals: Mapping = defaultdict(lambda: [0, 0, 0, defaultdict(int)])
    for each in collectives:
        total = totals[each.kind, each.loops]
        total[0] += each.times
        total[1] += each.times * each.bytes
        total[2] += each.times * each.sent
        for dtype, size in each.by_dtype:
            total[3][dtype] += each.times * size
    return [dict(kind=kind, in_loop=bool(loops), loops=list(loops), count=count, bytes=size,
                 bytes_sent=sent, dtypes=dict(sorted(dtypes.items())))
            for (kind, loops), (count, size, sent, dtypes) in sorted(totals.items())]


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _data(arrays: Iterable[Array]) -> list[Array]:
    """Without the counters by which a TPU or GPU knows that an exchange is over."""
    arrays = list(arrays)
    while arrays and arrays[-1].dtype == 'u32' and not arrays[-1].sizes:
        arrays.pop()
    return arrays


def _sent(kind: str, size: int, group: int) -> int:
    """Bytes that each device of a group sends at least, by a ring or any other way that uses the
    links best (Chan et al., Collective communication, 2007).

    Args:
        size: of the whole array: the operand of an all-reduce and a reduce-scatter, the result of
            an all-gather.
        group: devices that exchange.
    """
    if kind == 'collective-permute' or group < 2:
        return size if kind == 'collective-permute' else 0
    share = size * (group - 1) / group
    return math.ceil(2 * share if kind == 'all-reduce' else share)


def _group(each: Instruction, devices: int) -> int:
    """How many devices exchange with each other."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", each.line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    iota = re.search(r'replica_groups=\[\d+,(\d+)\]', each.line)
    if iota:
        return int(iota[1])
    listed = re.search(r'replica_groups=\{\{([\d,]+)\}', each.line)
    return len(listed[1].split(',')) if listed else devices
