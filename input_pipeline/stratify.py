"""Draws rows of a Manifest: stratified by a head, groups kept whole, every class kept in train.

Groups of several rows are drawn among the near-optimal ways to deal them (`near_optimal`), or, as
older runs did, dealt by scikit-learn's StratifiedGroupKFold, whose seeds break ties only. Single
rows then fill each class up to its share, which is exact and works for classes of two images. A
multi-label head is dealt by iterative stratification (`iterative_split`).
"""

import dataclasses
import itertools
import logging
import warnings
from collections.abc import Callable

import numpy as np

from input_pipeline.errors import DataError
from input_pipeline.iterative_split import deal_sets, label_ranks
from input_pipeline.manifest import Manifest
from input_pipeline.near_optimal import class_shares, draw_parts, greedy_folds

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pool:
    """What a draw needs to know about the N rows of a manifest.

    Attributes:
        labels: int [N], of the stratified head; rows with -1 are never drawn. Of a multi-label
            head, the numbers of the sets.
        groups: int [N], 0 to N - 1; rows with the same number stay together.
        tokens: int [heads, N], number of the class among the classes of all heads, or -1; a
            multi-label head has as many rows as an image has labels at most.
        names: class names of the stratified head.
        ids: ids of the rows, for errors.
        sets: bool [S, C], the sets of labels of a multi-label head; else None.
    """

    labels: np.ndarray
    groups: np.ndarray
    tokens: np.ndarray
    names: tuple[str, ...]
    ids: tuple[str, ...]
    sets: np.ndarray | None = None


def make_pool(manifest: Manifest, head: str, *, grouped: bool) -> Pool:
    """The pool of a manifest; with `grouped` the rows of each group stay together."""
    groups = np.arange(len(manifest))
    if grouped and 'group' in manifest.table:
        names = manifest.table['group'].to_numpy(str)
        named = np.flatnonzero(names != '')
        _, first, inverse = np.unique(names[named], return_index=True, return_inverse=True)
        groups[named] = named[first][inverse]
    tokens, start = [], 0
    for name, classes in manifest.classes.items():
        several, labels = manifest.label_sets.get(name), manifest.numbers(name)
        tokens += [np.where(each >= 0, each + start, -1) for each in
                   ([labels] if several is None else label_ranks(several.table, labels))]
        start += len(classes)
    sets = manifest.label_sets.get(head)
    return Pool(labels=manifest.numbers(head), groups=groups, tokens=np.stack(tokens),
                names=manifest.classes[head], ids=tuple(manifest.table['id']),
                sets=None if sets is None else sets.table)


def draw_share(pool: Pool, rows: np.ndarray, share: float, seed: tuple[int, ...],
               tolerance: float = 0.0) -> np.ndarray:
    """Draws about a share of the labelled rows.

    Unlabelled rows follow their group. With few large groups, the result comes only as near
    to the share as the groups allow.

    Args:
        pool: N rows.
        rows: bool [N], the rows to draw from.
        share: 0 to 1.
        seed: of the draw.
        tolerance: by how much the class shares may be further off than in the greedy choice of
            groups, as a share of that error; 0: the greedy choice itself.

    Returns:
        bool [N], the rows drawn.

    Raises:
        DataError: a class has one image, or nothing may be drawn.
    """
    usable = _usable(pool, rows)
    wanted = share * usable.sum()
    rng = np.random.default_rng(seed)
    if pool.sets is not None:
        dealt = deal_sets(pool.sets, pool.labels, pool.groups, usable, (share, 1 - share), rng)
        chosen = _spare_classes(pool, usable, dealt == 0)
        return _whole_groups(pool, rows, usable, chosen)
    multiple = usable & _is_multiple(pool)
    single = usable & ~multiple
    chosen = _draw_groups(pool, (usable, multiple), share, tolerance, rng)
    if single.any() and chosen.sum() > 1.5 * wanted:
        chosen[:] = False  # the groups are too large for the share: single rows come nearer
    have = _class_counts(pool, single)
    want = np.clip(share * _class_counts(pool, usable) - _class_counts(pool, chosen), 0, have)
    total = max(round(wanted), 1) - chosen.sum()
    for label, number in enumerate(_round_to_total(want, have, total, rng)):
        places = np.flatnonzero(single & (pool.labels == label))
        chosen[rng.choice(places, number, replace=False)] = True
    return _whole_groups(pool, rows, usable, _spare_classes(pool, usable, chosen))


