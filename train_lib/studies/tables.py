"""table.md, table.csv, table.tex, times.csv and report.html of a study.

The tables hold nothing that depends on the clock or on the number of starts: a study that was
killed and went on writes the same bytes. Time and memory stand in times.csv and report.html.
"""

import os
from pathlib import Path

import pandas as pd

from train_lib.studies.cell_results import read_cells, summarise
from train_lib.studies.definition import Study, differences, word
from train_lib.studies.ledger import shared_temporary, write_shared
from train_lib.studies.stopping import Verdict, judge


def write_tables(study: Study, workdir: Path, page: bool = True) -> None:
    """Writes all of them; without `page` all but report.html."""
    cells = read_cells(study, workdir)
    table = summarise(study, cells)
    given_up = judge(study, cells)[0]
    changes = changed_knobs(study)
    write_shared(workdir / 'table.md', markdown(study, table, given_up, changes))
    write_shared(workdir / 'table.tex', latex(study, table, given_up, changes))
    write_shared(workdir / 'table.csv', as_csv(table, given_up, changes))
    write_shared(workdir / 'times.csv', times(cells).to_csv(index=False, lineterminator='\n'))
    if page:
        from train_lib.reporting.study_page import write_study_report

        page_path = shared_temporary(workdir / 'report.html')
        write_study_report(
            page_path, table.assign(baseline=table['arm'] == study.baseline), cells,
            title=workdir.resolve().name, metric=study.metric, caption=caption(study, table),
            knobs={name: {path: word(value, 60) for path, value in knobs.items()}
                   for name, knobs in changes.items()},
            notes={row.arm: notes(row, given_up) for row in table.itertuples()})
        os.replace(page_path, workdir / 'report.html')


def changed_knobs(study: Study) -> dict[str, dict]:
    """{arm: {dotted.path: value}} of what an arm has otherwise than the baseline."""
    base = study.arm(study.baseline).config
    return {arm.name: differences(arm.config, base) for arm in study.arms}


def notes(row, given_up: dict[str, Verdict]) -> list[str]:
    """What has to be known of an arm besides its numbers."""
    found = []
    if row.failed:
        found.append(f'{row.failed} failed')
    verdict = given_up.get(row.arm)
    if verdict:
        found.append(f'stopped after {verdict.seeds} seeds: {verdict.difference:+.4f} '
                     f'({verdict.low:+.4f} to {verdict.high:+.4f}) to {verdict.best}')
    if row.other_code:
        found.append('other code')
    if row.other_data:
        found.append('other data')
    return found


def count(row) -> str:
    """Runs that there are, and of how many where some are missing."""
    return f'{row.n}' if row.n == row.planned else f'{row.n}/{row.planned}'


def _columns(study: Study, table: pd.DataFrame, given_up, changes) -> list[list[str]]:
    rows = []
    for row in table.itertuples():
        knobs = ', '.join(f'{path}={word(value)}' for path, value in changes[row.arm].items())
        base = row.arm == study.baseline
        rows.append([
            row.arm, 'baseline' if base else knobs, number(row.mean), number(row.sd), count(row),
            '' if base else number(row.difference, '+'),
            '' if base or pd.isna(row.low) else f'{row.low:+.4f} to {row.high:+.4f}',
            '' if base else number(row.p), '; '.join(notes(row, given_up))])
    return rows


def number(value: float, sign: str = '') -> str:
    """Four decimals, a dash for none."""
    return '–' if pd.isna(value) else f'{value:{sign}.4f}'


def caption(study: Study, table: pd.DataFrame) -> str:
    """What the numbers are."""
    seeds = f'{len(study.seeds)} seed{"s" * (len(study.seeds) > 1)}'
    folds = '' if study.folds[0] is None else (
        f' and {len(study.folds)} of {study.parts} folds')
    return (f'{study.metric} on the same {seeds}{folds} for all arms: mean and standard '
            f'deviation (sd) of n runs. Differences to {study.baseline} are paired by seed'
            f'{" and fold" if folds else ""}, with 95 % intervals (Student'
            f'{", variance of Nadeau and Bengio" if folds else ""}); p is two-sided, after Holm '
            f'for {max(len(table) - 1, 1)} comparisons.')


_HEADS = ('arm', 'what differs', 'mean', 'sd', 'n', 'difference', '95 % interval', 'p', 'notes')


def markdown(study: Study, table: pd.DataFrame, given_up, changes) -> str:
    """The table in Markdown, columns aligned."""
    rows = [[text.replace('|', '\\|') for text in row]
            for row in _columns(study, table, given_up, changes)]
    keep = [i for i in range(len(_HEADS)) if _HEADS[i] != 'notes' or any(row[i] for row in rows)]
    body = [[_HEADS[i] for i in keep]] + [[row[i] for i in keep] for row in rows]
    widths = [max(len(row[k]) for row in body) for k in range(len(keep))]
    right = [_HEADS[i] in ('mean', 'sd', 'n', 'difference', 'p') for i in keep]
    lines = ['| ' + ' | '.join(f'{text:{">" if flush else "<"}{width}}' for text, width, flush in
                               zip(row, widths, right)) + ' |' for row in body]
    rule = '|' + '|'.join('-' * (width + 1) + (':' if flush else '-')
                          for width, flush in zip(widths, right)) + '|'
    return '\n'.join([caption(study, table), '', lines[0], rule, *lines[1:]]) + '\n'


def latex(study: Study, table: pd.DataFrame, given_up, changes) -> str:
    """The table for LaTeX with the package booktabs."""
    lines = [f'% {caption(study, table)}', '\\begin{tabular}{llrrrrlrl}', '\\toprule',
             ' & '.join(_tex(text) for text in _HEADS) + r' \\', '\\midrule']
    lines += [' & '.join(_tex(text.replace('-', '−') if i in (5, 6) else text)  # minus signs
                         for i, text in enumerate(row)) + r' \\'
              for row in _columns(study, table, given_up, changes)]
    return '\n'.join([*lines, '\\bottomrule', '\\end{tabular}']) + '\n'


def _tex(text: str) -> str:
    signs = {'\\': r'\textbackslash{}', '–': '--', '…': r'\ldots{}', '~': r'\textasciitilde{}',
             '^': r'\textasciicircum{}', '−': '$-$', **{sign: f'\\{sign}' for sign in '&%$#_{}'}}
    return ''.join(signs.get(letter, letter) for letter in text)


def as_csv(table: pd.DataFrame, given_up, changes) -> str:
    """All digits; the changes of an arm in full."""
    full = table.assign(
        changes=[', '.join(f'{path}={value}' for path, value in changes[name].items())
                 for name in table['arm']],
        notes=['; '.join(notes(row, given_up)) for row in table.itertuples()])
    return full.to_csv(index=False, lineterminator='\n', float_format='%.10g')


def times(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: seconds by kind, peak memory, attempts, device."""
    kinds = sorted({kind for seconds in cells['seconds'] for kind in seconds})
    frame = cells[['arm', 'seed', 'fold', 'status', 'attempts', 'memory_bytes',
                   'memory_is_of_this_cell', 'device']].copy()
    for kind in kinds:
        frame[f'seconds_{kind}'] = [seconds.get(kind) for seconds in cells['seconds']]
    return frame
