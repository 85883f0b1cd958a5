"""How pictures are prepared and loaded: as the config says, else as the weights ask for."""

import dataclasses
import logging
from collections.abc import Sequence

import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.loader import LoaderSpec
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import INTERPOLATIONS, MODES
from models.tags import Tag, find_tag
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# What published weights decide where the config leaves it open, in the order of result.json.
_FROM_TAG = ('mean', 'std', 'resize', 'interpolation', 'crop_pct')


def preprocess_spec(config: ConfigDict) -> PreprocessSpec:
    """How a run prepares its pictures.

    Where mean, std, resize, interpolation or crop_pct is None in config.image, it comes from the
    tag of config.init.pretrained, or is the default of `PreprocessSpec` if there is no tag.

    Raises:
        ConfigError: a value is unknown or out of range.
    """
    image = config.image
    tag = find_tag(config.model.name, config.init.pretrained) if config.init.pretrained else None
    wanted = PreprocessSpec(size=image.size, border=image.border,
                            reduced_decode=image.reduced_decode, **(_of_tag(tag) if tag else {}))
    given = {key: image[key] for key in _FROM_TAG if image[key] is not None}
    given |= {key: tuple(given[key]) for key in ('mean', 'std')
              if isinstance(given.get(key), Sequence) and not isinstance(given[key], str)}
    spec = dataclasses.replace(wanted, **given)
    for key, allowed in (('resize', MODES), ('interpolation', INTERPOLATIONS)):
        if getattr(spec, key) not in allowed:
            raise ConfigError(f'config.image.{key} = {getattr(spec, key)!r}: '
                              f'choose one of {", ".join(allowed)}.')
    for key in ('mean', 'std'):
        value = getattr(spec, key)
        if not isinstance(value, tuple) or len(value) != 3 or not all(
                isinstance(v, (int, float)) for v in value) or (key == 'std' and min(value) <= 0):
            raise ConfigError(f'config.image.{key} = {value!r}: give three numbers'
                              f'{" above 0" if key == "std" else ""}, for red, green and blue.')
    if not isinstance(spec.crop_pct, (int, float)) or not 0 < spec.crop_pct <= 1:
        raise ConfigError(f'config.image.crop_pct = {spec.crop_pct!r}: '
                          f'give a share above 0 and up to 1.')
    if tag:
        taken = ', '.join(f'{key} {getattr(spec, key)}' for key in _FROM_TAG if key not in given)
        log.info('input    as %s.%s asks for: %s', tag.model, tag.tag, taken or 'nothing')
    return spec


def input_record(spec: PreprocessSpec) -> dict:
    """What result.json records under `input`: mean, std, resize, interpolation, crop_pct."""
    return {key: getattr(spec, key) for key in _FROM_TAG}


def loader_spec(config: ConfigDict) -> LoaderSpec:
    """How a run loads its pictures."""
    return LoaderSpec(**config.loader, cache_mb=config.image.cache_mb,
                      unreadable=config.data.unreadable)


def _of_tag(tag: Tag) -> dict:
    return dict(mean=tag.mean, std=tag.std, interpolation=tag.interpolation,
                resize='squash' if tag.crop_mode == 'squash' else 'crop', crop_pct=tag.crop_pct)
