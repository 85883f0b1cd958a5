"""What a report shows of a multi-label head: its classes with their thresholds, and its errors."""

import numpy as np

from input_pipeline.label_sets import joined
from input_pipeline.manifest import Manifest, class_counts
from train_lib.metrics import scores, set_scores
from train_lib.metrics.thresholds import nested_sets
from train_lib.reporting import example_pictures, figures
from train_lib.reporting.inputs import RunInputs, SetHead
from train_lib.reporting.overlays import Overlays

_TABLE_ROWS = 1000  # of more classes, those of lowest average precision are shown
_SHOWN = 12  # classes named in a card
_FITTED_ON = ('val', 'out of fold')  # rows that thresholds are fitted on


def set_head_values(head: SetHead, inputs: RunInputs, overlays: Overlays) -> dict:
    """What the template shows of one multi-label head."""
    predicted = _predicted(head, inputs)
    table = set_scores.set_table(head.logits, head.targets, head.classes, predicted)
    table['threshold'] = set_scores.HALF if head.thresholds is None else head.thresholds
    name = _manifest_head(inputs.manifest, head)
    table['train'] = _train_counts(inputs.manifest, name, head.classes)
    probs = set_scores.sigmoid(head.logits)
    bins = scores.reliability_of(probs.ravel(), head.targets.ravel() == 1, scores.BINS)
    cards, wrong = _errors(head, inputs, probs, predicted)
    for card in cards:
        card['maps'] = overlays(card['id'], name or '', card['worst'])
    half = set_scores.set_scores(head.logits, head.targets)
    fitted = set_scores.decided(predicted, head.targets == 1)
    return dict(
        name=head.name, n=len(head.targets), classes=head.classes, cards=cards, wrong=wrong,
        rows=table.sort_values(['ap', 'n'], ascending=[True, False], kind='stable',
                               na_position='last').iloc[:_TABLE_ROWS].to_dict('records'),
        half=half, fitted=fitted if head.thresholds is not None else None,
        nested=inputs.split in _FITTED_ON,
        labels=float((head.targets == 1).sum(1).mean()),
        empty=int((head.targets == 0).all(1).sum()),
        methods=sorted({shown['method'] for card in cards for shown in card['maps']}),
        reliability=figures.reliability_diagram(bins), ece=half['ece'])


def _predicted(head: SetHead, inputs: RunInputs) -> np.ndarray:
    """The predicted sets, bool [N, C], by thresholds that were fitted on other rows."""
    if head.thresholds is not None and inputs.split in _FITTED_ON:
        table = inputs.manifest.table
        groups = dict(zip(table['id'], table['group'])) if 'group' in table else {}
        units = [groups.get(name) or f'id {name}' for name in head.ids.tolist()]
        nested = nested_sets(head.logits, head.targets, units)
        if nested is not None:
            return nested
        return set_scores.predicted_sets(head.logits)
    return set_scores.predicted_sets(head.logits, head.thresholds)


def _errors(head: SetHead, inputs: RunInputs, probs: np.ndarray, predicted: np.ndarray
            ) -> tuple[list[dict], int]:
    """The most confident errors as cards, and how many errors there are."""
    rows, worst = set_scores.confident_set_errors(head.logits, head.targets, predicted)
    wanted = set(head.ids[rows[:inputs.errors_per_head]].tolist())
    part = inputs.manifest.table[inputs.manifest.table['id'].isin(wanted)]
    locations = dict(zip(part['id'], part['location'].astype(str)))
    cards = []
    for row, place in zip(rows[:inputs.errors_per_head], worst):
        picture = example_pictures.picture_of(str(head.ids[row]), locations, inputs.thumbnail)
        if picture['over']:
            break
        truth = head.targets[row] == 1
        cards.append(dict(
            picture, worst=head.classes[place], p=float(probs[row, place]),
            right=[head.classes[k] for k in np.flatnonzero(truth & predicted[row])][:_SHOWN],
            missed=[(head.classes[k], float(probs[row, k]))
                    for k in np.flatnonzero(truth & ~predicted[row])][:_SHOWN],
            added=[(head.classes[k], float(probs[row, k]))
                   for k in np.flatnonzero(~truth & predicted[row])][:_SHOWN],
            truth=joined(np.flatnonzero(truth), head.classes, ', ')))
    return cards, len(rows)


def _manifest_head(manifest: Manifest, head: SetHead) -> str | None:
    if head.name:
        return head.name if head.name in manifest.label_sets else None
    return next(iter(manifest.label_sets), None)


def _train_counts(manifest: Manifest, name: str | None, classes) -> list[int | None]:
    if name is None or 'split' not in manifest.table:
        return [None] * len(classes)
    rows = (manifest.table['split'] == 'train').to_numpy()
    counts = class_counts(manifest.select(rows), name)
    by_name = dict(zip(manifest.classes[name], counts.tolist()))
    return [by_name.get(one) for one in classes]
