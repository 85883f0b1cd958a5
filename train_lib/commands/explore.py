"""The verb explore: what a data set is like, before anything is trained on it."""

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.csv_table import quoting_for
from input_pipeline.curation import quality
from input_pipeline.curation.duplicates import Duplicates, conflicting, find_duplicates
from input_pipeline.curation.measures import Measures, measure
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.readable import unreadable
from input_pipeline.splits import assign_splits
from train_lib.commands.command_line import Command
from train_lib.reporting.explore_page import write_explore
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.training.run import load_manifest

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Exploration:
    """What is known of N pictures, each part in the order of the manifest.

    manifest: with the column split where the config's split can be made.
    problems: '' or why a picture cannot be read. split_note: why there is no split, or ''.
    flags: bool [N, quality.FLAGS]; suspicion: float [N]; why: in words.
    """

    manifest: Manifest
    problems: np.ndarray
    split_note: str
    measures: Measures
    duplicates: Duplicates
    flags: pd.DataFrame
    suspicion: np.ndarray
    why: list[str]


def explore(command: Command) -> int:
    """Writes explore.html and explore.csv. Returns the exit code."""
    workdir = command.workdir or workdirs.new(command.config_file)
    with lock.held(workdir):
        _explore(command.config, workdir)
    return 0


def _explore(config: ConfigDict, workdir: Path) -> None:
    found = examine(config, load_manifest(config))
    try:
        write_table(found, workdir / 'explore.csv')
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be written to ({error.strerror}): '
                          f'give another --workdir.') from None
    page = write_explore(
        workdir / 'explore.html', found, title=title_of(config),
        thresholds=config.curate.quality.to_dict(),
        read_image=lambda location: sources.read_image(found.manifest.root, location))
    group = found.duplicates.group
    conflicts = np.zeros(group.max(initial=-1) + 1, bool)
    for head in found.manifest.heads:
        conflicts |= conflicting(group, found.manifest.labels(head))
    log.info('pictures %s, %s unreadable, %s suspicious', f'{len(found.manifest):,}',
             f'{np.count_nonzero(found.problems != ""):,}',
             f'{np.count_nonzero(found.suspicion):,}')
    log.info('copies   %s groups of duplicates, %s of them with different labels',
             f'{len(conflicts):,}', f'{conflicts.sum():,}')
    log.info('explored %s', page)


def examine(config: ConfigDict, manifest: Manifest) -> Exploration:
    """Looks at every picture once."""
    thresholds = config.curate.quality.to_dict()
    quality.check(thresholds)  # rather than after minutes of measuring
    cache = workdirs.cache_folder()
    bad, _ = _with_bar('check', unreadable, manifest, cache_dir=cache)
    measures = _with_bar('measure', measure, manifest, cache_dir=cache)
    problems = measures.table['problem'].to_numpy(object)
    problems[list(bad)] = list(bad.values())
    readable = np.flatnonzero(problems == '')
    note = ''
    try:
        if not len(readable):
            raise DataError('No picture can be read.')
        placed = assign_splits(manifest.select(readable), config.split.to_dict(), seed=config.seed)
        split = np.full(len(manifest), '', object)
        split[readable] = placed.table['split']
        manifest = manifest.with_column('split', split)
    except DataError as error:  # a page that says so is worth more than none
        note = str(error)
    suspicion, why = quality.suspicions(measures.table, thresholds)
    return Exploration(
        manifest, problems, note, measures,
        _with_bar('compare', find_duplicates, measures, **config.curate.duplicates.to_dict()),
        quality.flags(measures.table, thresholds), suspicion, why)


def write_table(found: Exploration, path: Path) -> None:
    """Writes a CSV with one row an image: what the manifest has, measures, flags, duplicates."""
    manifest, group = found.manifest, found.duplicates.group
    known = [name for name in ('id', 'location', 'group', 'split') if name in manifest.table]
    table = manifest.table[known].copy()
    for head, names in manifest.classes.items():
        table[f'label/{head}'] = np.array([*names, ''], object)[manifest.labels(head)]
    table = pd.concat([table, found.measures.table.drop(columns='problem'),
                       found.flags.astype(int)], axis=1)
    table['problem'] = found.problems
    kinds = np.array([*found.duplicates.kinds(), ''], object)
    table['duplicate_group'] = np.where(group >= 0, group.astype(str).astype(object), '')
    table['duplicate_kind'] = kinds[group]
    table['suspicion'], table['why'] = found.suspicion.round(3), found.why
    partial = path.with_name(f'{path.name}.partial')
    table.to_csv(partial, index=False, lineterminator='\n', float_format='%.6g',
                 quoting=quoting_for(table),
                 encoding='utf-8', errors='surrogateescape')
    os.replace(partial, path)


def title_of(config: ConfigDict) -> str:
    """The name of the data: of the folder or file, or the source."""
    path = str(config.data.get(config.data.source, '') or '')
    return Path(path).name if config.data.source not in ('doodles', 'digits') and path else (
        config.data.source)


def _with_bar(what: str, function, *args, **settings):
    progress = bar(desc=what, unit='image' if what != 'compare' else 'pair')

    def show(done, total):
        progress.total = total
        progress.update(done - progress.n)

    try:
        return function(*args, progress=show, **settings)
    finally:
        progress.close()
