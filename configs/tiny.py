"""`size=tiny`: any experiment made small, to check within a minute on a CPU that all of it runs."""

from ml_collections import ConfigDict

from configs.arguments import parts

SIZE = 32
SMALL = dict(name='small_cnn', width=8, stages=3)


def make_tiny(config: ConfigDict, **model) -> ConfigDict:
    """Shrinks an experiment in place and returns it: few doodles of 32 px, eight steps, random
    weights, a small model.

    Args:
        config: of the experiment.
        **model: settings of the small model. They are added to those of `SMALL`; if they have a
            `name`, they replace all of them.
    """
    doodles = config.data.doodles
    doodles.classes = min(doodles.classes, 4)
    doodles.per_class, doodles.writers, doodles.size = 30, 10, 48
    config.model = model if 'name' in model else {**SMALL, **model}
    config.init.pretrained = ''
    config.precision = 'float32'
    config.image.size = SIZE
    config.batch_size = 16
    config.duration = dict(steps=8)
    config.split.folds = 2
    config.eval.batch_size = 64
    config.log.tensorboard = False
    config.report.heat_maps = False
    config.study.seeds = (0,)
    return config


def is_tiny(arg: str | None) -> bool:
    """Whether the arguments of a config, the text after the colon of --config=FILE:..., ask for
    `size=tiny`.

    The arguments decide, and not a value in the config: an override may set any value, and a real
    study may have 32 px too.
    """
    return 'size=tiny' in parts(arg)


def stand_ins(config: ConfigDict, arg: str | None, models: dict[str, dict]) -> dict[str, dict]:
    """The arms of a study that differ in the model: {arm: changes}.

    Args:
        config: of the study.
        arg: the arguments of its config. In a tiny study, small CNNs of different widths take the
            place of the models.
        models: {arm: config.model}.
    """
    if is_tiny(arg):
        kept = {key: value for key, value in config.model.items() if key.startswith('head')}
        models = {arm: {**SMALL, **kept, 'width': 4 + number}
                  for number, arm in enumerate(models)}
    return {arm: {'model': model} for arm, model in models.items()}
