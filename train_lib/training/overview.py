"""What the log says of a run before its first step, and parameters.txt."""

import logging

import jax

from input_pipeline.atomic_files import write_text
from input_pipeline.errors import counted
from train_lib.runtime.progress import epochs
from train_lib.training import parameter_table
from train_lib.training.data import Data
from train_lib.training.setup import Job
from train_lib.training.teaching import announce as announce_teaching

log = logging.getLogger(__name__)


def announce(data: Data, job: Job) -> None:
    """Logs data, model, devices and length of a run."""
    manifest, parts = data.manifest, data.parts
    timing, outputs = job.run.timing, job.run.outputs
    if len(manifest.heads) > 1:
        classes = ', '.join(f'{len(names)} {head}' for head, names in manifest.classes.items())
        classes += ' classes'
    else:
        classes = counted(len(manifest.classes[manifest.heads[0]]), 'class', 'classes')
    groups = manifest.table['group'].nunique() if 'group' in manifest.table else None
    log.info('data     %s train, %s val, %s test images; %s%s',
             *(f'{len(parts[name]):,}' for name in ('train', 'val', 'test')), classes,
             '' if groups is None else f'; {counted(groups, "group")}')
    if data.unlabelled is not None and job.run.inputs.views is not None:
        log.info('         %s unlabelled images beside them, %d per step',
                 f'{len(data.unlabelled.rows):,}', job.run.inputs.views.batch_size)
    announce_teaching(data.taught, job.extra_start)
    log.info('model    %s, %s, %s, %s', outputs.model, job.parameters.description,
             outputs.precision, describe_devices(job.run.programs.mesh))
    log.info('plan     %s of %d, %s epochs', counted(timing.total_steps, 'step'),
             timing.batch_size, epochs(timing.epoch(timing.total_steps)))
    for line in parameter_table.summary(_parameters(job)):
        log.info('         %s', line)


def save_parameters(job: Job) -> None:
    """Writes parameters.txt of a run."""
    write_text(job.run.workdir / 'parameters.txt', parameter_table.table(_parameters(job)))


def _parameters(job: Job) -> list[parameter_table.Parameter]:
    return parameter_table.parameters_of(job.state.weights, job.parameters.rates,
                                         job.parameters.decay, job.parameters.starts)


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """Such as '8 x NVIDIA H100'."""
    devices = mesh.devices.flatten()
    return f'{len(devices)} x {devices[0].device_kind}'
