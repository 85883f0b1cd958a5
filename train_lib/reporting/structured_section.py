"""The section of classes that have an order or are leaves of a tree, of a run and of its folds."""

from collections.abc import Mapping, Sequence

from train_lib.metrics.structured import ORDER_SCORES, level_scores, ordinal_scores
from train_lib.predictions.class_order import ordered_of
from train_lib.reporting.inputs import RunInputs
from train_lib.reporting.page import Section, render


def vote_structure(result: Mapping, classes: Mapping[str, Sequence[str]]) -> dict:
    """The same of a vote, for the template: rows of the best single member and of every ensemble.

    Args:
        result: the content of vote.json, of rows with labels.
        classes: {head: names} of the heads that are voted on.
    """
    several = len(classes) > 1
    rows = [('best single member', result['best_single']), *result['ensembles'].items()]
    ordered, levels = [], []
    for head, names in classes.items():
        for name, entry in rows:
            found = entry.get('heads', {}).get(head, {}) if several else entry
            about = dict(vote=name, head=head, main=name == result['answer'])
            if 'mae' in found:
                ordered.append(dict(about, first=names[0], last=names[-1],
                                    **{key: found[key] for key in ORDER_SCORES}))
            levels += [dict(about, **level) for level in found.get('levels', ())]
    return dict(ordered=ordered, levels=levels, several=several, voters=True)


def structure_section(inputs: RunInputs) -> list[Section]:
    """How far predictions are off where classes have an order, and how often the right node of a
    tree is found, of the predictions that the page shows."""
    named = ordered_of(inputs.config, inputs.manifest.heads)
    ordered, levels = [], []
    for head in inputs.heads:
        name = head.name or inputs.manifest.heads[0]
        if name in named:
            ordered.append(dict(head=head.name, first=head.classes[0], last=head.classes[-1],
                                **ordinal_scores(head.logits, head.labels)))
        if '/' not in name:
            levels += [dict(head=head.name, **level) for level in
                       level_scores(head.logits, head.labels, head.classes)]
    if not ordered and not levels:
        return []
    return [Section('structure', 'Order and levels of the classes', render(
        'structure.html.jinja', split=inputs.split, ordered=ordered, levels=levels,
        several=len(inputs.heads) > 1, voters=False))]
