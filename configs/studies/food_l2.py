"""How much L2 in the gradient: DenseNet-121 on dishes.

    python main.py study --config=configs/studies/food_l2.py:folder=PATH
    python main.py study --config=configs/studies/food_l2.py:size=tiny

The base config and its arguments are those of configs/food_densenet.py.
"""

from ml_collections import ConfigDict

from configs import food_densenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    return food_densenet.get_config(arg)


def study() -> dict[str, dict]:
    """The arms, by name."""
    return {f'L2 {rate:g}': {'optimizer.weight_decay': rate} for rate in (0.0, 1e-4, 1e-3, 1e-2)}
