"""The parameters of a run as text: what there is, what trains, how fast, and where it lies."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import jax
import numpy as np

from train_lib.optim.late_start import Start, describe
from train_lib.runtime.trees import by_path
from train_lib.training.state import Weights

_LINES = 6  # of the summary
_LONGEST = 30  # name that leaves room for the rest in 80 columns


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of a model.

    `rate` and `decay` are (lowest, highest) factors of the learning rate and of the weight decay;
    a stack of layers may have several. `kind` is 'trained', 'frozen' or 'statistics'. `start`
    says when it begins to train, such as 'after 2 epochs'; '' for at once.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    rate: tuple[float, float]
    decay: tuple[float, float]
    sharding: str
    start: str = ''

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


def parameters_of(weights: Weights, rates: dict, decay: dict,
                  starts: Mapping[str, Start] = MappingProxyType({})) -> list[Parameter]:
    """Every array of a model, by name; trained ones first.

    Args:
        weights: laid out on the devices.
        rates, decay: factors, trees like params.
        starts: of those that begin to train later, by name.
    """
    rates, decay = by_path(rates), by_path(decay)
    found = []
    for kind, part in (('trained', weights.params), ('frozen', weights.frozen),
                       ('statistics', weights.batch_stats)):
        for name, leaf in sorted(by_path(part).items(), key=lambda item: _numbers(item[0])):
            found.append(Parameter(
                name, tuple(leaf.shape), str(leaf.dtype), kind, _span(rates.get(name, 0.0)),
                _span(decay.get(name, 0.0)), _sharding(leaf),
                describe(starts[name]) if name in starts else ''))
    return found


def summary(parameters: Sequence[Parameter]) -> list[str]:
    """A few lines of at most 80 columns, one for each top module, the largest first."""
    modules = defaultdict(list)
    for parameter in parameters:
        if parameter.kind != 'statistics':
            modules[parameter.name.partition('/')[0]].append(parameter)
    ranked = sorted(modules.items(), key=lambda item: -sum(one.size for one in item[1]))
    rows = [(_with_layers(name, members), f'{sum(one.size for one in members):,}', _how(members))
            for name, members in ranked[:_LINES]]
    rest = [one for _, members in ranked[_LINES:] for one in members]
    if rest:
        rows.append((f'{len(ranked) - _LINES} others', f'{sum(one.size for one in rest):,}',
                     _how(rest)))
    return _aligned(rows, right=(1,))


def table(parameters: Sequence[Parameter]) -> str:
    """All of them: equal layers together in 80 columns, then every array on a line of its own."""
    groups = defaultdict(list)
    for one in parameters:
        pattern = re.sub(r'\d+', '#', one.name)
        groups[pattern, one.shape, one.dtype, one.kind, one.sharding, one.start].append(one)
    grouped = [(_together([one.name for one in members]),
                f'{len(members)} x {shape}' if len(members) > 1 else str(shape),
                _how(members), '' if sharding == 'whole' else sharding)
               for (_, shape, _, _, sharding, _), members in groups.items()]
    late = any(one.start for one in parameters)
    single = [('name', 'shape', 'dtype', '', 'lr', 'decay', 'sharding', *['start'] * late)]
    single += [(one.name, str(one.shape), one.dtype, one.kind, _factor(one.rate),
                _factor(one.decay), one.sharding, *[one.start] * late) for one in parameters]
    sizes = {kind: sum(one.size for one in parameters if one.kind == kind)
             for kind in ('trained', 'frozen', 'statistics')}
    total = ', '.join(f'{size:,} {kind}' for kind, size in sizes.items() if size)
    return '\n'.join([total, '', *_aligned(grouped, longest=_LONGEST), '', *_aligned(single), ''])


def _numbers(name: str) -> list:
    """A key that sorts blocks/10 after blocks/9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part)
            for part in name.split('/')]


def _span(factor) -> tuple[float, float]:
    return float(np.min(factor)), float(np.max(factor))


def _sharding(leaf: jax.Array) -> str:
    spec = getattr(getattr(leaf, 'sharding', None), 'spec', ())
    axes = [f'{axis} on axis {i}' for i, axis in enumerate(spec) if axis]
    return ', '.join(axes) or 'whole'


def _factor(span: tuple[float, float]) -> str:
    low, high = span
    return f'{low:.3g}' if low == high else f'{low:.3g}..{high:.3g}'


def _how(members: Iterable[Parameter]) -> str:
    """Such as 'lr x1', 'lr x0.1..1, no decay', 'frozen', 'lr x1, 1,234 frozen'."""
    members = list(members)
    if all(one.kind == 'statistics' for one in members):
        return 'statistics'
    trained = [one for one in members if one.kind == 'trained']
    frozen = sum(one.size for one in members if one.kind == 'frozen')
    if not trained:
        return 'frozen'
    rates = _factor((min(one.rate[0] for one in trained), max(one.rate[1] for one in trained)))
    words = [f'lr x{rates}']
    starts = {one.start for one in trained}
    if starts != {''}:  # in the place of the decay: both would not fit into a line
        words.append(starts.pop() if len(starts) == 1 else 'some later')
    elif len({one.decay for one in trained}) == 1 and trained[0].decay != (1.0, 1.0):
        decay = trained[0].decay
        words.append('no decay' if decay == (0.0, 0.0) else f'decay x{_factor(decay)}')
    if frozen:
        words.append(f'{frozen:,} frozen')
    return ', '.join(words)


def _with_layers(module: str, members: Sequence[Parameter]) -> str:
    """Such as 'blocks/{0..11}', where a module is nothing but numbered layers."""
    names = {'/'.join(one.name.split('/')[:2]) for one in members}
    layered = len(names) > 1 and all(name.rpartition('/')[2].isdigit() for name in names)
    return _together(sorted(names)) if layered else module


def _together(names: Sequence[str]) -> str:
    """blocks/0/norm1/scale, blocks/1/norm1/scale as blocks/{0..1}/norm1/scale."""
    parts = []
    for column in zip(*(re.split(r'(\d+)', name) for name in names)):
        values = sorted({int(part) for part in column}) if column[0].isdigit() else []
        if len(values) > 1:
            whole = values == list(range(values[0], values[-1] + 1))
            parts.append(f'{{{values[0]}..{values[-1]}}}' if whole else
                         f'{{{",".join(map(str, values))}}}')
        else:
            parts.append(column[0])
    return ''.join(parts)


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = (), longest: int = 1000
             ) -> list[str]:
    """Columns; a first cell that is longer than `longest` has a line for itself."""
    rows = [part for row in rows for part in (
        ([row[0]], ['', *row[1:]]) if len(row[0]) > longest else (row,))]
    widths = [max((len(row[i]) for row in rows if len(row) > 1), default=0)
              for i in range(max(map(len, rows)))]
    return ['  '.join(cell.rjust(width) if i in right else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(row, widths)) if width).rstrip()
            for row in rows]
