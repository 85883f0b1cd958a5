"""Characters or sketches with few labels, on a laptop: a small CNN at 32 px, strongly augmented.

    python main.py --config=configs/few_labels.py:csv=labelled.csv --workdir=runs/plain
    python main.py --config=configs/few_labels.py:csv=labelled.csv,extra=pseudo.csv

Nothing is chosen on validation rows, which few labels cannot spare: the last weights, averaged,
count. `folds=3` trains folds instead; either can label pictures for others (`main.py pseudo`,
docs/few-labels.md). `extra=` is a file of such labels, and `share=0.65` their share of a batch.
Rows of the column `split` that say test are the test. `steps=400` is the length, and flips=no the
default, as for characters.
"""

from ml_collections import ConfigDict

from configs import common, sketch_vit, tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, steps='400', folds='0', extra='no', share='0.65', flips='no',
                            size='32')
    config = common.choose_data(common.get_config(), args)
    flips = common.choose('flips', args['flips'], ('yes', 'no')) == 'yes'
    config.curriculum = sketch_vit.stages('all', flips)
    config.image.border = 'white'
    config.model = dict(name='small_cnn', width=16, drop_rate=0.1)
    config.batch_size = 64
    config.duration = dict(steps=common.number('steps', args['steps']))
    config.optimizer.name = 'muon'
    config.optimizer.momentum = 0.95
    config.schedule.lr = 6e-3
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.99
    config.eval.every = dict(percent=100)
    config.checkpoint.every = dict(percent=50)
    config.early_stopping.restore_best = False
    config.log.tensorboard = False
    config.report.heat_maps = False
    folds = common.number('folds', args['folds'])
    if folds:
        config.split.kind, config.split.folds, config.split.fold = 'kfold', folds, 'all'
    else:
        config.split.val = 0.0
    if args['extra'] != 'no':
        config.data.extra.file = args['extra']
        config.data.extra.share = common.number('share', args['share'], float)
    if args['size'] == 'tiny':
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config
