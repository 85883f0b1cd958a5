"""Pictures that are copies of each other: the same file, the same pixels, or nearly the same.

Candidates for near duplicates (encoded again, brighter, resized, cropped by up to about a tenth,
turned or mirrored) are pictures with similar hashes, and nearest neighbours by gradients and by
the given features. A pair counts only if the two pictures coincide once one is laid over the
other: drawings of one class look alike without being copies.
"""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA

from input_pipeline.curation.hashes import near_pairs
from input_pipeline.curation.measures import Measures
from input_pipeline.curation.registration import lone_strokes, register
from input_pipeline.curation.variants import differences

KINDS = ('bytes', 'pixels', 'near')
MIRRORED = 4  # of hashes.POSITIONS
_WIDTH = 256  # components of the gradients that are kept, from _MANY pictures on
_MANY = 5000
_ROWS = 256  # pictures whose neighbours are searched at once
_THREADS = 2  # that compare at once
_UPRIGHT = 0.003  # correlation by which a turned position must be better: encoding costs so much
_AT_REST = 0.02  # motion, as in `registration.register`
_MIN_COSINE = 0.6  # of the gradients of copies: 99 % of planted copies reach .66


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The duplicates among N pictures.

    Attributes:
        group: int64 [N], number of the group of each picture, from 0; -1 for none.
        pairs: the pairs that form the groups. Columns: first and second (rows), kind (of KINDS),
            position (the second picture's, of `hashes.POSITIONS`), correlation and residual (see
            `register`), differs (how, of `variants.WORDS`, or ''). A group of k pictures with the
            same file or pixels has k - 1 such pairs.
    """

    group: np.ndarray
    pairs: pd.DataFrame

    def copies(self, kinds: Sequence[str] = KINDS) -> np.ndarray:
        """int64 [N], as `group`, of the pictures that are copies of each other, by pairs of these
        kinds: turned, mirrored or recoloured ones, and those with another detail, are not."""
        return connected(self.pairs[self.same() & self.pairs['kind'].isin(kinds).to_numpy()],
                         len(self.group))

    def same(self) -> np.ndarray:
        """Which of the pairs are copies, bool."""
        return ((self.pairs['position'] == 0) & (self.pairs['differs'] == '')).to_numpy()

    def kinds(self) -> list[str]:
        """The loosest kind of pair in each group: 'near' if one of its pairs is near."""
        found = np.zeros(self.group.max(initial=-1) + 1, int)
        np.maximum.at(found, self.group[self.pairs['first'].to_numpy(int)],
                      self.pairs['kind'].map(KINDS.index).to_numpy(int))
        return [KINDS[kind] for kind in found]


def find_duplicates(measures: Measures, *, features: np.ndarray | None = None, bits: int = 10,
                    neighbours: int = 10, correlation: float = 0.975, residual: float = 1.5,
                    second: np.ndarray | None = None,
                    progress: Callable[[int, int], None] = lambda done, total: None) -> Duplicates:
    """Finds groups of duplicates.

    Args:
        measures: of N pictures; pictures that could not be measured are in no group.
        features: float [N, D] of a model; nearest neighbours by them are candidates too.
        bits: pictures whose hashes differ in at most this many of 64 bits are candidates.
        neighbours: candidates per picture among its nearest neighbours, by each kind of feature.
        correlation: the least correlation of a near pair; see `register`.
        residual: the largest residual of a near pair; see `register`.
        second: bool [N], which pictures are of a second set: then only pairs of one picture of each
            set are compared for near ones. None for one set.
        progress: called with (candidate pairs compared, candidate pairs).
    """
    pairs = _exact(measures.table)
    copies = {second for _, second, _ in pairs}
    alone = np.array([row for row, problem in enumerate(measures.table['problem'])
                      if not problem and row not in copies], int)
    given, sides = (None if one is None else np.asarray(one)[alone] for one in (features, second))
    first, second, positions = _candidates(measures.thumbs[alone], measures.hashes[alone], given,
                                           bits, neighbours, sides)
    stroke = lone_strokes(measures.thumbs[alone])

    def compared(first, second, positions, **more) -> pd.DataFrame:
        reached, apart, motion = register(measures.thumbs[alone], first, second, positions,
                                          threads=_THREADS, **more)
        near = (reached >= correlation) & (apart <= residual)
        near &= ~stroke[first] | ((motion <= _AT_REST) & (positions == 0))
        return pd.DataFrame(dict(first=alone[first], second=alone[second], kind='near',
                                 position=positions, correlation=reached, residual=apart,
                                 motion=motion))[near]

    near = compared(first, second, positions, progress=progress)
    # What is like itself in a mirror may have been compared in the mirror only.
    turned = near[near['position'] != 0].drop_duplicates(['first', 'second'])
    row_of = np.zeros(len(measures), int)
    row_of[alone] = np.arange(len(alone))
    upright = compared(row_of[turned['first']], row_of[turned['second']],
                       np.zeros(len(turned), int))
    near = pd.concat([near, upright], ignore_index=True)
    # The best position of each pair; as it is, unless another one is clearly better.
    near = near.assign(value=near['correlation'] + _UPRIGHT * (near['position'] == 0)).sort_values(
        ['first', 'second', 'value'], ascending=[True, True, False],
        kind='stable').drop_duplicates(['first', 'second']).drop(columns='value')
    near['differs'] = differences(
        measures.tints, tuple(near[name].to_numpy(int) for name in ('first', 'second', 'position')),
        near['residual'].to_numpy(), near['motion'].to_numpy())
    table = pd.concat([
        pd.DataFrame(pairs, columns=['first', 'second', 'kind']).assign(
            position=0, correlation=1.0, residual=0.0, differs=''),
        near.drop(columns='motion')], ignore_index=True)
    return Duplicates(connected(table, len(measures)), table)


def conflicting(group: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the pictures of each group have different labels, bool [G].

    Args:
        group: int [N], from `Duplicates`.
        labels: int [N], of one head; -1 (unlabelled) conflicts with nothing.
    """
    known = pd.DataFrame(dict(group=group, label=labels))[(group >= 0) & (labels >= 0)]
    different = known.groupby('group')['label'].nunique()
    return different.reindex(range(group.max(initial=-1) + 1), fill_value=0).to_numpy() > 1


