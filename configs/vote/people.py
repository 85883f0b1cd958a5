"""Mask, gender and age: members with one product class or three heads, chosen for robustness.

    python main.py vote --config=configs/vote/people.py:members=runs/people*

Choosing by accuracy on a leaderboard picks what fits the rows of the leaderboard. Here the vote is
chosen on out-of-fold rows by its worst class, and the intervals resample whole persons.
"""

from ml_collections import ConfigDict

from configs.vote import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The vote; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, members='runs/people*', sample='')
    config = common.get_config()
    config.members = tuple(args['members'].split(','))
    config.ensembles = {
        'soft': dict(rule='soft'),
        'soft-hard': dict(rule=('soft', 'hard')),
        'hard': dict(rule='hard'),
        'weighted': dict(rule='soft', weights='fit'),
    }
    config.choose = 'worst_class'
    config.sample = args['sample']
    config.columns = {'ImageID': 'id', 'ans': 'index'}
    return config
