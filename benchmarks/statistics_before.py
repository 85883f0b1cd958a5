"""Bootstrap intervals of several answers to the same rows, and of their differences, and Cochran's
test by rows, as votes had them before; coverage.py measures what they cover.

A repetition draws as many rows (or groups of rows) as there are, with replacement. All answers are
scored on the same draw, so differences are paired. How often each row was drawn is a matrix, and
the scores of many repetitions are one product with it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy import sparse, stats

MEAN = 'mean'
METRICS = ('accuracy', 'f1_macro', 'nll')
_REPETITIONS = 100  # at once: 40 MB for 50,000 rows
_THREADS = 2


def bootstrap(answers: Mapping[str, Mapping[str, np.ndarray | None]], labels: np.ndarray, *,
              num_classes: int, reference: str | Sequence[str] | None = None,
              groups: np.ndarray | None = None, repetitions: int = 1000, level: float = 0.95,
              seed: int = 0) -> pd.DataFrame:
    """Percentile intervals (Efron 1979) of accuracy, macro F1 and NLL.

    Args:
        answers: {name: {'predicted': int [N], 'nll': float [N] or None}}, as `Outcome.rows`.
        labels: int [N]; rows of -1 are left out.
        num_classes: C.
        reference: the answer that all are compared with, such as the best single member; or
            several, which are compared with by their mean score. This is then one more answer,
            named MEAN.
        groups: [N], rows of one group (a person, near duplicates) are drawn together.
        repetitions: number of draws.
        level: of the interval.
        seed: of the draws.

    Returns:
        One row per answer and metric: name, metric (of METRICS), estimate, low, high, difference
        to the reference (answer - reference), difference_low, difference_high. Rows of 'nll' are
        missing for answers without it; differences are NaN if either of the two is missing.

    Raises:
        ValueError: no row has a label.
    """
    known = np.asarray(labels) >= 0
    labels = np.asarray(labels)[known]
    names = list(answers)
    predicted = np.stack([np.asarray(answers[name]['predicted'])[known] for name in names])
    nll = {name: np.asarray(answers[name]['nll'])[known] for name in names
           if answers[name].get('nll') is not None}
    index = None if groups is None else np.unique(
        np.asarray(groups)[known], return_inverse=True)[1]
    if not len(labels):
        raise ValueError('There are no labelled rows to draw from.')
    columns = np.concatenate([predicted == labels, *([np.stack(list(nll.values()))] if nll
                                                     else [])]).astype(np.float64).T
    tables = _F1Tables(predicted, labels, num_classes)

    def repeat(start: int) -> tuple[np.ndarray, np.ndarray]:
        counts = np.stack([_draw(len(labels), index, (seed, repetition)) for repetition in
                           range(start, min(start + _REPETITIONS, repetitions))])
        return (counts @ columns / counts.sum(1, keepdims=True),
                tables.scores(np.ascontiguousarray(counts.T, np.float32)))

    # The first row of each is the estimate: every row once.
    seen = columns.mean(0)[None], tables.scores(np.ones((len(labels), 1), np.float32))
    with ThreadPoolExecutor(_THREADS) as pool:
        drawn = list(pool.map(repeat, range(0, repetitions, _REPETITIONS)))
    means, f1 = (np.concatenate(parts) for parts in zip(seen, *drawn))
    values = {('accuracy', name): means[:, i] for i, name in enumerate(names)}
    values.update({('f1_macro', name): f1[:, i] for i, name in enumerate(names)})
    values.update({('nll', name): means[:, len(names) + i] for i, name in enumerate(nll)})
    if reference is not None and not isinstance(reference, str):
        for metric in METRICS:
            if all((metric, name) in values for name in reference):
                values[metric, MEAN] = np.mean([values[metric, name] for name in reference], axis=0)
        names.append(MEAN)
        reference = MEAN
    return pd.DataFrame([
        {'name': name, 'metric': metric,
         **_interval('', values[metric, name], level),
         **_interval('difference', _paired(values, metric, name, reference), level)}
        for name in names for metric in METRICS
        if (metric, name) in values])


def _draw(size: int, groups: np.ndarray | None, seed: tuple[int, int]) -> np.ndarray:
    """How often each row is drawn, float64 [size]."""
    rng = np.random.default_rng(seed)
    count = size if groups is None else int(groups.max()) + 1
    drawn = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
    return drawn if groups is None else drawn[groups]


class _F1Tables:
    """Macro F1 of many draws: sums over the rows of each class as sparse products."""

    def __init__(self, predicted: np.ndarray, labels: np.ndarray, num_classes: int):
        rows = np.arange(len(labels))
        table = lambda classes, rows: sparse.csr_matrix(
            (np.ones(len(rows), np.float32), (classes, rows)), (num_classes, len(labels)))
        self.of_label = table(labels, rows)
        self.right = [table(row[row == labels], rows[row == labels]) for row in predicted]
        self.wrong = [table(row[row != labels], rows[row != labels]) for row in predicted]

    def scores(self, counts: np.ndarray) -> np.ndarray:
        """Macro F1 of each answer by counts float32 [N, R] of the rows: float64 [R, K]."""
        labels, found = self.of_label @ counts, []
        for right, wrong in zip(self.right, self.wrong):
            hits = right @ counts
            both = labels + hits + wrong @ counts
            f1 = 2 * hits / np.maximum(both, 1)
            found.append(f1.sum(0, dtype=np.float64) / (both > 0).sum(0))
        return np.stack(found, axis=1)


def _paired(values: dict, metric: str, name: str, reference: str | None) -> np.ndarray | None:
    if reference is None or (metric, reference) not in values:
        return None
    return values[metric, name] - values[metric, reference]


def _interval(name: str, values: np.ndarray | None, level: float) -> dict[str, float]:
    """The estimate (the first value) and the interval of its repetitions (the others)."""
    found = np.full(3, np.nan) if values is None else np.array([
        values[0], *np.quantile(values[1:], [(1 - level) / 2, (1 + level) / 2])])
    keys = [f'{name}_low', f'{name}_high'] if name else ['low', 'high']
    return dict(zip([name or 'estimate', *keys], map(float, found)))


def cochran_q(right: np.ndarray) -> dict:
    """Test whether K answers are right equally often (Cochran 1950, Biometrika).

    Args:
        right: bool [K, N], K > 1.

    Returns:
        q, degrees (K - 1) and p of the chi-squared approximation; q 0 and p 1 if every row is
        right in all answers or in none.
    """
    count = len(right)
    by_answer, by_row = right.sum(1).astype(float), right.sum(0).astype(float)
    spread = count * by_row.sum() - (by_row ** 2).sum()
    if spread == 0:
        return {'q': 0.0, 'degrees': count - 1, 'p': 1.0}
    q = (count - 1) * (count * (by_answer ** 2).sum() - by_answer.sum() ** 2) / spread
    return {'q': float(q), 'degrees': count - 1, 'p': float(stats.chi2.sf(q, count - 1))}
