"""report.html of a study: every run as a dot, differences with their intervals, time and memory."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from train_lib.reporting.page import number, write_page

_WIDTH, _PAD = 184, 8  # of the small drawings, pixels


def write_study_report(path: Path, arms: pd.DataFrame, cells: pd.DataFrame, *, title: str,
                       metric: str, caption: str, knobs: Mapping[str, Mapping],
                       notes: Mapping[str, list]) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page.
        arms: one row per arm, of `studies.comparison.summarise`, with a column `baseline` (bool).
        cells: one row per run, of `studies.cell_results.read_cells`.
        title: of the page.
        metric: name of the numbers.
        caption: a sentence on what they are.
        knobs: {arm: {dotted.path: text}}, how it differs from the baseline.
        notes: {arm: what else one has to know about it}.
    """
    done = cells[cells['status'] == 'done']
    values = _Axis.of(done['value'])
    edges = arms[['difference', 'low', 'high']].to_numpy(float).ravel()
    differences = _Axis.of(np.append(edges, 0.0))
    rows = [_row(row, done, values, differences, knobs[row.arm], notes[row.arm])
            for row in arms.itertuples()]
    others = [row for row in rows if not row['baseline'] and row['difference'] is not None]
    sure = [row['difference'] for row in others if row['p'] is not None and row['p'] < 0.05]
    write_page(path, 'study.html.jinja', title=title, metric=metric, caption=caption, rows=rows,
               baseline=next(row for row in rows if row['baseline']), values=values.drawn(),
               differences=differences.drawn() if others else None,
               zero=differences.x(0.0), width=_WIDTH, n=len(done), planned=len(cells),
               failures=_failures(cells), times=_times(arms['arm'], done), runs=_runs(arms, cells),
               higher=sum(d > 0 for d in sure), lower=sum(d < 0 for d in sure))
    return path


class _Axis:
    """Numbers as horizontal positions in a small drawing, in pixels."""

    def __init__(self, ticks: np.ndarray):
        self.ticks = ticks

    @classmethod
    def of(cls, numbers: ArrayLike) -> '_Axis':
        """An axis with round ends that covers all finite numbers."""
        values = np.asarray(numbers, float)
        values = values[np.isfinite(values)]
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        if high - low < 1e-9:
            low, high = low - 0.01, high + 0.01
        locator = MaxNLocator(3, steps=[1, 2, 2.5, 5, 10])
        return cls(np.asarray(locator.tick_values(low, high)))

    def x(self, value: float) -> float:
        """The position of a number."""
        low, high = self.ticks[0], self.ticks[-1]
        return round(_PAD + (_WIDTH - 2 * _PAD) * (value - low) / (high - low), 1)

    def drawn(self) -> list[dict]:
        """The ticks, for the template."""
        return [dict(x=self.x(tick), text=f'{tick:.6g}', last=i == len(self.ticks) - 1)
                for i, tick in enumerate(self.ticks)]


def _row(row, done: pd.DataFrame, values: _Axis, differences: _Axis, knobs: Mapping[str, str],
         notes: list[str]) -> dict:
    """An arm, for the template."""
    own = done[done['arm'] == row.arm]
    found = dict(row._asdict())
    for key in ('mean', 'sd', 'difference', 'low', 'high', 'p'):
        found[key] = number(found[key])
    found |= dict(
        knobs=list(knobs.items()), notes=notes,
        dots=[dict(x=values.x(one.value), text=_label(one)) for one in own.itertuples()],
        middle=None if found['mean'] is None else values.x(found['mean']),
        interval=None, point=None)
    if found['difference'] is not None:
        found['point'] = differences.x(found['difference'])
    if found['low'] is not None:
        found['interval'] = differences.x(found['low']), differences.x(found['high'])
    return found


def _label(cell) -> str:
    fold = '' if pd.isna(cell.fold) else f', fold {int(cell.fold)}'
    return f'seed {cell.seed}{fold}: {cell.value:.4f}'


def _failures(cells: pd.DataFrame) -> list[dict]:
    return [dict(folder=row.folder, error=row.error)
            for row in cells[cells['status'] == 'failed'].itertuples()]


def _times(names: pd.Series, done: pd.DataFrame) -> list[dict]:
    """Mean seconds of each arm's runs by kind, and the highest peak of memory."""
    found = []
    for name in names:
        own = done[done['arm'] == name]
        if not len(own):
            continue
        kinds = pd.DataFrame(list(own['seconds'])).fillna(0.0).mean()
        exact = own[own['memory_is_of_this_cell'].astype(bool)]
        memory = (exact if len(exact) else own)['memory_bytes'].max()
        found.append(dict(
            name=name, total=kinds.get('total'), step=kinds.get('step'),
            data=kinds.get('data'), compile=kinds.get('compile'), eval=kinds.get('eval'),
            memory=None if pd.isna(memory) else memory / 2**20, exact=bool(len(exact)),
            device=', '.join(sorted({device for device in own['device'] if device}))))
    return found


def _runs(arms: pd.DataFrame, cells: pd.DataFrame) -> list[dict]:
    """Links to the reports of finished runs, by arm."""
    return [dict(name=name, runs=[
        dict(href=quote(f'{row.folder}/report.html'), text=_label(row))
        for row in cells[(cells['arm'] == name) & (cells['status'] == 'done')].itertuples()])
        for name in arms['arm']]
