"""Labels of mirrored pictures: `swap` of a flip says which class a mirrored picture belongs to.

    dict(kind='hflip', swap={'left': 'right'})

A mirrored picture of `left` is one of `right`, and the other way round; classes that are not named
stay what they are. With several heads, `swap={'side': {'left': 'right'}, ...}` names them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from input_pipeline.errors import DataError, did_you_mean

# Kinds of transforms that mirror: twice the same gives the picture again, so classes form pairs.
MIRRORS = ('hflip', 'vflip', 'transpose')
# A swap as transforms keep it: ((head, ((class, partner), ...)), ...); head '' is the first one.
Swap = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

_LEFT_RIGHT = (('left', 'right'), ('왼', '오른'), ('좌', '우'))
_UP_DOWN = (('up', 'down'), ('top', 'bottom'), ('upper', 'lower'), ('위', '아래'), ('상', '하'))
_TURNS = (('clockwise', 'counterclockwise'), ('clockwise', 'counter-clockwise'),
          ('clockwise', 'counter_clockwise'), ('clockwise', 'anticlockwise'),
          ('clockwise', 'anti-clockwise'), ('clockwise', 'anti_clockwise'), ('cw', 'ccw'),
          ('시계', '반시계'))
_CORNERS = (('up', 'left'), ('top', 'left'), ('down', 'right'), ('bottom', 'right'))
# Words by which the names of two classes differ that a kind turns into each other.
_WORDS = {'hflip': (*_LEFT_RIGHT, *_TURNS), 'vflip': (*_UP_DOWN, *_TURNS),
          'transpose': (*_TURNS, *_CORNERS), 'rotate90': (*_LEFT_RIGHT, *_UP_DOWN, *_CORNERS)}


def read_swap(given: object, where: str) -> Swap:
    """Checks a `swap`, whose class names are not compared with those of the data yet.

    Args:
        given: {class: partner}, or {head: {class: partner}}; None or empty for none. One direction
            is enough.
        where: the config key, for errors.

    Raises:
        DataError: it is something else, or a class has two partners.
    """
    if given is None or (isinstance(given, Sequence) and not isinstance(given, str) and not given):
        return ()
    if not isinstance(given, Mapping):
        raise DataError(f"{where}swap={given!r}: give classes and their mirror images, such as "
                        f"swap={{'left': 'right'}}.")
    by_head = all(isinstance(value, Mapping) for value in given.values())
    found = []
    for head, pairs in given.items() if by_head else [('', given)]:
        partner: dict[str, str] = {}
        for one, other in pairs.items():
            if not isinstance(one, str) or not isinstance(other, str):
                raise DataError(f"{where}swap={given!r}: give names of classes, such as "
                                f"swap={{'left': 'right'}}.")
            for a, b in ((one, other), (other, one)):
                if partner.setdefault(a, b) != b:
                    raise DataError(f'{where}swap gives the class {a!r} two partners, '
                                    f'{partner[a]!r} and {b!r}: give it one.')
        if partner:
            found.append((str(head), tuple(sorted(partner.items()))))
    return tuple(found)


def partners_of(transforms: Iterable, classes: Mapping[str, Sequence[str]],
                where: str = 'config.curriculum') -> dict[Swap, dict[str, np.ndarray]]:
    """{swap: `partners`} of transforms that swap labels, each a `transforms.Transform`."""
    return {item.swap: partners(item.swap, classes, where) for item in transforms if item.swap}


def partners(swap: Swap, classes: Mapping[str, Sequence[str]], where: str
             ) -> dict[str, np.ndarray]:
    """The class that a mirrored picture of each class belongs to.

    Args:
        swap: from `read_swap`.
        classes: {head: names}.
        where: the config key, for errors.

    Returns:
        {head: int32 [C]} for the heads whose classes change.

    Raises:
        DataError: a head or a class is unknown.
    """
    found: dict[str, np.ndarray] = {}
    for head, pairs in swap:
        if head and head not in classes:
            raise DataError(f'{where}.swap names the head {head!r}, which does not exist: '
                            f'{did_you_mean(head, classes)}')
        head = head or next(iter(classes))
        names = classes[head]
        place = {name: number for number, name in enumerate(names)}
        numbers = np.arange(len(names), dtype=np.int32)
        for one, other in pairs:
            if one not in place:
                raise DataError(f'{where}.swap names the class {one!r}, which the head {head!r} '
                                f'does not have: {did_you_mean(one, names)}')
            numbers[place[one]] = place.get(other, 0)  # an unknown one has its turn as `one`
        found[head] = numbers
    return found


def permutation(transforms: Iterable, classes: Mapping[str, Sequence[str]],
                where: str = 'config.curriculum') -> dict[str, np.ndarray]:
    """The class that a picture of each class belongs to after all of these transforms, one after
    another: {head: int32 [C]} for the heads whose classes change; see `partners`."""
    found: dict[str, np.ndarray] = {}
    for item in transforms:
        for head, numbers in partners(item.swap, classes, where).items():
            found[head] = numbers[found[head]] if head in found else numbers
    return found


def mirrored(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Labels int32 [N] of mirrored pictures; -1, for no label, stays. See `partners`."""
    return np.where(labels < 0, labels, numbers[labels])


