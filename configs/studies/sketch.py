"""Sketches of 500 classes: heads, schedules, flips, the curriculum and models, one at a time.

    python main.py study --config=configs/studies/sketch.py:folder=PATH --workdir=runs/sketch_study
    python main.py study --config=configs/studies/sketch.py:size=tiny

The base config and its arguments are those of configs/sketch_eva.py, with a linear head on the
frozen backbone and 20 epochs without augmentation. Each arm runs five folds of one seed, by which
the table pairs the arms; its test score is the mean of its folds, and `main.py vote` gives that of
their vote. All layers of the ResNets train, at 224 px. It needs a GPU, except with size=tiny.
"""

from ml_collections import ConfigDict

from configs import common, sketch_eva, tiny

MLP = {f'model.{key}': value for key, value in sketch_eva.HEADS['mlp'].items()}
BASE = {'head': 'linear', 'curriculum': 'none'}  # arguments of the config, unless given
RESNETS = ('resnet18', 'resnet50', 'wide_resnet50_2')


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    given, rest = common.split_arg(arg, *BASE)
    config = sketch_eva.get_config(','.join([*filter(None, [rest]), *(
        f'{key}={value}' for key, value in {**BASE, **given}.items())]))
    config.study.seeds = (0,)
    config.study.folds = (0,) if tiny.is_tiny(arg) else tuple(range(config.split.folds))
    return config


def study(config: ConfigDict, arg: str | None = None) -> dict[str, dict]:
    """The arms, by name."""
    def step(every, epochs):
        found = {'schedule.name': 'step', 'schedule.every': dict(percent=100 * every / epochs)}
        return found if tiny.is_tiny(arg) else found | {'duration': dict(epochs=epochs)}

    def augmented(*transforms, **stage):
        return {'curriculum': (dict(transforms=list(transforms), **stage),)}

    resnets = tiny.stand_ins(config, arg, {
        f'{name}, mlp': dict(name=name, **sketch_eva.HEADS['mlp']) for name in RESNETS})
    whole = {'finetune.table': (), 'schedule.lr': 1e-4, 'optimizer.weight_decay': 0.05}
    if not tiny.is_tiny(arg):
        whole['image.size'] = 224
    return {
        'linear': {},
        'mlp': MLP,
        'mlp, rate cut at 10 of 30 epochs': MLP | step(10, 30),
        'mlp, rate cut at 4 of 15 epochs': MLP | step(4, 15),
        'linear, hflip': augmented('hflip'),
        'linear, vflip': augmented('vflip'),
        'linear, both flips': augmented('hflip', 'vflip'),
        'mlp, hflip': MLP | augmented('hflip'),
        'mlp, vflip': MLP | augmented('vflip'),
        'mlp, both flips': MLP | augmented('hflip', 'vflip'),
        'linear, curriculum': {'curriculum': sketch_eva.STAGED},
        'mlp, curriculum': MLP | {'curriculum': sketch_eva.STAGED},
        'mlp, all from the start': MLP | augmented(*sketch_eva.HARD),
        'mlp, ImageNet statistics': MLP | {'image.mean': (0.485, 0.456, 0.406),
                                           'image.std': (0.229, 0.224, 0.225)},
        **{name: change | whole for name, change in resnets.items()},
    }
