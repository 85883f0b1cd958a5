"""Test-time augmentation: the views of each picture that a trained model predicts.

A view is a list of transforms, as in a stage of the curriculum, without anything random. To add
one, add its line to VIEWS. Of a view that mirrors, the logits are put into the order of the
picture's own classes, if the run says which classes a flip swaps.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.curriculum import Stage
from input_pipeline.errors import did_you_mean
from input_pipeline.mirrored_labels import MIRRORS, Swap, permutation, read_swap, warn_of
from input_pipeline.transforms import make_transform
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
HFLIP, VFLIP = dict(kind='hflip', p=1.0), dict(kind='vflip', p=1.0)


def _crop(x: float, y: float) -> Callable[[], list]:
    return lambda: [dict(kind='crop', share=0.875, x=x, y=y)]


def _scaled(factor: float) -> list:
    """An enlarged picture is cut from the file's own pixels; a shrunk one gets a border."""
    if factor >= 1:
        return [dict(kind='crop', share=1 / factor)]
    return [dict(kind='zoom', factor=factor)]


# name: (the number after the name, if it takes one) -> transforms. '+' joins names.
VIEWS: dict[str, Callable[..., list]] = {
    'identity': lambda: [],
    'hflip': lambda: [HFLIP],
    'vflip': lambda: [VFLIP],
    'both': lambda: [HFLIP, VFLIP],
    'scale': _scaled,  # scale1.15 enlarges the middle by 1.15
    'transpose': lambda: [dict(kind='transpose', p=1.0)],
    'center': _crop(0.5, 0.5),
    'top_left': _crop(0.0, 0.0),
    'top_right': _crop(1.0, 0.0),
    'bottom_left': _crop(0.0, 1.0),
    'bottom_right': _crop(1.0, 1.0),
}
SETS = {'crops5': ('center', 'top_left', 'top_right', 'bottom_left', 'bottom_right'),
        'flips': ('identity', 'hflip', 'vflip', 'both')}


def make_views(names: Sequence[str], where: str = 'config.predict.views',
               swaps: Mapping[str, Swap] | None = None) -> dict[str, Stage]:
    """The stage of each view, in their order; a set becomes its views.

    Args:
        names: of views and sets.
        where: what names them, for errors.
        swaps: {kind of a flip: the classes that it swaps}, see `view_swaps`.

    Raises:
        ConfigError: there are none, or one is unknown. DataError: a number out of its range.
    """
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f'{where}: {name!r} is not the name of a view, such as identity.')
    wanted = dict.fromkeys(one for name in names for one in SETS.get(name, (name,)))
    if not wanted:
        raise ConfigError(f'{where} = (): give at least one view, such as identity.')
    stages = {}
    for view in wanted:
        try:
            specs = [spec for part in view.split('+') for spec in _transforms(part)]
        except (KeyError, TypeError):
            known = [*VIEWS, *SETS]
            listed = f'choose from {", ".join(known)} (scale takes a number, as in scale1.15).'
            raise ConfigError(f'{where}: there is no view {view!r}; '
                              f'{did_you_mean(view, known, show=str, otherwise=listed)}') from None
        stages[view] = Stage(0, tuple(
            dataclasses.replace(made, swap=(swaps or {}).get(made.kind, ()))
            for made in (make_transform(spec, f'{where}, {view}') for spec in specs)))
    return stages


def _transforms(name: str) -> list:
    numbered = re.fullmatch(r'(\D+)(\d+(?:\.\d+)?)', name)
    return VIEWS[numbered[1]](float(numbered[2])) if numbered else VIEWS[name]()


def view_swaps(given: Any, curriculum: Sequence[Mapping]) -> dict[str, Swap]:
    """{kind of a flip: the classes that it swaps} for the views of a run.

    Args:
        given: config.predict.swap: {kind: swap}; what it leaves out is as in the curriculum.
        curriculum: config.curriculum of the run.

    Raises:
        ConfigError: a kind does not mirror, or the curriculum swaps other classes in one stage
            than in another. DataError: see `read_swap`.
    """
    given = given.to_dict() if isinstance(given, ConfigDict) else given or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"config.predict.swap = {given!r}: give classes by kind of flip, such as "
                          f"{{'hflip': {{'left': 'right'}}}}.")
    found = {}
    for kind, swap in given.items():
        if kind not in MIRRORS:
            raise ConfigError(f'config.predict.swap = {given!r}: {kind!r} does not mirror; '
                              f'{did_you_mean(kind, MIRRORS)}')
        found[kind] = read_swap(swap, f'config.predict.swap: {kind} with ')
    specs = [spec for stage in curriculum for spec in stage.get('transforms', ())
             if isinstance(spec, Mapping) and spec.get('swap')]
    for spec in specs:
        kind = spec['kind']
        swap = read_swap(spec['swap'], f'config.curriculum: {kind} with ')
        if kind not in given and found.setdefault(kind, swap) != swap:
            raise ConfigError(f'config.curriculum swaps other classes by {kind} in one place than '
                              f'in another: say by config.predict.swap which ones a view swaps.')
    return found


def in_class_order(logits: Mapping[str, np.ndarray], view: Stage,
                   classes: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Logits of the pictures that a view shows, as logits of the pictures themselves: where the
    view swaps classes, that of a class is what the mirrored picture has for its partner.

    Args:
        logits: {head: float [N, C]}.
        view: from `make_views`.
        classes: {head: names}.
    """
    numbers = permutation(view.transforms, classes, 'config.predict.swap')
    return {head: values[:, numbers[head]] if head in numbers else values
            for head, values in logits.items()}


def say_unswapped(views: Mapping[str, Stage], classes: Mapping[str, Sequence[str]]) -> None:
    """Warns of views that mirror classes called left and right, and of unknown ones in a swap.

    Raises:
        DataError: a swap names an unknown head or class.
    """
    transforms = [item for view in views.values() for item in view.transforms]
    permutation(transforms, classes, 'config.predict.swap')
    for sentence in warn_of(transforms, classes):
        log.warning('views    %s', sentence)
