"""Does the loss of a class tree's levels help? Folders of folders, such as the alphabets and
characters of Omniglot, from random weights.

    python main.py study --config=configs/studies/trees.py:folder=PATH
    python main.py study --config=configs/studies/trees.py:folder=PATH,size=tiny

    plain       the cross-entropy of the classes
    half        and half of that of the folders above them
    equal       as much of either
    top         twice as much of the folders above

The metric is the accuracy of the classes; `test.levels` of each cell's result.json has that of the
levels. Drawers of Omniglot are groups (`_17` in a file's name); other names have none. `size=` is
in pixels, `epochs=` the length; the other arguments are those of the data.
"""

from ml_collections import ConfigDict

from configs import common, tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, size='28', epochs='15')
    config = common.choose_data(common.get_config(), args)
    if config.data.source == 'folder':
        config.data.group_regex = r'_(\d+)\.'
    config.model = dict(name='small_cnn', width=24, stages=2)
    config.curriculum = (dict(transforms=[dict(kind='rotate', degrees=10),
                                          dict(kind='scale', factor=1.15),
                                          dict(kind='shift', share=0.08)]),)
    config.batch_size = 64
    config.duration = dict(epochs=int(args['epochs']))
    config.schedule.name = 'one_cycle'
    config.schedule.warmup = dict(steps=0)
    config.schedule.lr = 1e-2
    config.eval.every = dict(percent=50)
    config.log.tensorboard = False
    config.report.heat_maps = False
    if args['size'] == 'tiny':
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config


def study(config: ConfigDict) -> dict[str, dict]:
    """The arms, by name; data whose classes have no levels have the first one alone."""
    weights = {'half': (0.5, 1.0), 'equal': (1.0, 1.0), 'top': (2.0, 1.0)}
    if config.data.source != 'folder':
        weights = {}
    return {'plain': {}} | {name: {'loss.levels': one} for name, one in weights.items()}
