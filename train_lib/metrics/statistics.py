"""How good answers are, how sure that is, and how the members differ. NumPy and SciPy.

Intervals are in `bootstrap`; scores of single outcomes in `train_lib.metrics.scores`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from train_lib.ensembles.candidates import Evidence
from train_lib.ensembles.rules import FLOOR


def macro_f1(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Mean F1 of the classes that occur among labels or predictions, as `metrics.scores`."""
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    both = (np.bincount(labels, minlength=num_classes)
            + np.bincount(predicted, minlength=num_classes))
    there = both > 0
    return float(np.mean(2 * hits[there] / both[there]))


def weighted_scores(predicted: np.ndarray, labels: np.ndarray) -> dict:
    """precision, recall and f1 with each class weighted by its labels; rows of -1 left out."""
    known = np.asarray(labels) >= 0
    if not known.any():
        return dict.fromkeys(('precision_weighted', 'recall_weighted', 'f1_weighted'))
    values = precision_recall_fscore_support(
        np.asarray(labels)[known], np.asarray(predicted)[known], average='weighted',
        zero_division=0)
    return {f'{name}_weighted': float(value)
            for name, value in zip(('precision', 'recall', 'f1'), values)}


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict:
    """Exact test that two answers are right equally often (McNemar 1947).

    Args:
        first, second: bool [N], where each is right.

    Returns:
        only_first, only_second: rows that only one has right; p: two-sided, of a binomial.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    p = min(1.0, 2 * float(stats.binom.cdf(min(only_first, only_second), n, 0.5)))
    return {'only_first': only_first, 'only_second': only_second, 'p': p}


def cochran_q(right: np.ndarray) -> dict:
    """Test that K answers are right equally often (Cochran 1950, Biometrika).

    Args:
        right: bool [K, N], K > 1.

    Returns:
        q, degrees (K - 1) and p of the chi-squared approximation; q 0 and p 1 where no row has
        some right and some wrong.
    """
    count = len(right)
    by_answer, by_row = right.sum(1).astype(float), right.sum(0).astype(float)
    spread = count * by_row.sum() - (by_row ** 2).sum()
    if spread == 0:
        return {'q': 0.0, 'degrees': count - 1, 'p': 1.0}
    q = (count - 1) * (count * (by_answer ** 2).sum() - by_answer.sum() ** 2) / spread
    return {'q': float(q), 'degrees': count - 1, 'p': float(stats.chi2.sf(q, count - 1))}


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values of a family of tests, in their order (Holm 1979)."""
    p = np.asarray(p, float)
    order = np.argsort(p, kind='stable')
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1)
    return adjusted


def diversity(predicted: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """How the members' errors go together, each float [M, M] (Kuncheva & Whitaker 2003).

    Args:
        predicted: int [M, N]; labels: int [N], rows of -1 are left out.

    Returns:
        disagreement: share of the rows with different answers.
        double_fault: share of the rows that both have wrong.
        q_statistic: Yule's Q of being right, -1..1; NaN where it is 0/0.
        correlation: of being wrong (phi), -1..1; NaN where a member is always right or wrong.
    """
    known = np.asarray(labels) >= 0
    predicted, labels = np.asarray(predicted)[:, known], np.asarray(labels)[known]
    n = max(len(labels), 1)
    right = (predicted == labels).astype(float)
    both, neither = right @ right.T, (1 - right) @ (1 - right).T
    first, second = right @ (1 - right).T, (1 - right) @ right.T
    agreeing, crossing = both * neither, first * second
    alone = right.sum(1)
    spread = np.sqrt(np.outer(alone * (n - alone), alone * (n - alone)))
    return {
        'disagreement': np.stack([(row != predicted).mean(1) for row in predicted]),
        'double_fault': neither / n,
        'q_statistic': _ratio(agreeing - crossing, agreeing + crossing),
        'correlation': _ratio(agreeing - crossing, spread),
    }


def oracle(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of the labelled rows that at least one of the members [M, N] has right."""
    known = np.asarray(labels) >= 0
    return float((np.asarray(predicted) == labels)[:, known].any(0).mean())


def contributions(evidence: Evidence, weights: np.ndarray) -> pd.DataFrame:
    """What the weighted soft vote loses without each member.

    Returns:
        One row a member: weight, accuracy, f1_macro (of the whole less those without it: more
        is better) and nll (those without it less the whole: more is better); NaN where no other
        member has a weight.
    """
    weights = np.asarray(weights, float) / np.sum(weights)
    whole = _soft_scores(evidence, weights)
    rows = []
    for member, weight in enumerate(weights):
        rest = np.where(np.arange(len(weights)) == member, 0, weights)
        if not rest.any():
            rows.append((weight, np.nan, np.nan, np.nan))
            continue
        without = _soft_scores(evidence, rest / rest.sum())
        rows.append((weight, whole[0] - without[0], whole[1] - without[1], without[2] - whole[2]))
    return pd.DataFrame(rows, columns=['weight', 'accuracy', 'f1_macro', 'nll'])


def learning_curve(evidence: Evidence, order: Sequence[int] | None = None, draws: int = 20,
                   seed: int = 0, threads: int = 2) -> pd.DataFrame:
    """Scores of equally weighted soft votes by the number of members.

    Args:
        order: in which members come; None: as they are.
        draws: random orders, whose first n members are the random subsets of size n.
        seed: of the draws.
        threads: that share them.

    Returns:
        One row a number of members, 1..M: members; accuracy, f1_macro, nll in the given order;
        and each of these with _mean, _low and _high, the mean, least and largest of the draws.
    """
    count = evidence.members
    names = ('accuracy', 'f1_macro', 'nll')
    order = np.arange(count) if order is None else np.asarray(order)
    orders = [order, *(np.random.default_rng((seed, draw)).permutation(count)
                       for draw in range(draws))]
    with ThreadPoolExecutor(threads) as pool:
        given, *drawn = pool.map(lambda order: _prefix_scores(evidence, order), orders)
    drawn = np.stack(drawn)
    table = {'members': np.arange(1, len(order) + 1)}
    for i, name in enumerate(names):
        table[name] = given[:, i]
        for what, value in (('mean', drawn.mean(0)), ('low', drawn.min(0)),
                            ('high', drawn.max(0))):
            table[f'{name}_{what}'] = value[:len(order), i]
    return pd.DataFrame(table)


def _prefix_scores(evidence: Evidence, order: np.ndarray) -> np.ndarray:
    """[M, 3]"""
    own = np.zeros(len(evidence))
    probs = np.zeros(evidence.probs.shape[1], evidence.probs.dtype)
    rows = []
    for size, member in enumerate(order, 1):
        own += evidence.own[member]
        probs += evidence.probs[member]
        rows.append(_triple(evidence, own / size, evidence.winners(probs)))
    return np.array(rows)


def _soft_scores(evidence: Evidence, weights: np.ndarray) -> tuple[float, float, float]:
    return _triple(evidence, weights @ evidence.own, evidence.predict(weights))


def _triple(evidence: Evidence, own: np.ndarray, predicted: np.ndarray):
    return (float(np.mean(predicted == evidence.labels)),
            macro_f1(predicted, evidence.labels, evidence.num_classes),
            float(-np.log(np.maximum(own, FLOOR)).mean()))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.where(bottom == 0, np.nan, top / np.where(bottom == 0, 1, bottom))
