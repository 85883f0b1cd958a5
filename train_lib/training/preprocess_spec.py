"""How pictures are prepared and loaded: as the config says, else as the weights ask for."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.color import LUMA
from input_pipeline.loader import LoaderSpec
from input_pipeline.pictures import PreprocessSpec
from input_pipeline.resize import INTERPOLATIONS, MODES
from input_pipeline.splits import several_folds
from models.tags import Tag, find_tag
from models.weight_places import IF_INSTALLED, resolved
from train_lib.predictions.run_folders import fold_of
from train_lib.run_dir import workdirs
from train_lib.run_dir.unknown_workdir import neighbours
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
_LARGEST = 2**14  # pixels of a side of the input
# What the weights decide where the config leaves it open, in the order of result.json.
_FROM_WEIGHTS = ('mean', 'std', 'resize', 'interpolation', 'crop_pct')


def preprocess_spec(config: ConfigDict, run: Path | None = None, *, say: bool = False
                    ) -> PreprocessSpec:
    """How a run prepares its pictures.

    Where mean, std, resize, interpolation or crop_pct is None in config.image, it is that of the
    weights that the run starts from: of the run that config.init.from names, or of the tag of
    config.init.pretrained. Without either it is the default of `PreprocessSpec`. A run that goes
    on keeps what it started with. There is one mean and std per channel of
    config.model.in_channels; see `_per_channel`.

    Args:
        config: of the run.
        run: its workdir, which need not exist; None for none.
        say: log it, and whose it is unless the run goes on.

    Raises:
        ConfigError: a value is unknown or out of range, or config.init.from holds no run.
    """
    image = config.image
    known, whose = _of_weights(config, run)
    wanted = PreprocessSpec(size=input_size(config), border=image.border,
                            reduced_decode=image.reduced_decode, **known)
    given = {key: image[key] for key in _FROM_WEIGHTS if image[key] is not None}
    channels = input_channels(config)
    mean, std = (_per_channel(key, _first_channels(getattr(wanted, key), channels), channels)
                 for key in ('mean', 'std'))
    wanted = dataclasses.replace(wanted, mean=mean, std=std)
    spec = dataclasses.replace(wanted, **given | {
        key: _per_channel(key, given[key], channels) for key in ('mean', 'std') if key in given})
    for key, allowed in (('resize', MODES), ('interpolation', INTERPOLATIONS)):
        if getattr(spec, key) not in allowed:
            raise ConfigError(f'config.image.{key} = {getattr(spec, key)!r}: '
                              f'choose one of {", ".join(allowed)}.')
    if min(spec.std) <= 0:
        raise ConfigError(f'config.image.std = {spec.std!r}: give numbers above 0.')
    if not isinstance(spec.crop_pct, (int, float)) or not 0 < spec.crop_pct <= 1:
        raise ConfigError(f'config.image.crop_pct = {spec.crop_pct!r}: '
                          f'give a share above 0 and up to 1.')
    if say:
        _log_input(spec, whose, [key for key in given
                                 if whose and getattr(spec, key) != getattr(wanted, key)])
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


def _first_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Those of a run with transparency, for one without."""
    return values[:3] if len(values) > max(channels, 3) else values


def input_record(spec: PreprocessSpec) -> dict:
    """What result.json records under `input`: mean, std, resize, interpolation, crop_pct."""
    return {key: getattr(spec, key) for key in _FROM_WEIGHTS}


def loader_spec(config: ConfigDict) -> LoaderSpec:
    """How a run loads its pictures."""
    return LoaderSpec(**config.loader, cache_mb=config.image.cache_mb,
                      unreadable=config.data.unreadable)


def input_of_run(workdir: Path) -> dict[str, Any]:
    """`input_record` of a run that exists, by which its weights were trained.

    Raises:
        ConfigError: the folder holds no run, or its config.json is damaged.
    """
    known = workdirs.start_facts(workdir).get('input')
    if known is None:  # of an older run, which took over nothing from config.init.from
        saved = workdirs.saved_config(workdir)
        saved.init['from'] = saved.init.resume_from = ''
        return input_record(preprocess_spec(saved))
    return {key: tuple(known[key]) if key in ('mean', 'std') else known[key]
            for key in _FROM_WEIGHTS}


def _of_weights(config: ConfigDict, run: Path | None) -> tuple[dict[str, Any], str]:
    """(what decides where config.image is None, where that is from: '' if nowhere)"""
    begun = _begun(config, run)
    if begun is not None:
        return input_of_run(begun), ''
    source = config.init['from']
    if source and run is None and not Path(source).exists():
        return {}, ''  # nothing is recorded, and whoever reads the weights refuses this
    if source:
        if not (Path(source) / 'config.json').exists():
            hint = neighbours(source, 'give the workdir of a trained run.')
            raise ConfigError(f'config.init.from = {source!r} holds no run (config.json is '
                              f'missing): {hint}')
        return input_of_run(Path(source)), f'as in {source}'
    name, pretrained = config.model.name, config.init.pretrained
    if pretrained == IF_INSTALLED:  # 'package' means its tag, whether it is installed or not
        pretrained = resolved(name, pretrained, config.init.folder)
    tag = find_tag(name, pretrained) if pretrained else None
    return (_of_tag(tag), f'as {tag.model}.{tag.tag} asks for') if tag else ({}, '')


def _begun(config: ConfigDict, run: Path | None) -> Path | None:
    """The run that goes on: that of the workdir, or of the folds that this is one of, or that
    config.init.resume_from names; None for a new one."""
    places = [run, Path(config.init.resume_from) if config.init.resume_from else None]
    for place in filter(None, places):
        if (place / 'config.json').exists():
            return place
        folds = place.absolute().parent
        if fold_of(place) is not None and (folds / 'config.json').exists() and (
                several_folds(workdirs.saved_config(folds).split) is not None):
            return folds
    return None


def _log_input(spec: PreprocessSpec, whose: str, differing: Sequence[str]) -> None:
    def text(values):
        return ' '.join(f'{value:.3g}' for value in values)

    resize = spec.resize if spec.resize != 'crop' else f'crop {spec.crop_pct:g}'
    log.info('input    %s px, %s, %s', spec.size, resize, spec.interpolation)
    log.info('         mean %s, std %s', text(spec.mean), text(spec.std))
    if whose:
        log.info('         %s', whose)
    if differing:
        log.warning('input    the weights were trained with another %s: config.image decides',
                    ', '.join(differing))


def _of_tag(tag: Tag) -> dict:
    return dict(mean=tag.mean, std=tag.std, interpolation=tag.interpolation,
                resize='squash' if tag.crop_mode == 'squash' else 'crop', crop_pct=tag.crop_pct)
