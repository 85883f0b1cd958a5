"""Random crop, rotation and flip: alone, in pairs and together; and two ways to remove noise.

    python main.py study --config=configs/studies/food_augmentation.py:folder=PATH
    python main.py study --config=configs/studies/food_augmentation.py:size=tiny

The base config and its arguments are those of configs/food_densenet.py.
"""

import itertools

from ml_collections import ConfigDict

from configs import food_densenet

SINGLE = {'crop': food_densenet.CROP, 'rotation': dict(kind='rotate', degrees=15),
          'flip': 'hflip'}
DENOISING = {'blurred': [dict(kind='gaussian_blur', p=1.0, sigma=1.0)],
             'opened': [dict(kind='open', p=1.0)]}


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    return food_densenet.get_config(arg)


def study() -> dict[str, dict]:
    """The arms, by name; only training pictures are blurred or opened."""
    sets = [names for count in range(len(SINGLE) + 1)
            for names in itertools.combinations(SINGLE, count)]
    found = {' + '.join(names) or 'none': [SINGLE[name] for name in names] for names in sets}
    return {name: {'curriculum': (dict(transforms=transforms),)}
            for name, transforms in (found | DENOISING).items()}
