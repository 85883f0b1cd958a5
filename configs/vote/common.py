"""Every knob of a vote, once, with its default and a comment; docs/config.md is made from them.

A vote starts from `get_config()` and changes what it needs, here or on the command line:

    python main.py vote --config=configs/vote/digits.py --config.members='runs/a,runs/b*'
"""

from ml_collections import ConfigDict, FieldReference

from configs import arguments


def _anything(default) -> FieldReference:
    """A field whose value may have another type than its default."""
    return FieldReference(default, field_type=object)


def get_config() -> ConfigDict:
    """The defaults; locked, so that an unknown key is refused wherever it is set."""
    config = ConfigDict()
    config.seed = 0  # for Cochran's test, the folds of the fit, and random orders; 0 or more
    # Workdirs or globs of them: ('runs/a', 'runs/b*'); a k-fold workdir stands for its folds. Or
    # with a name for each model: dict(eva='runs/eva', conv=('runs/conv', 'runs/conv_seed*')).
    config.members = _anything(())
    # 'soft' | 'log_mean' | 'rank_mean' | 'median' | 'trimmed_mean' | 'hard'; for two levels, of the
    # members within a model and then of the models: ('soft', 'hard').
    config.rule = _anything('soft')
    config.trim = 0.2  # trimmed_mean: share cut off at either end
    # 'none' | 'fit' (least NLL) | 'greedy' (Caruana), fitted on the rows of fit_source, one weight
    # per model and view; or given by the name of a model or member: dict(eva=2, conv=1).
    config.weights = _anything('none')
    config.greedy = dict(  # how weights='greedy' selects
        metric='nll',  # what is improved: 'nll' | 'accuracy' | 'f1_macro'
        rounds=50,  # picks
    )
    # Several votes side by side: {name: dict(members=(names of the table, or workdirs), rule=...,
    # weights=...)}; what is left out is as above. {}: config.rule, and every other rule beside it.
    config.ensembles = _anything({})
    # Which ensemble answers: '': the first; or the best on the rows of fit_source by 'accuracy' |
    # 'worst_class' | 'worst_fold' | 'evenness' (of the recalls).
    config.choose = ''
    config.temperature = True  # fit a temperature for the answer's probabilities, after pooling
    config.source = 'test'  # what is voted on: 'test' | 'val' | 'out_of_fold' | name of other data
    # What is fitted on: 'out_of_fold' | 'val' | 'auto': out_of_fold of k-fold runs, val of others.
    config.fit_source = 'auto'
    config.folds = 5  # of the fitted rows, for their nested (honest) scores; 2 or more
    # Views that vote, as in config.predict.views ((): all that a run has; submit: identity).
    config.views = ()
    config.predict = True  # make predictions that a run lacks, if it has a checkpoint
    config.soup = ''  # 'uniform' | 'greedy': also average the weights of the members, which must
                      # share their start, and score that one model
    # Training pictures on which the BatchNorm statistics of a soup are estimated anew (0: they are
    # averaged as the weights are).
    config.soup_statistics = 1024
    config.heads = ()  # heads that are voted on, in the order of the product class ((): all)
    config.combine = 'vote_then_combine'  # several heads: 'vote_then_combine' | 'combine_then_vote'
    config.bootstrap = 1000  # random orders of the members behind p of Cochran's test, 1 or more
    config.groups = 'auto'  # rows of one group: 'auto': the groups of the runs | 'none' | a CSV
                            # with the columns id and group
    # Multi-label heads: 'f1': thresholds per class, fitted on the rows of fit_source | 'half': 0.5.
    config.thresholds = 'f1'
    # Multi-label heads: between the labels of a cell ('': that of the runs, data.label_separator).
    config.label_separator = ''
    config.sample = ''  # a sample submission (CSV), whose rows, order and columns are taken
    # Pictures that the sample does not ask for: 'refuse' | 'ignore', as where the pictures of the
    # training lie in the same folder.
    config.extra = 'refuse'
    # Columns of submission.csv: names ('ID', 'image_path', 'target'), or with what they hold:
    # dict(ID='id', image_path='id', target='class'); one of 'id', 'row' (0, 1, ...), 'class',
    # 'index' (of the class), 'confidence', 'probability:CLASS', 'copy' (of the sample); of several
    # heads also the name of one, 'index:HEAD', 'probability:HEAD' (of the second of two classes),
    # 'names' (of all, with spaces between). Of a multi-label head 'labels' (all predicted classes),
    # 'probability:CLASS' and 'label:CLASS' (1 or 0).
    config.columns = _anything(('ID', 'image_path', 'target'))
    # Pictures in the report that the vote got right and the best single member wrong, and as many
    # of the reverse (0: none).
    config.pictures = 24
    config.compile_cache = True  # keep compiled programs, for predictions and soups
    return config.lock()


def parse_arg(arg: str | None, **defaults: str) -> dict[str, str]:
    """Reads what follows the colon of --config=FILE:key=value,...; the keys are those of
    `defaults`.

    Raises:
        ValueError: an unknown key, or a word without `=`.
    """
    return arguments.read(arg, defaults)
