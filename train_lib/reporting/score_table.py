"""The scores of a run: the headline of its report, and the table of all splits."""

import numpy as np

from input_pipeline.manifest import SPLITS
from train_lib.metrics import scores
from train_lib.metrics.intervals import accuracy_interval
from train_lib.metrics.set_scores import predicted_sets, set_scores
from train_lib.reporting.inputs import Head, RunInputs, as_dict
from train_lib.reporting.page import Section, number, render

_COLUMNS = {'accuracy': 'accuracy', 'f1_macro': 'F1', 'precision_macro': 'precision',
            'recall_macro': 'recall', 'top5': 'top 5', 'loss': 'loss', 'nll': 'NLL',
            'ece': 'ECE', 'brier': 'Brier', 'map': 'mAP', 'f1_micro': 'micro F1',
            'f1_examples': 'F1 of pictures', 'f1_macro_fitted': 'F1, fitted',
            'f1_micro_fitted': 'micro F1, fitted', 'accuracy_fitted': 'accuracy, fitted'}


def scores_section(inputs: RunInputs) -> list[Section]:
    """The section Scores."""
    rows = score_rows(inputs)
    columns = [(key, name) for key, name in _COLUMNS.items()
               if any(row['values'].get(key) is not None for row in rows)]
    return [Section('scores', 'Scores', render(
        'run_scores.html.jinja', inputs=inputs, rows=rows, columns=columns,
        main_split=_last_split(rows)))]


def score_rows(inputs: RunInputs) -> list[dict]:
    """[dict(split, head, values)], from result.json, else computed from the predictions."""
    rows = []
    for name in SPLITS:
        values = as_dict(inputs.result.get(name))
        nested = {head: part for head, part in values.items() if isinstance(part, dict)}
        for head, part in (nested or ({'': values} if values else {})).items():
            # n belongs to the split where the head has none of its own; the loss is the
            # sum over heads there, so it isn't handed down.
            shared = {'n': values['n']} if 'n' in values else {}
            rows.append(dict(split=name, head=head, values={**shared, **part}))
    for head in inputs.heads:
        if not any((row['split'], row['head']) == (inputs.split, head.name) for row in rows):
            rows.append(dict(split=inputs.split, head=head.name,
                             values=scores.scores(head.logits, head.labels)))
    for head in inputs.set_heads:
        if not any((row['split'], row['head']) == (inputs.split, head.name) for row in rows):
            rows.append(dict(split=inputs.split, head=head.name,
                             values=set_scores(head.logits, head.targets)))
    return rows


def headline(inputs: RunInputs) -> list[dict]:
    """Accuracy with its interval, F1 and n of each head on the last split that has scores."""
    rows = score_rows(inputs)
    split, found = _last_split(rows), []
    for row in rows:
        values = row['values']
        accuracy, n = number(values.get('accuracy')), number(values.get('n'))
        if row['split'] == split and accuracy is not None:
            interval, about = None, ''
            if n and 0 <= accuracy <= 1:
                interval = scores.wilson_interval(accuracy, int(n))
                about = 'if the pictures are independent'
            ids, right = _shown_rows(inputs, split, row['head'], accuracy)
            groups = None if ids is None else _groups_of(inputs, ids)
            if groups is not None:
                count = len(np.unique(groups))
                interval = accuracy_interval(right, groups)
                about = f'for new groups of pictures, from {count:,}'
                if count < 2:
                    interval, about = None, 'no interval from a single group of pictures'
            found.append(dict(split=split, head=row['head'], accuracy=accuracy, n=n,
                              map=number(values.get('map')),
                              f1=values.get('f1_macro'), interval=interval, about=about))
    return found


def _last_split(rows: list[dict]) -> str | None:
    """The last split that has an accuracy."""
    return max((row['split'] for row in rows
                if number(row['values'].get('accuracy')) is not None),
               key=SPLITS.index, default=None)


def _shown_head(inputs: RunInputs, split: str, name: str, accuracy: float) -> Head | None:
    """The predictions that have this accuracy; None where they are missing or of other rows."""
    same = lambda found: abs(found.right.sum() / found.count.sum() - accuracy) < 1e-6
    return next((head for head in inputs.heads if inputs.split == split
                 and name in (head.name, '') and (name or len(inputs.heads) == 1)
                 and same(head.confusion)), None)


def _shown_rows(inputs: RunInputs, split: str, name: str, accuracy: float
                ) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(ids, which are right, bool [N]) of the predictions that have this accuracy; None, None."""
    head = _shown_head(inputs, split, name, accuracy)
    if head is not None:
        return head.ids, head.logits.argmax(axis=1) == head.labels
    alone = len(inputs.heads) + len(inputs.set_heads) == 1
    for several in inputs.set_heads if inputs.split == split else ():
        right = (predicted_sets(several.logits) == (several.targets == 1)).all(1)
        if name in (several.name, '') and (name or alone) and abs(right.mean() - accuracy) < 1e-6:
            return several.ids, right
    return None, None


def _groups_of(inputs: RunInputs, ids: np.ndarray) -> np.ndarray | None:
    """The group of each picture, object [N]; one without is a group of its own. None if no two
    pictures share a group."""
    table = inputs.manifest.table
    if 'group' not in table:
        return None
    known = dict(zip(table['id'], table['group'].astype(str)))
    found = np.array([f'group {known[name]}' if known.get(name) else f'picture {name}'
                      for name in ids.tolist()], object)
    return found if len(np.unique(found.astype(str))) < len(found) else None
