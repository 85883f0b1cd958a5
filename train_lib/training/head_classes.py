"""The heads of another run in this one, class by class.

A row of a classifier means the class of its name. So rows are found by name, whatever their number
or order, and a class without one there starts as this run would start it.
"""

import logging
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.class_names import number_labels
from input_pipeline.errors import counted
from train_lib.runtime.sharding import gather

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
Classes = Mapping[str, Sequence[str]]  # {head: class names}
# Of a name below its head: the weights of the last layer, whose last axis are the classes.
_PER_CLASS = re.compile(r'(out/)*(kernel|bias)')


def is_head(name: str) -> bool:
    """Whether a weight of this path belongs to a head."""
    return name.startswith(('head/', 'heads/'))


def map_heads(stored: Arrays, here: Mapping[str, Any], classes: Classes, theirs: Classes | None,
              *, by_name: bool) -> Arrays:
    """The stored weights, with the heads of another run under the names and in the class order of
    this one. Heads that this run does not have are left out.

    Args:
        stored: all weights by path.
        here: the heads of this run by path, as they start; jax.Array.
        classes: of this run.
        theirs: of the other run; None if they are not known.
        by_name: False leaves everything as it is, and only warns of classes with other names.
    """
    if theirs is None:
        log.warning('init     that run does not say its classes: heads are taken as they are')
        return stored
    pairs = _pairs(classes, theirs)
    if not by_name:
        for head, other in pairs.items():
            known = zip(classes[head], theirs[other])
            wrong = [name for name, there in known if number_labels([name], [there]) != [0]]
            if wrong:
                log.warning('init     head %s is kept, but %d of its classes have other names '
                            'there', head, len(wrong))
        return stored
    found = {name: value for name, value in stored.items() if not is_head(name)}
    for head, other in pairs.items():
        found |= _one_head(stored, here, (_prefix(classes, head), classes[head]),
                           (_prefix(theirs, other), theirs[other]), head)
    for head in classes:
        if head not in pairs:
            log.info('init     head %s starts anew: that run has none of this name', head)
    left_out = sorted(set(theirs) - set(pairs.values()))
    if left_out:
        log.info('init     heads of that run left out: %s', ', '.join(left_out))
    return found


def _pairs(classes: Classes, theirs: Classes) -> dict[str, str]:
    """{head here: head there}: of the same name, or the only ones."""
    if len(classes) == len(theirs) == 1:
        return {next(iter(classes)): next(iter(theirs))}
    return {head: head for head in classes if head in theirs}


def _prefix(classes: Classes, head: str) -> str:
    return 'head/' if len(classes) == 1 else f'heads/{head}/'


def _one_head(stored: Arrays, here: Mapping[str, Any], ours: tuple[str, Sequence[str]],
              theirs: tuple[str, Sequence[str]], head: str) -> Arrays:
    """The weights of one head under their names here.

    Args:
        stored, here: as in `map_heads`.
        ours, theirs: the prefix of the head's weights, and its class names.
        head: its name, for the log.
    """
    (to, names), (prefix, there) = ours, theirs
    weights = {f'{to}{name.removeprefix(prefix)}': value for name, value in stored.items()
               if name.startswith(prefix)}
    if any('raw' in name.removeprefix(to).split('/') for name in here if name.startswith(to)):
        return _ordered_head(weights, here, to, list(names) == list(there), head)
    per_class = [name for name in here
                 if name.startswith(to) and _PER_CLASS.fullmatch(name.removeprefix(to))]
    if not all(name in weights and weights[name].shape == (*here[name].shape[:-1], len(there))
               for name in per_class):
        log.info('init     head %s starts anew: that of the other run is built otherwise', head)
        return {}
    places = number_labels(names, there)
    known = [(i, place) for i, place in enumerate(places) if place is not None]
    if [place for _, place in known] != list(range(len(there))) or len(known) < len(names):
        for name in per_class:
            rows = np.array(gather(here[name]))
            for i, place in known:
                rows[..., i] = weights[name][..., place]
            weights[name] = rows
    moved = sum(i != place for i, place in known)
    log.info('init     head %s: %s kept, %d moved, %d new, %d left out', head,
             counted(len(known) - moved, 'class', 'classes'), moved, len(names) - len(known),
             len(there) - len(known))
    new = [name for name, place in zip(names, places) if place is None]
    if new:
        log.info('         new: %s', textwrap.shorten(', '.join(new), 60, placeholder=' ...'))
    if not known:
        log.warning('init     no class of head %s is known there; init.head=keep goes by order',
                    head)
    return weights


def _ordered_head(weights: Arrays, here: Mapping[str, Any], to: str, same: bool, head: str
                  ) -> Arrays:
    """A head of ordered classes, whose outputs are no classes: as a whole, or not at all."""
    fits = same and all(name in weights and weights[name].shape == here[name].shape
                        for name in here if name.startswith(to))
    log.info('init     head %s of ordered classes %s', head,
             'is kept' if fits else 'starts anew: it is built otherwise there')
    return weights if fits else {}
