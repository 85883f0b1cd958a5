"""config.probe, read once."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from train_lib.probing.feature_cache import FeatureCacheSpec, feature_cache_spec
from train_lib.probing.nearest_heads import NearestKind, read_nearest
from train_lib.probing.stacked_heads import HeadKind
from train_lib.runtime.config_section import read_numbers
from train_lib.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ProbeSpec:
    """What a probing run trains.

    Attributes:
        heads: the kinds of heads that are trained.
        nearest: those that are fitted.
        rates: learning rates; each is tried with each kind.
        views: augmented views per image; epoch e shows view e modulo views. 0: plain images.
        cache: where the features are kept.
    """

    heads: tuple[HeadKind, ...]
    nearest: tuple[NearestKind, ...]
    rates: tuple[float, ...]
    views: int
    cache: FeatureCacheSpec


def read_probe_spec(config: ConfigDict) -> ProbeSpec:
    """The probing run that a config asks for.

    Raises:
        ConfigError: a head without a name, two heads with one name, a wrong setting of one that is
            fitted, a key that has no effect on cached features, a wrong number, or an unknown
            dtype.
    """
    _refuse_without_effect(config)
    kinds: list[HeadKind] = []
    nearest: list[NearestKind] = []
    for i, entry in enumerate(config.probe.heads):
        if not isinstance(entry, Mapping):
            raise ConfigError(f"config.probe.heads[{i}] = {entry!r} is not a valid head: write "
                              f"dict(name='mlp', head='mlp').")
        settings = dict(entry)
        name = settings.pop('name', None)
        if not isinstance(name, str) or not name or name in {
                kind.name for kind in (*kinds, *nearest)}:
            raise ConfigError(f'config.probe.heads[{i}].name = {name!r}: give every head a name '
                              f"of its own, as in dict(name='mlp', head='mlp').")
        if 'kind' in settings:
            nearest.append(read_nearest(name, settings, f'config.probe.heads[{i}]'))
        else:
            kinds.append(HeadKind(name, settings))
    rates = read_numbers(config.probe.lr, 'probe.lr') or (config.schedule.lr,)
    if config.probe.views < 0:
        raise ConfigError(f'config.probe.views = {config.probe.views}: give a number of views per '
                          f'picture, or 0 for none.')
    return ProbeSpec(tuple(kinds), tuple(nearest), rates,
                     config.probe.views, feature_cache_spec(config))


def _refuse_without_effect(config: ConfigDict) -> None:
    """Refuses keys of ordinary training that heads on cached features do not obey."""
    for key, value, default in (  # loss.name is for multi-label heads, see probe_losses.py
            ('loss.levels', tuple(config.loss.levels), ()),
            ('model.head_order', config.model.get('head_order', ''), ''),
            ('loss.class_weights.kind', config.loss.class_weights.kind, 'none'),
            ('mixing', tuple(config.mixing), ()),
            ('ema.decay', config.ema.decay, 0.0),
            ('sharpness.kind', config.sharpness.kind, 'none'),
            ('swa.start', config.swa.start, None),
            ('lookahead.every', config.lookahead.every, 0),
            ('schedule_free.beta', config.schedule_free.beta, 0.0),
            ('accumulate', config.accumulate, 1),
            ('guard.skip', config.guard.skip, 0),
            ('early_stopping.patience', config.early_stopping.patience, None),
            ('schedule.plateau.patience', config.schedule.plateau.patience, None),
            ('finetune.table', tuple(config.finetune.table), ()),
            ('finetune.layer_decay', config.finetune.layer_decay, 1.0),
            ('finetune.lora.rank', config.finetune.lora.rank, 0),
            ('finetune.unfreeze', any(config.finetune.unfreeze.values()), False),
            ('eval.adjust_tau', config.eval.adjust_tau, 0.0),
            ('profile.steps', config.profile.steps, 0)):
        if value != default:
            raise ConfigError(f'config.{key} = {value!r} has no effect on cached features: leave '
                              f'it at {default!r}, or train without config.probe.heads.')
