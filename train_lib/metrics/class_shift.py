"""Whether a set of pictures holds its classes in other shares than the pictures of the training.

Labels of new pictures are not known, only what a model answers, and its errors move the shares too.
So answers are compared with answers: those of the same models to validation rows, where the labels
are known to be as in training (Lipton, Wang and Smola 2018, arXiv 1802.03916).
"""

from collections.abc import Mapping

import numpy as np
from scipy import stats

from train_lib.metrics.statistics import holm

FACTOR = 1.25  # a share that grows or shrinks by less is not marked, however certain that is
LEVEL = 0.05


def compare_shares(counts: np.ndarray, reference: np.ndarray, *, draws: int = 1000, seed: int = 0
                   ) -> dict:
    """Two sets of rows by how often each of C classes is answered. Rows count as independent.

    By class: the mid-p value of Fisher's exact test, two-sided by doubling, after Holm's correction
    for the C classes. Over all classes: the total variation distance of the shares, 0..1, against
    that of sets which are drawn from the shares of both sets together.

    Args:
        counts, reference: int [C], each with a sum above 0.
        draws: sets drawn; seed: of the draws.

    Returns:
        p: float [C]; marked: bool [C], where p < LEVEL and the share is FACTOR times as large, or
        as small; distance; by_chance, which 95 % of the drawn distances do not exceed; p_distance.
    """
    counts, reference = (np.asarray(part, np.int64) for part in (counts, reference))
    n, m = int(counts.sum()), int(reference.sum())
    both = counts + reference
    of_count = stats.hypergeom(n + m, both, n)
    half = of_count.pmf(counts) / 2
    tails = np.minimum(of_count.cdf(counts) - half, of_count.sf(counts) + half)
    p = holm(np.where(both, np.clip(2 * tails, 0, 1), 1.0))
    shares, others = counts / n, reference / m
    far = (shares >= FACTOR * others) | (others >= FACTOR * shares)
    distance = float(np.abs(shares - others).sum() / 2)
    drawn = _drawn_distances(both / (n + m), (n, m), draws, np.random.default_rng(seed))
    return dict(p=p, marked=(p < LEVEL) & far, distance=distance,
                by_chance=float(np.quantile(drawn, 0.95)),
                p_distance=float((1 + (drawn >= distance - 1e-12).sum()) / (draws + 1)))


def _drawn_distances(shares: np.ndarray, sizes: tuple[int, int], draws: int,
                     rng: np.random.Generator) -> np.ndarray:
    there = shares[shares > 0]
    first, second = (rng.multinomial(size, there / there.sum(), draws) / size for size in sizes)
    return np.abs(first - second).sum(1) / 2


def shift_of_classes(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], *, draws: int = 1000,
                     seed: int = 0) -> dict:
    """`compare_shares` of the first pair that has rows on both sides.

    Args:
        pairs: {name: (counts of the new rows, counts to compare them with)}, int [C] each.

    Returns:
        reference: the name of the pair, '' for none; and what `compare_shares` returns, if there is
        one.
    """
    for name, (counts, reference) in pairs.items():
        if counts.sum() and reference.sum():
            return dict(reference=name) | compare_shares(counts, reference, draws=draws, seed=seed)
    return dict(reference='')
