"""report.html of a vote on a multi-label head, and its lines on the screen."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from train_lib.reporting.page import r4, write_page
from train_lib.reporting.unlabelled_vote import preview
from train_lib.reporting.vote_table import vote_marks

_ROWS = 400  # members in the table at most
_CLASSES = 1000


def write_set_vote_report(path: Path, result: Mapping, classes: pd.DataFrame, *, title: str
                          ) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page; submission.csv is beside it.
        result: the content of vote.json.
        classes: of `set_scores.set_table`, with threshold and predicted (how many rows get the
            class); only class, threshold and predicted where no row has a label.
        title: of the page.
    """
    if 'ap' in classes:
        classes = classes.sort_values(['ap', 'n'], ascending=[True, False], kind='stable',
                                      na_position='last')
    write_page(path, 'vote_sets.html.jinja', title=title, result=result,
               labelled=result['labelled'] > 0, members=result['members'][:_ROWS],
               others=max(0, len(result['members']) - _ROWS),
               rows=classes.iloc[:_CLASSES].to_dict('records'),
               submission=preview(path.with_name('submission.csv')), marks=vote_marks(result))
    return path


def set_vote_lines(result: Mapping) -> list[str]:
    """The table of a vote, of at most 80 columns."""
    if not result['labelled']:
        return ['no row has a label, so nothing is scored']
    lines = [f'{"at 0.5":<24}{"mAP":>8}{"whole":>8}{"F1":>8}{"micro":>8}{"example":>9}']

    def row(name: str, found: Mapping) -> str:
        values = [r4(found[key]) for key in ('map', 'accuracy', 'f1_macro', 'f1_micro')]
        return f'{name[:23]:<24}' + ''.join(f'{value:>8}' for value in values) + \
            f'{r4(found["f1_examples"]):>9}'

    best = result['best_single']
    lines += [row(f'best: {best["name"]}', best)]
    lines += [row(name, found) for name, found in result['ensembles'].items()]
    if result['thresholds_from']:
        lines.append(row(f'{result["answer"]}, thresholds', result['fitted']))
        lines.append(f'thresholds: fitted on {result["thresholds_from"]}'
                     + (', scored on rows that did not fit them' if result['nested'] else ''))
    return lines
