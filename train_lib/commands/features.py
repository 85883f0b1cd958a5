"""The verb features: what a backbone sees in each picture, as a table; and how well that tells the
classes apart."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from input_pipeline.atomic_files import write_json
from input_pipeline.errors import counted
from input_pipeline.manifest import digest
from train_lib.commands.command import Command
from train_lib.probing import feature_file, feature_scores
from train_lib.probing.feature_cache import cached_features, feature_cache_spec
from train_lib.probing.feature_source import columns_of, given_pictures, open_source, rows_of
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.signals import STOPPED, Interrupted, StopSignal

log = logging.getLogger(__name__)


def features(command: Command) -> int:
    """Writes the file of --out, and its scores beside it. Returns the exit code."""
    try:
        _features(command)
    except Interrupted:
        log.info('Stopped. The same command continues.')
        return STOPPED
    return 0


def _features(command: Command) -> None:
    config, images = command.config, command.flags.get('images', '')
    wanted = config.features
    if not command.config_file and command.workdir is None:
        raise ConfigError('features needs a backbone: give --workdir=RUN of a trained run, or '
                          '--config=FILE with config.init.')
    if not command.flags.get('out'):
        raise ConfigError('--out is missing: write python main.py features --workdir=RUN '
                          '--out=features.parquet.')
    out = Path(command.flags['out']).expanduser()
    feature_file.check_out(out)
    if wanted.dtype not in feature_file.DTYPES:
        raise ConfigError(f'config.features.dtype = {wanted.dtype!r}: choose one of '
                          f'{", ".join(feature_file.DTYPES)}.')
    spec = feature_scores.check_spec(wanted.neighbours, wanted.strengths, config.seed)
    if wanted.evaluate and images:
        raise ConfigError(f'--images={images} has no labels: leave it out, or '
                          f'config.features.evaluate, which scores the rows of config.data.')
    if wanted.evaluate:
        feature_file.check_scores(out.with_suffix('.json'))
    source = open_source(config, command.workdir)
    manifest = (given_pictures(images, config, command.workdir) if images else
                rows_of(config, source, scored=wanted.evaluate))
    cache = dataclasses.replace(feature_cache_spec(config), dtype=wanted.dtype)
    with StopSignal() as stop:
        found = cached_features(manifest, source.backbone, (), cache, stop)
    about = source.about | dict(
        data=digest(manifest), classes={head: list(names)
                                        for head, names in manifest.classes.items()})
    feature_file.write_features(out, columns_of(manifest), found.plain, about)
    log.info('written  %s x %s features', counted(len(manifest), 'picture'), found.plain.shape[1])
    log.info('         %s', out)
    if wanted.evaluate:
        scores = feature_scores.score_features(np.asarray(found.plain), manifest, spec)
        path = out.with_suffix('.json')
        try:
            write_json(path, dict(about, heads=scores))
        except OSError as error:
            raise ConfigError(f'{path} cannot be written ({error.strerror}): give another '
                              f'--out.') from None
        for line in feature_scores.table_of(scores):
            log.info('%s', line)
        log.info('scores   %s', path)
