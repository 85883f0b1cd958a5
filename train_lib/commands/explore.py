"""The verb explore: what a data set is like, before anything is trained on it."""

import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.curation.exploration import (
    common_defects,
    explore_pictures,
    save_exploration,
)
from train_lib.commands.command import Command
from train_lib.reporting.explore_page import write_explore_page
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import counting_bar
from train_lib.training.data import load_manifest

log = logging.getLogger(__name__)


def explore(command: Command) -> int:
    """Writes explore.html and explore.csv. Returns the exit code."""
    workdir = command.workdir or workdirs.new(command.config_file)
    with lock.held(workdir):
        _explore(command.config, workdir)
    return 0


def _explore(config: ConfigDict, workdir: Path) -> None:
    found = explore_pictures(load_manifest(config), config.curate.to_dict(),
                             config.split.to_dict(), seed=config.seed,
                             cache_dir=cache_folder(), range16=config.image.range16,
                             progress=counting_bar)
    try:
        save_exploration(found, workdir / 'explore.csv')
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be written to ({error.strerror}): '
                          f'give another --workdir.') from None
    page = write_explore_page(
        workdir / 'explore.html', found, title=title_of(config),
        thresholds=config.curate.quality.to_dict(), wanted=config.curate.photographs.wanted,
        read_image=sources.reader(found.manifest))
    suspicious, common = np.count_nonzero(found.suspicion), common_defects(found)
    log.info('pictures %s', ', '.join([
        f'{len(found.manifest):,}', f'{np.count_nonzero(found.problems != ""):,} unreadable',
        *([f'{suspicious:,} suspicious'] if suspicious or not common else []), *common]))
    if found.range_note:
        log.warning('values   %s', found.range_note)
    log.info('copies   %s groups of duplicates, %s of them with different labels',
             f'{len(found.conflicts):,}', f'{found.conflicts.sum():,}')
    log.info('explored %s', page)


def title_of(config: ConfigDict) -> str:
    """The name of the data: that of the folder or file, or of the source."""
    path = str(config.data.get(config.data.source, '') or '')
    return Path(path).name if config.data.source not in ('doodles', 'digits') and path else (
        config.data.source)
