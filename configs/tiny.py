"""`size=tiny`: any experiment made small, to see within a minute on a CPU that all of it runs."""

from ml_collections import ConfigDict

SIZE = 32
SMALL = dict(name='small_cnn', width=8, stages=3)


def make_tiny(config: ConfigDict, **model) -> ConfigDict:
    """Shrinks an experiment in place and returns it: few doodles of 32 px, eight steps, random
    weights, a small model.

    Args:
        config: of the experiment.
        **model: settings of the small model that replace or join those of `SMALL`; with `name`
            they are all of them.
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


def is_tiny(config: ConfigDict) -> bool:
    """Whether `make_tiny` has been here."""
    return config.image.size == SIZE


def stand_ins(config: ConfigDict, models: dict[str, dict]) -> dict[str, dict]:
    """Arms of a study that differ in the model, {arm: config.model}; in a tiny study a small CNN
    of another width stands in for each."""
    if is_tiny(config):
        kept = {key: value for key, value in config.model.items() if key.startswith('head')}
        models = {arm: {**SMALL, **kept, 'width': 4 + number}
                  for number, arm in enumerate(models)}
    return {arm: {'model': model} for arm, model in models.items()}
