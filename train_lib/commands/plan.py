"""What a run needs, before it is started: the verb plan, and config.plan_only of the verb train.

The training step is compiled for the mesh of the config from shapes alone. No weight is created
and no picture is read. With config.plan.target the compiler is that of the target, if it is
installed. Without a target the devices are those of this machine, simulated if they are too few;
then the memory that XLA needs besides the arrays of the state (gradients, activations, buffers of
collectives) is the CPU compiler's answer, which differs from an accelerator's.
"""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline.atomic_files import write_json
from input_pipeline.manifest import Manifest
from input_pipeline.splits import several_folds
from train_lib.commands.command import Command
from train_lib.planning.absent_devices import missing, stay_on_cpu, target_devices
from train_lib.planning.candidate_meshes import AUTO, Candidate, read_meshes
from train_lib.planning.plan_table import mesh_table, table
from train_lib.planning.step_plan import (
    Place,
    StepPlan,
    as_json,
    best_of,
    count_flops,
    plan_step,
)
from train_lib.planning.targets import PlanTarget, memory_of, read_target
from train_lib.planning.token_padding import token_padding
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import AXES, make_mesh
from train_lib.training.checks import check_values
from train_lib.training.data import Data, load_manifest, split_data

log = logging.getLogger(__name__)


def plan(command: Command) -> int:
    """The verb plan: prints the table and writes plan.json. Returns the exit code."""
    _prepare(command.config)  # before a folder is made, and before JAX starts
    workdir = command.workdir or workdirs.new(command.config_file)
    with lock.held(workdir):
        return show_plan(command.config, load_manifest(command.config), workdir)


def show_plan(config: ConfigDict, manifest: Manifest, workdir: Path | None = None) -> int:
    """Prints the table, and writes plan.json to the workdir. Returns the exit code.

    Raises:
        ConfigError: a wrong value, or devices that can no longer be simulated.
    """
    place = _prepare(config)
    config = _settled(config)
    plans = _plans(config, split_data(config, manifest), place)
    best = best_of(plans)
    if len(plans) > 1:
        print(mesh_table(plans, best), end='\n\n')
    padding = token_padding(config, place.target)
    print(table(best, config, padding))
    if workdir is not None:
        content = as_json(best, plans if len(plans) > 1 else ())
        if padding:
            content |= dict(tokens=padding.tokens, tokens_kept=padding.kept)
        write_json(workdir / 'plan.json', content)
        log.info('wrote    %s', workdir / 'plan.json')
    return 0


def _prepare(config: ConfigDict) -> Place:
    """Where the step is planned to run. JAX, if it has not started, will start on the CPU where
    the target is named, and with as many CPU devices as may have to be simulated.

    Raises:
        ConfigError: a wrong value of config.plan.
    """
    target = read_target(config.plan.target)
    if config.probe.heads:
        raise ConfigError('config.probe.heads trains heads on stored features, without a training '
                          'step of the model that could be planned: set config.probe.heads=() to '
                          'plan the training of the whole model.')
    lacking = missing(target)
    place = Place(target, PlanTarget('cpu') if lacking else target, lacking,
                  memory_of(target, config.plan, config.plan_memory_gb))
    if target.name:
        stay_on_cpu()
    if place.compiled_as.chip is None:
        with contextlib.suppress(RuntimeError):  # too late: JAX has its devices
            jax.config.update('jax_num_cpu_devices', _most(config, target))
    return place


def _most(config: ConfigDict, target: PlanTarget) -> int:
    """Devices that the largest candidate takes."""
    count = target.devices or _wanted(config.mesh)
    candidates = read_meshes(config, count, target.slices)
    return max(count, *(_wanted(vars(each)) for each in candidates))


def _settled(config: ConfigDict) -> ConfigDict:
    """The config without what changes no shape."""
    config = config.copy_and_resolve_references()
    config.resample.kind = 'none'  # it may look at pictures
    config.init['from'] = ''  # that run may be on another machine
    folds = several_folds(config.split)
    if folds is not None:
        with config.ignore_type():
            config.split.fold = folds[0]  # as large as any other
    return config


def _plans(config: ConfigDict, data: Data, place: Place) -> list[StepPlan]:
    """A plan per candidate of config.plan.meshes."""
    target = place.target
    count = target.devices or _wanted(config.mesh)
    if AUTO in config.plan.meshes and not target.name:
        count = max(count, len(jax.devices()))
    candidates = read_meshes(config, count, target.slices)
    devices = _devices(place, max(count, _most(config, target)))
    checked = []
    for each in candidates:
        mesh = _mesh(each, target, devices)
        own = config.copy_and_resolve_references()
        own.batch_size = each.batch
        check_values(own, mesh.size)
        checked.append((own, mesh))
    flops: dict[int, float] = {}
    plans = []
    for number, (own, mesh) in enumerate(checked, 1):
        if len(checked) > 1:
            log.info('mesh     %d of %d: data %d, fsdp %d, a batch of %d', number, len(checked),
                     *mesh.shape.values(), own.batch_size)
        if own.batch_size not in flops:
            flops[own.batch_size] = count_flops(own, data)
        plans.append(plan_step(own, data, mesh, place, flops[own.batch_size]))
    return plans


def _wanted(mesh: Mapping) -> int:
    return math.prod(max(mesh[axis], 1) for axis in AXES)


def _mesh(candidate: Candidate, target: PlanTarget, devices: Sequence[jax.Device]
          ) -> jax.sharding.Mesh:
    sizes = {axis: getattr(candidate, axis) for axis in AXES}
    if not target.devices:
        return make_mesh({axis: abs(size) for axis, size in sizes.items()}, devices)
    mesh = make_mesh(sizes, devices)
    if mesh.size != target.devices:
        what = (f'config.mesh.data = {candidate.data} and config.mesh.fsdp = {candidate.fsdp} use '
                f'{mesh.size} ')
        raise ConfigError(what + (
            f'of the {target.devices} devices of {target.name}: use all of them, or name a smaller '
            f'target.' if mesh.size < target.devices else
            f'devices, and {target.name} has {target.devices}: use these, or name a larger '
            f'target.'))
    return mesh


def _devices(place: Place, wanted: int) -> list[jax.Device]:
    """Those of the target, or of this machine: accelerators if there are enough, else CPU devices,
    simulated if need be."""
    if place.compiled_as.chip:
        return target_devices(place.compiled_as)
    found = [] if place.target.name else jax.devices()
    if len(found) < wanted:
        found = jax.devices('cpu')
    if len(found) < wanted:
        raise ConfigError(f'config.mesh asks for {wanted} devices, and this process has '
                          f'{len(found)} and can no longer simulate more: plan in a process of '
                          f'its own.')
    return found[:wanted]
