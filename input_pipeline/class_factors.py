"""Numbers per class, for resampling and for class weights in the loss."""

import math
import numbers
from collections.abc import Mapping

import numpy as np

from input_pipeline.class_names import place_of
from input_pipeline.errors import DataError, did_you_mean


def effective_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """Weight of one image of each class, (1 - beta) / (1 - beta^n_c) (Cui et al. 2019).

    Args:
        counts: int [C], images per class.
        beta: from 0 to below 1.

    Returns:
        float64 [C], above 0 to 1; 0 for a class without images.
    """
    return np.where(counts, (1 - beta) / (1 - beta ** np.maximum(counts, 1)), 0.0)


def factors_by_name(factors: Mapping[str, float], names: tuple[str, ...], key: str) -> np.ndarray:
    """A number per class, float64 [C]: those given by name, and 1 for the others.

    Args:
        factors: class name -> number of 0 or more.
        names: the names of the C classes.
        key: the config key of the factors, for errors.

    Raises:
        DataError: an unknown class, or a number that is negative or not finite.
    """
    result = np.ones(len(names))
    for name, value in dict(factors).items():
        place = place_of(name, names)
        if place is None:
            raise DataError(f'{key} names the class {name!r}, which does not exist: '
                            f'{did_you_mean(name, names)}')
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (number and 0 <= value < math.inf):
            raise DataError(f'{key}[{name!r}] = {value!r}: give a number that is not negative.')
        result[place] = value
    return result


def checked_beta(beta: float, key: str) -> float:
    """The beta of `effective_weights`, as a float.

    Raises:
        DataError: it is not a number from 0 to below 1; the message names the config key `key`.
    """
    number = isinstance(beta, numbers.Real) and not isinstance(beta, bool)
    if not (number and 0 <= beta < 1):
        raise DataError(f'{key}={beta!r}: give a number from 0 to below 1, e.g. 0.9999.')
    return float(beta)
