"""What a report shows of each head: confusion, pairs, classes, calibration, errors."""

from collections.abc import Callable, Mapping

import numpy as np
from markupsafe import Markup

from input_pipeline.manifest import Manifest
from train_lib.metrics import scores
from train_lib.reporting import example_pictures, figures
from train_lib.reporting.inputs import Head, RunInputs
from train_lib.reporting.overlays import Overlays
from train_lib.reporting.page import Section, render
from train_lib.reporting.set_classes import set_head_values

_TITLE = 'Classes and errors'
_COUNTS_UP_TO = 30  # classes; for more, the confusion matrix is a picture, not a table of counts
_TABLE_ROWS = 1000  # of the class table; of more classes, those of lowest F1 are shown
_PAIRS = 15


def head_sections(inputs: RunInputs) -> list[Section]:
    """A section for each head; without predictions, one that says why."""
    if not inputs.heads and not inputs.set_heads:
        return [Section('head-1', _TITLE, render('run_no_head.html.jinja', inputs=inputs))]
    overlays = Overlays(inputs.heat_maps)
    sections = []
    for number, head in enumerate(inputs.heads, 1):
        title = (Markup('<span class="name">{}</span>: classes and errors').format(head.name)
                 if head.name else _TITLE)
        body = render('run_head.html.jinja', inputs=inputs, number=number,
                      head=_head_values(head, inputs, overlays))
        sections.append(Section(f'head-{number}', title, body, label=head.name or _TITLE))
    for number, several in enumerate(inputs.set_heads, len(sections) + 1):
        title = (Markup('<span class="name">{}</span>: labels and errors').format(several.name)
                 if several.name else 'Labels and errors')
        body = render('run_set_head.html.jinja', inputs=inputs,
                      head=set_head_values(several, inputs, overlays))
        sections.append(Section(f'head-{number}', title, body, label=several.name or title))
    return sections


def _head_values(head: Head, inputs: RunInputs, overlays: Overlays) -> dict:
    """What the template shows of one head."""
    manifest, thumbnail = inputs.manifest, inputs.thumbnail
    table = scores.class_table(head.logits, head.labels, head.classes)
    examples = example_pictures.examples_by_class(manifest, head)
    wanted = set(head.ids.tolist())
    part = manifest.table[manifest.table['id'].isin(wanted)]
    locations = dict(zip(part['id'], part['location'].astype(str)))
    bins = scores.reliability(head.logits, head.labels)
    sides = example_pictures.extremes(head, table, locations, thumbnail)
    name = example_pictures.manifest_head(manifest, head)
    cards, wrong = example_pictures.errors(head, locations, examples, thumbnail,
                                           inputs.errors_per_head)
    for card in cards:
        card['maps'] = overlays(card['id'], name, card['predicted'])
    marks = {one['row']['class']: mark for side, mark in zip(sides, ('hardest', 'easiest'))
             for one in side['classes']}
    table['train'] = _train_counts(manifest, name, head.classes)
    found, small = head.confusion, len(head.classes) <= _COUNTS_UP_TO
    counts = shares = None
    if small:
        counts = found.matrix()
        shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).tolist()
        counts = counts.tolist()
    return dict(
        name=head.name, classes=head.classes, n=len(head.labels),
        counts=counts, shares=shares, heat=None if small else figures.heat_map(found),
        blocks=[] if small else _blocks(head.classes), marks=marks,
        pairs=_pairs(head, locations, thumbnail),
        rows=table.sort_values(['f1', 'n'], ascending=[True, False], kind='stable')
        .iloc[:_TABLE_ROWS].to_dict('records'),
        sides=sides, cards=cards, wrong=wrong, examples=bool(examples),
        methods=sorted({shown['method'] for card in cards for shown in card['maps']}),
        reliability=figures.reliability_diagram(bins),
        ece=scores.expected_calibration_error(bins),
        confidence=float((bins['confidence'].fillna(0) * bins['n']).sum() / bins['n'].sum()),
        accuracy=float(found.right.sum() / max(1, found.count.sum())))


def _train_counts(manifest: Manifest, name: str | None, classes) -> list[int | None]:
    if name is None or 'split' not in manifest.table:
        return [None] * len(classes)
    labels = manifest.labels(name)[(manifest.table['split'] == 'train').to_numpy()]
    counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes[name]))
    by_name = dict(zip(manifest.classes[name], counts.tolist()))
    return [by_name.get(one) for one in classes]


def _pairs(head: Head, locations: Mapping[str, str], thumbnail: Callable) -> list[dict]:
    """The most frequent confusions, by count, then by share of the true class, with pictures."""
    found, classes = head.confusion, head.classes
    wrong = found.wrong()
    order = wrong[np.lexsort((-found.shares[wrong], -found.count[wrong]))[:_PAIRS]]
    cells = zip(found.true[order], found.predicted[order], found.count[order],
                found.shares[order])
    return [dict(true=classes[i], predicted=classes[j], count=int(count), share=float(share),
                 pictures=example_pictures.confused(head, i, j, locations, thumbnail))
            for i, j, count, share in cells]


def _blocks(classes) -> list[tuple[str, int]]:
    """Runs of classes that share the folder before the '/': (folder, size). [] if the classes are
    not in such an order."""
    blocks = []
    for name in classes:
        folder = name.rpartition('/')[0]
        if blocks and blocks[-1][0] == folder:
            blocks[-1][1] += 1
        else:
            blocks.append([folder, 1])
    tidy = 2 <= len(blocks) <= 12 and all(folder for folder, _ in blocks)
    return [tuple(block) for block in blocks] if tidy else []
