"""Which members vote, and with which weights: everything here is fitted on labelled rows.

Scores on the rows of a fit are too good; `nested.nested` gives the honest ones beside them.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize

from input_pipeline.errors import did_you_mean
from train_lib.ensembles.candidates import CandidateProbs
from train_lib.ensembles.rules import FLOOR
from train_lib.metrics.statistics import macro_f1, robustness
from train_lib.runtime.errors import ConfigError

METRICS = ('nll', 'accuracy', 'f1_macro')


def score(candidates: CandidateProbs, weights: np.ndarray, metric: str) -> float:
    """Score of a weighted soft vote: 'nll' (lower is better), 'accuracy' or 'f1_macro'.

    Args:
        weights: float [M] of sum 1.
    """
    if metric == 'nll':
        return candidates.nll(weights)
    return _score_of(candidates, candidates.predict(weights), metric)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Result of `greedy`.

    Attributes:
        weights: float64 [M], sum 1; a member that was never picked has 0.
        paths: per bag the members in the order of the picks, as far as they were kept.
        scores: per bag the score after each pick, of all rounds.
    """

    weights: np.ndarray
    paths: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...]


def greedy(candidates: CandidateProbs, metric: str = 'nll', *, rounds: int = 50, start: int = 0,
           bags: int = 1, share: float = 1.0, seed: int = 0) -> Selection:
    """Greedy selection with replacement (Caruana et al. 2004, ICML).

    Each round adds the member that makes the mean of all picks score best; equally good ones are
    compared by their NLL, then the first is taken. The shortest sequence of picks that reaches the
    best score is kept, and the weight of a member is the share of its picks.

    Args:
        metric: of METRICS.
        rounds: total number of picks, more than `start`.
        start: the first picks are this many of the best single members (sorted initialisation).
        bags: repetitions, each with its own draw of members; their weights are averaged.
        share: of the members that a bag may pick from, in (0, 1].
        seed: of the draws.

    Raises:
        ConfigError: a value out of its range.
    """
    if metric not in METRICS:
        raise ConfigError(f'The selection metric {metric!r} is unknown: '
                          f'{did_you_mean(metric, METRICS)}')
    if not (0 <= start < rounds and bags >= 1 and 0 < share <= 1):
        raise ConfigError(f'The greedy selection cannot run with rounds={rounds}, start={start}, '
                          f'bags={bags}, share={share}: take 0 <= start < rounds, bags from 1 '
                          f'and a share in (0, 1].')
    _needs_rows(candidates)
    size = max(1, round(share * candidates.members))
    weights, paths, scores = np.zeros(candidates.members), [], []
    for bag in range(bags):
        draw = np.random.default_rng((seed, bag)).permutation(candidates.members)[:size]
        picks, path = _greedy_path(candidates, np.sort(draw), metric, rounds, start)
        values = np.array(path)[max(start, 1) - 1:]
        length = max(start, 1) + int(values.argmax() if metric != 'nll' else values.argmin())
        weights += np.bincount(picks[:length], minlength=candidates.members) / length / bags
        paths.append(tuple(picks[:length]))
        scores.append(tuple(path))
    return Selection(weights, tuple(paths), tuple(scores))


def _greedy_path(candidates: CandidateProbs, pool: np.ndarray, metric: str, rounds: int,
                 start: int) -> tuple[list[int], list[float]]:
    label_probs = np.zeros(len(candidates))
    probs = np.zeros(candidates.probs.shape[1], candidates.probs.dtype)

    def judge(member: int, size: int) -> tuple[float, float]:
        mixed = (label_probs + candidates.label_probs[member]) / size
        nll = -np.log(np.maximum(mixed, FLOOR)).mean()
        if metric == 'nll':
            return nll, nll
        predicted = candidates.winners(probs + candidates.probs[member])
        return -_score_of(candidates, predicted, metric), nll

    picks, path = [], []
    first = sorted((judge(member, 1), member) for member in pool)[:start]
    for size in range(1, rounds + 1):
        if size <= len(first):
            member = first[size - 1][1]
            value = judge(member, size)[0]
        else:
            (value, _), member = min((judge(member, size), member) for member in pool)
        label_probs += candidates.label_probs[member]
        if metric != 'nll':
            probs += candidates.probs[member]
        picks.append(int(member))
        path.append(float(value if metric == 'nll' else -value))
    return picks, path


