"""Stacking: a logistic regression on the log probabilities of all members."""

import dataclasses

import numpy as np
from sklearn.linear_model import LogisticRegression

from train_lib.metrics.scores import log_softmax
from train_lib.runtime.errors import ConfigError

MOST_COEFFICIENTS = 1_000_000
_LEAST_LOG_PROB = -20.0  # one impossible class must not outweigh all others


@dataclasses.dataclass(frozen=True)
class Stacking:
    """A linear map of the members' log probabilities (Wolpert 1992).

    Attributes:
        matrix: float64 [M C, K]; bias: float64 [K]; classes: int [K], those with labels.
        num_classes: C.
    """

    matrix: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    num_classes: int

    def probabilities(self, logits: list[np.ndarray]) -> np.ndarray:
        """M members [N, C] -> float64 [N, C]; 0 for classes that had no label in the fit."""
        probs = np.zeros((len(logits[0]), self.num_classes))
        probs[:, self.classes] = np.exp(log_softmax(_features(logits) @ self.matrix + self.bias))
        return probs


def fit_stacking(logits: list[np.ndarray], labels: np.ndarray, c: float = 0.1,
                 seed: int = 0) -> Stacking:
    """Multinomial logistic regression on the log probabilities of all members.

    Args:
        logits: M members [N, C], the same rows.
        labels: int [N]; rows of -1 are left out.
        c: scikit-learn's C, the inverse strength of the L2 penalty.

    Raises:
        ConfigError: M C C coefficients are more than MOST_COEFFICIENTS, too many for the usual
            number of rows and for the time; or labels of fewer than two classes.
    """
    labels = np.asarray(labels)
    width = logits[0].shape[1]
    size = len(logits) * width * width
    if size > MOST_COEFFICIENTS:
        raise ConfigError(f'Stacking {len(logits)} members of {width} classes fits {size:,} '
                          f'coefficients, more than {MOST_COEFFICIENTS:,}: use greedy or convex '
                          f'weights, or fewer members.')
    known = labels >= 0
    if len(np.unique(labels[known])) < 2:
        raise ConfigError('Stacking needs labels of at least two classes: fit it on other rows.')
    model = LogisticRegression(C=c, max_iter=1000, random_state=seed)
    model.fit(_features([np.asarray(member)[known] for member in logits]), labels[known])
    matrix, bias = model.coef_.T, model.intercept_
    if len(bias) == 1:  # scikit-learn has one column for two classes, the second against the first
        matrix, bias = np.hstack([0 * matrix, matrix]), np.concatenate([[0.0], bias])
    return Stacking(matrix, bias, model.classes_.astype(np.int64), width)


def _features(logits: list[np.ndarray]) -> np.ndarray:
    return np.hstack([np.maximum(log_softmax(member), _LEAST_LOG_PROB) for member in logits])
