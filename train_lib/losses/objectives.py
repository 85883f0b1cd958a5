"""The loss of each head, from the config and the class counts of the training images; and the
same counts used after the training."""

import dataclasses
import logging
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import did_you_mean
from train_lib.losses.class_weights import class_weights
from train_lib.losses.losses import LOSSES, Counts, LossSpec, adjust_logits
from train_lib.losses.set_losses import SET_LOSSES
from train_lib.runtime.config_section import read_numbers
from train_lib.runtime.errors import ConfigError

_RANGES = {'label_smoothing': (0, 1), 'gamma': (0, np.inf), 'tau': (0, np.inf),
           'scale': (0, np.inf), 'max_margin': (0, np.inf), 'gamma_pos': (0, np.inf),
           'gamma_neg': (0, np.inf), 'clip': (0, 1)}
_OTHERS = ('name', 'alpha', 'head_weights', 'class_weights')


log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What resampling changes: from the step `start` on an epoch shows counts[head], float64 [C],
    images per class, of labelled[head] images with labels."""

    start: int
    counts: Mapping[str, np.ndarray]
    labelled: Mapping[str, float] = dataclasses.field(default_factory=dict)


def objectives(config: ConfigDict, classes: Mapping[str, Sequence[str]],
               counts: Mapping[str, np.ndarray], to_steps: Callable, shown: Shown | None = None,
               multi_label: Collection[str] = (), labelled: Mapping[str, float] | None = None
               ) -> dict[str, LossSpec]:
    """The loss of each head, with the class weights of config.loss.class_weights.

    Both go by how many images of each class the training shows, while it shows them so
    (config.loss.counts): else a class would be balanced twice. The margins of ldam, which speak of
    different images, go by the data.

    Args:
        config: of the run.
        classes: {head: names}.
        counts: {head: training images per class [C]}.
        to_steps: (duration, config key) -> steps.
        shown: with resampling; None without.
        multi_label: heads with several labels per picture.
        labelled: {head: training images with labels}; needed for class weights of such heads.

    Raises:
        ConfigError: see `make_loss`; or class weights for an unknown head.
        DataError: see `class_weights`.
    """
    loss = config.loss.to_dict()
    wanted = loss.pop('class_weights')
    by_counts = loss.pop('counts')
    loss.pop('example_weights')
    loss.pop('levels')  # see training/class_structure.py
    if by_counts not in ('shown', 'data'):
        raise ConfigError(f'config.loss.counts = {by_counts!r}: choose one of shown, data.')

    def made(counts, labelled):
        weights, start = {}, 0
        if wanted['kind'] != 'none':
            start = to_steps(wanted['start'], 'loss.class_weights.start')
            weights = {head: class_weights(counts[head], wanted['kind'], names=classes[head],
                                           beta=wanted['beta'], manual=wanted['manual'],
                                           key='loss.class_weights', cap=wanted['cap'],
                                           labelled=labelled.get(head) if head in multi_label
                                           else None)
                       for head in classes if wanted['head'] in ('', head)}
            if not weights:
                raise ConfigError(
                    f'config.loss.class_weights.head = {wanted["head"]!r} is not a head: '
                    f'{did_you_mean(wanted["head"], classes)}')
        return make_loss(loss, counts, weights, start, multi_label)

    by_data = made(counts, labelled or {})
    if shown is None or by_counts == 'data':
        return by_data
    by_shown = made(shown.counts, shown.labelled)
    return {head: _from(shown.start, by_data[head], by_shown[head]) for head in by_data}


def _from(start: int, before: LossSpec, after: LossSpec) -> LossSpec:
    """The loss of one head that goes by the counts of `after` from a step on."""
    if before.name == 'ldam':
        after = dataclasses.replace(after, counts=before.counts)
    if before == after or not start:
        return after
    return dataclasses.replace(before, shown_start=start, shown_counts=after.counts,
                               shown_weights=after.class_weights)


def head_weights(config: ConfigDict, heads: Sequence[str]) -> tuple[float, ...]:
    """config.loss.head_weights, one per head or () for 1 each.

    Raises:
        ConfigError: they are not numbers of 0 or more, or not one per head.
    """
    found = read_numbers(config.loss.head_weights, 'loss.head_weights')
    if found and len(found) != len(heads):
        raise ConfigError(f'config.loss.head_weights has {len(found)} numbers for {len(heads)} '
                          f'heads ({", ".join(heads)}): give one per head, in this order.')
    return found


def example_weights_end(config: ConfigDict, start: int) -> int | None:
    """The step from which the loss counts examples alike; None: it never does, 0: it always does.

    Where rows are drawn by the column `weight`, a loss that multiplies it in would weigh twice.

    Args:
        config: of the run.
        start: the step from which resampling applies.

    Raises:
        ConfigError: a wrong value of config.loss.example_weights.
    """
    wanted = config.loss.example_weights
    if wanted not in ('auto', True, False):
        raise ConfigError(f"config.loss.example_weights = {wanted!r}: give 'auto', True or False.")
    if wanted == 'auto':
        drawn = config.resample.kind == 'weighted' and config.resample.column in ('', 'weight')
        if drawn:
            log.info('weights  rows are drawn by `weight` (resample), the loss leaves it out')
        return start if drawn else None
    return None if wanted else 0


def make_loss(config: Mapping, counts: Mapping[str, Counts],
              weights: Mapping[str, Counts] | None = None, weights_start: int = 0,
              multi_label: Collection[str] = ()) -> dict[str, LossSpec]:
    """The loss of each head.

    Args:
        config: config.loss: name (of all heads, or by head) and the settings of the losses; a
            missing one has the default of `LossSpec`. alpha is a number, numbers per class, or
            either of them by head; () for 1. head_weights and class_weights are read elsewhere.
        counts: {head: training images per class [C]}.
        weights: of the classes, {head: [C]}; 1 for a head that is not named.
        weights_start: the step from which they apply.
        multi_label: heads with several labels per picture, whose loss is one of `SET_LOSSES`.

    Raises:
        ConfigError: an unknown name or key, a loss for the other kind of head, a value out of its
            range, a wrong number of alphas or class weights, or no images for a loss that needs
            their numbers.
    """
    known = (*_RANGES, *_OTHERS)
    for key in config:
        if key not in known:
            raise ConfigError(f'config.loss.{key} is unknown: {did_you_mean(key, known)}')
    names = _names(config.get('name', 'cross_entropy'), tuple(counts), multi_label)
    numbers_of = {key: _number(config[key], f'config.loss.{key}', *_RANGES[key])
                  for key in _RANGES if key in config}
    if numbers_of.get('label_smoothing') == 1:
        raise ConfigError('config.loss.label_smoothing = 1 leaves nothing of the label: '
                          'give less than 1, e.g. 0.1.')
    if numbers_of.get('scale') == 0:
        raise ConfigError('config.loss.scale = 0 leaves nothing of the logits: '
                          'give more, e.g. 1 for a linear head, 30 for cosines.')
    alphas = config.get('alpha', ())
    if isinstance(alphas, Mapping):
        for head in alphas:
            if head not in counts:
                raise ConfigError(f'config.loss.alpha names the head {head!r}, which does not '
                                  f'exist: {did_you_mean(head, counts)}')
    specs = {}
    if numbers_of.get('clip') == 1:
        raise ConfigError('config.loss.clip = 1 leaves nothing of a class that does not apply: '
                          'give less, e.g. 0.05.')
    for head, of_head in counts.items():
        name = names[head]
        if head not in multi_label and 'counts' in LOSSES[name][1] and not np.sum(of_head):
            raise ConfigError(f'config.loss.name = {name!r} needs labelled training images of the '
                              f'head {head!r}, and there are none: use cross_entropy.')
        alpha = alphas.get(head, ()) if isinstance(alphas, Mapping) else alphas
        specs[head] = LossSpec(
            name=name, multi_label=head in multi_label, **numbers_of,
            alpha=_alpha(alpha, head, len(of_head)),
            counts=tuple(float(count) for count in of_head), weights_start=int(weights_start),
            class_weights=_of_classes((weights or {}).get(head, ()), len(of_head),
                                      f'The class weights of the head {head!r}'))
    return specs


def _names(wanted, heads: Sequence[str], multi_label: Collection[str]) -> dict[str, str]:
    """{head: name of its loss}, from config.loss.name."""
    if isinstance(wanted, Mapping):
        for head in wanted:
            if head not in heads:
                raise ConfigError(f'config.loss.name names the head {head!r}, which does not '
                                  f'exist: {did_you_mean(head, heads)}')
        names = {head: wanted.get(head, 'binary_cross_entropy' if head in multi_label
                                  else 'cross_entropy') for head in heads}
    else:
        names = dict.fromkeys(heads, wanted)
    for head, name in names.items():
        if name not in (*LOSSES, *SET_LOSSES):
            raise ConfigError(f'config.loss.name = {name!r} is unknown: '
                              f'{did_you_mean(name, {**LOSSES, **SET_LOSSES})}')
        fitting, what = (SET_LOSSES, 'several labels') if head in multi_label else (
            LOSSES, 'one label')
        if name not in fitting:
            others = f', by head where there are several: {{{head!r}: {min(fitting)!r}, ...}}'
            raise ConfigError(f'config.loss.name = {name!r} is not a loss for the head {head!r}, '
                              f'whose pictures have {what} each: use {" or ".join(fitting)}'
                              f'{others if len(heads) > 1 else ""}.')
    return names


def _alpha(alpha, head: str, classes: int) -> float | tuple[float, ...]:
    if isinstance(alpha, numbers.Real):
        return _number(alpha, 'config.loss.alpha', 0, np.inf)
    if isinstance(alpha, str) or not isinstance(alpha, Sequence | np.ndarray):
        raise ConfigError(f'config.loss.alpha = {alpha!r} is neither a number nor numbers: '
                          f'give one, or one per class.')
    return _of_classes(alpha, classes, f'config.loss.alpha of the head {head!r}') or 1.0


def _of_classes(values: Sequence[float] | np.ndarray, classes: int, what: str
                ) -> tuple[float, ...]:
    """Checks numbers per class, none of them negative; () is allowed."""
    found = tuple(_number(value, what, 0, np.inf) for value in values)
    if found and (len(found) != classes or not any(found)):
        wrong = (f'has {len(found)} numbers for {classes} classes: give one per class'
                 if len(found) != classes else 'is 0 for every class: give some class more')
        raise ConfigError(f'{what} {wrong}.')
    return found


def _number(value: Any, what: str, low: float, high: float) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real) or not (
            math.isfinite(value) and low <= float(value) <= high):
        wanted = f'from {low} to {high}' if np.isfinite(high) else f'of {low} or more'
        raise ConfigError(f'{what} = {value!r}: give a number {wanted}.')
    return float(value)


def adjust(logits: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray], tau: float
           ) -> dict[str, np.ndarray]:
    """Post-hoc logit adjustment (Menon et al., arXiv 2007.07314): logits - tau x the log of each
    class's share of the training images.

    Args:
        logits: {head: float [N, C]}.
        counts: {head: training images per class [C]}.
        tau: 0 changes nothing.

    Returns:
        {head: float32 [N, C]}.
    """
    if not tau:
        return dict(logits)
    return {head: adjust_logits(values, counts[head], tau).astype(np.float32)
            for head, values in logits.items()}
