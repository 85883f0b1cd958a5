"""The verb train, and what it shares with studies: the run that a config asks for."""

import logging
from contextlib import nullcontext
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline.manifest import Manifest
from input_pipeline.splits import several_folds
from train_lib.commands.command import Command
from train_lib.commands.plan import show_plan
from train_lib.probing.run_probe import probe
from train_lib.run_dir import lock, workdirs
from train_lib.run_dir.loggers import check_loggers
from train_lib.runtime import distributed
from train_lib.runtime.errors import ConfigError, DivergedError
from train_lib.runtime.signals import STOPPED, Interrupted, Left, Stopped, leaving_at_once
from train_lib.training.data import load_data, load_manifest
from train_lib.training.folds import train_folds
from train_lib.training.run import train_one
from train_lib.training.teaching import is_taught

log = logging.getLogger(__name__)


def train(command: Command) -> int:
    """The verb train. Returns the exit code."""
    config = command.config
    if config.plan_only:
        return show_plan(config, load_manifest(config))
    check_loggers(config.log)  # before the pictures are read
    distributed.start(config.distributed)
    workdir = workdirs.choose(command.workdir, command.config_file)
    log.info('workdir  %s', workdir)
    try:
        # The processes of a pod stop together.
        leaving = nullcontext() if distributed.several() else leaving_at_once()
        with leaving, lock.held(workdir):
            run_any(config, load_data(config, workdir), workdir, command.began)
    except (Stopped, Interrupted, Left):
        log.info('Stopped. The same command with --workdir=%s goes on.', workdir)
        return STOPPED
    except DivergedError as error:
        log.error('%s', error)
        return 1
    return 0


def run_any(config: ConfigDict, manifest: Manifest, workdir: Path,
            began: float | None = None, pause: float | None = None) -> None:
    """The run that the config asks for: heads on features, all folds, or one training. The caller
    holds the lock of the workdir. `pause`: see `train_one`; the other kinds have none.

    Raises:
        Stopped or Interrupted: told to stop; the next start finds what was saved. DivergedError:
            the training is no longer finite. ConfigError, DataError, ModelError: a user's mistake.
    """
    check_loggers(config.log)
    if config.probe.heads and distributed.several():
        raise ConfigError(f'config.probe.heads asks for heads on stored features, which '
                          f'{jax.process_count()} processes cannot share: start one.')
    for key, value, off in (('unlabelled.kind', config.unlabelled.kind, 'none'),
                            ('teacher.workdir', config.teacher.workdir, '')):
        if config.probe.heads and value != off:
            raise ConfigError(f'config.{key} = {value!r} has no meaning for config.probe.heads, '
                              f'which learn from labels alone: remove one of the two.')
    if config.probe.heads and is_taught(config):
        raise ConfigError('config.probe.heads trains on stored features of the labelled rows, and '
                          'takes neither data.extra.file nor distill.teachers: leave these out.')
    if config.probe.heads:
        probe(config, manifest, workdir, began)
    elif several_folds(config.split) is not None:
        train_folds(config, manifest, workdir, began)
    else:
        train_one(config, manifest, workdir, began, pause=pause)