def best_of_group(group: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """The row to keep of each group, int64 [G]: most pixels, then most bytes, then the first.

    Args:
        group: int [N], from `Duplicates`.
        table: the table of `Measures`.
    """
    order = np.lexsort((np.arange(len(group)), -table['bytes'].to_numpy(),
                        -(table['width'] * table['height']).to_numpy(), group))
    order = order[group[order] >= 0]
    return order[np.unique(group[order], return_index=True)[1]]


def _exact(table: pd.DataFrame) -> list[tuple[int, int, str]]:
    """Pairs of the first row of each file or picture and its later copies."""
    pairs = {}
    for column, kind in (('pixels', 'pixels'), ('sha256', 'bytes')):  # the stricter kind wins
        values = table[column].to_numpy(object)
        first: dict[str, int] = {}
        for row, value in enumerate(values):
            if value and first.setdefault(value, row) != row:
                pairs[row] = (first[value], row, kind)
    return list(pairs.values())


def connected(pairs: pd.DataFrame, count: int) -> np.ndarray:
    """int64 [count], as `Duplicates.group`: the group of each row, by pairs of rows."""
    first, second = (pairs[name].to_numpy(int) for name in ('first', 'second'))
    links = coo_matrix((np.ones(len(pairs), bool), (first, second)), shape=(count, count))
    parts, label = connected_components(links, directed=False)
    sizes = np.bincount(label, minlength=parts)
    numbers = np.where(sizes > 1, np.cumsum(sizes > 1) - 1, -1)  # in the order of their first rows
    return numbers[label].astype(np.int64)


def _candidates(thumbs, hashes, features, bits: int, neighbours: int,
                second: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs to compare closely: (first, second, position of the second), each once per position."""
    i, j, distance = near_pairs(hashes, bits, threads=_THREADS)
    if second is not None:
        across = second[i] != second[j]
        i, j, distance = i[across], j[across], distance[across]
    keep = _nearest(i, j, distance, 2 * neighbours)
    i, j = i[keep], j[keep]
    turns = np.bitwise_count(hashes[i, :1] ^ hashes[j]).argmin(1) if len(i) else i
    found = [(i, j, turns)]
    if len(thumbs) > 1:
        plain, mirrored = _gradients(thumbs)
        found += [_neighbours(plain, plain, neighbours, _MIN_COSINE, 0, second),
                  _neighbours(mirrored, plain, neighbours, _MIN_COSINE, MIRRORED, second)]
        if features is not None:
            given = features.astype(np.float32)
            given /= np.maximum(np.linalg.norm(given, axis=1, keepdims=True), 1e-12)
            found.append(_neighbours(given, given, neighbours, -1.0, 0, second))
    i, j, turns = (np.concatenate(column) for column in zip(*found))
    unique = np.unique(np.stack([i, j, turns], 1), axis=0)
    return unique[:, 0], unique[:, 1], unique[:, 2]


def _nearest(i, j, distance, most: int) -> np.ndarray:
    """Which pairs are among the `most` nearest pairs of one of their pictures, bool [M]."""
    picture, pair = np.concatenate([i, j]), np.tile(np.arange(len(i)), 2)
    order = np.lexsort((distance[pair], picture))
    ranked = picture[order]
    start = np.r_[0, np.flatnonzero(np.diff(ranked)) + 1]
    rank = np.arange(len(ranked)) - np.repeat(start, np.diff(np.r_[start, len(ranked)]))
    keep = np.zeros(len(i), bool)
    keep[pair[order[rank < most]]] = True
    return keep


def _gradients(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of oriented gradients (Dalal and Triggs, 2005) of the pictures and of their
    mirror images, float32 [N, D], norm 1."""
    side, count = thumbs.shape[1], len(thumbs)
    hog = cv2.HOGDescriptor((side, side), (16, 16), (8, 8), (8, 8), 9)
    describe = lambda part: np.stack([hog.compute(np.ascontiguousarray(thumb)).ravel()
                                      for thumb in part])
    if count > _MANY:
        sample = describe(thumbs[np.linspace(0, count - 1, _MANY).astype(int)])
        project = PCA(_WIDTH, svd_solver='covariance_eigh').fit(sample).transform
    else:
        project = lambda part: part
    found = []
    for turned in (thumbs, thumbs[:, :, ::-1]):
        whole = np.concatenate([project(describe(turned[start:start + _MANY])).astype(np.float32)
                                for start in range(0, count, _MANY)])
        found.append(whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-6))
    return tuple(found)


def _neighbours(query: np.ndarray, known: np.ndarray, count: int, least: float, turn: int,
                second: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of each row with the rows of `known`, except itself and those of its own set, that have
    the highest cosines."""
    count = min(count, len(known) - 1)
    found = []
    for start in range(0, len(query), _ROWS):
        cosines = query[start:start + _ROWS] @ known.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        if second is not None:
            cosines[second[start:start + _ROWS, None] == second] = -np.inf
        near = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        good = np.take_along_axis(cosines, near, axis=1) >= least  # -inf is not
        found.append(np.stack([np.broadcast_to(start + rows[:, None], near.shape)[good],
                               near[good]], 1))
    i, j = np.concatenate(found).T
    return np.minimum(i, j), np.maximum(i, j), np.full(len(i), turn)
