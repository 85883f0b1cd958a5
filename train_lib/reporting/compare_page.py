"""report.html of the verb compare: runs beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from train_lib.reporting import figures
from train_lib.reporting.page import write_page

MOST_CURVES = len(figures.RUN_COLOURS)
# (split, column, heading, whether it lies in 0..1)
_PANELS = (('train', 'loss', 'training loss', False), ('val', 'loss', 'validation loss', False),
           ('val', 'accuracy', 'validation accuracy', True))


def write_compare_page(path: Path, *, runs: Sequence[Mapping[str, Any]],
                       tables: Sequence[Mapping[str, Any]], knobs: Mapping[str, Sequence[str]],
                       metrics: Sequence[pd.DataFrame], others: Sequence[str]) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page.
        runs: of each its name, href of its report ('' for none), done, reference, notes, and facts
            (see `studies.compared_runs.ComparedRun`).
        tables: of each head its name and rows, one per run: {split: (score or None, difference, a
            text why there is none, or None)}.
        knobs: {dotted.key: value in each run}.
        metrics: of each run, the table of metrics.jsonl.
        others: paths that hold no run.
    """
    colours: dict[int, str] = {}
    for place, table in enumerate(metrics):
        if len(table) and len(colours) < MOST_CURVES:
            colours[place] = figures.RUN_COLOURS[len(colours)]
    drawable = sum(bool(len(table)) for table in metrics)
    write_page(path, 'compare.html.jinja', runs=runs, tables=tables, knobs=knobs, others=others,
               colours=colours, panels=_panels(metrics, colours), left_out=drawable - len(colours),
               done=sum(run['done'] for run in runs),
               reference=next((run for run in runs if run['reference']), None))
    return path


def _panels(metrics: Sequence[pd.DataFrame], colours: Mapping[int, str]) -> list[dict]:
    tables = [metrics[place] for place in colours]
    x = 'epoch' if tables and all('epoch' in table for table in tables) else 'step'
    panels = []
    for split, column, title, unit_range in _PANELS:
        lines = []
        for place, colour in colours.items():
            table = metrics[place]
            if column in table:
                part = table[table['split'] == split].dropna(subset=[column, x])
                lines += [(colour, part.sort_values(x))] if len(part) else []
        if lines:
            panels.append(dict(title=title, svg=figures.overlaid(lines, column, x,
                                                                 unit_range=unit_range)))
    return panels