def _whole_groups(pool: Pool, rows: np.ndarray, usable: np.ndarray, chosen: np.ndarray
                  ) -> np.ndarray:
    """The chosen rows and those of their groups, bool [N]; refuses an empty choice."""
    if not chosen.any():
        raise DataError(
            f'{count_images(usable.sum())} in {len(np.unique(pool.groups[usable]))} groups cannot '
            f'be split so that every class trains: add images, or change the split settings.')
    return rows & np.isin(pool.groups, pool.groups[chosen])


def draw_folds(pool: Pool, rows: np.ndarray, folds: int, seed: tuple[int, ...],
               tolerance: float = 0.0) -> np.ndarray:
    """Fold of each row, int [N]; -1 for rows outside the mask `rows` or never held out.

    Whichever fold is held out, every class has rows in the others. For `tolerance` see
    `draw_share`.

    Raises:
        DataError: a class has one image, or there are more folds than can be made.
    """
    usable = _usable(pool, rows)
    rng = np.random.default_rng(seed)
    groups = len(np.unique(pool.groups[usable]))
    if groups < folds:
        raise DataError(f'split.folds={folds} is more than the {groups} groups or images that '
                        f'can be held out: use fewer folds.')
    multiple = usable & _is_multiple(pool)
    if pool.sets is not None:
        fold = deal_sets(pool.sets, pool.labels, pool.groups, usable, (1 / folds,) * folds, rng)
    else:
        fold = _deal_groups(pool, multiple, folds, rng) if not tolerance else \
            _draw_group_folds(pool, (usable, multiple), folds, tolerance, rng)
    totals = np.bincount(fold[multiple], minlength=folds)
    # Single rows level the folds, class by class; those of a multi-label head are dealt.
    for label in range(len(pool.names) if pool.sets is None else 0):
        ours = usable & (pool.labels == label)
        counts = np.bincount(fold[ours & multiple], minlength=folds)
        for row in rng.permutation(np.flatnonzero(ours & ~multiple)):
            fold[row] = np.lexsort((totals, counts))[0]
            counts[fold[row]] += 1
            totals[fold[row]] += 1
    for number in range(folds):
        # A class that lies wholly in one fold gives a group to the smallest other fold.
        chosen = fold == number
        for group in np.unique(pool.groups[chosen & ~_spare_classes(pool, usable, chosen)]):
            totals = np.bincount(fold[usable], minlength=folds)
            totals[number] = len(rows)
            fold[usable & (pool.groups == group)] = totals.argmin()
    for number in range(folds):
        chosen = fold == number
        spared = _spare_classes(pool, usable, chosen)
        fold[chosen & ~spared] = -1
        if not spared.any():
            raise DataError(f'{count_images(usable.sum())} in {groups} groups cannot be split '
                            f'into split.folds={folds} so that every class trains: use fewer '
                            f'folds.')
    idle = (rows & (pool.labels >= 0) & (fold < 0)).sum()
    if idle:
        _log.warning('%s train in every fold and are never held out, so that every class '
                     'always trains.', count_images(idle))
    of_group = np.full(len(rows), -1)
    of_group[pool.groups[fold >= 0]] = fold[fold >= 0]
    return np.where(rows, of_group[pool.groups], -1)


def count_images(count: int) -> str:
    """'1 image', '2 images'."""
    return '1 image' if count == 1 else f'{count} images'


