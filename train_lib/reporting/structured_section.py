"""The section of classes that have an order or are leaves of a tree, of a run and of its folds."""

from train_lib.metrics.structured import level_scores, ordinal_scores
from train_lib.reporting.inputs import RunInputs, as_dict
from train_lib.reporting.page import Section, render


def structure_section(inputs: RunInputs) -> list[Section]:
    """How far predictions are off where classes have an order, and how often the right node of a
    tree is found, of the predictions that the page shows."""
    data, model = (as_dict(inputs.config.get(key)) for key in ('data', 'model'))
    order = model.get('head_order') or ()
    named = {*([data.get('ordered')] if isinstance(data.get('ordered'), str)
               else data.get('ordered') or ()), *(order if not isinstance(order, str) else ())}
    ordered, levels = [], []
    for head in inputs.heads:
        name = head.name or inputs.manifest.heads[0]
        if name in named or (order and isinstance(order, str)):
            ordered.append(dict(head=head.name, first=head.classes[0], last=head.classes[-1],
                                **ordinal_scores(head.logits, head.labels)))
        if '/' not in name:
            levels += [dict(head=head.name, **level) for level in
                       level_scores(head.logits, head.labels, head.classes)]
    if not ordered and not levels:
        return []
    return [Section('structure', 'Order and levels of the classes', render(
        'structure.html.jinja', split=inputs.split, ordered=ordered, levels=levels,
        several=len(inputs.heads) > 1))]
