"""Arms compared with the baseline: means, and differences paired by seed and fold."""

import numpy as np
import pandas as pd
from scipy import stats

from train_lib.metrics.statistics import holm
from train_lib.studies.definition import Study

CONFIDENCE = 0.95


def summarise(study: Study, cells: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, in their order.

    The difference to the baseline is taken between cells with the same seed and fold. Its interval
    is Student's and covers other seeds. Folds share most of their images: with folds, the variance
    has the factor 1 / n + 1 / (k - 1) instead of 1 / n (Nadeau and Bengio 2003). p is two-sided and
    corrected for the number of arms (Holm 1979).

    Args:
        study: the study.
        cells: see `read_cells`.

    Returns:
        arm, mean, sd, n, planned, failed, difference, low, high, p, pairs, other_code, other_data,
        seen (how many runs scored rows that an ancestor trained on);
        NaN where there are too few cells, or where the differences do not vary.
    """
    done = cells[cells['status'] == 'done']
    values = {name: dict(zip(_keys(part), part['value'])) for name, part in done.groupby('arm')}
    base = values.get(study.baseline, {})
    rows = []
    for arm in study.arms:
        own = values.get(arm.name, {})
        row = dict(arm=arm.name, mean=np.mean(list(own.values())) if own else np.nan,
                   sd=np.std(list(own.values()), ddof=1) if len(own) > 1 else np.nan,
                   n=len(own), planned=study.runs_per_arm,
                   failed=int(((cells['arm'] == arm.name) & (cells['status'] == 'failed')).sum()))
        paired = dict.fromkeys(('difference', 'low', 'high', 'p'), np.nan) | dict(pairs=0)
        if arm.name != study.baseline:
            paired = paired_difference(np.array([own[key] - base[key] for key in own
                                                 if key in base]), study.total_folds)
        rows.append(row | paired | _marks(study, done, arm.name))
    table = pd.DataFrame(rows)
    others = (table['arm'] != study.baseline).to_numpy()
    raw = table.loc[others, 'p'].to_numpy()
    table.loc[others, 'p'] = np.where(np.isnan(raw), np.nan, holm(np.nan_to_num(raw, nan=1.0)))
    return table


def paired_difference(differences: np.ndarray, total_folds: int = 1) -> dict:
    """The mean of paired differences, with its interval.

    Args:
        differences: float [N], one per pair.
        total_folds: of the cross-validation that the pairs are from, 1 without folds.

    Returns:
        difference (the mean), low and high (of the 95 % interval), p, and pairs (N); NaN where
        there are too few pairs, or where they do not vary.
    """
    n = len(differences)
    mean = float(differences.mean()) if n else np.nan
    low = high = p = np.nan
    spread = float(differences.std(ddof=1)) if n > 1 else 0.0
    if spread > 1e-12:  # less comes from rounding
        error = spread * np.sqrt(1 / n + (1 / (total_folds - 1) if total_folds > 1 else 0))
        half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error
        low, high, p = mean - half, mean + half, 2 * stats.t.sf(abs(mean) / error, n - 1)
    return dict(difference=mean, low=float(low), high=float(high), p=float(p), pairs=n)


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
