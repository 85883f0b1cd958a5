"""The folds of one or more runs vote: the smallest vote.

    python main.py --config=configs/sketch_cnn.py:data=digits --workdir=runs/digits \\
        --config.split.kind=kfold --config.split.fold=all
    python main.py vote --config=configs/vote/digits.py

`members=runs/a,runs/b*` names other runs, on any data.
"""

from ml_collections import ConfigDict

from configs.vote import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The vote; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, members='runs/digits')
    config = common.get_config()
    config.members = tuple(args['members'].split(','))
    return config
