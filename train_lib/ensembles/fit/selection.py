"""Which members vote, and with which weights: everything here is fitted on labelled rows.

Scores on the rows of the fit flatter; `nested.nested` gives the honest ones beside them.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize

from train_lib.ensembles.candidates import Evidence
from train_lib.ensembles.rules import FLOOR
from train_lib.metrics.statistics import macro_f1
from train_lib.runtime.errors import ConfigError

METRICS = ('nll', 'accuracy', 'f1_macro')


def score(evidence: Evidence, weights: np.ndarray, metric: str) -> float:
    """Score of a weighted soft vote: 'nll' (lower is better), 'accuracy' or 'f1_macro'.

    Args:
        weights: float [M] of sum 1.
    """
    if metric == 'nll':
        return evidence.nll(weights)
    return _score_of(evidence, evidence.predict(weights), metric)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Result of `greedy`.

    Attributes:
        weights: float64 [M], sum 1; a member that was never picked has 0.
        paths: for each bag the members in the order of the picks, those that were kept.
        scores: for each bag the score after each pick, of all rounds.
    """

    weights: np.ndarray
    paths: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...]


def greedy(evidence: Evidence, metric: str = 'nll', *, rounds: int = 50, start: int = 0,
           bags: int = 1, share: float = 1.0, seed: int = 0) -> Selection:
    """Greedy selection with replacement (Caruana et al. 2004, ICML).

    Again and again the member is added that makes the mean of those picked score best; equally
    good ones are compared by their NLL, then the first is taken. The shortest path that reached
    the best score is kept, and the members weigh as often as they stand in it.

    Args:
        metric: of METRICS.
        rounds: picks in all, more than `start`.
        start: as many of the best single members are picked first (sorted initialisation).
        bags: repetitions, each with its own draw of members; their weights are averaged.
        share: of the members that a bag may pick from, in (0, 1].
        seed: of the draws.

    Raises:
        ConfigError: a value out of its range.
    """
    if metric not in METRICS:
        raise ConfigError(f'The selection metric {metric!r} is not known: use one of '
                          f'{", ".join(METRICS)}.')
    if not (0 <= start < rounds and bags >= 1 and 0 < share <= 1):
        raise ConfigError(f'The greedy selection cannot run with rounds={rounds}, start={start}, '
                          f'bags={bags}, share={share}: take 0 <= start < rounds, bags from 1 '
                          f'and a share in (0, 1].')
    _needs_rows(evidence)
    size = max(1, round(share * evidence.members))
    weights, paths, scores = np.zeros(evidence.members), [], []
    for bag in range(bags):
        draw = np.random.default_rng((seed, bag)).permutation(evidence.members)[:size]
        picks, path = _greedy_path(evidence, np.sort(draw), metric, rounds, start)
        values = np.array(path)[max(start, 1) - 1:]
        length = max(start, 1) + int(values.argmax() if metric != 'nll' else values.argmin())
        weights += np.bincount(picks[:length], minlength=evidence.members) / length / bags
        paths.append(tuple(picks[:length]))
        scores.append(tuple(path))
    return Selection(weights, tuple(paths), tuple(scores))


def _greedy_path(evidence: Evidence, pool: np.ndarray, metric: str, rounds: int,
                 start: int) -> tuple[list[int], list[float]]:
    own = np.zeros(len(evidence))
    probs = np.zeros(evidence.probs.shape[1], evidence.probs.dtype)

    def judge(member: int, size: int) -> tuple[float, float]:
        nll = -np.log(np.maximum((own + evidence.own[member]) / size, FLOOR)).mean()
        if metric == 'nll':
            return nll, nll
        predicted = evidence.winners(probs + evidence.probs[member])
        return -_score_of(evidence, predicted, metric), nll

    picks, path = [], []
    first = sorted((judge(member, 1), member) for member in pool)[:start]
    for size in range(1, rounds + 1):
        if size <= len(first):
            member = first[size - 1][1]
            value = judge(member, size)[0]
        else:
            (value, _), member = min((judge(member, size), member) for member in pool)
        own += evidence.own[member]
        if metric != 'nll':
            probs += evidence.probs[member]
        picks.append(int(member))
        path.append(float(value if metric == 'nll' else -value))
    return picks, path


