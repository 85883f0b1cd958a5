"""Classes with an order, and classes as leaves of a tree: what the config says of each head."""

import dataclasses
import logging
import numbers
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.class_levels import levels_of
from input_pipeline.errors import did_you_mean, listed
from input_pipeline.manifest import Manifest
from models.ordinal import ORDERS
from train_lib.losses.losses import LossSpec
from train_lib.losses.tree_loss import Levels
from train_lib.metrics.structured import (
    ORDER_SCORES,
    level_scores,
    ordinal_scores,
    structure_lines,
)
from train_lib.predictions.answers import MEDIAN
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
Classes = Mapping[str, Sequence[str]]  # {head: class names}
_COLUMNS = 80  # of the terminal


def ordered_heads(config: ConfigDict, classes: Classes) -> tuple[str, ...]:
    """The heads whose classes have an order: those of data.ordered and of model.head_order.

    Raises:
        ConfigError: a head is unknown; or one of model.head_order has classes whose order is that
            of the alphabet, and nothing says that this is right.
    """
    given = config.data.ordered
    named = (given,) if isinstance(given, str) else tuple(given)  # no part of a text is a head
    for head in named:
        if head not in classes:
            raise ConfigError(f'config.data.ordered names {head!r}, which is not a head: '
                              f'{did_you_mean(head, classes)}')
    by_model = orders_of(config, classes)
    for head in by_model:
        names = classes[head]
        if head not in named and not _placed(config, head, classes):
            raise ConfigError(
                f'config.model.head_order = {by_model[head]!r}: the classes of {head!r} are in the '
                f'order of the alphabet ({listed([*names[:4], *["..."] * (len(names) > 4)])}): '
                f"name them in order by config.data.classes, or say by config.data.ordered="
                f"'{head}' that this is their order.")
    return tuple(head for head in classes if head in named or head in by_model)


def answered_by_median(config: ConfigDict, classes: Classes) -> tuple[str, ...]:
    """The heads that answer the median of their classes, by config.eval.answer.

    Raises:
        ConfigError: no head has ordered classes; see also `ordered_heads`.
    """
    if config.eval.answer != MEDIAN:
        return ()
    ordered = ordered_heads(config, classes)
    if not ordered:
        raise ConfigError(f'config.eval.answer = {MEDIAN!r} is for heads whose classes have an '
                          f'order, and there is none: say by config.data.ordered which do, or '
                          f"leave it at 'probable'.")
    return ordered


def orders_of(config: ConfigDict, classes: Classes) -> dict[str, str]:
    """{head: its kind} of config.model.head_order.

    Raises:
        ConfigError: it names an unknown head.
    """
    given = config.model.get('head_order', '')
    if not isinstance(given, (Mapping, ConfigDict)):
        return dict.fromkeys(classes, str(given)) if given else {}
    for head in given:
        if head not in classes:
            raise ConfigError(f'config.model.head_order names {head!r}, which is not a head: '
                              f'{did_you_mean(head, classes)}')
    return dict(given)


def _placed(config: ConfigDict, head: str, classes: Classes) -> bool:
    """Whether somebody, or the numbers that they are, put the classes of a head in order."""
    given = config.data.classes
    by_hand = head in given if isinstance(given, (Mapping, ConfigDict)) else (
        bool(given) and len(classes) == 1)
    return by_hand or (config.data.rules > 1
                       and all(name.isascii() and name.isdigit() for name in classes[head]))


def check_structure(config: ConfigDict, classes: Classes, several: Collection[str] = ()) -> None:
    """Checks the order of classes, which the log then says, and what does not go with it.

    Args:
        config: of the run.
        classes: {head: names}.
        several: heads with several labels per picture.

    Raises:
        ConfigError: see `ordered_heads`; a head of `several` has an order; or a loss that does not
            fit log probabilities.
    """
    name = config.loss.name
    if name in ORDERS:
        raise ConfigError(f'config.loss.name = {name!r} is a kind of head, not a loss: leave the '
                          f'loss at cross_entropy, and set config.model.head_order={name!r}.')
    for head in ordered_heads(config, classes):
        if head in several:
            raise ConfigError(f'The head {head!r} has several labels per picture, so its classes '
                              f'have no order: leave it out of config.data.ordered and '
                              f'config.model.head_order.')
        names = classes[head]
        text = ' < '.join(names)
        room = _COLUMNS - len(f'order    {head}: ')
        if len(text) > room:
            text = f'{names[0]} < ... < {names[-1]} ({len(names)} classes)'
        log.info('order    %s: %s', head, text[:max(room, 8)])
    for head, order in orders_of(config, classes).items():
        loss = name.get(head, '') if isinstance(name, (Mapping, ConfigDict)) else name
        if loss in ('binary_cross_entropy', 'ldam'):
            raise ConfigError(f'config.loss.name = {loss!r} does not go with '
                              f'config.model.head_order = {order!r}, whose logits are log '
                              f'probabilities: use cross_entropy.')


