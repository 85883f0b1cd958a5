"""What a report says of one head: confusion, pairs, classes, calibration, errors."""

from collections.abc import Callable, Mapping

import numpy as np

from input_pipeline.manifest import Manifest
from train_lib.metrics import scores
from train_lib.reporting import figures, gallery
from train_lib.reporting.inputs import Head
from train_lib.reporting.overlays import Overlays

_COUNTS_UP_TO = 30  # classes for which the confusion matrix is a table of counts
_TABLE_ROWS = 1000  # of the class table; beyond, the classes of lowest F1 are shown
_PAIRS = 15


def head_block(head: Head, manifest: Manifest, thumbnail: Callable, overlays: Overlays,
               most: int) -> dict:
    """What the template shows of one head.

    Args:
        head: of `inputs.read_predictions`.
        manifest: the run's data, with the column `split`.
        thumbnail: of `gallery.thumbnailer`.
        overlays: heat maps of errors.
        most: errors shown.
    """
    table = scores.class_table(head.logits, head.labels, head.classes)
    examples = gallery.examples_by_class(manifest, head)
    wanted = set(head.ids.tolist())
    part = manifest.table[manifest.table['id'].isin(wanted)]
    locations = dict(zip(part['id'], part['location'].astype(str)))
    bins = scores.reliability(head.logits, head.labels)
    sides = gallery.extremes(head, table, locations, thumbnail)
    name = gallery.manifest_head(manifest, head)
    cards, wrong = gallery.errors(head, locations, examples, thumbnail, most)
    for card in cards:
        card['maps'] = overlays(card['id'], name, card['predicted'])
    marks = {one['row']['class']: mark for side, mark in zip(sides, ('hardest', 'easiest'))
             for one in side['classes']}
    table['train'] = _train_counts(manifest, name, head.classes)
    matrix = head.confusion
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small = len(head.classes) <= _COUNTS_UP_TO
    return dict(
        name=head.name, classes=head.classes, n=len(head.labels),
        counts=matrix.tolist() if small else None, shares=shares.tolist() if small else None,
        heat=None if small else figures.heat_map(matrix),
        blocks=[] if small else _blocks(head.classes), marks=marks,
        pairs=_pairs(head, shares, locations, thumbnail),
        rows=table.sort_values(['f1', 'n'], ascending=[True, False], kind='stable')
        .iloc[:_TABLE_ROWS].to_dict('records'),
        sides=sides, cards=cards, wrong=wrong, examples=bool(examples),
        methods=sorted({shown['method'] for card in cards for shown in card['maps']}),
        reliability=figures.reliability_diagram(bins),
        ece=scores.expected_calibration_error(bins),
        confidence=float((bins['confidence'].fillna(0) * bins['n']).sum() / bins['n'].sum()),
        accuracy=float(np.trace(matrix) / max(1, matrix.sum())))


def _train_counts(manifest: Manifest, name: str | None, classes) -> list[int | None]:
    if name is None or 'split' not in manifest.table:
        return [None] * len(classes)
    labels = manifest.labels(name)[(manifest.table['split'] == 'train').to_numpy()]
    counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes[name]))
    by_name = dict(zip(manifest.classes[name], counts.tolist()))
    return [by_name.get(one) for one in classes]


def _pairs(head: Head, shares: np.ndarray, locations: Mapping[str, str], thumbnail: Callable
           ) -> list[dict]:
    """The most frequent confusions, by count, then by share of the true class, with pictures."""
    matrix, classes = head.confusion, head.classes
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    true, predicted = np.nonzero(wrong)
    order = np.lexsort((-shares[true, predicted], -wrong[true, predicted]))[:_PAIRS]
    return [dict(true=classes[i], predicted=classes[j], count=int(matrix[i, j]),
                 share=float(shares[i, j]),
                 pictures=gallery.confused(head, i, j, locations, thumbnail))
            for i, j in zip(true[order], predicted[order])]


def _blocks(classes) -> list[tuple[str, int]]:
    """Runs of classes with one folder before the '/', (folder, size); [] for no such order."""
    blocks = []
    for name in classes:
        folder = name.rpartition('/')[0]
        if blocks and blocks[-1][0] == folder:
            blocks[-1][1] += 1
        else:
            blocks.append([folder, 1])
    tidy = 2 <= len(blocks) <= 12 and all(folder for folder, _ in blocks)
    return [tuple(block) for block in blocks] if tidy else []
