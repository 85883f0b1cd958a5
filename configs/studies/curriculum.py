"""Does a curriculum help? The stages of configs/sketch_vit.py, all at once, or none; with flips.

    python main.py study --config=configs/studies/curriculum.py:folder=PATH --workdir=DIR
    python main.py study --config=configs/studies/curriculum.py:size=tiny

Six arms x five seeds; the arguments are those of the data. `size=tiny` is a quick trial: a minute
on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common, sketch_vit
from configs.tiny import make_tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, size='full')
    size = common.choose('size', args.pop('size'), ('full', 'tiny'))
    config = sketch_vit.get_config()
    common.choose_data(config, args)
    config.study.seeds = (0, 1, 2, 3, 4)
    config.log.tensorboard = False
    if size == 'tiny':
        make_tiny(config)
        config.study.seeds = (0, 1)
    return config


def study() -> dict:
    """The arms, by name."""
    return {'none': {'curriculum': []},
            'none, flips': {'curriculum': [dict(transforms=sketch_vit.FLIPS)]},
            **{f'{words}{", flips" if flips else ""}':
               {'curriculum': sketch_vit.stages(name, flips)}
               for name, words in (('all', 'all at once'), ('staged', 'curriculum'))
               for flips in (False, True)}}
