"""What a study shows while it runs: one line per arm on a terminal, one line per cell elsewhere."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pandas as pd

from input_pipeline.errors import counted
from train_lib.studies import ledger
from train_lib.studies.cell_results import read_cells
from train_lib.studies.definition import Study
from train_lib.studies.search import current

log = logging.getLogger(__name__)
_SIGNS = {'done': '●', 'failed': '×', 'stopped': '○', 'running': '◐', '': '·'}


class Screen:
    """Shows the state of a study on standard error."""

    def __init__(self, study: Study, workdir: Path):
        self._study, self._workdir = study, workdir
        self._terminal = sys.stderr.isatty()
        self._lines_drawn = 0
        self._reported: set[str] | None = None  # folders of cells

    def show(self) -> None:
        """Draws the lines again, or reports the cells that have ended since the last call."""
        study = current(self._study, self._workdir)
        cells = read_cells(study, self._workdir)
        if not self._terminal:
            self._report(cells)
            return
        size = shutil.get_terminal_size()
        lines = arm_lines(study, self._workdir, cells, min(size.columns, 80))
        lines = lines[:max(size.lines - 2, 1)]
        back = f'\x1b[{self._lines_drawn}F' if self._lines_drawn else ''
        sys.stderr.write(back + ''.join(f'\x1b[2K{line}\n' for line in lines))
        sys.stderr.flush()
        self._lines_drawn = len(lines)

    def _report(self, cells: pd.DataFrame) -> None:
        over = cells[cells['status'] != '']
        first, self._reported = self._reported is None, self._reported or set()
        if first and len(over):
            log.info('ledger   %d of %s over already', len(over),
                     counted(len(cells), 'cell is', 'cells are'))
        for row in over.itertuples():
            if row.folder not in self._reported and not first:
                text = {'done': f'{row.value:.4f}', 'stopped': 'stopped early'}.get(
                    row.status, f'failed: {row.error}')
                log.info('cell     %d/%d  %s  %s', len(over), len(cells), row.folder, text)
        self._reported |= set(over['folder'])

    def begin_below(self) -> None:
        """After other output: the next lines are drawn below it instead of over it."""
        self._lines_drawn = 0


def arm_lines(study: Study, workdir: Path, cells: pd.DataFrame, width: int = 80) -> list[str]:
    """One line per arm: name, one sign per cell (● done, ○ stopped, ◐ running, × failed), n, mean,
    epoch."""
    lines, longest = [], max(len(arm.name) for arm in study.arms)
    for arm in study.arms:
        own = cells[cells['arm'] == arm.name]
        signs, epochs = '', []
        for row in own.itertuples():
            folder = workdir / row.folder
            running = not row.status and ledger.is_running(folder)
            signs += _SIGNS['running' if running else row.status]
            epochs += [epoch_of(folder)] if running else []
        done = own[own['status'] == 'done']
        text = f'{len(done)}/{len(own)}'
        if len(done):
            text += f'  {done["value"].mean():.4f}'
        if epochs:
            text += '  epoch ' + ', '.join(f'{epoch:.1f}' for epoch in epochs)
        signs = signs if len(signs) <= 20 else f'{signs[:19]}…'
        room = max(min(longest, width - len(signs) - len(text) - 4), 1)
        name = arm.name if len(arm.name) <= room else f'{arm.name[:room - 1]}…'
        lines.append(f'{name:{room}}  {signs}  {text}'[:width])
    return lines


def epoch_of(folder: Path) -> float:
    """The epoch that a run has reached, from the last line of its metrics.jsonl; 0.0 before."""
    try:
        with open(folder / 'metrics.jsonl', 'rb') as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
            lines = file.read().splitlines()
        return float(json.loads(lines[-1])['epoch'])
    except (OSError, ValueError, IndexError, KeyError):
        return 0.0
