"""The results of a study's cells, read from their folders."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.errors import did_you_mean
from train_lib.run_dir.seen_rows import held_out_seen
from train_lib.runtime.errors import ConfigError
from train_lib.studies import ledger
from train_lib.studies.cell_rows import read_cell_rows
from train_lib.studies.definition import Study


def read_cells(study: Study, workdir: Path) -> pd.DataFrame:
    """One row per planned cell, in the order of `study.cells()`.

    Returns:
        A table with the columns
            arm, seed, fold (None without folds), folder (relative to `workdir`)
            status: 'done', 'failed', 'stopped' (a trial of a search), or '' before the cell is over
            value: of the metric, of a trial on the validation rows; NaN unless the cell is done
            rows: what each picture adds to it (CellRows), or None where the files do not say
            error: one line about a failure, else ''
            codes: digests of the code of all attempts
            data: digest of the data, '' unless the cell is done
            seen: how many of its validation or test rows an ancestor trained on
            seconds: {kind: seconds}, empty unless the cell is done
            device: such as '1 x cpu', '' unless the cell is done
            memory_bytes: peak of the process or its fullest device
            memory_is_of_this_cell: whether that peak was reached in this cell
            attempts: how often the cell was begun

    Raises:
        ConfigError: a finished run does not have the metric.
    """
    rows = []
    for cell in study.cells():
        folder = workdir / cell.folder
        known = ledger.record(folder) or {}
        row = dict(arm=cell.arm.name, seed=cell.seed, fold=cell.fold, folder=cell.folder,
                   status=known.get('status', ''), value=np.nan, rows=None,
                   error=known.get('error', ''),
                   codes=tuple(known.get('codes', ())), data='', seen=0, seconds={}, device='',
                   memory_bytes=known.get('memory_bytes'),
                   memory_is_of_this_cell=known.get('memory_is_of_this_cell'),
                   attempts=known.get('attempts'))
        if row['status'] == 'done':
            result = json.loads((folder / 'result.json').read_text())
            metric = cell.metric or study.metric
            value = result_value(result, metric)
            if value is None:
                raise ConfigError(f'config.study.metric = {metric!r} is not a number in '
                                  f'{folder / "result.json"}: '
                                  f'{did_you_mean(metric, metrics_of(result))}')
            row |= dict(value=value, rows=read_cell_rows(folder, metric),
                        seconds=result.get('seconds', {}),
                        device=result.get('device', ''), data=_data_digest(folder),
                        seen=held_out_seen(result))
        rows.append(row)
    return pd.DataFrame(rows)


def result_value(result: Mapping, metric: str) -> int | float | None:
    """The number at a dotted path of result.json, or None."""
    found: object = result
    for key in metric.split('.'):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def metrics_of(result: Mapping, prefix: str = '') -> list[str]:
    """Dotted paths of the scores in a result.json."""
    found = []
    for key, value in result.items():
        if isinstance(value, dict) and key not in ('seconds', 'input', 'versions'):
            found += metrics_of(value, f'{prefix}{key}.')
        elif prefix and isinstance(value, float):
            found.append(prefix + key)
    return found


def _data_digest(folder: Path) -> str:
    return json.loads((folder / 'config.json').read_text()).get('data_digest', '')
