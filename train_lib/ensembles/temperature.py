"""One temperature for the pooled scores of a vote (Guo et al. 2017)."""

import numpy as np
from scipy.optimize import brentq

from train_lib.metrics.scores import log_softmax
from train_lib.runtime.errors import ConfigError

_BLOCK = 1 << 22


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T for which p ** (1 / T), normalised, has the least NLL.

    It is for the pooled scores of a vote: Rahaman & Thiery (NeurIPS 2021) find that a vote of
    members that were calibrated one by one is under-confident.

    Args:
        scores: float [N, C], probabilities (or shares of votes); zeros count as the smallest
            normal float32.
        labels: int [N]; rows of -1 are left out.

    Returns:
        T in [0.01, 100]. The problem is convex in 1 / T; T is at an end of the range if the best
        lies beyond it, as when all rows are right.

    Raises:
        ConfigError: no row has a label.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    if not known.any():
        raise ConfigError('A temperature needs labels, and no row has one: fit it on val or '
                          'out_of_fold.')
    logs, truth = _log(scores[known]), labels[known]
    step = max(1, _BLOCK // logs.shape[1])

    def slope(log_beta: float) -> float:
        """Derivative of the NLL by 1 / T: the mean of log p under the vote minus that of the
        label."""
        total = 0.0
        for start in range(0, len(truth), step):
            part = logs[start:start + step].astype(np.float64)
            weights = np.exp(np.exp(log_beta) * (part - part.max(1, keepdims=True)))
            of_label = part[np.arange(len(part)), truth[start:start + step]]
            total += (np.einsum('nc,nc->n', weights, part) / weights.sum(1) - of_label).sum()
        return float(total)

    low, high = np.log(0.01), np.log(100.0)
    if slope(low) >= 0:
        return 100.0
    if slope(high) <= 0:
        return 0.01
    return float(np.exp(-brentq(slope, low, high, xtol=1e-9)))


def tempered(scores: np.ndarray, temperature: float) -> np.ndarray:
    """p ** (1 / T), normalised, in the dtype of the scores [N, C]."""
    found = np.empty_like(scores)
    step = max(1, _BLOCK // scores.shape[1])
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        found[part] = np.exp(log_softmax(_log(scores[part]) / temperature))
    return found


def _log(scores: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
