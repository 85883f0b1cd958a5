"""Parameters and FLOPs of every model: `costs.csv`.

`python -m models.costs` adds the models that it lacks; names after it are measured again.
"""

import csv
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.registry import create_model, eval_view, list_models, model_settings
from models.tags import tags_of

TABLE = Path(__file__).with_name('costs.csv')


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: their number, with a head for 1000 classes.
        gflops: 10^9 floating-point operations per image in inference; a multiply-add counts as two.
        image_size: side of that image, in pixels.
    """

    parameters: int
    gflops: float
    image_size: int


def image_size(name: str) -> int:
    """Side in pixels of the images that a model is made for."""
    settings = model_settings(name)
    if settings.get('img_size'):
        return settings['img_size']
    if tags_of(name):
        return tags_of(name)[0].image_size
    return 32 if name.startswith(('resnet20', 'resnet32')) else 64


def measure(name: str) -> Cost:
    """The cost as XLA counts it before optimisation; nothing is computed."""
    size = image_size(name)
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    lowered = jax.jit(lambda model, x: eval_view(model)(x)).lower(model, image)
    counts: Any = lowered.cost_analysis()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return Cost(parameters, round(counts['flops'] / 1e9, 3), size)


@functools.cache
def costs() -> dict[str, Cost]:
    """The table by model name. A model that was added since it was written is missing."""
    with open(TABLE, newline='') as file:
        return {row['model']: Cost(int(row['parameters']), float(row['gflops']),
                                   int(row['image_size'])) for row in csv.DictReader(file)}


def write_table(names: Sequence[str] = ()) -> None:
    """Measures every model that has no line in the table, and those named, and writes it."""
    known = costs() if TABLE.exists() else {}
    rows = [(name, *dataclasses.astuple(
        measure(name) if name in names or name not in known else known[name]))
        for name in list_models()]
    with open(TABLE, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['model', 'parameters', 'gflops', 'image_size'])
        writer.writerows(rows)


if __name__ == '__main__':
    write_table(sys.argv[1:])
