"""Values of the config that no part of a run would complain about, or only late."""

import logging
from collections.abc import Collection, Mapping, Sequence

from ml_collections import ConfigDict

from input_pipeline.curriculum import Stage
from input_pipeline.mirrored_labels import partners_of, warn_of
from input_pipeline.warp import BORDERS
from train_lib.predictions.class_order import ANSWERS
from train_lib.runtime.errors import ConfigError
from train_lib.training import patience
from train_lib.training.preprocess_spec import DTYPES, input_channels, input_size
from train_lib.training.unlabelled_rows import check_unlabelled

log = logging.getLogger(__name__)


def check_swaps(config: ConfigDict, stages: Sequence[Stage],
                classes: Mapping[str, Sequence[str]]) -> None:
    """Compares the `swap` of flips with the classes, and warns of flips without one that turn
    classes called left and right, or clockwise and counterclockwise, into each other.

    Raises:
        DataError: an unknown head or class.
    """
    transforms = [item for stage in stages for item in stage.transforms]
    swaps = partners_of(transforms, classes)
    for sentence in warn_of(transforms, classes):
        log.warning('stages   %s', sentence)
    if swaps and (config.loss.class_weights.kind != 'none' or config.eval.adjust_tau
                  or config.loss.name in ('balanced_softmax', 'logit_adjustment', 'ldam')):
        log.info('weights  class sizes are counted before flips swap labels')


def check_multi_label(config: ConfigDict, heads: Collection[str]) -> None:
    """Refuses what has no meaning yet for heads with several labels per picture.

    Args:
        config: of the run.
        heads: those heads.

    Raises:
        ConfigError: with the first of them.
    """
    if not heads:
        return
    for key, value, off in (('data.extra.file', config.data.extra.file, ''),
                            ('distill.teachers', tuple(config.distill.teachers), ()),
                            ('unlabelled.kind', config.unlabelled.kind, 'none'),
                            ('teacher.workdir', config.teacher.workdir, '')):
        if value != off:
            raise ConfigError(f'config.{key} = {value!r} goes with one label per picture, but the '
                              f'head {next(iter(heads))!r} has several: leave it out.')


def check_values(config: ConfigDict, devices: int) -> None:
    """Refuses values that no part of a run would complain about, or only late.

    Raises:
        ConfigError: with the first of them.
    """
    for key, value, allowed in (
            ('precision', config.precision, DTYPES),
            ('image.border', config.image.border, BORDERS),
            ('data.changed', config.data.changed, ('error', 'accept')),
            ('checkpoint.back', config.checkpoint.back, ('error', 'accept')),
            ('eval.metric', config.eval.metric, patience.METRICS),
            ('eval.thresholds', config.eval.thresholds, ('f1', 'half')),
            ('eval.answer', config.eval.answer, ANSWERS),
            ('eval.ties', config.eval.ties, ('nll', 'first'))):
        if value not in allowed:
            raise ConfigError(f'config.{key} = {value!r}: choose one of {", ".join(allowed)}.')
    input_size(config)
    input_channels(config)
    for key, value, least, most in (
            ('batch_size', config.batch_size, 1, 2**24),
            ('eval.batch_size', config.eval.batch_size, 1, 2**24),
            ('accumulate', config.accumulate, 1, 2**24), ('seed', config.seed, 0, 2**32 - 1),
            ('loader.threads', config.loader.threads, 1, 1024),
            ('loader.workers', config.loader.workers, 0, 1024),
            ('loader.prefetch', config.loader.prefetch, 1, 2**14),
            ('image.cache_mb', config.image.cache_mb, 0, 2**40)):
        if not least <= value <= most:
            raise ConfigError(f'config.{key} = {value}: give a number from {least:,} to {most:,}.')
    named = config.loss.name
    adjusting = {'balanced_softmax', 'logit_adjustment'} & set(
        named.values() if isinstance(named, Mapping | ConfigDict) else [named])
    if config.eval.adjust_tau and adjusting:
        raise ConfigError(f'config.eval.adjust_tau = {config.eval.adjust_tau} and config.loss.name '
                          f'= {min(adjusting)!r} would adjust for the class sizes twice: '
                          f'keep one of them.')
    if config.eval.adjust_tau and config.resample.kind != 'none' and config.loss.counts != 'data':
        raise ConfigError(f'config.eval.adjust_tau = {config.eval.adjust_tau} goes by the class '
                          f'sizes of the data, and config.resample.kind = {config.resample.kind!r} '
                          f"changes what is shown: keep one of them, or set config.loss.counts="
                          f"'data'.")
    if config.batch_size % devices:
        raise ConfigError(f'config.batch_size = {config.batch_size} cannot be shared by '
                          f'{devices} devices: give a multiple of {devices}.')
    if config.batch_size % (devices * config.accumulate):
        raise ConfigError(f'config.batch_size = {config.batch_size} cannot be done in '
                          f'config.accumulate = {config.accumulate} equal parts on {devices} '
                          f'device{"s" * (devices > 1)}: give a multiple of '
                          f'{devices * config.accumulate}.')
    check_unlabelled(config, devices)
