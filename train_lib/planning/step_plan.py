"""The plan of a training step on one mesh: what it takes, and what the compiler made of it."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from train_lib.planning.collectives import Collective, read_collectives
from train_lib.planning.compiled import CompiledProgram, compile_for
from train_lib.planning.targets import Target
from train_lib.runtime.sharding import AXES, make_mesh
from train_lib.runtime.trees import by_path
from train_lib.training.data import Data
from train_lib.training.setup import Job, assemble, batch_shapes, lower_step
from train_lib.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a training step takes.

    Attributes:
        target: that it was compiled for.
        mesh: {axis: devices}.
        device: the kind of the devices, as JAX names it.
        arrays: (what, parameters, total bytes, bytes per device) of the parts of the state.
        batch: bytes per device of a batch.
        program: the compiled step.
        collectives: of the compiled step.
        flops: per step, on all devices together.
        weights: names and shapes of the weights, the largest first.
        limit: bytes per device that there are.
    """

    target: Target
    mesh: dict[str, int]
    device: str
    arrays: list[tuple[str, int, int, int]]
    batch: int
    program: CompiledProgram
    collectives: list[Collective]
    flops: float
    weights: list[tuple[str, jax.ShapeDtypeStruct]]
    limit: int

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool:
        """Whether the program takes no more than there is."""
        return not self.program.refusal and self.program.needed <= self.limit


def plan_step(config: ConfigDict, data: Data, mesh: jax.sharding.Mesh, target: Target, limit: int
              ) -> StepPlan:
    """Compiles the training step of a config for the devices of a mesh, which may be absent.

    Raises:
        ConfigError, DataError, ModelError: a user's mistake.
    """
    job = abstract_job(config, data, mesh)
    program = compile_for(target, lower_step(job.run, job.state, data.parts))
    batch = batch_shapes(job.run, data.parts)
    return StepPlan(target, dict(mesh.shape), mesh.devices.flat[0].device_kind, _arrays(job.state),
                    _bytes_per_device(batch.values()), program, read_collectives(program.text),
                    count_flops(config, data), _by_size(job.state), limit)


def abstract_job(config: ConfigDict, data: Data, mesh: jax.sharding.Mesh) -> Job:
    """The run of a config on a mesh, as shapes."""
    job = assemble(config, data, mesh, None, Path(), abstract=True)
    job.iterator.close()
    return job


def count_flops(config: ConfigDict, data: Data) -> float:
    """FLOPs of a training step, as XLA counts them before it optimises; it counts what `remat`
    computes again.

    It counts the body of a loop once, so the loops over stacked blocks and over parts of a batch
    are unrolled. Only its CPU backend counts before it compiles, so the step is traced for one CPU
    device.
    """
    config = config.copy_and_resolve_references()
    config.accumulate = 1
    if 'scan' in config.model:
        config.model.scan = False
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.devices('cpu')[:1])
    job = abstract_job(config, data, mesh)
    return float(lower_step(job.run, job.state, data.parts).cost_analysis()['flops'])


def _bytes_per_device(leaves: Iterable) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in leaves)


def _arrays(state: TrainState) -> list[tuple[str, int, int, int]]:
    parts = {'weights that train': state.params, 'weights, frozen': state.frozen,
             'statistics': state.batch_stats, 'optimizer': state.opt_state,
             'moving average': state.ema}
    rows = []
    for name, part in parts.items():
        leaves = jax.tree.leaves(part)
        if leaves:
            rows.append((name, sum(leaf.size for leaf in leaves),
                         sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
                         _bytes_per_device(leaves)))
    return rows


def _by_size(state: TrainState) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    named = [*by_path(state.frozen).items(), *by_path(state.params).items()]
    return sorted(named, key=lambda item: -item[1].size)
