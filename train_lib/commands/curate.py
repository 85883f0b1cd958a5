"""The verb curate: which pictures to leave out, as a table that a person may correct.

    decisions.csv   one line per image, which data.decisions obeys; see curation/decisions.py
    to_mark.csv     the pictures on which photographs.marks would help most
    gallery.html    what would be dropped, and why

No picture is ever changed.
"""

import csv
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.atomic_files import atomic_open
from input_pipeline.curation import label_errors, photographs
from input_pipeline.curation.decisions import Finding, decide, save_decisions
from input_pipeline.curation.detectors import (
    DETECTORS,
    Help,
    Pictures,
    check_options,
    is_file,
)
from input_pipeline.errors import listed
from input_pipeline.manifest import Manifest
from train_lib.commands.command import Command
from train_lib.metrics.out_of_fold import read_probabilities
from train_lib.probing.feature_file import features_of
from train_lib.reporting.decisions_page import write_decisions_page
from train_lib.run_dir import ancestors, lock, workdirs
from train_lib.run_dir.seen_rows import related
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import counting_bar, in_columns
from train_lib.training.data import load_data

log = logging.getLogger(__name__)
_TO_MARK = 20  # lines of to_mark.csv


def curate(command: Command) -> int:
    """Writes decisions.csv and gallery.html. Returns the exit code."""
    check_options(command.config.curate.to_dict())
    workdir = command.workdir or workdirs.new(command.config_file)
    with lock.held(workdir):
        _curate(command.config, workdir)
    return 0


def _curate(config: ConfigDict, workdir: Path) -> None:
    manifest = load_data(config, refuse=False)
    pictures = Pictures(manifest, config.curate.to_dict(), data=config.data.to_dict(),
                        seed=config.seed, helped=_help(config, manifest))
    if pictures.head not in manifest.classes:
        raise ConfigError(f'config.curate.labels.head = {pictures.head!r}: '
                          f'choose one of {listed(manifest.heads)}.')
    findings = [DETECTORS[name](pictures) for name in config.curate.detectors]
    table = decide(manifest, findings, head=pictures.head)
    overlaps = None
    if 'labels' in config.curate.detectors:
        overlaps = label_errors.overlapping_classes(pictures.label_errors.joint,
                                                    manifest.classes[pictures.head])
    try:
        save_decisions(table, str(workdir / 'decisions.csv'))
        _write_to_mark(findings, manifest, workdir / 'to_mark.csv',
                       drop=config.curate.photographs.drop)
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be written to ({error.strerror}): '
                          f'give another --workdir.') from None
    page = write_decisions_page(workdir / 'gallery.html', manifest, findings, table,
                                head=pictures.head, overlaps=overlaps,
                                read_image=sources.reader(manifest))
    for found in findings:
        if found.note:
            # A sentence without a path, which needs no whole line to be found in a file.
            for line in in_columns(f'{found.detector:8} {found.note}'):
                log.warning('%s', line)
    for line in summary(findings, table).splitlines():
        log.info('%s', line)
    log.info('written  %s', workdir / 'decisions.csv')
    log.info('         correct them, and train with')
    log.info('         --config.data.decisions=%s', workdir / 'decisions.csv')
    log.info('gallery  %s', page)


def _help(config: ConfigDict, manifest: Manifest) -> Help:
    features, given = config.curate.features, None
    if is_file(features):
        given, meta = features_of(features, manifest.table['id'].tolist())
        log.info('features of %s', features)
        if meta.get('run'):
            _warn_of_seen(manifest, ancestors.of_several([Path(meta['run'])]), features)

    def model_features() -> np.ndarray:
        if given is not None:
            return given
        from train_lib.probing.feature_cache import plain_features  # starts JAX
        _warn_of_seen(manifest, ancestors.of_start(config, lambda workdir: ''),
                      'config.init.from')
        return plain_features(config, manifest)

    return Help(cache_folder(), model_features,
                lambda path, head: read_probabilities(Path(path), manifest, head), counting_bar)


def _warn_of_seen(manifest: Manifest, ancestry: ancestors.Ancestry, where: str) -> None:
    """Says that features are of a run that trained on the pictures, or that this is not known."""
    ids = manifest.table['id'].tolist()
    seen = related(ids, ancestry.rows.keys(), {})
    if seen:
        log.warning('features of a run that trained on %s of these %s pictures: wrong',
                    f'{len(seen):,}', f'{len(ids):,}')
        log.warning('         labels that it has learnt look right (%s)', where)
    for clause in ancestry.unknown:
        log.info('features not checked: %s', clause)


def summary(findings: list[Finding], table: pd.DataFrame) -> str:
    """One line per detector and one for all together: how many to drop, how many to review."""
    rows = {found.detector: found.action for found in findings} | {'all': table['action']}
    counts = pd.DataFrame({name: [np.sum(actions == 'drop'), np.sum(actions == 'review')]
                           for name, actions in rows.items()}, index=['dropped', 'to review']).T
    return counts.rename_axis('detector').reset_index().to_string(index=False)


def _write_to_mark(findings: list[Finding], manifest: Manifest, path: Path, *, drop: float
                   ) -> None:
    """The pictures nearest the border, to be filled in for photographs.marks."""
    for found in findings:
        if found.detector == 'photographs':
            order = photographs.to_mark(found, _TO_MARK, drop)
            with atomic_open(path) as file:
                file.write('\ufeff')  # by which spreadsheet programs know UTF-8
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator='\n')
                writer.writerow(['id', 'photograph'])
                writer.writerows([name, ''] for name in manifest.table['id'].to_numpy()[order])
