"""What the loss knows of the training data: class counts and class weights; and the same counts
used after training."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.resampling import class_weights
from train_lib.losses.losses import LossSpec, adjust_logits, make_loss
from train_lib.runtime.errors import ConfigError


def objectives(config: ConfigDict, classes: Mapping[str, Sequence[str]],
               counts: Mapping[str, np.ndarray], to_steps: Callable) -> dict[str, LossSpec]:
    """The loss of each head, with the class weights that config.loss.class_weights asks for.

    Args:
        config: of the run.
        classes: {head: names}.
        counts: {head: training images of each class}.
        to_steps: (duration, config key) -> steps.
    """
    loss = config.loss.to_dict()
    wanted = loss.pop('class_weights')
    weights, start = {}, 0
    if wanted['kind'] != 'none':
        start = to_steps(wanted['start'], 'loss.class_weights.start')
        weights = {head: class_weights(counts[head], wanted['kind'], names=classes[head],
                                       beta=wanted['beta'], manual=wanted['manual'],
                                       key='loss.class_weights')
                   for head in classes if wanted['head'] in ('', head)}
        if not weights:
            raise ConfigError(f'config.loss.class_weights.head = {wanted["head"]!r} is no head: '
                              f'choose one of {", ".join(classes)}.')
    return make_loss(loss, counts, weights, start)


def adjust(logits: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray], tau: float
           ) -> dict[str, np.ndarray]:
    """Logits without tau times the log of the training share of each class: post-hoc logit
    adjustment (Menon et al., arXiv 2007.07314). tau=0 changes nothing."""
    if not tau:
        return dict(logits)
    return {head: adjust_logits(values, counts[head], tau).astype(np.float32)
            for head, values in logits.items()}