def convex_weights(evidence: Evidence, tolerance: float = 1e-6) -> tuple[np.ndarray, float]:
    """The weights of a soft vote with the least NLL: one convex problem on the simplex.

    SciPy's SLSQP finds them, and steps of expectation-maximisation, which only ever improve,
    finish. With g_m = mean_n(p_mn / sum_k w_k p_kn) no weights are better by more than
    log(max g) nats, which is the gap that is returned.

    Returns:
        (float64 [M] of sum 1, gap >= 0 in nats, which at a hard problem may exceed `tolerance`).
    """
    _needs_rows(evidence)
    own = np.maximum(evidence.own, FLOOR)
    own = own / own.max(0)  # a factor a row changes the NLL by a constant
    count = len(own)
    if count == 1:
        return np.ones(1), 0.0

    def objective(weights):
        mixed = np.maximum(weights @ own, FLOOR)
        return -np.log(mixed).mean(), -(own / mixed).mean(1)

    found = minimize(objective, np.full(count, 1 / count), jac=True, method='SLSQP',
                     bounds=[(0, 1)] * count, options=dict(maxiter=500, ftol=1e-12),
                     constraints=dict(type='eq', fun=lambda w: w.sum() - 1,
                                      jac=lambda w: np.ones(count)))
    weights = np.clip(found.x, 0, None) + 1e-12  # what is 0 would stay 0 in the steps below
    weights /= weights.sum()
    for _ in range(1000):
        gain = (own / (weights @ own)).mean(1)
        if np.log(gain.max()) <= tolerance:
            break
        weights *= gain
        weights /= weights.sum()
    # What is left of members without use goes, if that is within the tolerance.
    bare = np.where(weights > 1e-6, weights, 0)
    bare /= bare.sum()
    gaps = [max(float(np.log((own / np.maximum(w @ own, FLOOR)).mean(1).max())), 0.0)
            for w in (bare, weights)]
    return (bare, gaps[0]) if gaps[0] <= max(gaps[1], tolerance) else (weights, gaps[1])


def robustness(predicted: np.ndarray, labels: np.ndarray, folds: np.ndarray | None = None) -> dict:
    """How an answer does where it does worst.

    Args:
        predicted: int [N]; labels: int [N], -1 for none; folds: int [N] or None.

    Returns:
        accuracy: for comparison.
        worst_class: the smallest recall of a class that occurs.
        worst_fold: the smallest accuracy of a fold; None without folds.
        evenness: 1 - Gini's coefficient of the recalls: 1 where all classes are recalled alike,
            1 / classes where only one is recalled at all; 0 where none is.
    """
    labels = np.asarray(labels)
    known = labels >= 0
    right, truth = (np.asarray(predicted) == labels)[known], labels[known]
    count = np.bincount(truth)
    recalls = np.bincount(truth, right)[count > 0] / count[count > 0]
    size = len(recalls)
    spread = (2 * np.arange(1, size + 1) - size - 1) @ np.sort(recalls)
    worst = None
    if folds is not None:
        of = np.asarray(folds)[known]
        worst = float(min(right[of == fold].mean() for fold in np.unique(of)))
    return {'accuracy': float(right.mean()), 'worst_class': float(recalls.min()),
            'worst_fold': worst,
            'evenness': float(1 - spread / (size * recalls.sum())) if recalls.any() else 0.0}


def choose(candidates: Mapping[str, np.ndarray], labels: np.ndarray, by: str = 'accuracy',
           folds: np.ndarray | None = None) -> str:
    """The candidate (a name, with its predictions [N]) that is best by one key of `robustness`;
    equal ones are compared by their accuracy, then the first is taken."""
    if by == 'worst_fold' and folds is None:
        raise ConfigError("The choice by 'worst_fold' needs folds: vote on out-of-fold rows.")
    found = {name: robustness(predicted, labels, folds) for name, predicted in candidates.items()}
    known = next(iter(found.values()))
    if by not in known:
        raise ConfigError(f'The choice by {by!r} is not known: use one of {", ".join(known)}.')
    return max(found, key=lambda name: (found[name][by], found[name]['accuracy']))


def _score_of(evidence: Evidence, predicted: np.ndarray, metric: str) -> float:
    if metric == 'accuracy':
        return float(np.mean(predicted == evidence.labels))
    return macro_f1(predicted, evidence.labels, evidence.num_classes)


def _needs_rows(evidence: Evidence) -> None:
    if not len(evidence):
        raise ConfigError('The selection of members needs labels, and no row has one: select on '
                          'val or out_of_fold.')
