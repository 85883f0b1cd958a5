"""Arms compared with the baseline: means, and differences paired by seed and fold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from train_lib.metrics.intervals import Groups, mean_variance
from train_lib.metrics.statistics import holm
from train_lib.studies.cell_rows import CellRows
from train_lib.studies.definition import Study

CONFIDENCE = 0.95
# What an interval is about: what would vary if the study were done again.
FIXED, REDRAWN, SEEDS = 'new pictures and seeds', 'new splits of such data', 'other seeds only'
ONE_GROUP = 'nothing, from a single group'


def summarise(study: Study, cells: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, in their order.

    The difference to the baseline is taken between cells with the same seed and fold; see
    `paired_cells` for its interval. p is two-sided and corrected for the number of arms (Holm
    1979).

    Args:
        study: the study.
        cells: see `read_cells`.

    Returns:
        arm, mean, sd, n, planned, failed, difference, low, high, p, pairs, about, other_code,
        other_data, seen (how many runs scored rows that an ancestor trained on); NaN where there
        are too few cells, or where the differences do not vary.
    """
    done = cells[cells['status'] == 'done']
    values = {name: dict(zip(_keys(part), part['value'])) for name, part in done.groupby('arm')}
    rows = []
    for arm in study.arms:
        own = values.get(arm.name, {})
        row = dict(arm=arm.name, mean=np.mean(list(own.values())) if own else np.nan,
                   sd=np.std(list(own.values()), ddof=1) if len(own) > 1 else np.nan,
                   n=len(own), planned=study.runs_per_arm,
                   failed=int(((cells['arm'] == arm.name) & (cells['status'] == 'failed')).sum()))
        paired = dict.fromkeys(('difference', 'low', 'high', 'p'), np.nan) | dict(pairs=0, about='')
        if arm.name != study.baseline:
            paired = compare_arms(done, arm.name, study.baseline, study.total_folds)
        rows.append(row | paired | _marks(study, done, arm.name))
    table = pd.DataFrame(rows)
    others = (table['arm'] != study.baseline).to_numpy()
    raw = table.loc[others, 'p'].to_numpy()
    table.loc[others, 'p'] = np.where(np.isnan(raw), np.nan, holm(np.nan_to_num(raw, nan=1.0)))
    return table


def compare_arms(done: pd.DataFrame, name: str, other: str, total_folds: int,
                 level: float = CONFIDENCE) -> dict:
    """What `paired_cells` says of two arms, from the finished cells that share a seed and fold."""
    own, base = ({key: (value, rows) for key, value, rows in zip(
        _keys(part), part['value'], part['rows'])}
        for part in (done[done['arm'] == name], done[done['arm'] == other]))
    pairs = [key for key in own if key in base]
    return paired_cells(np.array([own[key][0] - base[key][0] for key in pairs]),
                        [(own[key][1], base[key][1]) for key in pairs], total_folds, level)


def paired_cells(differences: np.ndarray, rows: Sequence[tuple[CellRows | None, CellRows | None]],
                 total_folds: int = 1, level: float = CONFIDENCE) -> dict:
    """The mean of paired differences, with its interval, which is about what the pairs sample.

    FIXED: all runs score the same pictures. The variance over pictures (or groups of them) is added
    to that over runs, less what both contain, as in two-way clustering (Cameron, Gelbach and Miller
    2011); the degrees of freedom are Satterthwaite's (1946). REDRAWN: each seed has other pictures,
    drawn from the same data. The runs share most of them, so the variance over runs has the factor
    1 / n + test / train instead of 1 / n (Nadeau and Bengio 2003); for folds see
    `paired_difference`. SEEDS: the pictures are not known, and nothing is said of others.
    ONE_GROUP: as FIXED, but all pictures are of one group, so there is no interval.

    Args:
        differences: float [N], one per pair.
        rows: of the two cells of each pair.
        total_folds: of the cross-validation that the pairs are from, 1 without folds.
        level: of the interval; for SEEDS it stays at CONFIDENCE.

    Returns:
        What `paired_difference` returns, and about: one of FIXED, REDRAWN, SEEDS, ONE_GROUP, or ''
        without a pair.
    """
    if not len(differences):
        return paired_difference(differences) | dict(about='')
    known = [(own, base) for own, base in rows if own is not None and base is not None
             and np.array_equal(own.ids, base.ids)]
    if len(known) < len(rows):
        return paired_difference(differences, total_folds) | dict(about=SEEDS)
    first = known[0][1]
    if all(np.array_equal(base.ids, first.ids) for _, base in known):
        single = first.groups is not None and len(np.unique(first.groups)) < 2
        return _crossed(differences, np.stack([own.values - base.values for own, base in known]),
                        first.groups, total_folds, level) | dict(
                            about=ONE_GROUP if single else FIXED)
    if total_folds > 1:
        return _student(differences, _shared_by_folds(total_folds), level) | dict(about=REDRAWN)
    if any(not base.train for _, base in known):
        return paired_difference(differences) | dict(about=SEEDS)
    shared = float(np.mean([len(base.ids) / base.train for _, base in known]))
    return _student(differences, shared, level) | dict(about=REDRAWN)


