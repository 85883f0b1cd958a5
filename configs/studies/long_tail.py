"""Twelve published ways to learn from a long tail, on CIFAR-10-LT.

    python main.py study --config=configs/studies/long_tail.py:folder=cifar10.zip
    python main.py study --config=configs/studies/long_tail.py:size=tiny

The base config and its arguments are those of configs/cifar_lt.py. Its method=crt starts from a
trained run and is not an arm here.
"""

from ml_collections import ConfigDict

from configs import cifar_lt, common, tiny

METHODS = {name: changes for name, changes in cifar_lt.METHODS.items() if name != 'crt'}


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    own, rest = common.split_arg(arg, 'size')
    config = cifar_lt.get_config(rest)
    if common.choose('size', own.get('size', 'full'), ('full', 'tiny')) == 'tiny':
        config.data.long_tail.imbalance = 4.0
        return tiny.make_tiny(config)
    return config


def study() -> dict[str, dict]:
    """The arms, by name."""
    return METHODS
