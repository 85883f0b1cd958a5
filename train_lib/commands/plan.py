"""What a run needs, before it is started: config.plan_only.

The training step is compiled for the mesh of the config from shapes alone. No weight is created
and no picture is read. The devices may be simulated, so a laptop can plan for a pod; then the
memory that XLA needs besides the arrays of the state (gradients, activations, buffers of
collectives) is the CPU compiler's answer, which differs from an accelerator's.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline.manifest import Manifest
from input_pipeline.splits import several_folds
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.sharding import AXES, make_mesh
from train_lib.runtime.trees import by_path
from train_lib.training.checks import check_values
from train_lib.training.data import split_data
from train_lib.training.setup import Job, assemble, lower_step
from train_lib.training.state import TrainState

_GIB = 1 << 30
_SHOWN = 8  # largest weights


def show_plan(config: ConfigDict, manifest: Manifest) -> int:
    """Prints the table. Returns the exit code.

    Raises:
        ConfigError: a wrong value, or devices that can no longer be simulated.
    """
    mesh = make_mesh({axis: abs(config.mesh[axis]) for axis in AXES}, _devices(config.mesh))
    check_values(config, mesh.size)
    config = config.copy_and_resolve_references()
    config.resample.kind = 'none'  # it changes no shape, and may look at pictures
    config.init['from'] = ''  # nor does this, and that run may be on another machine
    folds = several_folds(config.split)
    if folds is not None:
        with config.ignore_type():
            config.split.fold = folds[0]  # as large as any other
    data = split_data(config, manifest)
    job = assemble(config, data, mesh, None, Path(), abstract=True)
    job.iterator.close()
    lowered = lower_step(job.run, job.state, data.parts)
    memory = lowered.compile().memory_analysis()
    device = mesh.devices.flat[0]
    print(f'plan     {config.model.name}, {config.precision}, a batch of {config.batch_size} on '
          f'{mesh.size} x {device.device_kind} '
          f'({", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())})\n')
    rows = [*_arrays(job), ('batch', 0, 0, memory.argument_size_in_bytes - _bytes_per_device(
        jax.tree.leaves(job.state)))]
    beside = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    rows.append(('gradients, activations', 0, 0, beside))
    total = sum(row[3] for row in rows)
    print(f'{"":24}{"parameters":>16}{"total":>12}{"per device":>12}')
    for name, count, size, part in [*rows, ('total', 0, 0, total)]:
        print(f'{name:24}{f"{count:,}" if count else "":>16}{_text(size) if size else "":>12}'
              f'{_text(part):>12}')
    print(f'\nFLOPs per step: {_flops(config, data, job, lowered, mesh):.4g} on all devices '
          f'together')
    print('\nlargest weights, and the mesh axes that split their dimensions')
    for name, leaf in _largest(job.state):
        axes = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
        print(f'{name:40}{leaf.shape!s:>24}  {", ".join(axis or "-" for axis in axes)}')
    limit = config.plan_memory_gb
    print(f'\n{_text(total)} of {limit:g} GiB (config.plan_memory_gb): it '
          f'{"fits" if total <= limit * _GIB else "does not fit"}.')
    return 0


def _devices(mesh: Mapping) -> list[jax.Device]:
    """Accelerators if there are enough, else CPU devices, simulated if need be."""
    wanted = math.prod(max(mesh[axis], 1) for axis in AXES)
    with contextlib.suppress(RuntimeError):  # too late: JAX has its devices
        jax.config.update('jax_num_cpu_devices', wanted)
    found = jax.devices()
    if len(found) < wanted:
        found = jax.devices('cpu')
    if len(found) < wanted:
        raise ConfigError(f'config.mesh asks for {wanted} devices, and this process has '
                          f'{len(found)} and can no longer simulate more: plan in a process of '
                          f'its own.')
    return found[:wanted]


def _bytes_per_device(leaves: Iterable) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in leaves)


def _arrays(job: Job) -> list[tuple[str, int, int, int]]:
    """(what, parameters, total bytes, bytes per device) of the parts of a state."""
    state = job.state
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


def _flops(config, data, job, lowered, mesh) -> float:
    """As XLA counts them before it optimises. It counts the body of a loop once, so the loops
    over stacked blocks and over parts of a batch are unrolled."""
    if config.model.get('scan') or config.accumulate > 1:
        config.accumulate = 1
        if 'scan' in config.model:
            config.model.scan = False
        job = assemble(config, data, mesh, None, Path(), abstract=True)
        job.iterator.close()
        lowered = lower_step(job.run, job.state, data.parts)
    return lowered.cost_analysis()['flops']


def _largest(state: TrainState) -> list[tuple[str, jax.ShapeDtypeStruct]]:
    named = [*by_path(state.frozen).items(), *by_path(state.params).items()]
    return sorted(named, key=lambda item: -item[1].size)[:_SHOWN]


def _text(size: int) -> str:
    return f'{size / _GIB:.2f} GiB' if size >= _GIB else f'{size / (1 << 20):.2f} MiB'
