"""Weights of the classes in the loss, from how many training images each class has."""

from collections.abc import Iterable, Mapping

import numpy as np

from input_pipeline.class_factors import checked_beta, effective_weights, factors_by_name
from input_pipeline.errors import DataError, did_you_mean

WEIGHTINGS = ('none', 'balanced', 'effective', 'sqrt', 'manual')


def class_weights(counts: Iterable[float], kind: str = 'balanced', *, names: Iterable[str] = (),
                  beta: float = 0.9999, manual: Mapping[str, float] = (),
                  key: str = 'class_weights') -> np.ndarray:
    """Weights of the classes in the loss, float64 [C].

    Args:
        counts: training images per class, [C]; or how many are shown per epoch, if some come
            more often than others.
        kind: 'none': all 1. 'balanced': n / (C n_c), as in scikit-learn. 'effective': in
            proportion to (1 - beta) / (1 - beta^n_c) (Cui 2019). 'sqrt': in proportion to
            1 / sqrt(n_c). These three have mean 1 over the training images, so that the size
            of the loss, and with it the learning rate, keeps its meaning; a class without
            images gets 0 and does not count as one of C. 'manual': the given weights, unscaled.
        names: class names, for 'manual'.
        beta: for 'effective', in [0, 1): 0 weights all images alike; near 1 all classes weigh
            alike.
        manual: class name -> weight; a class that is not named has weight 1.
        key: the config section of these settings, for errors.

    Raises:
        DataError: the kind or a class is unknown, a weight or beta is out of range, or there are
            no images at all.
    """
    counts = np.asarray(counts, np.float64)
    if kind not in WEIGHTINGS:
        raise DataError(f'{key}.kind={kind!r} is unknown: {did_you_mean(kind, WEIGHTINGS)}')
    if kind == 'manual':
        return factors_by_name(manual, tuple(names), f'{key}.manual')
    beta = checked_beta(beta, f'{key}.beta')
    if not counts.sum():
        raise DataError(f'{key}.kind={kind} needs labelled training images, and there are none: '
                        f'use none.')
    if kind == 'none':
        return np.ones(len(counts))
    if kind == 'effective':
        weights = effective_weights(counts, beta)
    else:
        there = counts > 0
        weights = np.where(there, counts, 1.0) ** (-1 if kind == 'balanced' else -0.5) * there
    return weights * (counts.sum() / (weights * counts).sum())