def with_levels(losses: Mapping[str, LossSpec], config: ConfigDict, classes: Classes
                ) -> dict[str, LossSpec]:
    """The losses of the heads, with the levels of config.loss.levels.

    Raises:
        ConfigError: an unknown head, weights that do not fit the levels of the names or are not
            numbers of 0 or more, or a loss besides cross_entropy and focal.
    """
    given = config.loss.levels
    by_head = isinstance(given, (Mapping, ConfigDict))
    wanted = dict(given) if by_head else dict.fromkeys(losses, given) if given else {}
    found = dict(losses)
    for head, weights in wanted.items():
        if head not in losses:
            raise ConfigError(f'config.loss.levels names the head {head!r}, which does not exist: '
                              f'{did_you_mean(head, losses)}')
        if losses[head].name not in ('cross_entropy', 'focal'):
            raise ConfigError(f'config.loss.levels = {weights!r} goes with the losses '
                              f'cross_entropy and focal, and config.loss.name is '
                              f'{losses[head].name!r}: leave out one of them.')
        found[head] = dataclasses.replace(losses[head],
                                          levels=_levels(weights, head, classes[head]))
    return found


def _levels(weights, head: str, names: Sequence[str]) -> Levels:
    levels = levels_of(names)
    if isinstance(weights, (str, numbers.Real)):
        weights = (weights,)
    deepest = max(names, key=lambda name: name.count('/'))
    if len(weights) != len(levels) or len(levels) < 2:
        raise ConfigError(f'config.loss.levels = {tuple(weights)!r}: the classes of {head!r}, such '
                          f'as {deepest!r}, have {len(levels)} '
                          f'level{"s" * (len(levels) > 1)} between "/": '
                          + (f'give {len(levels)} weights, that of the class itself last.'
                             if len(levels) > 1 else 'leave it out.'))
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not (
                0 <= float(weight) < float('inf')):
            raise ConfigError(f'config.loss.levels = {tuple(weights)!r}: give numbers of 0 or '
                              f'more.')
    if not any(weights):
        raise ConfigError(f'config.loss.levels = {tuple(weights)!r} leaves nothing of the loss: '
                          f'give some level a weight.')
    inner = [(float(weight), tuple(level.nodes.tolist()))
             for weight, level in zip(weights, levels[:-1])]
    return *inner, (float(weights[-1]), ())


def with_structure(found: dict, logits: Mapping[str, np.ndarray], manifest: Manifest,
                   ordered: Sequence[str] = ()) -> dict:
    """The scores of a split (`evaluate.score_split`) with those of order and tree: `mae`,
    `mae_median` and `qwk` of ordered heads, `levels` where class names have a '/'; see
    `metrics/structured.py`.

    Args:
        found: is not changed.
        logits: {head: float [N, C]}.
        manifest: the N rows.
        ordered: heads whose classes have an order.
    """
    found = with_order(found, logits, manifest, ordered)
    for head, names in manifest.classes.items():
        # The parts of a product's names are labels of their own, not levels.
        if head in manifest.label_sets or '/' in head:
            continue
        levels = level_scores(logits[head], manifest.labels(head), names)
        if levels and len(manifest.classes) == 1:
            found['levels'] = levels
        elif levels:
            found[head] = found[head] | dict(levels=levels)
    return found


def say_structure(name: str, found: Mapping) -> None:
    """Logs the scores of order and tree of a split (`with_structure`); nothing without them."""
    for line in structure_lines(found):
        log.info('%-5s %s', name, line)


def with_order(found: dict, logits: Mapping[str, np.ndarray], manifest: Manifest,
               ordered: Sequence[str]) -> dict:
    """The scores of a split with `mae`, `mae_median` and `qwk` of its ordered heads; of several
    heads also the means over those that are ordered. Arguments as of `with_structure`."""
    more: dict[str, dict] = {
        head: ordinal_scores(logits[head], manifest.labels(head)) for head in manifest.classes
        if head in ordered and head not in manifest.label_sets}
    if len(manifest.classes) == 1 or not more:
        return {**found, **next(iter(more.values()), {})}
    known = {name: [one[name] for one in more.values() if one[name] is not None]
             for name in ORDER_SCORES}
    return {**found, **{head: found[head] | one for head, one in more.items()},
            **{name: float(np.mean(values)) if values else None for name, values in known.items()}}
