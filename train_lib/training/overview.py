"""What the log says of a run before its first step, and parameters.txt."""

import logging

import jax

from input_pipeline.atomic_files import write_text
from train_lib.training import parameter_table
from train_lib.training.data import Data
from train_lib.training.setup import Job

log = logging.getLogger(__name__)


def announce(data: Data, job: Job) -> None:
    """Logs data, model, devices and length of a run."""
    manifest, parts = data.manifest, data.parts
    timing, outputs = job.run.timing, job.run.outputs
    classes = ', '.join(f'{len(names)} {head}' if len(manifest.heads) > 1 else f'{len(names)}'
                        for head, names in manifest.classes.items())
    log.info('data     %s train, %s val, %s test images; %s classes%s',
             *(f'{len(parts[name]):,}' for name in ('train', 'val', 'test')), classes,
             f'; {manifest.table["group"].nunique()} groups' if 'group' in manifest.table else '')
    log.info('model    %s, %s, %s, %s', outputs.model, job.parameters.description,
             outputs.precision, describe_devices(job.run.programs.mesh))
    log.info('plan     %s steps of %d, %.4g epochs', f'{timing.total_steps:,}', timing.batch_size,
             timing.epoch(timing.total_steps))
    for line in parameter_table.summary(_parameters(job)):
        log.info('         %s', line)


def save_parameters(job: Job) -> None:
    """Writes parameters.txt of a run."""
    write_text(job.run.workdir / 'parameters.txt', parameter_table.table(_parameters(job)))


def _parameters(job: Job) -> list[parameter_table.Parameter]:
    return parameter_table.parameters_of(job.state.weights, job.parameters.rates,
                                         job.parameters.decay)


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """Such as '8 x NVIDIA H100'."""
    devices = mesh.devices.flatten()
    return f'{len(devices)} x {devices[0].device_kind}'
