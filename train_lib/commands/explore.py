"""The verb explore: what a data set is like, before anything is trained on it."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.curation.beside import Beside, look_beside
from input_pipeline.curation.detectors import by_model, check_features, is_file
from input_pipeline.curation.exploration import (
    Exploration,
    common_defects,
    explore_pictures,
    save_exploration,
)
from input_pipeline.errors import DataError, counted
from input_pipeline.manifest import Manifest
from input_pipeline.sources import second_set
from train_lib.commands.command import Command
from train_lib.probing.feature_file import features_of
from train_lib.reporting.explore_page import write_explore_page
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.cache_folder import cache_folder
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import counting_bar
from train_lib.training.data import load_manifest

log = logging.getLogger(__name__)


def explore(command: Command) -> int:
    """Writes explore.html and explore.csv, and beside.csv of a second set.
    Returns the exit code."""
    workdir = command.workdir or workdirs.new(command.config_file)
    with lock.held(workdir):
        _explore(command.config, workdir)
    return 0


def _explore(config: ConfigDict, workdir: Path) -> None:
    check_features(config.curate)
    manifest, path = load_manifest(config), config.explore.beside
    described = _described(config)
    second = second_set.load(path, config.data.to_dict()) if path else None  # early, if it fails
    found = explore_pictures(manifest, config.curate.to_dict(), config.split.to_dict(),
                             seed=config.seed, cache_dir=cache_folder(),
                             described=described or bool(path), range16=config.image.range16,
                             progress=counting_bar)
    beside = None if second is None else _look_beside(config, found, second, described or True)
    try:
        save_exploration(found, workdir / 'explore.csv',
                         beside and {'second_set': beside.probabilities[0]})
        if beside:
            save_exploration(beside.second, workdir / 'beside.csv', beside.columns(found))
        else:
            (workdir / 'beside.csv').unlink(missing_ok=True)  # of a start before
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be written to ({error.strerror}): '
                          f'give another --workdir.') from None
    page = write_explore_page(
        workdir / 'explore.html', found, title=title_of(config),
        thresholds=config.curate.quality.to_dict(), wanted=config.curate.photographs.wanted,
        read_image=sources.reader(found.manifest),
        second=beside and (beside, Path(path).name or path,
                           sources.reader(beside.second.manifest)))
    suspicious, common = np.count_nonzero(found.suspicion), common_defects(found)
    log.info('pictures %s', ', '.join([
        f'{len(found.manifest):,}', f'{np.count_nonzero(found.problems != ""):,} unreadable',
        *([f'{suspicious:,} suspicious'] if suspicious or not common else []), *common]))
    if found.range_note:
        log.warning('values   %s', found.range_note)
    log.info('copies   %s of duplicates, %s of them with different labels',
             counted(len(found.conflicts), 'group'), f'{found.conflicts.sum():,}')
    if beside:
        _say(beside)
    log.info('explored %s', page)


def _described(config: ConfigDict) -> Callable[[Manifest], np.ndarray] | None:
    """How config.curate.features describes rows; None for the descriptor.

    Raises:
        DataError: a file of features is damaged, or lacks a picture. ConfigError: it is given with
            a second set, of which it holds no features.
    """
    features = config.curate.features
    if is_file(features):
        if config.explore.beside:
            raise ConfigError(f'config.curate.features = {features!r} holds no features of '
                              f'config.explore.beside: set config.curate.features=model, with '
                              f'config.model and config.init.')
        return lambda rows: features_of(features, rows.table['id'].tolist())[0]
    if not by_model(config.curate):
        return None

    def model_features(rows: Manifest) -> np.ndarray:
        from train_lib.probing.feature_cache import plain_features  # starts JAX
        return plain_features(config, rows)

    return model_features


def _look_beside(config: ConfigDict, found: Exploration, manifest: Manifest,
                 described: bool | Callable[[Manifest], np.ndarray]) -> Beside:
    options = config.curate.to_dict()
    try:
        second = explore_pictures(manifest, options, None, seed=config.seed,
                                  cache_dir=cache_folder(), range16=found.manifest.range16,
                                  described=described, progress=counting_bar)
    except DataError as error:  # no file is there
        raise second_set.in_its_words(error) from None
    return look_beside(found, second, options, seed=config.seed, progress=counting_bar)


def _say(beside: Beside) -> None:
    second, told = beside.second, beside.told
    log.info('beside   %s, %s unreadable, %s of the data', counted(len(second.manifest), 'picture'),
             f'{np.count_nonzero(second.problems != ""):,}',
             counted(np.count_nonzero(beside.copies.of >= 0), 'copy', 'copies'))
    if second.range_note:
        log.warning('values   of the second set: %s', second.range_note)
    if told.auc != told.auc:
        log.info('beside   too few pictures to say whether the sets differ')
    else:
        log.info('beside   %s: AUC %.3f [%.3f, %.3f]',
                 'the sets differ' if told.differ else 'the sets cannot be told apart',
                 told.auc, told.low, told.high)


def title_of(config: ConfigDict) -> str:
    """The name of the data: that of the folder or file, or of the source."""
    path = str(config.data.get(config.data.source, '') or '')
    return Path(path).name if config.data.source not in ('doodles', 'digits') and path else (
        config.data.source)
