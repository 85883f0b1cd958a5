"""`doodles`, the built-in data set: sketches by imaginary writers, without any file.

Every picture is a pure function of its location, such as
`doodles:seed=0,size=96,class=house,writer=7,drawing=1,tool=pen`, and every row of
the manifest is a pure function of the settings of `load`. What is planted on purpose
(copies, wrong labels, photographs, wild writers) is recorded in the `truth/*` columns.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest, make_manifest
from input_pipeline.sources.doodles import (
    figures_animals,
    figures_home,
    figures_nature,
    figures_travel,
    figures_wear,
    pen,
    plants,
)
from input_pipeline.sources.doodles.shapes import Vary
from input_pipeline.sources.doodles.writers import TOOLS, make_writer

FIGURES = {**figures_travel.FIGURES, **figures_nature.FIGURES, **figures_animals.FIGURES,
           **figures_home.FIGURES, **figures_wear.FIGURES}
# Smaller data sets have the first k classes, so the order mixes all kinds of things.
CLASSES = (
    'house', 'tree', 'fish', 'cup', 'umbrella', 'bicycle', 'cat', 'flower', 'car', 'sailboat',
    'key', 'butterfly', 'guitar', 'cactus', 'clock', 'snail', 'chair', 'sun', 'scissors', 'bird',
    'glasses', 'mushroom', 'rocket', 't-shirt', 'ice-cream', 'anchor', 'lamp', 'spider',
    'envelope', 'moon', 'turtle', 'train', 'hammer', 'apple', 'candle', 'mountain', 'shoe',
    'star', 'book', 'snowman', 'airplane', 'bell', 'leaf', 'table', 'heart', 'ladder', 'hat',
    'cloud',
)
HEADS = {'class': CLASSES, 'tool': TOOLS}
_TOOL, _PLANT = 0x7001, 0x9147  # they separate the random streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoodlesSpec:
    """A data set of doodles (config.data.doodles).

    Attributes:
        classes: how many of CLASSES, from the first; 1 to 48.
        per_class: drawings of the most frequent class.
        writers: number of people ('w00', 'w01', ...); the person is the group of a row.
        size: side of the pictures in pixels, 16 to 1024.
        seed: another seed gives other people and other drawings.
        heads: which labels there are: 'class', 'tool'.
        imbalance: counts fall exponentially from per_class to per_class / imbalance, but not
            below 2. The drawings that stay are chosen at random, so that rare classes are not all
            by the first writers.
        wild_writers: the last so many writers turn (up to 40 degrees), mirror and bend their
            paper: truth/wild.
        near_duplicates: altered copies to add, as a share of the drawings. A copy keeps its
            label and gets another random writer (a wild one if the drawing is wild and there are
            two), as leaks do in real data: truth/duplicate_of (an id or ''), truth/alteration.
        wrong_labels: share of the drawings whose label/class is replaced by another class;
            copies inherit the mistake. truth/class keeps the right index.
        photos: photograph-like pictures to add, as a share of the drawings, with random labels
            and writers: truth/photo; their truth/class is -1.
    """

    classes: int = 48
    per_class: int = 80
    writers: int = 40
    size: int = 96
    seed: int = 0
    heads: Sequence[str] = ('class',)
    imbalance: float = 1.0
    wild_writers: int = 0
    near_duplicates: float = 0.0
    wrong_labels: float = 0.0
    photos: float = 0.0


def load(**settings) -> Manifest:
    """The manifest of a data set of doodles.

    Drawing i of a class is by writer i % writers. It is the same picture whatever the other
    settings are. Rows: the drawings by class, then the copies, then the photographs.

    Args:
        **settings: fields of `DoodlesSpec`.

    Raises:
        DataError: a value is out of range.
    """
    spec = DoodlesSpec(**settings)
    heads = (spec.heads,) if isinstance(spec.heads, str) else tuple(spec.heads)
    _check(dataclasses.replace(spec, heads=heads))
    classes, per_class, writers, seed, size = (
        spec.classes, spec.per_class, spec.writers, spec.seed, spec.size)

    names, width = CLASSES[:classes], len(str(writers - 1)) if writers > 100 else 2
    people = [f'w{w:0{width}d}' for w in range(writers)]
    rng = np.random.default_rng((seed, _PLANT))
    ids, where, labels, tools, who = [], [], [], [], []
    for c, count in enumerate(_counts(classes, per_class, spec.imbalance)):
        kept = range(per_class)
        if count < per_class:
            kept = np.sort(np.random.default_rng((seed, _PLANT, c)).permutation(per_class)[:count])
            kept = kept.tolist()
        held = _tools(seed, names[c], per_class, writers)
        for i in kept:
            writer, drawing = i % writers, i // writers
            wild = ',wild=1' if writer >= writers - spec.wild_writers else ''
            ids.append(f'{names[c]}/{people[writer]}-{drawing:02d}')
            where.append(f'doodles:seed={seed},size={size},class={names[c]},writer={writer},'
                         f'drawing={drawing},tool={TOOLS[held[i]]}{wild}')
            labels.append(c)
            tools.append(held[i])
            who.append(writer)
    drawn = len(ids)
    truth, who = np.array(labels), np.array(who)
    wild = who >= writers - spec.wild_writers
    labels = _with_wrong_labels(truth, classes, spec.wrong_labels, rng)
    source, alterations, borrowed = _copies(who, wild, writers, spec.near_duplicates, rng)
    extra = round(spec.photos * drawn)

    def column(values, of_photos) -> np.ndarray:
        values = np.asarray(values)
        return np.concatenate([values, values[source], np.full(extra, of_photos, values.dtype)
                               if np.isscalar(of_photos) else of_photos])

    none = [''] * drawn
    columns = {
        'id': ids + [f'{names[truth[s]]}/copy-{j:04d}' for j, s in enumerate(source)]
        + [f'photo/{j:04d}' for j in range(extra)],
        'location': where + [f'{where[s]},alter={a}' for s, a in zip(source, alterations)]
        + [f'doodles:seed={seed},size={size},photo={j}' for j in range(extra)],
        'group': [people[w] for w in np.concatenate(
            [who, borrowed, rng.integers(writers, size=extra)]).tolist()],
        'label/class': column(labels, rng.integers(classes, size=extra)),
        'label/tool': column(tools, rng.integers(len(TOOLS), size=extra)),
        'truth/class': column(truth, -1),
        'truth/wild': column(wild, False),
        'truth/duplicate_of': none + [ids[s] for s in source] + [''] * extra,
        'truth/alteration': none + alterations + [''] * extra,
        'truth/photo': np.arange(drawn + len(source) + extra) >= drawn + len(source),
    }
    for head in HEADS:
        if head not in heads:
            del columns[f'label/{head}']
    return make_manifest(columns, {head: HEADS[head][:classes] if head == 'class' else HEADS[head]
                                   for head in heads}, root='doodles')


def read(location: str) -> np.ndarray:
    """The picture at a location that `load` gave: uint8 [size, size, 3], RGB.

    Raises:
        DataError: it is not the location of a doodle.
    """
    part = _parse(location)
    if 'photo' in part:
        return plants.photo(part['seed'], part['photo'], part['size'])
    rng = np.random.default_rng((part['seed'], _name_key(part['class']), part['writer'],
                                 part['drawing']))
    strokes = FIGURES[part['class']](Vary(rng))
    image = pen.draw(strokes, make_writer(part['seed'], part['writer']), part['tool'], rng,
                     part['size'], wild=part.get('wild') == 1)
    return plants.alter(image, part['alter']) if 'alter' in part else image


def _name_key(name: str) -> int:
    """A number for the random stream of a class; it does not depend on the other classes."""
    return zlib.crc32(name.encode())


def _counts(classes: int, per_class: int, imbalance: float) -> list[int]:
    """Drawings of each class: exponential, as in long-tailed CIFAR (Cui et al., 2019)."""
    at = np.arange(classes) / max(classes - 1, 1)
    counts = np.rint(per_class * imbalance ** -at).astype(int)
    return np.maximum(counts, min(2, per_class)).tolist()


def _tools(seed: int, name: str, per_class: int, writers: int) -> list[int]:
    """Index into TOOLS of each drawing of a class; each writer has favourite tools."""
    chance = np.cumsum([make_writer(seed, w).tools for w in range(min(writers, per_class))], 1)
    u = np.random.default_rng((seed, _TOOL, _name_key(name))).random(per_class)
    held = (u[:, None] > chance[np.arange(per_class) % writers]).sum(1)
    return np.minimum(held, len(TOOLS) - 1).tolist()


def _with_wrong_labels(truth: np.ndarray, classes: int, share: float,
                       rng: np.random.Generator) -> np.ndarray:
    labels = truth.copy()
    rows = rng.permutation(len(truth))[:round(share * len(truth))]
    if len(rows):
        labels[rows] = (truth[rows] + rng.integers(1, classes, size=len(rows))) % classes
    return labels


def _copies(who: np.ndarray, wild: np.ndarray, writers: int, share: float,
            rng: np.random.Generator) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(rows to copy, alteration of each copy, writer that each copy is attributed to)"""
    count = round(share * len(who))
    source = rng.permutation(len(who))[:count]
    # Each kind of alteration gets an equal share; crop and brightness have two strengths.
    kinds = np.array(('crop-3', 'crop-10', 'flip', 'flip', 'jpeg-50', 'jpeg-50',
                      'brightness-1.2', 'brightness-0.8'))
    alterations = kinds[rng.integers(len(kinds), size=count)].tolist()
    borrowed = np.zeros(count, int)
    wild_writers = np.unique(who[wild])
    tame_writers = np.setdiff1d(np.arange(writers), wild_writers)
    for j, row in enumerate(source.tolist()):
        pool = wild_writers if wild[row] else tame_writers
        others = pool[pool != who[row]]
        if not len(others):
            others = np.setdiff1d(np.arange(writers), who[row])
        borrowed[j] = others[rng.integers(len(others))]
    return source, alterations, borrowed


