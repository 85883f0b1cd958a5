"""What a run needs, before it is started: the verb plan, and config.plan_only of the verb train.

The training step is compiled for the mesh of the config from shapes alone. No weight is created
and no picture is read. With config.plan.target the compiler is that of the target. Without one the
devices are those of this machine, simulated if they are too few; then the memory that XLA needs
besides the arrays of the state (gradients, activations, buffers of collectives) is the CPU
compiler's answer, which differs from an accelerator's.
"""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline.atomic_files import write_json
from input_pipeline.manifest import Manifest
from input_pipeline.splits import several_folds
from train_lib.commands.command import Command
from train_lib.planning.collectives import summary
from train_lib.planning.step_plan import StepPlan, plan_step
from train_lib.planning.targets import Target, missing, read_target, target_devices
from train_lib.planning.token_padding import say_token_padding
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import AXES, make_mesh
from train_lib.training.checks import check_values
from train_lib.training.data import load_manifest, split_data

_GIB = 1 << 30
_SHOWN = 8  # largest weights


def plan(command: Command) -> int:
    """The verb plan: prints the table and writes plan.json. Returns the exit code."""
    workdir = command.workdir or workdirs.new(command.config_file)
    with lock.held(workdir):
        return show_plan(command.config, load_manifest(command.config), workdir)


def show_plan(config: ConfigDict, manifest: Manifest, workdir: Path | None = None) -> int:
    """Prints the table, and writes plan.json to the workdir. Returns the exit code.

    Raises:
        ConfigError: a wrong value, or devices that can no longer be simulated.
    """
    target = read_target(config.plan.target)
    mesh = _mesh(config.mesh, target)
    check_values(config, mesh.size)
    config = config.copy_and_resolve_references()
    config.resample.kind = 'none'  # it changes no shape, and may look at pictures
    config.init['from'] = ''  # nor does this, and that run may be on another machine
    folds = several_folds(config.split)
    if folds is not None:
        with config.ignore_type():
            config.split.fold = folds[0]  # as large as any other
    limit = target.chip.memory if target.chip else int(config.plan_memory_gb * _GIB)
    planned = plan_step(config, split_data(config, manifest), mesh, target, limit)
    tokens = say_token_padding(config, target)
    _print(planned, config)
    if workdir is not None:
        write_json(workdir / 'plan.json', as_json(planned) | tokens)
    return 0


def as_json(planned: StepPlan) -> dict:
    """The content of plan.json."""
    return dict(target=planned.target.name, devices=planned.devices, mesh=planned.mesh,
                memory_per_device_bytes=planned.program.needed, hbm_bytes=planned.limit,
                fits=planned.fits, flops_per_step=planned.flops,
                collectives=summary(planned.collectives),
                compile_seconds=planned.program.seconds)


def _mesh(config: Mapping, target: Target) -> jax.sharding.Mesh:
    if target.chip is None:
        return make_mesh({axis: abs(config[axis]) for axis in AXES},
                         _devices(config, simulated=bool(target.name)))
    package = missing(target)
    if package:
        raise ConfigError(f'config.plan.target = {target.name!r} needs a compiler that is not '
                          f'installed ({package}): pip install -r requirements-plan.txt.')
    return make_mesh(config, target_devices(target))


def _devices(mesh: Mapping, *, simulated: bool) -> list[jax.Device]:
    """Accelerators if there are enough, else CPU devices, simulated if need be."""
    wanted = math.prod(max(mesh[axis], 1) for axis in AXES)
    with contextlib.suppress(RuntimeError):  # too late: JAX has its devices
        jax.config.update('jax_num_cpu_devices', wanted)
    found = [] if simulated else jax.devices()
    if len(found) < wanted:
        found = jax.devices('cpu')
    if len(found) < wanted:
        raise ConfigError(f'config.mesh asks for {wanted} devices, and this process has '
                          f'{len(found)} and can no longer simulate more: plan in a process of '
                          f'its own.')
    return found[:wanted]


def _print(planned: StepPlan, config: ConfigDict) -> None:
    print(f'plan     {config.model.name}, {config.precision}, a batch of {config.batch_size} on '
          f'{planned.devices} x {planned.device} '
          f'({", ".join(f"{axis} {size}" for axis, size in planned.mesh.items())})\n')
    total = planned.program.needed
    rows = [*planned.arrays, ('batch', 0, 0, planned.batch)]
    rows.append(('gradients, activations', 0, 0, total - sum(row[3] for row in rows)))
    print(f'{"":24}{"parameters":>16}{"total":>12}{"per device":>12}')
    for name, count, size, part in [*rows, ('total', 0, 0, total)]:
        print(f'{name:24}{f"{count:,}" if count else "":>16}{_text(size) if size else "":>12}'
              f'{_text(part):>12}')
    print(f'\nFLOPs per step: {planned.flops:.4g} on all devices together')
    print('\nlargest weights, and the mesh axes that split their dimensions')
    for name, leaf in planned.weights[:_SHOWN]:
        axes = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
        print(f'{name:40}{leaf.shape!s:>24}  {", ".join(axis or "-" for axis in axes)}')
    print(f'\n{_text(total)} of {_text(planned.limit)}: it '
          f'{"fits" if planned.fits else "does not fit"}.')


def _text(size: int) -> str:
    return f'{size / _GIB:.2f} GiB' if size >= _GIB else f'{size / (1 << 20):.2f} MiB'