def paired_difference(differences: np.ndarray, total_folds: int = 1) -> dict:
    """The mean of paired differences, with Student's interval, which is about other runs.

    Folds share most of their training pictures: with folds, the variance has the factor
    1 / n + 1 / (k - 1) instead of 1 / n (Nadeau and Bengio 2003).

    Args:
        differences: float [N], one per pair.
        total_folds: of the cross-validation that the pairs are from, 1 without folds.

    Returns:
        difference (the mean), low and high (of the 95 % interval), p, and pairs (N); NaN where
        there are too few pairs, or where they do not vary.
    """
    return _student(differences, _shared_by_folds(total_folds))


def _shared_by_folds(total_folds: int) -> float:
    return 1 / (total_folds - 1) if total_folds > 1 else 0.0


def _student(differences: np.ndarray, shared: float, level: float = CONFIDENCE) -> dict:
    """`paired_difference` with the variance factor 1 / n + shared."""
    n = len(differences)
    variance = float(differences.var(ddof=1)) * (1 / n + shared) if n > 1 else 0.0
    return _interval(differences, variance, n - 1, level)


def _crossed(differences: np.ndarray, by_row: np.ndarray, groups: np.ndarray | None,
             total_folds: int, level: float) -> dict:
    """`paired_difference` for new pictures and new runs, from float [runs, pictures]."""
    runs, size = by_row.shape
    of = Groups.of(groups, size)
    if runs < 2 or len(of) < 2:
        return _interval(differences, 0.0, 1, level)
    mean = by_row.mean(0)
    over_rows = max(mean_variance(mean, of), mean_variance(mean, Groups.of(None, size)))
    over_runs = float(differences.var(ddof=1)) * (1 / runs + _shared_by_folds(total_folds))
    left = by_row - mean - by_row.mean(1, keepdims=True) + mean.mean()
    both = sum(mean_variance(row, of) for row in left) / (runs * (runs - 1))
    variance = max(over_rows + over_runs - both, over_rows, over_runs)
    below = over_rows ** 2 / (len(of) - 1) + over_runs ** 2 / (runs - 1)
    degrees = max(variance ** 2 / below, 1.0) if below else 1.0
    return _interval(differences, variance, degrees, level)


def _interval(differences: np.ndarray, variance: float, degrees: float, level: float) -> dict:
    """Student's interval of the mean; NaN without a variance."""
    mean, low, high, p = float(differences.mean()) if len(differences) else np.nan, *[np.nan] * 3
    if variance > 1e-24:  # less comes from rounding
        error = np.sqrt(variance)
        half = stats.t.ppf((1 + level) / 2, degrees) * error
        low, high, p = mean - half, mean + half, 2 * stats.t.sf(abs(mean) / error, degrees)
    return dict(difference=mean, low=float(low), high=float(high), p=float(p),
                pairs=len(differences))


def _keys(cells: pd.DataFrame) -> list[tuple[int, int]]:
    """(seed, fold) of each cell; fold -1 without folds."""
    return [(seed, -1 if pd.isna(fold) else int(fold))
            for seed, fold in zip(cells['seed'], cells['fold'])]


def _marks(study: Study, done: pd.DataFrame, name: str) -> dict:
    """Whether an arm's cells were run by other code, or on other data, than the baseline's."""
    own = done[done['arm'] == name]
    base = done[done['arm'] == study.baseline]
    codes = {code for part in own['codes'] for code in part}
    usual = {code for part in base['codes'] for code in part}
    data = dict(zip(_keys(base), base['data']))
    return dict(other_code=bool(len(codes) > 1 or (usual and codes and codes != usual)),
                other_data=any(data.get(key, digest) != digest
                               for key, digest in zip(_keys(own), own['data'])),
                seen=int((own['seen'] > 0).sum()) if 'seen' in own else 0)
