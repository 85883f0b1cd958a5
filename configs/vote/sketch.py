"""Sketches of 500 classes: five folds of each of four models, and six ways to vote.

    python main.py vote --config=configs/vote/sketch.py:runs=runs

This expects k-fold runs of configs/sketch_eva.py in the folder `runs=`: `eva_linear` (head=linear)
and `eva_mlp3`, both with curriculum=none, `eva_curriculum`, and `eva_lora` (train=lora);
`--config.members` and `--config.ensembles` name others. The first rule of a pair combines the folds
within a model, the second the models. All six are scored; the best out of fold gives the answer,
and its nested score is shown beside the naive one.
"""

from ml_collections import ConfigDict

from configs.vote import common

MODELS = ('eva_linear', 'eva_mlp3', 'eva_curriculum', 'eva_lora')
HEADS = MODELS[:3]  # these share one frozen backbone


def get_config(arg: str | None = None) -> ConfigDict:
    """The vote; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, runs='runs')
    config = common.get_config()
    config.members = {name: f'{args["runs"]}/{name}' for name in MODELS}
    config.ensembles = {
        'one model, soft': dict(members=('eva_curriculum',), rule='soft'),
        'heads, soft-soft': dict(members=HEADS, rule=('soft', 'soft')),
        'heads, soft-hard': dict(members=HEADS, rule=('soft', 'hard')),
        'all, soft-soft': dict(rule=('soft', 'soft')),
        'all, soft-hard': dict(rule=('soft', 'hard')),
        'all, hard-hard': dict(rule=('hard', 'hard')),
    }
    config.choose = 'accuracy'
    return config
