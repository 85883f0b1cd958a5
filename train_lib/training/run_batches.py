"""The batches of a run: what training shows, what evaluation shows, and their shapes."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline import loader
from input_pipeline.batches import Batches
from input_pipeline.curriculum import Stage, make_list
from input_pipeline.extra_rows import FACTOR
from input_pipeline.manifest import Manifest
from input_pipeline.two_views import STRONG, TRUTH, WEAK, ViewSpec, two_views
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import batch_sharding
from train_lib.training.data import Data
from train_lib.training.evaluate import EvalSplit
from train_lib.training.run_spec import Inputs, RunSpec
from train_lib.training.unlabelled_rows import batch_size_of, read_spec


def training_batches(config: ConfigDict, data: Data, run: RunSpec, course: loader.Course
                     ) -> tuple[Batches, dict[int, int]]:
    """(the iterator, the rows that it replaces while it runs)"""
    replaced: dict[int, int] = {}
    shard, inputs = loader.Shard(jax.process_index(), jax.process_count()), run.inputs
    beside = None
    if inputs.views is not None:
        assert data.unlabelled is not None
        beside = two_views(data.unlabelled.rows, inputs.preprocess, inputs.views, shard=shard,
                           loading=inputs.loading)
    iterator = loader.train_iterator(
        data.parts['train'], inputs.preprocess, course, batch_size=config.batch_size, shard=shard,
        loading=inputs.loading, replaced=replaced, beside=beside)
    return iterator, replaced


def eval_splits(most: int, parts: Mapping[str, Manifest], inputs: Inputs, devices: int
                ) -> dict[str, EvalSplit]:
    """The splits that have rows, all with one batch size, so that one program serves them: at most
    `most` pictures, rounded up to a multiple of the devices."""
    largest = max(len(parts['val']), len(parts['test']), 1)
    batch_size = -(-min(most, largest) // devices) * devices
    make = partial(loader.eval_dataset, spec=inputs.preprocess, batch_size=batch_size,
                   shard=loader.Shard(jax.process_index(), jax.process_count()),
                   loading=inputs.loading)
    return {name: EvalSplit(part, make(part)) for name, part in parts.items() if len(part)}


def batch_shapes(run: RunSpec, parts: Mapping[str, Manifest]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a training batch."""
    prepared = run.inputs.preprocess

    def spec(shape, dtype, size=run.timing.batch_size):
        return jax.ShapeDtypeStruct((size, *shape), dtype,
                                    sharding=batch_sharding(run.programs.mesh))

    picture, views = (*prepared.frame, prepared.channels), run.inputs.views
    batch = {'image': spec(picture, jnp.uint8)}
    if views is not None:
        batch |= {name: spec(picture, jnp.uint8, views.batch_size) for name in (WEAK, STRONG)}
        if views.truth:
            batch |= {TRUTH + head: spec((), jnp.int32, views.batch_size)
                      for head in run.scoring.heads}
    batch |= {f'label/{head}': spec((), jnp.int32) for head in run.scoring.heads}
    batch |= {f'target/{head}': spec((len(parts['train'].classes[head]),), jnp.float32)
              for head in parts['train'].label_sets}
    if 'weight' in parts['train'].table:
        batch['weight'] = spec((), jnp.float32)
    return batch | {name: spec((width,) if width else (), jnp.float32)
                    for name, width in run.inputs.columns.items()}


def views_of(config: ConfigDict, data: Data, stages: Sequence[Stage], inputs: Inputs
             ) -> ViewSpec | None:
    """What the views of unlabelled pictures show; None without such pictures."""
    if data.unlabelled is None:
        return None
    spec, channels = read_spec(config), inputs.preprocess.channels
    weak = stages if spec.weak is None else (
        Stage(0, make_list(spec.weak, 'config.unlabelled.weak', channels)),)
    strong = make_list(spec.strong, 'config.unlabelled.strong', channels)
    if not strong:
        raise ConfigError('config.unlabelled.strong is empty, so that both views would be alike: '
                          'give transforms.')
    shown = [*strong, *(item for stage in weak for item in stage.transforms)]
    if any(item.swap for item in shown):
        raise ConfigError('config.unlabelled wants one class for both views of a picture, but a '
                          'flip with `swap` changes it: leave swap out of both views.')
    return ViewSpec(batch_size=batch_size_of(config), weak=weak, strong=strong, seed=config.seed,
                    truth=data.unlabelled.truth)


def taught_of(data: Data, start: int) -> dict[str, Any]:
    """What the loader shows besides the rows and labels of the run; `start`: the position from
    which extra rows are shown."""
    if data.taught is None:
        return {}
    extra = data.taught.extra
    return dict(teacher=data.taught.teacher,
                extra=extra and dataclasses.replace(extra, start=start))


def wide_columns(data: Data) -> dict[str, int]:
    """{column of a batch: its width, 0 for one number per example}, besides those of every run."""
    if data.taught is None:
        return {}
    found = {f'teacher/{head}': soft.width for head, soft in data.taught.teacher.items()}
    if data.taught.extra is not None:
        extra = data.taught.extra
        found |= {f'target/{head}': soft.width for head, soft in extra.soft.items()}
        found |= {FACTOR: 0} if extra.weight != 1 else {}
    return found
