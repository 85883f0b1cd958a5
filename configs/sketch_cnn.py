"""Sketches with a small residual CNN: the strongest model for a laptop without pretrained weights.

    python main.py --config=configs/sketch_cnn.py
    python main.py --config=configs/sketch_cnn.py:folder=PATH --config.data.group_regex='_(\\d+)\\.'

Everything but the model is as in configs/sketch_vit.py, including the arguments.
"""

from ml_collections import ConfigDict

from configs import sketch_vit


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    config = sketch_vit.get_config(arg)
    config.model = dict(name='small_cnn', drop_rate=0.1)
    return config