def _usable(pool: Pool, rows: np.ndarray) -> np.ndarray:
    """Mask of the rows in the mask `rows` that may be held out."""
    labelled = rows & (pool.labels >= 0)
    if not labelled.any():
        raise DataError('None of the images to be split has a label of the stratified head: '
                        'choose another split.head or label images.')
    alone = np.flatnonzero(_class_counts(pool, pool.labels >= 0) == 1)
    row = np.flatnonzero(labelled & np.isin(pool.labels, alone))
    if len(row) and pool.sets is None:  # rare tags are common, and their pictures train
        more = f', and {len(row) - 1} other classes too,' if len(row) > 1 else ''
        raise DataError(f'Class {pool.names[pool.labels[row[0]]]!r} has one image '
                        f'({pool.ids[row[0]]!r}){more} and cannot be split: add images or leave '
                        f'the class out.')
    # If only one group has a class, that group must train.
    bound = np.zeros(len(rows), bool)
    here = labelled & (pool.tokens >= 0)
    pairs = np.unique(np.stack([pool.tokens[here],
                                np.broadcast_to(pool.groups, here.shape)[here]]), axis=1)
    _, first, groups = np.unique(pairs[0], return_index=True, return_counts=True)
    bound[pairs[1][first[groups == 1]]] = True
    usable = labelled & ~bound[pool.groups]
    if not usable.any():
        raise DataError('Every group holds a class that no other group has, so none can be '
                        'held out: add images, or set split.grouped=False.')
    kept = labelled.sum() - usable.sum()
    if kept:
        _log.info('%s stay in train, because only their group has some class.',
                  count_images(kept))
    return usable


def _draw_groups(pool: Pool, masks: tuple[np.ndarray, np.ndarray], share: float,
                 tolerance: float, rng: np.random.Generator) -> np.ndarray:
    """Mask of a choice of the groups of several rows that comes near to the share: the greedy one
    that comes nearest, or with a tolerance a draw among those that are nearly as balanced.

    `masks` are those of the usable rows, and of those among them in groups of several."""
    usable, multiple = masks
    none = np.zeros(len(usable), bool)
    most = _most_folds(pool, multiple)
    if most < 2:
        return none
    pairs = [(folds, merged) for folds in range(2, min(most, max(10, round(1 / share))) + 1)
             for merged in range(1, folds) if folds <= 10 or merged == 1]
    folds, merged = min(pairs, key=lambda pair: (abs(pair[1] / pair[0] - share), pair[0]))
    fold = (_greedy_groups if tolerance else _deal_groups)(pool, multiple, folds, rng)
    drawn = (np.isin(fold, pick) for pick in itertools.combinations(range(folds), merged))
    greedy = min(drawn, key=lambda chosen: (
        not chosen.any(), len(_vanished(pool, usable, chosen)),
        abs(chosen.sum() - share * multiple.sum())))
    if not tolerance or not greedy.any():
        return greedy
    lost = len(_vanished(pool, usable, greedy))
    part = _near_optimal(pool, multiple, np.where(greedy, 0, 1), (share, 1 - share), tolerance,
                         lambda part: len(_vanished(pool, usable, part == 0)) <= lost, rng)
    return part == 0


def _draw_group_folds(pool: Pool, masks: tuple[np.ndarray, np.ndarray], folds: int,
                      tolerance: float, rng: np.random.Generator) -> np.ndarray:
    """As `_deal_groups`, drawn among the folds that are nearly as balanced as the greedy ones;
    `masks` as in `_draw_groups`."""
    usable, multiple = masks
    greedy = _greedy_groups(pool, multiple, folds, rng)
    count = greedy.max() + 1
    if count < 2:
        return greedy

    def lost(fold: np.ndarray) -> int:
        return sum(len(_vanished(pool, usable, fold == number)) for number in range(count))

    most = lost(greedy)
    return _near_optimal(pool, multiple, greedy, (1 / count,) * count, tolerance,
                         lambda fold: lost(fold) <= most, rng)


