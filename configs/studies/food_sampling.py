"""A second, unbalanced set of dishes, from the weights of the first: sampling, weights, mixup.

    python main.py study --config=configs/studies/food_sampling.py:folder=OTHER,from=runs/food
    python main.py study --config=configs/studies/food_sampling.py:size=tiny

`from=` is a run of configs/food_densenet.py; the other arguments are those of that config. Without
it the weights are those of ImageNet. The metric is the mean F1 of the classes.
"""

from ml_collections import ConfigDict

from configs import food_densenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    config = food_densenet.get_config(arg)
    config.optimizer.name = 'adam'
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.999
    config.study.metric = 'test.f1_macro'
    return config


def study() -> dict[str, dict]:
    """The arms, by name."""
    return {
        'no sampling': {},
        'over-sampling': {'resample.kind': 'over'},
        'under-sampling': {'resample.kind': 'under'},
        'class weights': {'loss.class_weights.kind': 'balanced'},
        'mixup': {'mixing': (dict(kind='mixup', alpha=0.2),)},
        'nadam, betas 0.999': {'optimizer.name': 'nadam', 'optimizer.b1': 0.999},
    }
