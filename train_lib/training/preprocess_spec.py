"""How pictures are prepared and loaded: as the config says, else as the weights ask for."""

import dataclasses
import logging

import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.color import LUMA
from input_pipeline.loader import LoaderSpec
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import INTERPOLATIONS, MODES
from models.tags import Tag, find_tag
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
_LARGEST = 2**14  # pixels of a side of the input
# What published weights decide where the config leaves it open, in the order of result.json.
_FROM_TAG = ('mean', 'std', 'resize', 'interpolation', 'crop_pct')


def preprocess_spec(config: ConfigDict) -> PreprocessSpec:
    """How a run prepares its pictures.

    Where mean, std, resize, interpolation or crop_pct is None in config.image, it comes from the
    tag of config.init.pretrained, or is the default of `PreprocessSpec` if there is no tag. There
    is one mean and std per channel of config.model.in_channels; see `_per_channel`.

    Raises:
        ConfigError: a value is unknown or out of range.
    """
    image = config.image
    tag = find_tag(config.model.name, config.init.pretrained) if config.init.pretrained else None
    wanted = PreprocessSpec(size=input_size(config), border=image.border,
                            reduced_decode=image.reduced_decode, **(_of_tag(tag) if tag else {}))
    given = {key: image[key] for key in _FROM_TAG if image[key] is not None}
    channels = input_channels(config)
    spec = dataclasses.replace(wanted, **given | {
        key: _per_channel(key, given.get(key, getattr(wanted, key)), channels)
        for key in ('mean', 'std')})
    for key, allowed in (('resize', MODES), ('interpolation', INTERPOLATIONS)):
        if getattr(spec, key) not in allowed:
            raise ConfigError(f'config.image.{key} = {getattr(spec, key)!r}: '
                              f'choose one of {", ".join(allowed)}.')
    if min(spec.std) <= 0:
        raise ConfigError(f'config.image.std = {spec.std!r}: give numbers above 0.')
    if not isinstance(spec.crop_pct, (int, float)) or not 0 < spec.crop_pct <= 1:
        raise ConfigError(f'config.image.crop_pct = {spec.crop_pct!r}: '
                          f'give a share above 0 and up to 1.')
    if tag:
        taken = ', '.join(f'{key} {getattr(spec, key)}' for key in _FROM_TAG if key not in given)
        log.info('input    as %s.%s asks for: %s', tag.model, tag.tag, taken or 'nothing')
    return spec


def input_size(config: ConfigDict) -> int | tuple[int, int]:
    """config.image.size in pixels: the side of a square, or (height, width) of a rectangle.

    Raises:
        ConfigError: it is neither, or out of range.
    """
    given = config.image.size
    sides = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if len(sides) not in (1, 2) or not all(
            isinstance(side, (int, float)) and not isinstance(side, bool)
            and 1 <= side <= _LARGEST and side == int(side) for side in sides):
        raise ConfigError(f'config.image.size = {given!r}: give a number from 1 to {_LARGEST:,}, '
                          f'or (height, width) such as (96, 160).')
    height, width = int(sides[0]), int(sides[-1])
    return height if height == width else (height, width)


def input_channels(config: ConfigDict) -> int:
    """Channels of the pictures, config.model.in_channels: 3 (RGB), 4 (and transparency), 1 (grey).

    Raises:
        ConfigError: no source gives so many.
    """
    channels = config.model.get('in_channels', 3)
    if type(channels) is not int or channels not in (1, 3, 4):
        raise ConfigError(f'config.model.in_channels = {channels!r}: pictures are read with 3 '
                          f'channels (red, green, blue), 4 (and transparency) or 1 (grey): give '
                          f'one of these.')
    return channels


def _per_channel(key: str, value, channels: int) -> tuple[float, ...]:
    """A mean or standard deviation for each channel. Three of a grey picture become their luma;
    that of transparency is 0.5 unless it is given."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) not in {1, channels, 3} or not all(
            isinstance(one, (int, float)) and not isinstance(one, bool) for one in values):
        raise ConfigError(f'config.image.{key} = {value!r}: give three numbers, for red, green '
                          f'and blue, or one for all channels.')
    if len(values) == 1:
        return values * channels
    if channels == 1:
        # Rounded, so that .5 for each colour is .5.
        return (round(float(sum(weight * one for weight, one in zip(LUMA, values))), 9),)
    return values if len(values) == channels else (*values, 0.5)


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
