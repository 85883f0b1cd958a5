"""Optimizers for DenseNet-121 on dishes, all at one learning rate.

    python main.py study --config=configs/studies/food_optimizers.py:folder=PATH
    python main.py study --config=configs/studies/food_optimizers.py:size=tiny

The base config and its arguments are those of configs/food_densenet.py. One rate for all is
what such tables show, and it is unfair to SGD: `main.py lr_find` finds the rate of each optimizer.
"""

from ml_collections import ConfigDict

from configs import food_densenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    config = food_densenet.get_config(arg)
    config.study.baseline = 'adam'
    return config


def study() -> dict[str, dict]:
    """The arms, by name."""
    usual = {'optimizer.b1': 0.9, 'optimizer.b2': 0.999}
    plain = {'optimizer.momentum': 0.0, 'optimizer.nesterov': False}
    return {
        'sgd': {'optimizer.name': 'sgd', **usual, **plain},
        'sgd, Nesterov momentum 0.99': {
            'optimizer.name': 'sgd', **usual, 'optimizer.momentum': 0.99,
            'optimizer.nesterov': True},
        'rmsprop': {'optimizer.name': 'rmsprop', **usual, **plain},
        'adam': {'optimizer.name': 'adam', **usual},
        'nadam': {'optimizer.name': 'nadam', **usual},
        'nadam, betas 0.999': {'optimizer.name': 'nadam', 'optimizer.b1': 0.999,
                               'optimizer.b2': 0.999},
    }
