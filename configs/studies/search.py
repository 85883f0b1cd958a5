"""A search with early stopping beside the whole grid: a small CNN on real handwritten digits.

    python main.py study --config=configs/studies/search.py --workdir=runs/halving
    python main.py study --config=configs/studies/search.py:stop=no --workdir=runs/grid
    python main.py study --config=configs/studies/search.py:size=tiny

Both try the same twelve settings with the same seed, and both compare their winner with the config
itself on three other seeds. `stop=no` trains every setting to its end; otherwise two thirds of them
stop after a fifth of their epochs, and two thirds of the rest after half. The other arguments are
those of the data.
"""

from ml_collections import ConfigDict

from configs import common, tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all trials; arg is the text after the colon of --config=FILE:..."""
    config = common.get_config()
    config.data.source = 'digits'
    args = common.parse_arg(arg, size='full', stop='yes')
    size = common.choose('size', args['size'], ('full', 'tiny'))
    stop = common.choose('stop', args['stop'], ('yes', 'no'))
    common.choose_data(config, args)
    config.model = dict(name='small_cnn', width=8, stages=2)
    config.image.size = 16
    config.split.update(val=0.2, test=0.3)
    config.duration = dict(epochs=10)
    config.schedule.lr = 1e-3
    config.log.tensorboard = False
    config.report.heat_maps = False
    config.study.search.update(trials=0, proposer='grid', rungs=(20, 50) if stop == 'yes' else ())
    if size == 'tiny':
        config.eval.every = dict(steps=1)
        return tiny.make_tiny(config, width=8, stages=2)
    return config


def search() -> dict:
    """The space."""
    return {'schedule.lr': [1e-4, 1e-3, 1e-2, 1e-1],
            'optimizer.weight_decay': [1e-3, 0.05, 0.5]}
