"""The smallest study: three ways to train a small CNN on real handwritten digits.

    python main.py study --config=configs/studies/digits.py
    python main.py study --config=configs/studies/digits.py:size=tiny

A run takes seconds; with `size=tiny` it has eight steps. The other arguments are those of the data.
"""

from ml_collections import ConfigDict

from configs import common
from configs.tiny import make_tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    config = common.get_config()
    config.data.source = 'digits'
    args = common.parse_arg(arg, size='full')
    size = common.choose('size', args.pop('size'), ('full', 'tiny'))
    common.choose_data(config, args)
    config.model = dict(name='small_cnn', width=8, stages=2)
    config.image.size = 16
    config.duration = dict(epochs=3)
    config.schedule.lr = 1e-2
    config.log.tensorboard = False
    return make_tiny(config, width=8, stages=2) if size == 'tiny' else config


def study() -> dict:
    """The arms, by name."""
    return {
        'plain': {},
        'turned': {'curriculum': (dict(transforms=[dict(kind='rotate', degrees=10)]),)},
        'slow': {'schedule.lr': 1e-3},
    }
