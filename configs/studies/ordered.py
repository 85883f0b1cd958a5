"""Does a head that knows the order of its classes make smaller mistakes? From random weights.

    python main.py study --config=configs/studies/ordered.py:folder=PATH
    python main.py study --config=configs/studies/ordered.py:size=tiny

    plain             one logit per class
    corn              conditional probabilities of the next class (CORN)
    cumulative_link   one score and thresholds (proportional odds)

The classes are in the order of numbers, or of --config.data.classes; those of other names are taken
in the order of the alphabet. The metric is `test.qwk`; --config.study.metric=test.mae compares the
distance, test.accuracy the accuracy. Without data the classes are those of the doodles, which
have no order: a trial. `size=` is in pixels, `epochs=` the length; the other arguments are those of
the data. `benchmarks/blur_levels.py` makes ordered classes from any photographs.
"""

from ml_collections import ConfigDict

from configs import common, tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, size='32', epochs='15')
    config = common.choose_data(common.get_config(), args)
    config.data.ordered = ('class',)
    config.model = dict(name='small_cnn', width=16, stages=2)
    config.batch_size = 32
    config.duration = dict(epochs=int(args['epochs']))
    config.schedule.name = 'one_cycle'
    config.schedule.warmup = dict(steps=0)
    config.schedule.lr = 1e-2
    config.eval.every = dict(percent=50)
    config.study.metric = 'test.qwk'
    config.log.tensorboard = False
    config.report.heat_maps = False
    if args['size'] == 'tiny':
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config


def study() -> dict[str, dict]:
    """The arms, by name."""
    return {'plain': {}, 'corn': {'model.head_order': 'corn'},
            'cumulative_link': {'model.head_order': 'cumulative_link'}}
