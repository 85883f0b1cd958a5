"""Masks worn or not: sampling, dropout, patience, batch and loss for a plain CNN.

    python main.py study --config=configs/studies/mask_cnn.py:folder=PATH \\
        --config.data.decisions=runs/mask_curate/decisions.csv
    python main.py study --config=configs/studies/mask_cnn.py:size=tiny

The base config and its arguments are those of configs/mask_cnn.py, with model=cnn_basic (no
BatchNorm, no dropout), patience 3, batches of 32 and a constant rate. The metric is the mean F1.
"""

from ml_collections import ConfigDict

from configs import mask_cnn


def get_config(arg: str | None = None) -> ConfigDict:
    """The base of all arms; arg is the text after the colon of --config=FILE:..."""
    config = mask_cnn.get_config(arg)
    config.model = dict(name='cnn_basic')
    config.schedule.name = 'constant'
    config.schedule.lr = 1e-3
    config.ema.decay = 0.0
    config.curriculum = ()
    config.early_stopping.patience = dict(epochs=3)
    config.study.metric = 'test.f1_macro'
    return config


def study() -> dict[str, dict]:
    """The arms, by name."""
    norm = {'model.norm': True}
    return {
        'plain': {},
        'over-sampling': {'resample.kind': 'over'},
        'under-sampling': {'resample.kind': 'under'},
        'class weights': {'loss.class_weights.kind': 'balanced'},
        'focal loss': {'loss.name': 'focal'},
        'patience 5': {'early_stopping.patience': dict(epochs=5)},
        'batch 64': {'batch_size': 64},
        'BatchNorm': norm,
        **{f'BatchNorm, dropout {rate}': norm | {'model.dense_dropout': rate}
           for rate in (0.3, 0.5, 0.7)},
        'flipped, turned, moved': {'curriculum': (dict(transforms=mask_cnn.AUGMENTATION),)},
        'cnn_final': {'model.name': 'cnn_final'},
    }
