"""What a study says while it runs: a line an arm on a terminal, a line a cell elsewhere."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

from train_lib.studies import ledger
from train_lib.studies.cell_results import read_cells
from train_lib.studies.definition import Study

log = logging.getLogger(__name__)
_SIGNS = {'done': '●', 'failed': '×', 'running': '◐', '': '·'}


class Screen:
    """The state of a study on standard error."""

    def __init__(self, study: Study, workdir: Path):
        self._study, self._workdir = study, workdir
        self._terminal = sys.stderr.isatty()
        self._drawn = 0
        self._told: set[str] | None = None

    def show(self) -> None:
        """Draws the lines anew, or says which cells have ended since the last call."""
        cells = read_cells(self._study, self._workdir)
        if not self._terminal:
            self._tell(cells)
            return
        size = shutil.get_terminal_size()
        lines = arm_lines(self._study, self._workdir, cells, min(size.columns, 80))
        lines = lines[:max(size.lines - 2, 1)]
        back = f'\x1b[{self._drawn}F' if self._drawn else ''
        sys.stderr.write(back + ''.join(f'\x1b[2K{line}\n' for line in lines))
        sys.stderr.flush()
        self._drawn = len(lines)

    def _tell(self, cells) -> None:
        over = cells[cells['status'] != '']
        first, self._told = self._told is None, self._told or set()
        if first and len(over):
            log.info('ledger   %d of %d cells are over already', len(over), len(cells))
        for row in over.itertuples():
            if row.folder not in self._told and not first:
                text = f'{row.value:.4f}' if row.status == 'done' else f'failed: {row.error}'
                log.info('cell     %d/%d  %s  %s', len(over), len(cells), row.folder, text)
        self._told |= set(over['folder'])

    def begin_below(self) -> None:
        """Something else was written: what is drawn next stands below it."""
        self._drawn = 0

    def close(self) -> None:
        """The last state."""
        self.show()


def arm_lines(study: Study, workdir: Path, cells, width: int = 80) -> list[str]:
    """A line an arm: name, a sign a cell (● done, ◐ running, × failed), n, mean, epoch."""
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
    """How far a run is, by the last line of its metrics.jsonl."""
    try:
        with open(folder / 'metrics.jsonl', 'rb') as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4096, 0))
            lines = file.read().splitlines()
        return float(json.loads(lines[-1])['epoch'])
    except (OSError, ValueError, IndexError, KeyError):
        return 0.0
