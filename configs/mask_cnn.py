"""Masks worn or not, from small pictures: a CNN of two classes that trains on a CPU.

    python main.py curate --config=configs/mask_cnn.py:folder=PATH --workdir=runs/mask_curate
    python main.py --config=configs/mask_cnn.py:folder=PATH --workdir=runs/mask_cnn \\
        --config.data.decisions=runs/mask_curate/decisions.csv

The first command finds copies and near copies and keeps one of each, so that no copy is on the
other side of the split. The second trains; a fifth of the pictures is the test. On two CPU cores it
takes 5 to 13 minutes, depending on other work, and reaches a macro F1 of 0.966 (docs/results.md).
Many small files are read faster when packed once:

    python main.py pack --config=configs/mask_cnn.py:folder=PATH --config.pack.folder=PACKED \\
        --config.pack.size=96 --config.pack.quality=95
    python main.py --config=configs/mask_cnn.py:packed=PACKED

Arguments besides those of the data: `model=small_cnn` (default), `cnn_basic` or `cnn_final`;
`size=64` pixels, or `tiny`: less than a minute. Without data, two classes of the built-in doodles
are used, two to one.
"""

from ml_collections import ConfigDict

from configs import common, tiny

MODELS = {
    'small_cnn': dict(drop_rate=0.2),
    'cnn_basic': {},
    'cnn_final': {},
}
AUGMENTATION = ['hflip', dict(kind='rotate', degrees=15), dict(kind='scale', factor=1.25),
                dict(kind='shift', share=0.08),
                dict(kind='brightness', limit=0.2), dict(kind='contrast', limit=0.2)]


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; arg is the text after the colon of --config=FILE:..."""
    args = common.parse_arg(arg, model='small_cnn', size='64')
    config = common.choose_data(common.get_config(), args)
    name = common.choose('model', args['model'], MODELS)
    config.model = dict(name=name, **MODELS[name])
    config.data.unreadable = 'drop'
    config.data.doodles.classes = 2
    config.data.doodles.per_class = 300
    config.data.doodles.imbalance = 2.0
    config.curate.detectors = ('duplicates',)
    config.split.val = 0.1
    config.split.test = 0.2
    config.curriculum = (dict(transforms=AUGMENTATION),)
    config.duration = dict(epochs=30)
    config.batch_size = 32
    config.schedule.lr = 2e-3
    config.ema.decay = 0.99
    config.eval.metric = 'loss'
    with config.ignore_type():
        config.early_stopping.patience = dict(epochs=5)
    if args['size'] == 'tiny':
        return tiny.make_tiny(config)
    config.image.size = common.number('size', args['size'], otherwise='tiny')
    return config
