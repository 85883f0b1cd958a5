"""Pictures with coloured squares, whose colours are the labels of a multi-label head 'tags'; the
other head, 'kind', has one label."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

TAGS = ('blue', 'green', 'red')
COLOURS = dict(red=(220, 20, 20), green=(20, 200, 20), blue=(20, 20, 220))


def make_tagged(folder: Path, count: int = 60, shares=(0.6, 0.5, 0.2)) -> Path:
    """Writes pictures and t.csv (image, tags, kind, group); every tenth has no tags. `shares`: how
    often each tag occurs. Returns the table."""
    rng = np.random.default_rng(0)
    rows = [['image', 'tags', 'kind', 'group']]
    for k in range(count):
        picture = rng.integers(180, 220, (16, 16, 3)).astype(np.uint8)
        tags = [tag for tag, share in zip(TAGS, shares) if rng.random() < share]
        for tag in tags:
            y, x = rng.integers(0, 10, 2)
            picture[y:y + 6, x:x + 6] = COLOURS[tag]
        Image.fromarray(picture).save(folder / f'{k:02}.png')
        rows.append([f'{k:02}.png', '' if k % 10 == 9 else '|'.join(tags) or '|',
                     'odd' if len(tags) % 2 else 'even', f'g{k // 2}'])
    with open(folder / 't.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows)
    return folder / 't.csv'
