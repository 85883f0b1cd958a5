"""Pictures of a report: thumbnails, the best and worst classes, the errors."""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
import pandas as pd

from input_pipeline.manifest import Manifest
from train_lib.metrics.scores import confident_errors, softmax, top_probability
from train_lib.reporting.figures import png_uri, webp_uri
from train_lib.reporting.inputs import Head

SIDE = 96
BUDGET = 3_200_000  # characters of data URIs in a report, which shall stay under 5 MB
_EXAMPLES = 3
_SAMPLES = 4


def thumbnailer(read_image: Callable, budget: int = BUDGET) -> Callable[[str], dict | None]:
    """A function location -> dict(uri=, small=), or None once the budget is spent.

    `uri` is '' for a picture that cannot be read, `small` tells pictures of up to 32
    pixels, which are kept as they are (PNG) and shown with hard edges; others are shrunk
    to at most 96 pixels (WebP). A location is read once.
    """
    cache, spent = {}, 0

    def thumbnail(location: str) -> dict | None:
        nonlocal spent
        if location not in cache:
            if spent >= budget:
                return None
            cache[location] = _thumbnail(read_image, location)
        # The page holds one copy for each place where the picture is shown.
        spent += len(cache[location]['uri'])
        return cache[location]

    return thumbnail


def _thumbnail(read_image: Callable, location: str) -> dict:
    try:
        image = np.asarray(read_image(location))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f'{image.dtype} {image.shape}')
    except Exception:
        # Whatever keeps one picture from being read, the rest of the report is wanted.
        return dict(uri='', small=False)
    image = np.ascontiguousarray(image[..., ::-1])
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest <= 32:
        return dict(uri=png_uri(image), small=True)
    if longest > SIDE:
        size = (max(1, round(width * SIDE / longest)), max(1, round(height * SIDE / longest)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return dict(uri=webp_uri(image), small=False)


def manifest_head(manifest: Manifest, head: Head) -> str | None:
    """The manifest's head that a head of the predictions is about, None for none."""
    if head.name in manifest.classes:
        return head.name
    for name, classes in manifest.classes.items():
        if set(classes) == set(head.classes):
            return name
    return None


def examples_by_class(manifest: Manifest, head: Head) -> dict[str, list[str]]:
    """Class name -> locations of up to three training pictures, spread over the class.

    Taken at even distances, so that with rows sorted by person they show three persons.
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
    """The three classes of lowest and of highest F1 with pictures: worst first.

    Args:
        table: `scores.class_table` of the head.
        locations: id -> location.

    Returns:
        [dict(title=, classes=[dict(row=, pictures=)])]. A class is never in both; with
        fewer than six classes each side takes half of them. Misread pictures come first
        in a worst class, most confident first, and last in a best one.
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
                dict(_picture(head.ids[k], locations, thumbnail),
                     wrong=bool(predicted[k] != position), predicted=head.classes[predicted[k]])
                for k in order]
            classes.append(dict(row=row, pictures=pictures))
        sides.append(dict(title=title, classes=classes))
    return sides


def errors(head: Head, locations: Mapping[str, str], examples: Mapping[str, list[str]],
           thumbnail: Callable, most: int) -> tuple[list[dict], int]:
    """The errors of highest confidence, and how many errors there are in all.

    Each is a dict: id, picture, true and predicted (class name), p_true and p_predicted
    (0..1), of_true and of_predicted (thumbnails of training pictures).
    """
    order = confident_errors(head.logits, head.labels)
    predicted = head.logits.argmax(axis=1)
    cards = []
    for k in order[:most]:
        picture = _picture(head.ids[k], locations, thumbnail)
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
    """Up to three pictures of one class that were taken for another, most confident first."""
    rows = np.flatnonzero((head.labels == true) & (head.logits.argmax(axis=1) == predicted))
    rows = rows[np.argsort(-top_probability(head.logits[rows]), kind='stable')]
    return [_picture(head.ids[k], locations, thumbnail) for k in rows[:_EXAMPLES]]


def _picture(name: str, locations: Mapping[str, str], thumbnail: Callable) -> dict:
    location = locations.get(name)
    found = dict(uri='', small=False) if location is None else thumbnail(location)
    return dict(found or dict(uri='', small=False), id=name, over=found is None)


def _thumbnails(places, thumbnail: Callable) -> list[dict]:
    return [found for place in places if (found := thumbnail(place)) is not None]
