"""search.md and search.csv: every trial of a search, how far it came, and what they cost together.

Like the tables of a study they hold nothing that depends on the clock, on the number of processes
or on the number of starts.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from input_pipeline.atomic_files import write_text
from input_pipeline.errors import counted
from train_lib.studies.definition import Study
from train_lib.studies.naming import describe_changes
from train_lib.studies.search import Trial, are_over, best_of, comparison, score_name, trials_of

SEARCH_TABLES = ('search.md', 'search.csv')


def write_search_tables(study: Study, workdir: Path) -> Study | None:
    """Writes both.

    Returns:
        The study that compares the winner with the reference; None before all trials are over.
    """
    trials = trials_of(study, workdir)
    frame = trial_frame(study, trials, workdir)
    for name, text in zip(SEARCH_TABLES, (markdown_of(study, trials, frame),
                                          frame.to_csv(index=False, lineterminator='\n',
                                                       float_format='%.10g'))):
        write_text(workdir / name, text, shared=True, durable=False)
    return comparison(study, workdir, trials) if are_over(study, trials) else None


def trial_frame(study: Study, trials: Sequence[Trial], workdir: Path) -> pd.DataFrame:
    """One row per trial: trial, bracket, what differs, its scores at the rungs and at the end, how
    it ended ('' as long as it has not), and which share of a run it took."""
    search = study.search
    assert search is not None
    rows = []
    for trial in trials:
        row: dict = dict(trial=trial.cell.arm.name, bracket=trial.bracket,
                         changes=describe_changes(trial.cell.arm.changes))
        row |= {f'{share:g} %': trial.rungs[i] if i < len(trial.rungs) else math.nan
                for i, share in enumerate(search.rungs)}
        row |= dict(end=trial.score, status=trial.status, share=_share(trial, workdir),
                    error=trial.error)
        if trial.status == 'stopped':
            row['status'] = f'stopped at rung {len(trial.rungs)}'
        rows.append(row)
    return pd.DataFrame(rows)


def _share(trial: Trial, workdir: Path) -> float:
    """The share of a whole run that a trial took, by its steps."""
    if trial.status == 'done':
        return 1.0
    folder = workdir / trial.cell.folder
    if not trial.rungs:
        return 0.0
    step = json.loads((folder / f'rung_{len(trial.rungs)}.json').read_text())
    return step['step'] / step['steps']


def markdown_of(study: Study, trials: Sequence[Trial], frame: pd.DataFrame) -> str:
    """search.md."""
    search, best = study.search, best_of(study, trials)
    assert search is not None
    ends = [trial.status for trial in trials]
    lines = [
        f'{counted(len(trials), "trial")} of {search.trials} ({search.proposer}), '
        f'{ends.count("done")} to the end, {ends.count("stopped")} stopped early, '
        f'{ends.count("failed")} failed: {frame["share"].sum():.2f} runs, where all trials to the '
        f'end are {search.trials}. Scores are {score_name(study)} with seed {search.seed}. The '
        f'best of many scores is too good to be a result; table.md compares its settings with the '
        f'reference on fresh seeds.', '',
        '| trial | what differs | ' + ' | '.join(f'{share:g} %' for share in search.rungs)
        + f'{" | " if search.rungs else ""}end | |',
        '|---|---|' + '---|' * (len(search.rungs) + 2)]
    for row, trial in zip(frame.to_dict('records'), trials):
        numbers = [row[f'{share:g} %'] for share in search.rungs] + [row['end']]
        ended = row['status'] + (f': {row["error"]}' if row['error'] else '')
        if best is trial and are_over(study, trials):
            ended += ', the winner'
        cells = [row['trial'], row['changes'],
                 *('–' if math.isnan(value) else f'{value:.4f}' for value in numbers), ended]
        lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'
