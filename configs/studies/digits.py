"""The smallest study: three ways to train a small CNN on real handwritten digits.

    python main.py study --config=configs/studies/digits.py

A run takes seconds.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    config = common.get_config()
    config.data.source = 'digits'
    common.choose_data(config, common.parse_arg(arg))
    config.model = dict(name='small_cnn', width=8, stages=2)
    config.image.size = 16
    config.duration = dict(epochs=3)
    config.schedule.lr = 1e-2
    config.log.tensorboard = False
    return config


def study() -> dict:
    """The arms, by name."""
    return {
        'plain': {},
        'turned': {'curriculum': (dict(transforms=[dict(kind='rotate', degrees=10)]),)},
        'slow': {'schedule.lr': 1e-3},
    }