def _near_optimal(pool: Pool, rows: np.ndarray, greedy: np.ndarray, targets: tuple[float, ...],
                  tolerance: float, valid: Callable[[np.ndarray], bool],
                  rng: np.random.Generator) -> np.ndarray:
    """Part of each row in the mask `rows`, int [N], -1 elsewhere; see `near_optimal.draw_parts`."""
    _, first, groups = np.unique(pool.groups[rows], return_index=True, return_inverse=True)

    def of_rows(part: np.ndarray) -> np.ndarray:
        result = np.full(len(rows), -1)
        result[rows] = part[groups]
        return result

    return of_rows(draw_parts(class_shares(groups, pool.labels[rows]), np.array(targets),
                              greedy[rows][first], tolerance, lambda part: valid(of_rows(part)),
                              rng))


def _greedy_groups(pool: Pool, rows: np.ndarray, folds: int, rng: np.random.Generator
                   ) -> np.ndarray:
    """As `_deal_groups`, much faster with many groups, and nearly the same."""
    fold = np.full(len(rows), -1)
    folds = min(folds, _most_folds(pool, rows))
    if folds < 2:
        fold[rows] = 0
        return fold
    _, groups = np.unique(pool.groups[rows], return_inverse=True)
    fold[rows] = greedy_folds(class_shares(groups, pool.labels[rows]), folds, rng)[groups]
    return fold


def _deal_groups(pool: Pool, rows: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each row in the mask `rows`, int [N], -1 elsewhere; fewer folds if necessary."""
    fold = np.full(len(rows), -1)
    folds = min(folds, _most_folds(pool, rows))
    if folds < 2:
        fold[rows] = 0
        return fold
    from sklearn.model_selection import StratifiedGroupKFold  # half a second, only where needed

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
    places = np.flatnonzero(rows)
    with warnings.catch_warnings():
        # Classes smaller than the number of folds are fine: _spare_classes handles them.
        warnings.filterwarnings('ignore', message='The least populated class')
        for number, (_, held) in enumerate(
                splitter.split(places, pool.labels[rows], pool.groups[rows])):
            fold[places[held]] = number
    return fold


def _most_folds(pool: Pool, rows: np.ndarray) -> int:
    """The splitter allows no more folds than groups, nor than images of the largest class."""
    return min(len(np.unique(pool.groups[rows])), _class_counts(pool, rows).max())


def _is_multiple(pool: Pool) -> np.ndarray:
    return np.bincount(pool.groups)[pool.groups] > 1


def _class_counts(pool: Pool, rows: np.ndarray) -> np.ndarray:
    return np.bincount(pool.labels[rows], minlength=len(pool.names))


def _vanished(pool: Pool, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Tokens of the classes, of any head, that only the chosen rows among `rows` have."""
    def present(mask):
        return np.bincount(pool.tokens[:, mask].ravel() + 1, minlength=pool.tokens.max() + 2) > 0
    return np.flatnonzero((present(rows & chosen) & ~present(rows & ~chosen))[1:])


def _spare_classes(pool: Pool, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """`chosen` without the smallest groups whose removal keeps every class in the rest."""
    chosen = chosen.copy()
    while len(gone := _vanished(pool, rows, chosen)):
        having = chosen & (pool.tokens == gone[0]).any(axis=0)
        sizes = np.bincount(pool.groups[chosen])
        group = min(np.unique(pool.groups[having]), key=lambda g: (sizes[g], g))
        chosen &= pool.groups != group
    return chosen


def _round_to_total(want: np.ndarray, have: np.ndarray, total: int,
                    rng: np.random.Generator) -> np.ndarray:
    """Whole numbers near `want`, at most `have`, whose sum is `total` where that is possible."""
    take = np.floor(want).astype(int)
    # Largest remainders first. Ties are broken at random, or the first classes would win them all.
    for index in np.lexsort((rng.permutation(len(want)), take - want)):
        take[index] += take.sum() < total and take[index] < have[index]
    return take
