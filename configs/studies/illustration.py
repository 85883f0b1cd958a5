"""Illustrations: 17 settings of each of two models, 34 runs per seed.

    python main.py study --config=configs/studies/illustration.py:folder=PATH,rare=owl+newt \\
        --config.data.decisions=runs/illustration_curate/decisions.csv
    python main.py study --config=configs/studies/illustration.py:size=tiny

The base config and its arguments are those of configs/illustration_resnet.py: 600 images per class
and epoch, AdamW, clipping, plateau, augmentation. `rare=` names the classes that two of the arms
show two or three times per epoch (of the doodles the last classes); without it, and without
decisions, the arms that need them are left out. The metric is the mean F1.
"""

from ml_collections import ConfigDict

from configs import common, illustration_resnet, tiny

MODELS = {  # and what stands in for them with size=tiny, since the first compiles for 15 s
    'resnet_inception': dict(name='small_cnn', width=4, stages=2),
    'cnn_final': dict(name='cnn_final', widths=(4, 8), dense=16),
}
RARE_DOODLES = ('fish', 'cup', 'snail', 'chair', 'sun', 'scissors', 'bird')


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    own, rest = common.split_arg(arg, 'rare')
    config = illustration_resnet.get_config(rest)
    rare = own['rare'].split('+') if own.get('rare') else ()
    if config.data.source == 'doodles':
        first = config.data.doodles.classes // 2  # classes are the rarer the later they come
        rare = RARE_DOODLES[2:] if first > 2 else RARE_DOODLES[:2]
    with config.ignore_type():
        config.resample.multipliers = dict.fromkeys(rare, 2.0)  # for resample.kind='multiply'
    config.study.metric = 'test.f1_macro'
    return config


def study(config: ConfigDict, arg: str | None = None) -> dict[str, dict]:
    """The arms, by name."""
    sampling = illustration_resnet.SAMPLINGS
    none = sampling['none']
    changes = {
        'base': {},
        'no sampling': none,
        'clusters': {'resample.kind': 'cluster', 'resample.n': max(config.resample.n // 10, 1)},
        'class weights': none | {'loss.class_weights.kind': 'balanced'},
        'no clipping': {'optimizer.clip_norm': 0.0},
        'adam': {'optimizer.name': 'adam', 'optimizer.weight_decay': 0.0},
        'lr 3e-3': {'schedule.lr': 3e-3},
        'lr 3e-4': {'schedule.lr': 3e-4},
        'lr 1e-4': {'schedule.lr': 1e-4},
        'dropout 0.3': {'model.drop_rate': 0.3},
        'dropout 0.5': {'model.drop_rate': 0.5},
        'no plateau': {'schedule.plateau.patience': None},
        'no augmentation': {'curriculum': ()},
        'no augmentation, no sampling': {'curriculum': (), **none},
    }
    if config.resample.multipliers:
        twice = dict(config.resample.multipliers)
        changes |= {f'rare x{factor:g}': {
            'resample.kind': 'multiply', 'resample.multipliers': dict.fromkeys(twice, factor)}
            for factor in (2.0, 3.0)}
    if config.data.source == 'doodles':
        changes['no photographs'] = {'data.doodles.photos': 0.0}
    elif config.data.decisions:
        changes['photographs kept'] = {'data.decisions': ()}
    small = tiny.is_tiny(arg)
    return {f'{name}, {what}': {'model': stand_in if small else dict(name=name), **change}
            for name, stand_in in MODELS.items() for what, change in changes.items()}
