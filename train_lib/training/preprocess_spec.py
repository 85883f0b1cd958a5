"""How pictures are prepared for a model: what the config says, else what its weights ask for."""

import dataclasses
import logging
from collections.abc import Sequence

import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.loader import ImageSpec
from models.tags import Tag, find_tag
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
RESIZES = ('squash', 'pad', 'crop')
INTERPOLATIONS = ('area', 'bicubic', 'bilinear')


@dataclasses.dataclass(frozen=True)
class Prepared:
    """mean and std of values in 0..1; resize as in decode.resize; crop_pct in (0, 1]."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: str = 'squash'
    interpolation: str = 'area'
    crop_pct: float = 1.0


def prepared_for(config: ConfigDict) -> Prepared:
    """The preparation of a run. Each key of config.image that is None comes from the tag of
    config.init.pretrained, or is the default above where there is no tag.

    Raises:
        ConfigError: a value that is not known or out of range.
    """
    tag = find_tag(config.model.name, config.init.pretrained) if config.init.pretrained else None
    wanted = _of_tag(tag) if tag else Prepared()
    given = {key: config.image[key] for key in dataclasses.asdict(wanted)
             if config.image[key] is not None}
    given |= {key: tuple(given[key]) for key in ('mean', 'std')
              if isinstance(given.get(key), Sequence) and not isinstance(given[key], str)}
    prepared = dataclasses.replace(wanted, **given)
    for key, allowed in (('resize', RESIZES), ('interpolation', INTERPOLATIONS)):
        if getattr(prepared, key) not in allowed:
            raise ConfigError(f'config.image.{key} = {getattr(prepared, key)!r}: '
                              f'choose one of {", ".join(allowed)}.')
    for key in ('mean', 'std'):
        value = getattr(prepared, key)
        if not isinstance(value, tuple) or len(value) != 3 or not all(
                isinstance(v, (int, float)) for v in value) or (key == 'std' and min(value) <= 0):
            raise ConfigError(f'config.image.{key} = {value!r}: give three numbers'
                              f'{" above 0" if key == "std" else ""}, for red, green and blue.')
    if not isinstance(prepared.crop_pct, (int, float)) or not 0 < prepared.crop_pct <= 1:
        raise ConfigError(f'config.image.crop_pct = {prepared.crop_pct!r}: '
                          f'give a share above 0 and up to 1.')
    if tag:
        taken = ', '.join(f'{key} {getattr(prepared, key)}' for key in dataclasses.asdict(prepared)
                          if key not in given)
        log.info('input    as %s.%s asks for: %s', tag.model, tag.tag, taken or 'nothing')
    return prepared


def image_spec(config: ConfigDict, prepared: Prepared) -> ImageSpec:
    """The same for the input pipeline."""
    return ImageSpec(config.image.size, prepared.resize, config.image.border,
                     prepared.interpolation, prepared.crop_pct)


def _of_tag(tag: Tag) -> Prepared:
    return Prepared(tag.mean, tag.std, 'squash' if tag.crop_mode == 'squash' else 'crop',
                    tag.interpolation, tag.crop_pct)
