"""Test-time augmentation: the views of each picture that a trained model predicts.

A view is a list of transforms, as in a stage of the curriculum, without anything random. To add
one, add its line to VIEWS.
"""

import re
from collections.abc import Callable, Sequence

from input_pipeline.curriculum import Stage
from input_pipeline.errors import did_you_mean
from input_pipeline.transforms import make_transform
from train_lib.runtime.errors import ConfigError

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


def make_views(names: Sequence[str], where: str = 'config.predict.views') -> dict[str, Stage]:
    """The stage of each view, in their order; a set becomes its views.

    Args:
        names: of views and sets.
        where: what names them, for errors.

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
        stages[view] = Stage(0, tuple(make_transform(spec, f'{where}, {view}')
                                      for spec in specs))
    return stages


def _transforms(name: str) -> list:
    numbered = re.fullmatch(r'(\D+)(\d+(?:\.\d+)?)', name)
    return VIEWS[numbered[1]](float(numbered[2])) if numbered else VIEWS[name]()
