"""Which cells are still to be run, and which arms are given up as hopeless (config.study.stop).

An arm is judged by its first n seeds, when all arms have finished them, so the judgement is the
same whatever the order in which several processes came to it. The price is that nobody begins
seed n + 1 before.
"""

import dataclasses
from pathlib import Path

import pandas as pd

from train_lib.runtime.errors import ConfigError
from train_lib.studies import ledger
from train_lib.studies.cell_results import paired_difference, read_cells
from train_lib.studies.definition import Cell, Study


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why an arm was given up: after so many seeds, against which arm, by which difference."""

    seeds: int
    best: str
    difference: float
    low: float
    high: float


def open_cells(study: Study, workdir: Path) -> list[Cell]:
    """The cells that are not over and may be begun now, in the order in which they should be."""
    cells = study.cells()
    if study.settings.stop.after:
        given_up, seeds = judge(study, read_cells(study, workdir))
        cells = [cell for cell in cells if cell.seed in study.seeds[:seeds]
                 and cell.arm.name not in given_up]
    return [cell for cell in cells if ledger.record(workdir / cell.folder) is None]


def unfinished(study: Study, workdir: Path) -> list[Cell]:
    """The cells that are not over and belong to arms that are not given up."""
    given_up = judge(study, read_cells(study, workdir))[0] if study.settings.stop.after else ()
    return [cell for cell in study.cells() if cell.arm.name not in given_up
            and ledger.record(workdir / cell.folder) is None]


def judge(study: Study, cells: pd.DataFrame) -> tuple[dict[str, Verdict], int]:
    """({arm: why it was given up}, how many of the seeds may be begun)

    Raises:
        ConfigError: a wrong value of config.study.stop.
    """
    after, margin = study.settings.stop.after, study.settings.stop.margin
    if after == 0:
        return {}, len(study.seeds)
    if after < 2 or margin < 0:
        raise ConfigError(f'config.study.stop = dict(after={after}, margin={margin}): give two '
                          f'seeds or more, and a margin of 0 or more.')
    sign = -1 if study.less_is_better else 1
    given_up: dict[str, Verdict] = {}
    for n in range(after, len(study.seeds)):
        alive = [arm.name for arm in study.arms if arm.name not in given_up]
        seen = cells[cells['seed'].isin(study.seeds[:n]) & cells['arm'].isin(alive)]
        if (seen['status'] == '').any():
            return given_up, n
        done = seen[seen['status'] == 'done']
        values = done.pivot(index=['seed', 'fold'], columns='arm', values='value')
        if values.empty:
            continue
        best = (sign * values.mean()).idxmax()
        for name in alive:
            if name in (best, study.baseline) or name not in values:
                continue
            found = paired_difference((values[name] - values[best]).dropna().to_numpy(),
                                      study.parts)
            edge = found['high'] if sign > 0 else -found['low']
            if edge < -margin:
                given_up[name] = Verdict(n, best, *(found[key] for key in
                                                    ('difference', 'low', 'high')))
    return given_up, len(study.seeds)
