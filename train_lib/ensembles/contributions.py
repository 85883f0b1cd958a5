"""What single members contribute to a soft vote, and how it grows with their number."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from train_lib.ensembles.candidates import CandidateProbs
from train_lib.ensembles.rules import FLOOR
from train_lib.metrics.statistics import macro_f1

_METRICS = ('accuracy', 'f1_macro', 'nll')


def contributions(candidates: CandidateProbs, weights: np.ndarray) -> pd.DataFrame:
    """What the weighted soft vote loses without each member.

    Args:
        weights: float [M] >= 0, not all 0.

    Returns:
        One row per member: weight; accuracy and f1_macro (of the whole vote minus without it) and
        nll (without it minus of the whole vote), so that more is better; NaN if no other member
        has a weight.
    """
    weights = np.asarray(weights, float) / np.sum(weights)
    whole = _soft_scores(candidates, weights)
    rows = []
    for member, weight in enumerate(weights):
        others = np.where(np.arange(len(weights)) == member, 0, weights)
        if not others.any():
            rows.append((weight, np.nan, np.nan, np.nan))
            continue
        without = _soft_scores(candidates, others / others.sum())
        rows.append((weight, whole[0] - without[0], whole[1] - without[1], without[2] - whole[2]))
    return pd.DataFrame(rows, columns=['weight', *_METRICS])


def learning_curve(candidates: CandidateProbs, order: Sequence[int] | None = None,
                   draws: int = 20, seed: int = 0, threads: int = 2) -> pd.DataFrame:
    """Scores of equally weighted soft votes by the number of members.

    Args:
        order: in which members are added; None: as they are.
        draws: random orders, whose first n members are the random subsets of size n.
        seed: of the draws.
        threads: that share them.

    Returns:
        One row per number of members, 1..M: members; accuracy, f1_macro, nll in the given order;
        and each of these with _mean, _low and _high: the mean, least and largest of the draws.
    """
    count = candidates.members
    given = np.arange(count) if order is None else np.asarray(order)
    orders = [given, *(np.random.default_rng((seed, draw)).permutation(count)
                       for draw in range(draws))]
    with ThreadPoolExecutor(threads) as pool:
        scores, *drawn_scores = pool.map(lambda order: _prefix_scores(candidates, order), orders)
    drawn = np.stack(drawn_scores)
    table = {'members': np.arange(1, len(given) + 1)}
    for i, name in enumerate(_METRICS):
        table[name] = scores[:, i]
        for what, value in (('mean', drawn.mean(0)), ('low', drawn.min(0)),
                            ('high', drawn.max(0))):
            table[f'{name}_{what}'] = value[:len(given), i]
    return pd.DataFrame(table)


def _prefix_scores(candidates: CandidateProbs, order: np.ndarray) -> np.ndarray:
    """float [M, 3]: _METRICS of the first 1, 2, ... members."""
    label_probs = np.zeros(len(candidates))
    probs = np.zeros(candidates.probs.shape[1], candidates.probs.dtype)
    rows = []
    for size, member in enumerate(order, 1):
        label_probs += candidates.label_probs[member]
        probs += candidates.probs[member]
        rows.append(_scores(candidates, label_probs / size, candidates.winners(probs)))
    return np.array(rows)


def _soft_scores(candidates: CandidateProbs, weights: np.ndarray) -> tuple[float, float, float]:
    return _scores(candidates, weights @ candidates.label_probs, candidates.predict(weights))


def _scores(candidates: CandidateProbs, label_probs: np.ndarray, predicted: np.ndarray
            ) -> tuple[float, float, float]:
    """_METRICS."""
    return (float(np.mean(predicted == candidates.labels)),
            macro_f1(predicted, candidates.labels, candidates.num_classes),
            float(-np.log(np.maximum(label_probs, FLOOR)).mean()))
