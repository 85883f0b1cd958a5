"""Values of the config that no part of a run would complain about, or only late."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from input_pipeline.warp import BORDERS
from train_lib.runtime.errors import ConfigError
from train_lib.training import patience
from train_lib.training.preprocess_spec import DTYPES, input_channels, input_size


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
