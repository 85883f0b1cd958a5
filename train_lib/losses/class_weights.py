"""Weights of the classes in the loss, from how many training images each class has."""

import numbers
from collections.abc import Iterable, Mapping

import numpy as np

from input_pipeline.class_factors import checked_beta, effective_weights, factors_by_name
from input_pipeline.errors import DataError, did_you_mean

WEIGHTINGS = ('none', 'balanced', 'effective', 'sqrt', 'manual', 'pos_weight')


def class_weights(counts: Iterable[float], kind: str = 'balanced', *, names: Iterable[str] = (),
                  beta: float = 0.9999, manual: Mapping[str, float] = (),
                  key: str = 'class_weights', labelled: float | None = None,
                  cap: float = 100.0) -> np.ndarray:
    """Weights of the classes in the loss, float64 [C].

    Args:
        counts: training images per class, [C]; or how many are shown per epoch, if some come
            more often than others.
        kind: 'none': all 1. 'balanced': n / (C n_c), as in scikit-learn. 'effective': in
            proportion to (1 - beta) / (1 - beta^n_c) (Cui 2019). 'sqrt': in proportion to
            1 / sqrt(n_c). These three have mean 1 over the training images, so that the size
            of the loss, and with it the learning rate, keeps its meaning; a class without
            images gets 0 and does not count as one of C. 'manual': the given weights, unscaled.
            'pos_weight', of multi-label heads: pictures without the label / pictures with it, as
            torch's BCEWithLogitsLoss is mostly given it, at most `cap`, unscaled; a label of no
            picture gets `cap`.
        names: class names, for 'manual'.
        beta: for 'effective', in [0, 1): 0 weights all images alike; near 1 all classes weigh
            alike.
        manual: class name -> weight; a class that is not named has weight 1.
        key: the config section of these settings, for errors.
        labelled: for 'pos_weight', how many training images have labels of the head, in the unit
            of `counts`; None for a head with one label per picture.
        cap: for 'pos_weight', above 0.

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
    if kind == 'pos_weight':
        return _against_for(counts, labelled, cap, key)
    if kind == 'effective':
        weights = effective_weights(counts, beta)
    else:
        there = counts > 0
        weights = np.where(there, counts, 1.0) ** (-1 if kind == 'balanced' else -0.5) * there
    return weights * (counts.sum() / (weights * counts).sum())


def _against_for(counts: np.ndarray, labelled: float | None, cap: float, key: str) -> np.ndarray:
    if labelled is None:
        raise DataError(f'{key}.kind=pos_weight weighs labels that apply against those that do '
                        f'not, and there is one label per picture: use balanced, or name a '
                        f'multi-label head in {key}.head.')
    number = isinstance(cap, numbers.Real) and not isinstance(cap, bool)
    if not (number and 0 < cap < np.inf):
        raise DataError(f'{key}.cap={cap!r}: give a number above 0, e.g. 100.')
    there = np.maximum(counts, 1e-12)
    return np.minimum(np.maximum(labelled - counts, 0.0) / there, cap)
