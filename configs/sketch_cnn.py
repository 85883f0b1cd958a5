"""Sketches with a small residual CNN: the strongest model for a laptop without weights."""

from ml_collections import ConfigDict

from configs import sketch_vit


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is what stands after the colon of --config=FILE:..."""
    config = sketch_vit.get_config(arg)
    config.model = dict(name='small_cnn')
    config.image.size = 48
    config.schedule.lr = 2e-3
    return config