def mirror(columns: Mapping[str, np.ndarray], swaps: Sequence[Sequence[Swap]],
           partners_by_swap: Mapping[Swap, Mapping[str, np.ndarray]],
           multi_label: Collection[str] = ()) -> None:
    """Swaps what the columns of a batch say of mirrored examples, in place: 'label/<head>', and the
    rows over classes 'target/<head>' and 'teacher/<head>' [B, C].

    Args:
        columns: of the batch.
        swaps: of each example, in the order in which its flips were drawn.
        partners_by_swap: from `partners_of`.
        multi_label: heads whose 'label/<head>' is the number of a set, and stays.
    """
    for place, of_example in enumerate(swaps):
        for head, numbers in ((head, numbers) for swap in of_example
                              for head, numbers in partners_by_swap[swap].items()):
            if head not in multi_label:
                labels = columns[f'label/{head}']
                labels[place] = mirrored(labels[place], numbers)
            for name in (f'target/{head}', f'teacher/{head}'):
                if name in columns:
                    columns[name][place] = columns[name][place][numbers]


def warn_of(transforms: Iterable, classes: Mapping[str, Sequence[str]]) -> list[str]:
    """What is said of transforms that turn classes called left into those called right and leave
    their labels as they are: sentences of at most 60 characters, one per kind.

    Args:
        transforms: of any stages, each a `transforms.Transform`.
        classes: {head: names}.
    """
    said: dict[str, str] = {}
    for item in transforms:
        if not item.p or item.kind not in _WORDS or item.kind in said:
            continue
        swapped = {name for head, pairs in item.swap for name, _ in pairs}
        count, words = 0, ('', '')
        for names in classes.values():
            for pair in _pairs(names, _WORDS[item.kind], swapped):
                count, words = count + 1, words if count else pair
        if count:
            pairs = f'{words[0]}/{words[1]} ({count} pair{"s" * (count > 1)})'
            said[item.kind] = (f'{item.kind} without swap mirrors {pairs}'
                               if item.kind in MIRRORS else f'{item.kind} turns {pairs}')
    return list(said.values())


def _pairs(names: Sequence[str], words: Sequence[tuple[str, str]], swapped: set[str]
           ) -> list[tuple[str, str]]:
    """The words by which pairs of classes differ, one per pair that is not swapped."""
    folded = {name.casefold(): name for name in names}
    found: dict[frozenset[str], tuple[str, str]] = {}
    for one, other in words:
        for low, name in folded.items():
            partner = folded.get(low.replace(one, other)) if one in low else None
            if partner and not {name, partner} <= swapped:
                found.setdefault(frozenset((name, partner)), (one, other))
    return list(found.values())
