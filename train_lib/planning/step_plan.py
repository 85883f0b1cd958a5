"""The plan of a training step on one mesh: what it takes, and what the compiler made of it."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from train_lib.planning.collectives import Collective, read_collectives, summary
from train_lib.planning.compiled import CompiledProgram, compile_for
from train_lib.planning.hlo_text import read_program
from train_lib.planning.program_facts import Facts, read_facts
from train_lib.planning.targets import Memory, PlanTarget
from train_lib.runtime.sharding import AXES, make_mesh
from train_lib.runtime.trees import by_path
from train_lib.training.data import Data
from train_lib.training.run_batches import batch_shapes
from train_lib.training.setup import Job, assemble, lower_step
from train_lib.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a step is planned to run.

    Attributes:
        target: that was asked for.
        compiled_as: the target whose compiler answers: that of the CPU where that of `target` is
            not installed.
        missing: the package that would be needed then, else ''.
        memory: of each device.
    """

    target: PlanTarget
    compiled_as: PlanTarget
    missing: str
    memory: Memory


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a training step takes.

    Attributes:
        place: that it was compiled for.
        mesh: {axis: devices}.
        batch_size: pictures per step, over all devices.
        device: the kind of the devices, as JAX names it.
        arrays: (what, parameters, total bytes, bytes per device) of the parts of the state.
        batch: bytes per device of a batch.
        program: the compiled step.
        collectives: of the compiled step.
        facts: of the compiled step.
        flops: per step, on all devices together.
        weights: names and shapes of the weights, the largest first.
    """

    place: Place
    mesh: dict[str, int]
    batch_size: int
    device: str
    arrays: list[tuple[str, int, int, int]]
    batch: int
    program: CompiledProgram
    collectives: list[Collective]
    facts: Facts
    flops: float
    weights: list[tuple[str, jax.ShapeDtypeStruct]]

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool:
        """Whether the program takes no more than it may."""
        return not self.program.refusal and self.program.needed <= self.place.memory.usable

    @property
    def sent(self) -> int:
        """Bytes that each device sends per step, at least."""
        return sum(each.times * each.sent for each in self.collectives)

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte of memory traffic; None where there is no program."""
        return self.flops / self.devices / self.facts.traffic if self.facts.traffic else None


def plan_step(config: ConfigDict, data: Data, mesh: jax.sharding.Mesh, place: Place,
              flops: float | None = None) -> StepPlan:
    """Compiles the training step of a config for the devices of a mesh, which may be absent.

    Args:
        config, data: of the run.
        mesh: of the devices.
        place: what they are.
        flops: per step, where they were counted before.

    Raises:
        ConfigError, DataError, ModelError: a user's mistake.
    """
    job = abstract_job(config, data, mesh)
    sizes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
    program = compile_for(place.compiled_as, lower_step(job.run, job.state, data.parts),
                          cache=config.compile_cache, what=f'{config.model.name} ({sizes})')
    batch = batch_shapes(job.run, data.parts)
    hlo = read_program(program.text)
    return StepPlan(place, dict(mesh.shape), config.batch_size, mesh.devices.flat[0].device_kind,
                    _arrays(job.state), _bytes_per_device(batch.values()), program,
                    read_collectives(hlo, mesh.size), read_facts(hlo),
                    count_flops(config, data) if flops is None else flops, _by_size(job.state))


def best_of(plans: Sequence[StepPlan]) -> StepPlan:
    """The plan that fits and whose devices exchange least per picture; of several the one that
    takes least memory. Where none fits, the one that takes least memory."""
    fitting = [each for each in plans if each.fits]
    if not fitting:
        return min(plans, key=lambda each: each.program.needed or math.inf)
    return min(fitting, key=lambda each: (each.sent / each.batch_size, each.program.needed))


def as_json(planned: StepPlan, others: Sequence[StepPlan] = ()) -> dict:
    """The content of plan.json; `others`: all candidates, where several were compared."""
    program, place, facts = planned.program, planned.place, planned.facts
    content = dict(
        target=place.target.name, devices=planned.devices, device_kind=planned.device,
        mesh=planned.mesh, batch_size=planned.batch_size,
        memory_per_device_bytes=program.needed, memory=program.memory,
        hbm_bytes=place.memory.total, memory_share=place.memory.share,
        margin=place.memory.margin, usable_bytes=place.memory.usable, fits=planned.fits,
        refusal=program.refusal, flops_per_step=planned.flops,
        flops_per_device=planned.flops / planned.devices,
        memory_traffic_bytes=facts.traffic, arithmetic_intensity=planned.intensity,
        collectives=summary(planned.collectives), bytes_sent_per_device=planned.sent,
        convolutions=dict(facts.convolutions), attention_kernels=dict(facts.attention),
        largest_arrays=[dataclasses.asdict(each) for each in facts.largest],
        compiler=place.compiled_as.platform, compiler_missing=place.missing,
        versions=program.versions, compile_seconds=program.seconds, cached=program.cached)
    if others:
        content['meshes'] = [_row(each, each is planned) for each in others]
    return content


def _row(each: StepPlan, best: bool) -> dict:
    return dict(mesh=each.mesh, batch_size=each.batch_size,
                memory_per_device_bytes=each.program.needed, fits=each.fits,
                bytes_sent_per_device=each.sent,
                bytes_sent_per_picture=each.sent / each.batch_size,
                collectives=summary(each.collectives),
                compile_seconds=each.program.seconds, best=best)


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
             'moving average': state.ema, 'teacher': state.teacher}
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
