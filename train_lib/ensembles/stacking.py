"""Maps fitted on top of members: stacking by logistic regression, temperature after pooling."""

import dataclasses

import numpy as np
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression

from train_lib.metrics.scores import log_softmax
from train_lib.runtime.errors import ConfigError

MOST_COEFFICIENTS = 1_000_000
_LEAST_LOG_PROB = -20.0  # one impossible class must not outweigh all others
_BLOCK = 1 << 22


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
        """M members [N, C] -> float64 [N, C]; classes without labels in the fit have 0."""
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
        ConfigError: M C C coefficients are more than MOST_COEFFICIENTS, which neither the rows
            nor the time would suffice for; or labels of fewer than two classes.
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
    if len(bias) == 1:  # of two classes scikit-learn has one column, the second against the first
        matrix, bias = np.hstack([0 * matrix, matrix]), np.concatenate([[0.0], bias])
    return Stacking(matrix, bias, model.classes_.astype(np.int64), width)


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T of p ** (1 / T) over its sum with the least NLL (Guo et al. 2017).

    It is for the pooled scores of a vote: Rahaman & Thiery (NeurIPS 2021) find that a vote of
    members that were calibrated one by one is under-confident.

    Args:
        scores: float [N, C], probabilities (or votes) whose zeros count as the smallest float32.
        labels: int [N]; rows of -1 are left out.

    Returns:
        T in [0.01, 100]; the problem is convex in 1 / T, and at the end of the range where the
        best lies beyond, as when all rows are right.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    if not known.any():
        raise ConfigError('A temperature needs labels, and no row has one: fit it on val or '
                          'out_of_fold.')
    logs, truth = _log(scores[known]), labels[known]
    step = max(1, _BLOCK // logs.shape[1])

    def slope(log_beta: float) -> float:
        """Of the NLL by 1 / T: how much larger the mean of log p is than the label's."""
        total = 0.0
        for start in range(0, len(truth), step):
            part = logs[start:start + step].astype(np.float64)
            weights = np.exp(np.exp(log_beta) * (part - part.max(1, keepdims=True)))
            own = part[np.arange(len(part)), truth[start:start + step]]
            total += (np.einsum('nc,nc->n', weights, part) / weights.sum(1) - own).sum()
        return float(total)

    low, high = np.log(0.01), np.log(100.0)
    if slope(low) >= 0:
        return 100.0
    if slope(high) <= 0:
        return 0.01
    return float(np.exp(-brentq(slope, low, high, xtol=1e-9)))


def tempered(scores: np.ndarray, temperature: float) -> np.ndarray:
    """p ** (1 / T) over its sum, of the dtype of the scores [N, C]."""
    return np.exp(log_softmax(_log(scores) / temperature)).astype(scores.dtype)


def _log(scores: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(scores, np.finfo(np.float32).tiny))


def _features(logits: list[np.ndarray]) -> np.ndarray:
    return np.hstack([np.maximum(log_softmax(member), _LEAST_LOG_PROB) for member in logits])
