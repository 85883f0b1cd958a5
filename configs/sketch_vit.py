"""Sketches with a Vision Transformer."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is what stands after the colon of --config=FILE:..."""
    args = common.parse_arg(arg)
    config = common.choose_data(common.get_config(), args)
    config.model = dict(name='vit_tiny_patch16_224', patch_size=8, embed_dim=128, depth=4, num_heads=4, stem='conv',
                        global_pool='avg', class_token=False, drop_path=0.1)
    return config
