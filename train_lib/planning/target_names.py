"""The spellings of a target: those of the clouds, short ones, and the plain one, 'v5e:4x4'."""

import math
import re

from input_pipeline.errors import did_you_mean
from train_lib.planning.chips import CHIPS
from train_lib.runtime.errors import ConfigError

_2D = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_3D = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x12', '8x8x16',
       '8x16x16')
# The slices that Cloud TPU gives to a number of chips: docs.cloud.google.com/tpu/docs/v5e, and so
# on for each version.
TOPOLOGIES = {'v3': ('2x2', '4x4', '8x8', '8x16', '16x16', '16x32', '32x32'), 'v4': _3D,
              'v5e': ('1x1', *_2D), 'v5p': _3D, 'v6e': ('1x1', *_2D), 'tpu7x': _3D}
# Accelerator types count chips of v5e and v6e, and cores of the others, which have two per chip.
_CORES = ('v3', 'v4', 'v5p', 'tpu7x')
_KINDS = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'tpu-v5-lite-podslice': 'v5e',
          'tpu-v5-lite-device': 'v5e', 'tpu-v5p-slice': 'v5p', 'tpu-v4-podslice': 'v4',
          'tpu-v3-slice': 'v3', 'tpu-v6e-slice': 'v6e', 'trillium': 'v6e', 'v7x': 'tpu7x',
          'ironwood': 'tpu7x', **{f'tpu-{kind}': kind for kind in TOPOLOGIES},
          'a100-80gb': 'a100', 'a100-80': 'a100', 'a100-sxm4-80gb': 'a100',
          'a100-40': 'a100-40gb', 'h100-80': 'h100',
          'a100-sxm4-40gb': 'a100-40gb', 'h100-80gb': 'h100',
          'h100-sxm': 'h100', 'h200-141gb': 'h200', '4090': 'rtx4090', 'rtx-4090': 'rtx4090',
          'nvidia-tesla-t4': 't4', 'nvidia-l4': 'l4', 'nvidia-tesla-a100': 'a100-40gb',
          'nvidia-a100-80gb': 'a100', 'nvidia-h100-80gb': 'h100',
          'nvidia-h100-mega-80gb': 'h100', 'nvidia-h200-141gb': 'h200', 'nvidia-b200': 'b200'}
# Machine types: (regex, kind, devices, or the group of the regex that says how many). Of Google
# Cloud (docs.cloud.google.com/compute/docs/gpus and /tpu/docs), AWS (aws.amazon.com/ec2) and Azure.
_MACHINES: tuple[tuple[str, str, int | str], ...] = (
    (r'ct5lp?-hightpu-([148])t', 'v5e', 'chips'), (r'ct5p-hightpu-(4)t', 'v5p', 'chips'),
    (r'ct6e-standard-([148])t', 'v6e', 'chips'), (r'ct4p-hightpu-(4)t', 'v4', 'chips'),
    (r'tpu7x-standard-(4)t', 'tpu7x', 'chips'),
    (r'a2-highgpu-([1248])g', 'a100-40gb', 'devices'),
    (r'a2-megagpu-(16)g', 'a100-40gb', 'devices'),
    (r'a2-ultragpu-([1248])g', 'a100', 'devices'), (r'a3-highgpu-([1248])g', 'h100', 'devices'),
    (r'a3-(?:mega|edge)gpu-(8)g', 'h100', 'devices'), (r'a3-ultragpu-(8)g', 'h200', 'devices'),
    (r'a4-highgpu-(8)g', 'b200', 'devices'), (r'g2-standard-(?:4|8|12|16|32)', 'l4', 1),
    (r'g2-standard-24', 'l4', 2), (r'g2-standard-48', 'l4', 4), (r'g2-standard-96', 'l4', 8),
    (r'p4d\.24xlarge', 'a100-40gb', 8), (r'p4de\.24xlarge', 'a100', 8),
    (r'p5\.4xlarge', 'h100', 1), (r'p5\.48xlarge', 'h100', 8), (r'p5en?\.48xlarge', 'h200', 8),
    (r'p6-b200\.48xlarge', 'b200', 8), (r'g5\.(?:2|4|8|16)?xlarge', 'a10g', 1),
    (r'g5\.(?:12|24)xlarge', 'a10g', 4), (r'g5\.48xlarge', 'a10g', 8),
    (r'g6\.(?:2|4|8|16)?xlarge', 'l4', 1), (r'g6\.(?:12|24)xlarge', 'l4', 4),
    (r'g6\.48xlarge', 'l4', 8), (r'g4dn\.(?:2|4|8|16)?xlarge', 't4', 1),
    (r'g4dn\.12xlarge', 't4', 4), (r'g4dn\.metal', 't4', 8),
    (r'(?:standard_)?nd96isr_h100_v5', 'h100', 8), (r'(?:standard_)?nd96isr_h200_v5', 'h200', 8),
    (r'(?:standard_)?nd96amsr_a100_v4', 'a100', 8), (r'(?:standard_)?nd96asr_v4', 'a100-40gb', 8),
    (r'(?:standard_)?nc24ads_a100_v4', 'a100', 1),
)
_MOST = 1 << 16  # chips
_PER_HOST = 8  # GPUs; more are on several hosts
_HINT = ('write a chip and its topology, such as v5e:4x4 (chips per axis) or h100:1x1x8 (slices, '
         'hosts, GPUs per host), a number of devices, such as h100:8, or a type of a cloud, such '
         'as v5litepod-16, v5p-8 or a3-highgpu-8g')


