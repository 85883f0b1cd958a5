"""Which pictures a report shows: of the best and worst classes, of confusions, of errors."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from input_pipeline.manifest import Manifest
from train_lib.metrics.scores import confident_errors, softmax, top_probability
from train_lib.reporting.inputs import Head

_EXAMPLES = 3
_SAMPLES = 4


def manifest_head(manifest: Manifest, head: Head) -> str | None:
    """The manifest's head that a head of the predictions belongs to, None for none."""
    if head.name in manifest.classes:
        return head.name
    for name, classes in manifest.classes.items():
        if set(classes) == set(head.classes):
            return name
    return None


def examples_by_class(manifest: Manifest, head: Head) -> dict[str, list[str]]:
    """Class name -> locations of up to three training pictures, spread over the class.

    They are taken at even distances: where rows are sorted by person, they show three persons.
    """
    name = manifest_head(manifest, head)
    table = manifest.table
    if name is None or 'split' not in table:
        return {}
    rows = table[(table['split'] == 'train') & (table[f'label/{name}'] >= 0)]
    return {manifest.classes[name][label]: _spread(part['location'].tolist(), _EXAMPLES)
            for label, part in rows.groupby(f'label/{name}')}


def _spread(items: list, count: int) -> list:
    if len(items) <= count:
        return items
    return [items[round(k)] for k in np.linspace(0, len(items) - 1, count)]


def extremes(head: Head, table: pd.DataFrame, locations: Mapping[str, str],
             thumbnail: Callable) -> list[dict]:
    """The three classes of lowest and of highest F1 with pictures, the worst first.

    Args:
        head: the predictions.
        table: `scores.class_table` of the head.
        locations: id -> location.
        thumbnail: of `thumbnails.thumbnailer`.

    Returns:
        [dict(title=, classes=[dict(row=, pictures=)])]. A class is never in both; with fewer
        than six classes each side takes half of them. Misclassified pictures come first in a
        worst class and last in a best one, the most confident first.
    """
    seen = table[table['n'] > 0].sort_values(['f1', 'n'], ascending=[True, False], kind='stable')
    count = min(3, len(seen) // 2)
    if not count:
        return []
    probs_top, predicted = top_probability(head.logits), head.logits.argmax(axis=1)
    sides = []
    for title, rows, worst in [('Hardest classes', seen.iloc[:count], True),
                               ('Easiest classes', seen.iloc[::-1].iloc[:count], False)]:
        classes = []
        for position, row in rows.iterrows():
            mine = np.flatnonzero(head.labels == position)
            wrong = predicted[mine] != position
            first = ~wrong if worst else wrong
            order = mine[np.lexsort((-probs_top[mine], first))][:_SAMPLES]
            pictures = [
                dict(picture_of(head.ids[k], locations, thumbnail),
                     wrong=bool(predicted[k] != position), predicted=head.classes[predicted[k]])
                for k in order]
            classes.append(dict(row=row, pictures=pictures))
        sides.append(dict(title=title, classes=classes))
    return sides


def errors(head: Head, locations: Mapping[str, str], examples: Mapping[str, list[str]],
           thumbnail: Callable, most: int) -> tuple[list[dict], int]:
    """The errors of highest confidence, and the total number of errors.

    Each is a dict: id, picture, true and predicted (class name), p_true and p_predicted
    (0..1), of_true and of_predicted (thumbnails of training pictures).
    """
    order = confident_errors(head.logits, head.labels)
    predicted = head.logits.argmax(axis=1)
    cards = []
    for k in order[:most]:
        picture = picture_of(head.ids[k], locations, thumbnail)
        if picture['over']:
            break
        true, guess = head.classes[head.labels[k]], head.classes[predicted[k]]
        cards.append(dict(
            picture, true=true, predicted=guess,
            p_predicted=float(softmax(head.logits[k]).max()),
            p_true=float(softmax(head.logits[k])[head.labels[k]]),
            of_true=_thumbnails(examples.get(true, ()), thumbnail),
            of_predicted=_thumbnails(examples.get(guess, ()), thumbnail)))
    return cards, len(order)


def confused(head: Head, true: int, predicted: int, locations: Mapping[str, str],
             thumbnail: Callable) -> list[dict]:
    """Up to three pictures of one class that were predicted as another, most confident first."""
    rows = np.flatnonzero((head.labels == true) & (head.logits.argmax(axis=1) == predicted))
    rows = rows[np.argsort(-top_probability(head.logits[rows]), kind='stable')]
    return [picture_of(head.ids[k], locations, thumbnail) for k in rows[:_EXAMPLES]]


def picture_of(name: str, locations: Mapping[str, str], thumbnail: Callable) -> dict:
    """The thumbnail of the picture with this id: uri, small, id, and whether the budget is over."""
    location = locations.get(name)
    found = dict(uri='', small=False) if location is None else thumbnail(location)
    return dict(found or dict(uri='', small=False), id=name, over=found is None)


def _thumbnails(places, thumbnail: Callable) -> list[dict]:
    return [found for place in places if (found := thumbnail(place)) is not None]
