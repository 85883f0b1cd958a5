"""How the learning rate falls: not at all, in steps, exponentially, or as a cosine.

    python main.py study --config=configs/studies/food_schedules.py:folder=PATH
    python main.py study --config=configs/studies/food_schedules.py:size=tiny

The base config and its arguments are those of configs/food_densenet.py.
"""

from ml_collections import ConfigDict

from configs import food_densenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    config = food_densenet.get_config(arg)
    config.study.baseline = 'none'
    return config


def study() -> dict[str, dict]:
    """The arms, by name."""
    return {
        'none': {'schedule.name': 'constant'},
        'step': {'schedule.name': 'step', 'schedule.every': dict(percent=25)},
        'exponential': {'schedule.name': 'exponential', 'schedule.every': dict(percent=5),
                        'schedule.gamma': 0.9},
        'cosine': {'schedule.name': 'cosine'},
    }