def _check_whole(key: str, value, low: int, high: int) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise DataError(f'data.doodles.{key} is {value!r}: '
                        f'use a whole number from {low} to {high}.')


def _check_number(key: str, value, low: float, high: float) -> None:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise DataError(f'data.doodles.{key} is {value!r}: use a number from {low} to {high:g}.')


def _check(spec: DoodlesSpec) -> None:
    for key, low, high in (
            ('classes', 1, len(CLASSES)), ('per_class', 1, 10**6), ('writers', 1, 10**5),
            ('size', 16, 1024), ('seed', 0, 2**63), ('wild_writers', 0, spec.writers)):
        _check_whole(key, getattr(spec, key), low, high)
    for key in ('near_duplicates', 'wrong_labels', 'photos'):
        _check_number(key, getattr(spec, key), 0, 1)
    _check_number('imbalance', spec.imbalance, 1, 1e6)
    heads = spec.heads
    unknown = [head for head in heads if not isinstance(head, str) or head not in HEADS]
    if unknown or not heads or len(set(heads)) < len(heads):
        raise DataError(f"data.doodles.heads is {heads!r}: "
                        f"use one or both of 'class' and 'tool', each once.")
    if spec.near_duplicates and spec.writers < 2:
        raise DataError(f'data.doodles.near_duplicates is {spec.near_duplicates!r}, but there is '
                        f'only one writer: set data.doodles.writers to 2 or more.')
    if spec.wrong_labels and (spec.classes < 2 or 'class' not in heads):
        raise DataError(f"data.doodles.wrong_labels is {spec.wrong_labels!r}, which needs the head "
                        f"'class' and two classes or more: set it to 0 or change those.")


