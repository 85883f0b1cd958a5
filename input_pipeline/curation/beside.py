"""A second set of pictures beside a first one: copies of its pictures, and whether the two differ.

The second set has no labels: the pictures of a test, or those that a model will see. Copies make a
test too easy, and a difference makes its scores differ from those of the validation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import pandas as pd

from input_pipeline.curation import measures, two_samples
from input_pipeline.curation.copies import chips_of
from input_pipeline.curation.detectors import by_model
from input_pipeline.curation.duplicates import KINDS, connected, find_duplicates
from input_pipeline.curation.exploration import Exploration
from input_pipeline.curation.two_samples import TwoSamples


@dataclasses.dataclass(frozen=True)
class Copies:
    """Of which pictures of a first set those of a second one, M, are copies.

    Attributes:
        of: int64 [M], row of the first set; -1 for none.
        kind: object [M], of `duplicates.KINDS`, or ''.
        chips: M tuples of words that say how the pictures differ, such as ('mirrored',).
        correlation: float64 [M], see `registration.register`; NaN for none.
    """

    of: np.ndarray
    kind: np.ndarray
    chips: list[tuple[str, ...]]
    correlation: np.ndarray


@dataclasses.dataclass(frozen=True)
class Beside:
    """A second set of M pictures beside a first one of N.

    Attributes:
        second: what is known of the second set by itself.
        copies: which of its pictures are copies of pictures of the first set.
        told: how well the sets can be told apart, of N + M rows.
        count: N.
    """

    second: Exploration
    copies: Copies
    told: TwoSamples
    count: int

    @property
    def probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """Of belonging to the second set, by a model that has not seen the picture, of the pictures
        of the first set and of those of the second; NaN for none."""
        return self.told.probability[:self.count], self.told.probability[self.count:]

    def columns(self, first: Exploration) -> dict[str, object]:
        """What beside.csv says besides the scores of the second set by itself."""
        ids = np.array([*first.manifest.table['id'], ''], object)
        return {'copy_of': ids[self.copies.of], 'copy_kind': self.copies.kind,
                'copy_differs': [', '.join(words) for words in self.copies.chips],
                'copy_correlation': self.copies.correlation, 'second_set': self.probabilities[1]}


def look_beside(first: Exploration, second: Exploration, options: Mapping, *, seed: int,
                progress: Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
                ) -> Beside:
    """Compares two sets of pictures.

    Args:
        first, second: of N and M pictures, with descriptors.
        options: config.curate, of which duplicates and features count.
        seed: of the folds in which the sets are told apart.
        progress: as in `exploration.explore_pictures`.
    """
    count = len(first.measures)
    of_second = np.arange(count + len(second.measures)) >= count
    with progress('compare', 'pair') as done:
        features = _features(first, second) if by_model(options) else None
        found = find_duplicates(measures.joined(first.measures, second.measures), second=of_second,
                                features=features, progress=done, **options['duplicates'])
    shifted = second.duplicates.pairs[['first', 'second']] + count
    group = connected(pd.concat([first.duplicates.pairs[['first', 'second']], shifted,
                                 found.pairs[['first', 'second']]]), len(of_second))
    told = _told_apart(first, second, of_second, np.where(group < 0, -1 - np.arange(len(group)),
                                                          group), seed)
    return Beside(second, _copies(found.pairs, count, len(second.measures)), told, count)


def _features(first: Exploration, second: Exploration) -> np.ndarray | None:
    """Those of both sets; None if no picture of one of them can be read."""
    parts = [first.descriptors, second.descriptors]
    return np.concatenate(parts) if parts[0].shape[1] == parts[1].shape[1] else None


def _told_apart(first: Exploration, second: Exploration, of_second: np.ndarray, group: np.ndarray,
                seed: int) -> TwoSamples:
    sound = [one.problems == '' for one in (first, second)]
    rows = np.flatnonzero(np.concatenate(sound))
    probability = np.full(len(of_second), np.nan)
    if len(np.unique(of_second[rows])) < 2:
        return TwoSamples(probability, *[np.nan] * 3)
    values, seen = (np.concatenate([getattr(one, name)[rows] for one, rows in
                                    zip((first, second), sound)])
                    for name in ('statistics', 'descriptors'))
    told = two_samples.compare(two_samples.inputs_of(seen, values, seed),
                               of_second[rows], group[rows], seed=seed)
    probability[rows] = told.probability
    return dataclasses.replace(told, probability=probability)


def _copies(pairs: pd.DataFrame, count: int, others: int) -> Copies:
    """What the pairs of both sets say of the rows from `count` on."""
    near = pairs[pairs['kind'] == 'near'].assign(same=lambda table: (table['position'] == 0)
                                                 & (table['differs'] == ''))
    near = near.sort_values(['same', 'correlation'], ascending=False, kind='stable')
    closest = {int(pair.second): pair for pair in reversed(list(near.itertuples()))}
    exact = {int(pair.second): (int(pair.first), pair.kind)
             for pair in pairs[pairs['kind'] != 'near'].itertuples()}
    found = Copies(np.full(others, -1), np.full(others, '', object), [()] * others,
                   np.full(others, np.nan))
    for row in range(others):
        other, loosest = count + row, KINDS[0]
        while other >= count and other in exact:  # the copy of a copy has its twin
            other, kind = exact[other]
            loosest = max(loosest, kind, key=KINDS.index)
        if other < count:
            found.of[row], found.kind[row], found.correlation[row] = other, loosest, 1.0
        elif other in closest:
            pair = closest[other]
            found.of[row], found.kind[row] = pair.first, pair.kind
            found.chips[row], found.correlation[row] = chips_of(pair), pair.correlation
    return found