def plain_name(text: str) -> tuple[str, tuple[int, ...], int]:
    """(key of CHIPS, topology, slices) of a target in any spelling.

    The topology is chips per axis (TPU) or (1, hosts, GPUs per host). A '*2' behind a name asks
    for two slices, or for two such machines with GPUs.

    Raises:
        ConfigError: it is not a target; the message names the nearest one.
    """
    name = re.sub(r'\s', '', text.lower())
    name, star, several = name.partition('*')
    if star and not re.fullmatch(r'[1-9]\d{0,3}', several):
        raise _wrong(text, f'{several!r} is not a number of slices: write v5e:4x4*2')
    kind, topology = _kind_and_topology(name, text)
    slices = int(several or 1)
    if (count := math.prod(topology) * slices) > _MOST:
        raise _wrong(text, f'it has {count:,} chips, and a plan takes at most {_MOST:,}')
    if CHIPS[kind].platform == 'cuda':
        return kind, (topology[0], topology[1] * slices, topology[2]), 1
    return kind, topology, slices


def nearest_topology(kind: str, chips: float) -> str:
    """The topology of a TPU whose number of chips is nearest, the larger of two."""
    return min(reversed(TOPOLOGIES[kind]), key=lambda each: abs(math.log(_chips(each) / chips)))


def _kind_and_topology(name: str, text: str) -> tuple[str, tuple[int, ...]]:
    for pattern, kind, count in _MACHINES:
        if match := re.fullmatch(pattern, name):
            number = count if isinstance(count, int) else int(match[1])
            return kind, _of_devices(kind, number * (
                CHIPS[kind].devices_per_chip if count == 'chips' else 1), text)
    if match := re.fullmatch(r'(\d+)x([a-z].*)', name):  # 8xh100
        name = f'{match[2]}:{match[1]}'
    head, colon, tail = name.partition(':')
    kind = _KINDS.get(head, head)
    if not colon and kind not in CHIPS:
        head, dash, tail = name.rpartition('-')
        kind = _KINDS.get(head, head)
        if dash and kind in TOPOLOGIES and re.fullmatch('[0-9]+', tail):
            return kind, _of_type(kind, int(tail), head, text)
        if dash and kind in CHIPS:
            return _kind_and_topology(f'{head}:{tail}', text)  # h100-8
    if name.partition(':')[0] in ('gpu', 'cuda', 'tpu'):
        raise _wrong(text, f'it does not say which chip: {_HINT}')
    if kind not in CHIPS:
        raise _wrong(text, did_you_mean(name, known_names(), show=str, otherwise=_HINT))
    if colon and not re.fullmatch(r'[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}', tail):
        raise _wrong(text, f'{tail!r} is not a topology: ' + did_you_mean(
            f'{kind}:{tail}', [name for name in known_names() if name.startswith(f'{kind}:')],
            show=str, otherwise=_HINT))
    sizes = tuple(map(int, tail.split('x'))) if colon else ()
    if CHIPS[kind].platform == 'cuda':
        if len(sizes) < 2:
            return kind, _of_devices(kind, sizes[0] if sizes else 1, text)
        return kind, (1,) * (3 - len(sizes)) + sizes
    if not sizes:
        raise _wrong(text, f'it has no size: did you mean {kind}:{TOPOLOGIES[kind][1]}?')
    if len(sizes) == 1:
        return kind, _of_devices(kind, sizes[0], text)
    axes = TOPOLOGIES[kind][0].count('x') + 1
    if len(sizes) == 3 and axes == 2 and sizes[2] == 1:
        sizes = sizes[:2]
    if len(sizes) != axes:
        raise _wrong(text, f'the chips of {kind} lie along {axes} axes: did you mean '
                           f'{kind}:{nearest_topology(kind, math.prod(sizes))}?')
    same = next((each for each in TOPOLOGIES[kind]
                 if sorted(each.split('x')) == sorted(map(str, sizes))), '')
    return kind, tuple(map(int, same.split('x'))) if same else sizes


