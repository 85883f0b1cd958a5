"""Every knob of a vote, once, with its default and a comment.

A vote starts from `get_config()` and changes what it needs, here or on the command line:

    python main.py vote --config=configs/vote/digits.py --config.members='runs/a,runs/b*'
"""

import difflib
import re

from ml_collections import ConfigDict, FieldReference


def _anything(default) -> FieldReference:
    """A field whose type is not that of its default."""
    return FieldReference(default, field_type=object)


def get_config() -> ConfigDict:
    """The defaults; locked, so that an unknown key is refused wherever it is set."""
    config = ConfigDict()
    config.seed = 0  # of bootstrap, folds of the fit, and random orders
    # Workdirs or globs of them, a k-fold workdir standing for its folds: ('runs/a', 'runs/b*'), or
    # with a name for each model: dict(eva='runs/eva', conv=('runs/conv', 'runs/conv_seed*')).
    config.members = _anything(())
    # 'soft' | 'log_mean' | 'rank_mean' | 'median' | 'trimmed_mean' | 'hard'; for two levels
    # (of the members within a model, of the models): ('soft', 'hard').
    config.rule = _anything('soft')
    config.trim = 0.2  # trimmed_mean: share cut off at either end
    # 'none' | 'fit' (least NLL) | 'greedy' (Caruana) on the rows of fit_source, one weight a model
    # and view; or given by name of model or member: dict(eva=2, conv=1).
    config.weights = _anything('none')
    config.greedy = dict(metric='nll', rounds=50)  # 'nll' | 'accuracy' | 'f1_macro'; picks
    # Several votes side by side: {name: dict(members=(names of the table, or workdirs), rule=...,
    # weights=...)}, what is left out as above. {}: config.rule, and every other rule beside it.
    config.ensembles = _anything({})
    # Which ensemble answers: '': the first; else the best on the rows of fit_source by 'accuracy' |
    # 'worst_class' | 'worst_fold' | 'evenness' (of the recalls).
    config.choose = ''
    config.temperature = True  # of the answer's probabilities, fitted after pooling
    config.source = 'test'  # what is voted on: 'test' | 'val' | 'out_of_fold' | name of other data
    # What is fitted on: 'out_of_fold' | 'val' | 'auto': out_of_fold of k-fold runs, val of others.
    config.fit_source = 'auto'
    config.folds = 5  # of those rows, for the honest (nested) scores of what was fitted
    config.views = ()  # views that vote, as in config.predict.views ((): all that a run has)
    config.predict = True  # make predictions that a run lacks, if it has a checkpoint
    config.soup = ''  # 'uniform' | 'greedy': average the weights of the members, which must share
                      # their start, and score that one model too
    config.heads = ()  # that are voted on, in the order of the product class ((): all)
    config.combine = 'vote_then_combine'  # several heads: or 'combine_then_vote'
    config.bootstrap = 1000  # repetitions behind the 95 % intervals
    config.groups = 'auto'  # rows drawn together: 'auto': the groups of the runs | 'none' | a CSV
                            # with the columns id and group
    config.sample = ''  # a sample submission (CSV), whose rows, order and columns are taken
    # Columns of submission.csv: names ('ID', 'image_path', 'target'), or with what they hold:
    # dict(ID='id', image_path='id', target='class'), of 'id', 'row' (0, 1, ...), 'class', 'index'
    # (of the class), 'confidence', or the name of a head.
    config.columns = _anything(('ID', 'image_path', 'target'))
    config.pictures = 24  # of each kind in the report, repaired and broken (0: none)
    config.compile_cache = True  # keep compiled programs, for predictions and soups
    return config.lock()


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
    """Reads `key=value,key=value` after the colon of --config=FILE:...; a comma belongs to a value
    unless `key=` follows.

    Raises:
        ValueError: an unknown key, or a word without `=`.
    """
    values = dict(defaults)
    for part in re.split(r',(?=[A-Za-z_]+=)', arg) if arg else ():
        key, equals, value = part.partition('=')
        if not equals or key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1) or list(defaults)
            raise ValueError(f'The config argument {part!r} is not known: did you mean '
                             f'{" or ".join(near)}=...?')
        values[key] = value
    return values