def convex_weights(candidates: CandidateProbs, tolerance: float = 1e-6
                   ) -> tuple[np.ndarray, float]:
    """The weights of a soft vote with the least NLL: one convex problem on the simplex.

    SciPy's SLSQP finds them, then steps of expectation-maximisation, which only ever improve,
    refine them. With g_m = mean_n(p_mn / sum_k w_k p_kn) no weights are better by more than
    log(max g) nats; this gap is returned.

    Returns:
        (float64 [M] of sum 1, gap >= 0 in nats, which may exceed `tolerance` in a hard problem).
    """
    _needs_rows(candidates)
    probs = np.maximum(candidates.label_probs, FLOOR)
    probs = probs / probs.max(0)  # a factor per row changes the NLL by a constant
    count = len(probs)
    if count == 1:
        return np.ones(1), 0.0

    def objective(weights):
        mixed = np.maximum(weights @ probs, FLOOR)
        return -np.log(mixed).mean(), -(probs / mixed).mean(1)

    found = minimize(objective, np.full(count, 1 / count), jac=True, method='SLSQP',
                     bounds=[(0, 1)] * count, options=dict(maxiter=500, ftol=1e-12),
                     constraints=dict(type='eq', fun=lambda w: w.sum() - 1,
                                      jac=lambda w: np.ones(count)))
    weights = np.clip(found.x, 0, None) + 1e-12  # a weight of 0 would stay 0 below
    weights /= weights.sum()
    for _ in range(1000):
        gain = (probs / (weights @ probs)).mean(1)
        if np.log(gain.max()) <= tolerance:
            break
        weights *= gain
        weights /= weights.sum()
    # Tiny weights of useless members become 0, if that is within the tolerance.
    bare = np.where(weights > 1e-6, weights, 0)
    bare /= bare.sum()
    gaps = [max(float(np.log((probs / np.maximum(w @ probs, FLOOR)).mean(1).max())), 0.0)
            for w in (bare, weights)]
    return (bare, gaps[0]) if gaps[0] <= max(gaps[1], tolerance) else (weights, gaps[1])


def choose(answers: Mapping[str, np.ndarray], labels: np.ndarray, by: str = 'accuracy',
           folds: np.ndarray | None = None) -> str:
    """The name of the answer that is best by one key of `robustness`.

    Equally good ones are compared by their accuracy, then the first is taken.

    Args:
        answers: {name: predictions int [N]}.
        labels: int [N], -1 for none.
        folds: int [N]; needed for by='worst_fold'.

    Raises:
        ConfigError: an unknown key, or no folds.
    """
    if by == 'worst_fold' and folds is None:
        raise ConfigError("The choice by 'worst_fold' needs folds: vote on out-of-fold rows.")
    found = {name: robustness(predicted, labels, folds) for name, predicted in answers.items()}
    known = next(iter(found.values()))
    if by not in known:
        raise ConfigError(f'The choice by {by!r} is unknown: {did_you_mean(by, known)}')
    return max(found, key=lambda name: (found[name][by], found[name]['accuracy']))


def _score_of(candidates: CandidateProbs, predicted: np.ndarray, metric: str) -> float:
    if metric == 'accuracy':
        return float(np.mean(predicted == candidates.labels))
    return macro_f1(predicted, candidates.labels, candidates.num_classes)


def _needs_rows(candidates: CandidateProbs) -> None:
    if not len(candidates):
        raise ConfigError('The selection of members needs labels, and no row has one: select on '
                          'val or out_of_fold.')
