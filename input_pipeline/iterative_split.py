"""Iterative stratification: rows with several labels each are dealt so that every part gets its
share of every label (Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label
data"). A group of rows is dealt as one."""

import numpy as np


def deal(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Part of each unit, int [U].

    The rarest label that is left is dealt first, its largest units first; a unit goes to the part
    that lacks most of this label, of equal ones to the one that lacks most rows, then by lot.

    Args:
        counts: int [U, L], how many rows of a unit have each label. Every unit has one; the last
            label is that of rows that have no other.
        shares: float [K], of the parts, whose sum is 1.
        rng: breaks ties.
    """
    sizes = counts.sum(1)
    lacking = np.outer(shares, counts.sum(0)).astype(float)  # [K, L]
    room = shares * sizes.sum()
    part = np.full(len(counts), -1)
    left = counts.sum(0)
    order = rng.permutation(len(counts))
    while left.any():
        label = np.flatnonzero(left == left[left > 0].min())[0]
        units = order[(part[order] < 0) & (counts[order, label] > 0)]
        for unit in units[np.argsort(-counts[units, label], kind='stable')]:
            best = np.flatnonzero(lacking[:, label] >= lacking[:, label].max() - 1e-9)
            best = best[room[best] >= room[best].max() - 1e-9]
            chosen = best[0] if len(best) == 1 else rng.choice(best)
            part[unit] = chosen
            lacking[chosen] -= counts[unit]
            room[chosen] -= sizes[unit]
            left -= counts[unit]
    return part


def deal_sets(sets: np.ndarray, numbers: np.ndarray, groups: np.ndarray, rows: np.ndarray,
              shares: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Part of each row in the mask `rows`, int [N]; -1 elsewhere.

    Args:
        sets: bool [S, C], see `LabelSets`.
        numbers: int [N], of the sets; 0 or more where `rows` is true.
        groups: int [N], rows of one number stay together.
        rows: bool [N].
        shares: of the parts.
        rng: breaks ties.
    """
    labels = np.concatenate([sets, ~sets.any(1, keepdims=True)], axis=1).astype(np.int64)
    _, units = np.unique(groups[rows], return_inverse=True)
    counts = np.zeros((units.max() + 1, labels.shape[1]), np.int64)
    np.add.at(counts, units, labels[numbers[rows]])
    part = np.full(len(rows), -1)
    part[rows] = deal(counts, np.array(shares), rng)[units]
    return part


def label_ranks(sets: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The first, second, ... label of each row, int [M, N]; -1 where a row has no more.

    M is the largest number of labels of a row, and at least 1."""
    most = max(1, int(sets.sum(1).max(initial=0)))
    ranks = np.full((len(sets) + 1, most), -1)
    for place, row in enumerate(sets):
        found = np.flatnonzero(row)
        ranks[place, :len(found)] = found
    return ranks[numbers].T
