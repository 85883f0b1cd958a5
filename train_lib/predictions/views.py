"""Test-time augmentation: the views in which a trained model sees each picture once more.

A view is a list of transforms, as in a stage of the curriculum, that leave nothing to chance. To
add one, add its line to VIEWS.
"""

import difflib
import re
from collections.abc import Callable, Sequence

from input_pipeline.curriculum import Stage
from input_pipeline.transforms import make_transform
from train_lib.runtime.errors import ConfigError

HFLIP, VFLIP = dict(kind='hflip', p=1.0), dict(kind='vflip', p=1.0)


def _crop(x: float, y: float) -> Callable[[], list]:
    return lambda: [dict(kind='crop', share=0.875, x=x, y=y)]


def _scaled(factor: float) -> list:
    """What is enlarged comes from the file itself; what shrinks has the border around it."""
    if factor >= 1:
        return [dict(kind='crop', share=1 / factor)]
    return [dict(kind='zoom', factor=factor)]


# name: (number after the name, if it takes one) -> transforms. Names are joined by '+'.
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


def make_views(names: Sequence[str]) -> dict[str, Stage]:
    """The stage of each view of config.predict.views, in their order; sets become their views.

    Raises:
        ConfigError: none is given, or one is not known. DataError: a number out of its range.
    """
    wanted = dict.fromkeys(one for name in names for one in SETS.get(name, (name,)))
    if not wanted:
        raise ConfigError('config.predict.views = (): give at least one view, such as identity.')
    stages = {}
    for view in wanted:
        try:
            specs = [spec for part in view.split('+') for spec in _transforms(part)]
        except (KeyError, TypeError):
            near = difflib.get_close_matches(view, [*VIEWS, *SETS], n=1)
            hint = f'did you mean {near[0]}' if near else (
                f'choose from {", ".join([*VIEWS, *SETS])} (scale takes a number, scale1.15')
            raise ConfigError(f'config.predict.views: there is no view {view!r}; '
                              f'{hint}{"?" if near else ")."}') from None
        stages[view] = Stage(0, tuple(make_transform(spec, f'config.predict.views, {view}')
                                      for spec in specs))
    return stages


def _transforms(name: str) -> list:
    numbered = re.fullmatch(r'(\D+)(\d+(?:\.\d+)?)', name)
    return VIEWS[numbered[1]](float(numbered[2])) if numbered else VIEWS[name]()
