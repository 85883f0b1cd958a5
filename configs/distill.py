"""A student of the vote of five folds: one small model that costs a fifth of the vote.

    python main.py --config=configs/few_labels.py:csv=labelled.csv,folds=5 --workdir=runs/folds
    python main.py --config=configs/distill.py:csv=labelled.csv,teacher=runs/folds

Of every training row the student learns, beside the label, what the fold said that did not train on
it. Its test rows must be those that every fold held out (the column `split`), and it has no
validation rows, because every other row was trained on by some fold. `extra=pseudo.csv` are
pictures without labels that the folds labelled together (`main.py pseudo --folds=all`); on Omniglot
the student passed the vote with them, and kept two thirds of its gain without (docs/results.md).
`weight=0.5` and `temperature=2.0` are those of config.distill; the other arguments are those of
configs/few_labels.py.
"""

from ml_collections import ConfigDict

from configs import common, few_labels


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    given, rest = common.split_arg(arg, 'teacher', 'weight', 'temperature')
    config = few_labels.get_config(rest or None)
    if 'teacher' in given:
        config.distill.teachers = (given['teacher'],)
    for key in ('weight', 'temperature'):
        if key in given:
            config.distill[key] = common.number(key, given[key], float)
    return config
