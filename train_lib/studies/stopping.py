"""Which cells are still to be run, and which arms are given up as hopeless (config.study.stop).

An arm is judged by its first n seeds once all arms have finished them, so the verdict does not
depend on the order in which several processes got there. The price is that seed n + 1 does not
begin before that.
"""

import dataclasses
from pathlib import Path

import pandas as pd

from train_lib.studies import ledger
from train_lib.studies.cell_results import read_cells
from train_lib.studies.comparison import CONFIDENCE, compare_arms
from train_lib.studies.definition import Cell, Study
from train_lib.studies.search import open_cells_of, unfinished_of


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why an arm was given up.

    Attributes:
        seeds: after how many of them.
        best: name of the best arm at that time.
        difference: mean paired difference to it, in units of the metric.
        low, high: its interval, of the level of `stop_level`.
    """

    seeds: int
    best: str
    difference: float
    low: float
    high: float


def open_cells(study: Study, workdir: Path) -> list[Cell]:
    """The cells that are not over and may begin now, in the order in which they should."""
    if study.search is not None:
        return open_cells_of(study, workdir)
    cells = study.cells()
    if study.settings.stop.after:
        given_up, seeds = judge(study, read_cells(study, workdir))
        cells = [cell for cell in cells if cell.seed in study.seeds[:seeds]
                 and cell.arm.name not in given_up]
    return [cell for cell in cells if ledger.record(workdir / cell.folder) is None]


def unfinished(study: Study, workdir: Path) -> list[Cell]:
    """The cells that are not over and whose arms are not given up."""
    if study.search is not None:
        return unfinished_of(study, workdir)
    given_up = judge(study, read_cells(study, workdir))[0] if study.settings.stop.after else ()
    return [cell for cell in study.cells() if cell.arm.name not in given_up
            and ledger.record(workdir / cell.folder) is None]


def stop_level(arms: int, looks: int) -> float:
    """Level of the interval by which an arm is given up, so that in some 5 % of the studies of
    equal arms one is: Bonferroni's for all arms and looks.

    It holds where the pictures of the runs are known; else the level is 95 % (`paired_cells`).
    """
    return 1 - (1 - CONFIDENCE) / max(1, (arms - 1) * looks)


def judge(study: Study, cells: pd.DataFrame) -> tuple[dict[str, Verdict], int]:
    """Applies the stop rule.

    Args:
        study: the study.
        cells: see `read_cells`.

    Returns:
        ({arm: why it was given up}, how many of the seeds may begin)
    """
    after, margin = study.settings.stop.after, study.settings.stop.margin
    if after == 0:
        return {}, len(study.seeds)
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
            found = compare_arms(done, name, best, study.total_folds,
                                 stop_level(len(study.arms), len(study.seeds) - after))
            edge = found['high'] if sign > 0 else -found['low']
            if edge < -margin:
                given_up[name] = Verdict(n, best, *(found[key] for key in
                                                    ('difference', 'low', 'high')))
    return given_up, len(study.seeds)
