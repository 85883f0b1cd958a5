"""What the cells of a study have come to, read from their folders."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from train_lib.metrics.statistics import holm
from train_lib.runtime.errors import ConfigError
from train_lib.studies import ledger
from train_lib.studies.definition import Study, result_value

CONFIDENCE = 0.95


def read_cells(study: Study, workdir: Path) -> pd.DataFrame:
    """One row a planned cell: arm, seed, fold, status ('done', 'failed', '' before), value, error,
    codes, data (digest), seconds (a dict by kind), memory_bytes, memory_is_of_this_cell, attempts.

    Raises:
        ConfigError: a finished run does not have the metric.
    """
    rows = []
    for cell in study.cells():
        folder = workdir / cell.folder
        known = ledger.record(folder) or {}
        row = dict(arm=cell.arm.name, seed=cell.seed, fold=cell.fold, folder=cell.folder,
                   status=known.get('status', ''), value=np.nan, error=known.get('error', ''),
                   codes=tuple(known.get('codes', ())), data='', seconds={}, device='',
                   memory_bytes=known.get('memory_bytes'),
                   memory_is_of_this_cell=known.get('memory_is_of_this_cell'),
                   attempts=known.get('attempts'))
        if row['status'] == 'done':
            result = json.loads((folder / 'result.json').read_text())
            value = result_value(result, study.metric)
            if value is None:
                raise ConfigError(f'config.study.metric = {study.metric!r} is no number of '
                                  f'{folder / "result.json"}: choose one of '
                                  f'{", ".join(metrics_of(result))}.')
            row |= dict(value=value, seconds=result.get('seconds', {}),
                        device=result.get('device', ''), data=_data_digest(folder))
        rows.append(row)
    return pd.DataFrame(rows)


def metrics_of(result: dict, prefix: str = '') -> list[str]:
    """Dotted paths of the scores of a result.json."""
    found = []
    for key, value in result.items():
        if isinstance(value, dict) and key not in ('seconds', 'input', 'versions'):
            found += metrics_of(value, f'{prefix}{key}.')
        elif prefix and isinstance(value, float):
            found.append(prefix + key)
    return found


def _data_digest(folder: Path) -> str:
    return json.loads((folder / 'config.json').read_text()).get('data_digest', '')


def summarise(study: Study, cells: pd.DataFrame) -> pd.DataFrame:
    """One row an arm, in their order.

    The difference to the baseline is that of the cells with the same seed and fold; its interval
    is Student's, and says what other seeds would give. Folds share most of their pictures: with
    them the variance is that of Nadeau and Bengio (2003), 1 / n + 1 / (k - 1) in place of 1 / n.
    p is two-sided and corrected for the number of arms (Holm 1979).

    Returns:
        arm, mean, sd, n, planned, failed, difference, low, high, p, pairs, other_code, other_data;
        NaN where too few cells are there, or the differences do not vary.
    """
    done = cells[cells['status'] == 'done']
    values = {name: dict(zip(_keys(part), part['value'])) for name, part in done.groupby('arm')}
    base = values.get(study.baseline, {})
    rows = []
    for arm in study.arms:
        own = values.get(arm.name, {})
        row = dict(arm=arm.name, mean=np.mean(list(own.values())) if own else np.nan,
                   sd=np.std(list(own.values()), ddof=1) if len(own) > 1 else np.nan,
                   n=len(own), planned=study.repeats,
                   failed=int(((cells['arm'] == arm.name) & (cells['status'] == 'failed')).sum()))
        paired = dict.fromkeys(('difference', 'low', 'high', 'p'), np.nan) | dict(pairs=0)
        if arm.name != study.baseline:
            paired = paired_difference(np.array([own[key] - base[key] for key in own
                                                 if key in base]), study.parts)
        rows.append(row | paired | _marks(study, done, arm.name))
    table = pd.DataFrame(rows)
    others = (table['arm'] != study.baseline).to_numpy()
    raw = table.loc[others, 'p'].to_numpy()
    table.loc[others, 'p'] = np.where(np.isnan(raw), np.nan, holm(np.nan_to_num(raw, nan=1.0)))
    return table


def paired_difference(differences: np.ndarray, parts: int = 1) -> dict:
    """difference (their mean), low, high (the interval), p and pairs (how many); `parts` of k-fold
    cross-validation."""
    n = len(differences)
    mean = float(differences.mean()) if n else np.nan
    low = high = p = np.nan
    spread = float(differences.std(ddof=1)) if n > 1 else 0.0
    if spread > 1e-12:  # less is rounding
        error = spread * np.sqrt(1 / n + (1 / (parts - 1) if parts > 1 else 0))
        half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error
        low, high, p = mean - half, mean + half, 2 * stats.t.sf(abs(mean) / error, n - 1)
    return dict(difference=mean, low=float(low), high=float(high), p=float(p), pairs=n)


def _keys(cells: pd.DataFrame) -> list[tuple]:
    return [(seed, -1 if pd.isna(fold) else int(fold))
            for seed, fold in zip(cells['seed'], cells['fold'])]


def _marks(study: Study, done: pd.DataFrame, name: str) -> dict:
    """Whether an arm's cells were run by other code, or saw other data, than the baseline's."""
    own = done[done['arm'] == name]
    base = done[done['arm'] == study.baseline]
    codes = {code for part in own['codes'] for code in part}
    usual = {code for part in base['codes'] for code in part}
    data = dict(zip(_keys(base), base['data']))
    return dict(other_code=bool(len(codes) > 1 or (usual and codes and codes != usual)),
                other_data=any(data.get(key, digest) != digest
                               for key, digest in zip(_keys(own), own['data'])))
