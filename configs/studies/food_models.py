"""ResNets, DenseNet, EfficientNets and MobileNets on dishes, each from its published weights.

    python main.py study --config=configs/studies/food_models.py:folder=PATH
    python main.py study --config=configs/studies/food_models.py:size=tiny

The base config and its arguments are those of configs/food_densenet.py; with
size=tiny small CNNs stand in for the models.
"""

from ml_collections import ConfigDict

from configs import food_densenet, tiny

MODELS = ('densenet121', 'resnet18', 'resnet34', 'resnet50', 'efficientnet_b0', 'efficientnet_b1',
          'tf_efficientnetv2_s', 'mobilenetv2_100', 'mobilenetv3_large_100')


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    return food_densenet.get_config(arg)


def study(config: ConfigDict, arg: str | None = None) -> dict[str, dict]:
    """The arms, by name."""
    return tiny.stand_ins(config, arg, {name: dict(name=name) for name in MODELS})
