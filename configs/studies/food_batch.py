"""Batches of 16 to 128 dishes, at one learning rate.

    python main.py study --config=configs/studies/food_batch.py:folder=PATH
    python main.py study --config=configs/studies/food_batch.py:size=tiny

The base config and its arguments are those of configs/food_densenet.py.
"""

from ml_collections import ConfigDict

from configs import food_densenet, tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    config = food_densenet.get_config(arg)
    config.study.baseline = 'batch 32'
    return config


def study(config: ConfigDict, arg: str | None = None) -> dict[str, dict]:
    """The arms, by name."""
    share = 4 if tiny.is_tiny(arg) else 1  # a tiny study has few drawings
    return {f'batch {size}': {'batch_size': size // share} for size in (16, 32, 64, 128)}