def _of_type(kind: str, number: int, head: str, text: str) -> tuple[int, ...]:
    """The topology of an accelerator type such as v5p-8."""
    per_chip = 2 if kind in _CORES else 1
    for each in TOPOLOGIES[kind]:
        if _chips(each) * per_chip == number:
            return tuple(map(int, each.split('x')))
    near = nearest_topology(kind, max(number, 1) / per_chip)
    raise _wrong(text, f'there is no {head} of that size: did you mean '
                       f'{head}-{_chips(near) * per_chip} ({kind}:{near})?')


def _of_devices(kind: str, number: int, text: str) -> tuple[int, ...]:
    """The topology of so many devices, as JAX counts them."""
    if CHIPS[kind].platform == 'cuda':
        hosts = -(-number // _PER_HOST) if number != 16 or kind != 'a100-40gb' else 1
        if number % hosts:
            raise _wrong(text, f'{number} GPUs are not a whole number of hosts with {_PER_HOST}: '
                               f'write {kind}:1xHOSTSxGPUS')
        return 1, hosts, number // hosts
    per_chip = CHIPS[kind].devices_per_chip
    for each in TOPOLOGIES[kind]:
        if _chips(each) * per_chip == number:
            return tuple(map(int, each.split('x')))
    near = nearest_topology(kind, number / per_chip)
    raise _wrong(text, f'there is no slice of {number} such devices: did you mean {kind}:{near}, '
                       f'which has {_chips(near) * per_chip}?')


def known_names() -> list[str]:
    """Spellings to compare a wrong one with."""
    names = ['cpu', *CHIPS]
    for kind, topologies in TOPOLOGIES.items():
        per_chip = 2 if kind in _CORES else 1
        for each in topologies:
            heads = [head for head in (kind, 'v5litepod') if _KINDS.get(head, head) == kind]
            names += [f'{kind}:{each}', *(f'{head}-{_chips(each) * per_chip}' for head in heads)]
    for kind, chip in CHIPS.items():
        if chip.platform == 'cuda':
            names += [f'{kind}:{count}' for count in (1, 2, 4, 8)] + [f'{kind}:1x1x8']
    return names + ['a3-highgpu-8g', 'a2-ultragpu-8g', 'a2-highgpu-8g', 'g2-standard-48',
                    'ct5lp-hightpu-8t', 'ct6e-standard-8t', 'p5.48xlarge', 'p4de.24xlarge',
                    'p4d.24xlarge', *_KINDS]


def _chips(topology: str) -> int:
    return math.prod(map(int, topology.split('x')))


def _wrong(text: str, what: str) -> ConfigError:
    end = '' if what.endswith(('?', '.')) else '.'
    return ConfigError(f'config.plan.target = {text!r}: {what}{end}')
