"""The verb lr_find: sweeps the learning rate and suggests values for config.schedule.lr.

Of a run in the workdir, nothing changes; lr_find.png, lr_find.csv and lr_find.json are written
beside its files.
"""

import logging
from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from input_pipeline.atomic_files import atomic_open, write_json
from input_pipeline.splits import several_folds
from train_lib.commands.command import Command
from train_lib.run_dir import lock, workdirs
from train_lib.runtime import distributed
from train_lib.runtime.distributed import StopTogether
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import STOPPED, Interrupted, StopSignal
from train_lib.training.data import load_data
from train_lib.training.lr_finder import Sweep, run_sweep, suggestions

log = logging.getLogger(__name__)


def lr_find(command: Command) -> int:
    """Sweeps, draws, and logs a line for each suggestion. Returns the exit code."""
    config = command.config
    distributed.start(config.distributed)
    if config.probe.heads:
        raise ConfigError('config.probe.heads is set, and lr_find sweeps the training of one '
                          'model: give the heads several rates in config.probe.lr, or take the '
                          'heads out.')
    folds = several_folds(config.split)
    if folds is not None:
        raise ConfigError(f'config.split.fold = {config.split.fold!r}, and lr_find sweeps one of '
                          f'them: give --config.split.fold={folds[0]}.')
    folder = workdirs.choose(command.workdir, command.config_file, 'lr_find')
    manifest = load_data(config, folder)
    stops = StopTogether if distributed.several() else StopSignal
    try:
        with lock.held(folder), stops() as stop:
            sweep = run_sweep(config, manifest, folder, stop)
            if distributed.is_first():
                _write(folder, sweep, suggestions(sweep), config)
    except Interrupted:
        log.info('Stopped.')
        return STOPPED
    return 0


def _write(folder: Path, sweep: Sweep, found: dict[str, float], config: ConfigDict) -> None:
    """lr_find.csv, .json and .png in a folder, and the suggestions in the log."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'The workdir {folder} cannot be made ({error.strerror}): '
                          f'give another --workdir.') from None
    table = pd.DataFrame(dict(lr=sweep.rates, loss=sweep.losses, smoothed=sweep.smooth))
    with atomic_open(folder / 'lr_find.csv') as file:
        table.to_csv(file, index=False, lineterminator='\n', float_format='%.7g')
    write_json(folder / 'lr_find.json', dict(
        suggestions=found, ended=sweep.ended, steps=len(sweep.rates),
        settings=config.lr_find.to_dict(), lr_of_config=config.schedule.lr))
    from train_lib.reporting.sweep import draw_sweep  # loads matplotlib
    draw_sweep(folder / 'lr_find.png', table, found)

    ends = {'done': '', 'diverged': '; the loss diverged there',
            'not finite': '; the loss was not finite after that'}
    log.info('lr_find  %d steps, %.1e to %.1e%s', len(table), config.lr_find.low,
             table['lr'].iloc[-1] if len(table) else config.lr_find.low, ends[sweep.ended])
    for rule, rate in found.items():
        log.info('%-11s--config.schedule.lr=%.2g', rule, rate)
    if not found:
        log.info('The loss does not fall anywhere: no suggestion.')
    log.info('plot     %s', folder / 'lr_find.png')