def _parse(location: str) -> dict:
    """The parts of a location, checked."""
    scheme, _, rest = location.partition(':')
    pairs = [pair.partition('=')[::2] for pair in rest.split(',')]
    part = dict(pairs)
    wanted = {'seed', 'size', 'photo'} if 'photo' in part else {
        'seed', 'size', 'class', 'writer', 'drawing', 'tool'}
    optional = set() if 'photo' in part else {'wild', 'alter'}
    good = (scheme == 'doodles' and len(pairs) == len(part) and wanted <= set(part)
            and set(part) <= wanted | optional)
    for key in ('seed', 'size', 'writer', 'drawing', 'wild', 'photo'):
        if good and key in part:
            good = part[key].isascii() and part[key].isdigit()
            part[key] = int(part[key]) if good else -1
    good = (good and 16 <= part['size'] <= 1024
            and part.get('class', CLASSES[0]) in FIGURES and part.get('tool', TOOLS[0]) in TOOLS
            and part.get('alter', 'flip') in plants.ALTERATIONS and part.get('wild', 0) in (0, 1))
    if not good:
        raise DataError(
            f'The location {location!r} is not that of a doodle: use one of the manifest, like '
            f"'doodles:seed=0,size=96,class=house,writer=7,drawing=1,tool=pen'.")
    return part
