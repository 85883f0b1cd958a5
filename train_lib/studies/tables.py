"""table.md, table.csv, table.tex, times.csv and report.html of a study.

The tables hold nothing that depends on the clock or on the number of starts: a study that was
killed and resumed writes the same bytes. Time and memory are in times.csv and report.html.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from input_pipeline.atomic_files import atomic_path, write_text
from input_pipeline.errors import counted
from train_lib.metrics.p_values import p_text
from train_lib.studies.cell_results import read_cells
from train_lib.studies.comparison import FIXED, ONE_GROUP, REDRAWN, SEEDS, summarise
from train_lib.studies.definition import Study
from train_lib.studies.identity import differences
from train_lib.studies.naming import describe_changes, short
from train_lib.studies.search_table import write_search_tables
from train_lib.studies.stopping import Verdict, judge

TABLES = ('table.md', 'table.tex', 'table.csv', 'times.csv')  # report.html comes at the end
_HEADINGS = ('arm', 'what differs', 'mean', 'sd', 'n', 'difference', '95 % interval', 'p', 'notes')


def write_tables(study: Study, workdir: Path, page: bool = True) -> None:
    """Writes all of them; without `page`, all except report.html. Of a search, those of its trials
    come first, and these once they are over."""
    if study.search is not None:
        compared = write_search_tables(study, workdir)
        if compared is None:
            return
        study = compared
    cells = read_cells(study, workdir)
    table = summarise(study, cells)
    given_up = judge(study, cells)[0]
    changes = changed_knobs(study)
    texts = (markdown(study, table, given_up, changes), latex(study, table, given_up, changes),
             as_csv(table, given_up, changes),
             times(cells).to_csv(index=False, lineterminator='\n'))
    for name, text in zip(TABLES, texts):
        # Other machines may write the same file at the same time.
        write_text(workdir / name, text, shared=True, durable=False)
    if page:
        from train_lib.reporting.study_page import write_study_report  # loads matplotlib

        with atomic_path(workdir / 'report.html', shared=True) as temporary:
            write_study_report(
                Path(temporary), table.assign(baseline=table['arm'] == study.baseline), cells,
                title=workdir.resolve().name, metric=study.metric, caption=caption(study, table),
                knobs={name: {path: short(value, 60) for path, value in knobs.items()}
                       for name, knobs in changes.items()},
                notes={row.arm: notes(row, given_up) for row in table.itertuples()})


def changed_knobs(study: Study) -> dict[str, dict]:
    """{arm: {dotted.path: value}} of the keys in which an arm differs from the baseline."""
    base = study.arm(study.baseline).config
    return {arm.name: differences(arm.config, base) for arm in study.arms}


def notes(row, given_up: Mapping[str, Verdict]) -> list[str]:
    """What one has to know about an arm besides its numbers."""
    found = []
    if row.failed:
        found.append(f'{row.failed} failed')
    verdict = given_up.get(row.arm)
    if verdict:
        found.append(f'stopped after {counted(verdict.seeds, "seed")}: {verdict.difference:+.4f} '
                     f'({verdict.low:+.4f} to {verdict.high:+.4f}) to {verdict.best}')
    if row.other_code:
        found.append('other code')
    if row.other_data:
        found.append('other data')
    if row.seen:
        found.append(f'{row.seen} scored on rows that an ancestor trained on')
    return found


def count(row) -> str:
    """Finished runs, as '3/5' where some are missing."""
    return f'{row.n}' if row.n == row.planned else f'{row.n}/{row.planned}'


def _rows(study: Study, table: pd.DataFrame, given_up: Mapping[str, Verdict],
          changes: Mapping[str, Mapping]) -> list[list[str]]:
    """One row of text per arm, in the order of _HEADINGS."""
    rows = []
    for row in table.itertuples():
        base = row.arm == study.baseline
        rows.append([
            row.arm, 'baseline' if base else describe_changes(changes[row.arm]),
            number(row.mean), number(row.sd), count(row),
            '' if base else number(row.difference, '+'),
            '' if base or pd.isna(row.low) else f'{row.low:+.4f} to {row.high:+.4f}',
            '' if base else p_text(row.p), '; '.join(notes(row, given_up))])
    return rows


def number(value: float, sign: str = '') -> str:
    """A number with four decimals; a dash for NaN."""
    return '–' if pd.isna(value) else f'{value:{sign}.4f}'


def caption(study: Study, table: pd.DataFrame) -> str:
    """A sentence on what the numbers are."""
    seeds = counted(len(study.seeds), 'seed')
    folds = '' if study.folds[0] is None else (
        f' and {len(study.folds)} of {counted(study.total_folds, "fold")}')
    return (f'{study.metric} on the same {seeds}{folds} for all arms: mean and standard '
            f'deviation (sd) of n runs. Differences to {study.baseline} are paired by seed'
            f'{" and fold" if folds else ""}, with 95 % intervals (Student); p is two-sided, after '
            f'Holm for {max(len(table) - 1, 1)} comparisons.{_about(table)}{study.about}')


_ABOUT = {
    FIXED: 'All runs score the same pictures; the intervals and p are about new pictures (new '
           'groups, where pictures have groups) and seeds.',
    REDRAWN: 'Each run scores other pictures of the same data; the intervals and p are about new '
             'splits of such data (variance of Nadeau and Bengio).',
    SEEDS: 'The intervals and p are about other seeds on these same pictures and say nothing of '
           'new pictures, since not all runs have predictions of the same ones.',
    ONE_GROUP: 'All runs score the pictures of a single group, which say nothing of other groups: '
               'there are no intervals and no p.',
}


def _about(table: pd.DataFrame) -> str:
    """What the intervals are about, one sentence per kind, with the arms if there are several."""
    shown = table[table['low'].notna() | (table['about'] == ONE_GROUP)]
    kinds = [kind for kind in _ABOUT if (shown['about'] == kind).any()]
    names = {kind: ', '.join(shown.loc[shown['about'] == kind, 'arm']) for kind in kinds}
    return ''.join(f' {f"{names[kind]}: " if len(kinds) > 1 else ""}{_ABOUT[kind]}'
                   for kind in kinds)


def markdown(study: Study, table: pd.DataFrame, given_up: Mapping[str, Verdict],
             changes: Mapping[str, Mapping]) -> str:
    """The table in Markdown, with aligned columns.

    Args:
        study: the study.
        table: see `summarise`.
        given_up: see `judge`.
        changes: see `changed_knobs`.
    """
    rows = [[text.replace('|', '\\|') for text in row]
            for row in _rows(study, table, given_up, changes)]
    keep = [i for i, heading in enumerate(_HEADINGS)
            if heading != 'notes' or any(row[i] for row in rows)]
    body = [[_HEADINGS[i] for i in keep]] + [[row[i] for i in keep] for row in rows]
    widths = [max(len(row[k]) for row in body) for k in range(len(keep))]
    right = [_HEADINGS[i] in ('mean', 'sd', 'n', 'difference', 'p') for i in keep]
    lines = ['| ' + ' | '.join(f'{text:{">" if flush else "<"}{width}}' for text, width, flush in
                               zip(row, widths, right)) + ' |' for row in body]
    rule = '|' + '|'.join('-' * (width + 1) + (':' if flush else '-')
                          for width, flush in zip(widths, right)) + '|'
    return '\n'.join([caption(study, table), '', lines[0], rule, *lines[1:]]) + '\n'


def latex(study: Study, table: pd.DataFrame, given_up: Mapping[str, Verdict],
          changes: Mapping[str, Mapping]) -> str:
    """The table for LaTeX with the package booktabs. Arguments as in `markdown`."""
    lines = [f'% {caption(study, table)}', '\\begin{tabular}{llrrrrlrl}', '\\toprule',
             ' & '.join(_tex(text) for text in _HEADINGS) + r' \\', '\\midrule']
    lines += [' & '.join(_tex(text.replace('-', '−') if i in (5, 6) else text)  # minus signs
                         for i, text in enumerate(row)) + r' \\'
              for row in _rows(study, table, given_up, changes)]
    return '\n'.join([*lines, '\\bottomrule', '\\end{tabular}']) + '\n'


def _tex(text: str) -> str:
    signs = {'\\': r'\textbackslash{}', '–': '--', '…': r'\ldots{}', '~': r'\textasciitilde{}',
             '^': r'\textasciicircum{}', '−': '$-$', '<': '$<$', '>': '$>$',
             **{sign: f'\\{sign}' for sign in '&%$#_{}'}}
    return ''.join(signs.get(letter, letter) for letter in text)


def as_csv(table: pd.DataFrame, given_up: Mapping[str, Verdict],
           changes: Mapping[str, Mapping]) -> str:
    """The table as CSV, with ten digits and the changes in full. Arguments as in `markdown`."""
    full = table.assign(
        changes=[', '.join(f'{path}={value}' for path, value in changes[name].items())
                 for name in table['arm']],
        notes=['; '.join(notes(row, given_up)) for row in table.itertuples()])
    return full.to_csv(index=False, lineterminator='\n', float_format='%.10g')


def times(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: seconds by kind, peak memory, attempts, device."""
    kinds = sorted({kind for seconds in cells['seconds'] for kind in seconds})
    frame = cells[['arm', 'seed', 'fold', 'status', 'attempts', 'memory_bytes',
                   'memory_is_of_this_cell', 'device']].copy()
    for kind in kinds:
        frame[f'seconds_{kind}'] = [seconds.get(kind) for seconds in cells['seconds']]
    return frame
