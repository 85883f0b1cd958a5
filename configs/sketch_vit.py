"""Sketches with a Vision Transformer."""

from ml_collections import ConfigDict

from configs import common

# What may happen to a drawing (flips: not to characters, where they change the class).
FLIPS = ['hflip', dict(kind='vflip', p=0.1)]
POSE = [dict(kind='rotate', degrees=15), dict(kind='scale', factor=1.2, aspect=1.2),
        dict(kind='shear', degrees=10), dict(kind='shift', share=0.08)]
BEND = [dict(kind='elastic', alpha=25, sigma=5), dict(kind='grid_distortion', steps=4, limit=0.2)]


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is what stands after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, curriculum='staged', flips='yes')
    config = common.choose_data(common.get_config(), args)
    flips = FLIPS if args['flips'] == 'yes' else []
    config.curriculum = [
        dict(until=dict(percent=10), transforms=POSE),
        dict(transforms=[*flips, *POSE, *BEND]),
    ]
    config.image.size = 48
    config.model = dict(name='vit_tiny_patch16_224', patch_size=8, embed_dim=128, depth=6,
                        num_heads=4, stem='conv', act='relu',
                        global_pool='avg', class_token=False, drop_path=0.1)
    config.loss.label_smoothing = 0.1
    return config
