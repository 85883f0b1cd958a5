"""Decisions about duplicates: the best copy of a group is kept and the rest dropped. If labels
conflict, or pictures differ on purpose (mirrored, turned, another colour), a person decides."""

import dataclasses

import numpy as np
import pandas as pd

from input_pipeline.curation.decisions import Finding
from input_pipeline.curation.duplicates import KINDS, Duplicates, best_of_group, conflicting
from input_pipeline.curation.hashes import POSITIONS
from input_pipeline.curation.measures import Measures
from input_pipeline.curation.variants import WORDS
from input_pipeline.manifest import Manifest

_SIDES = {'test': 2, 'val': 1}  # a copy of a test picture leaves the training side
_OF_KIND = {'bytes': 'the same file as', 'pixels': 'the same pixels as',
            'near': 'nearly the same as'}


def to_finding(found: Duplicates, measures: Measures, manifest: Manifest, *, most: float = 1.0
               ) -> Finding:
    """Decisions about every row of the manifest that has a copy or a variant.

    Of copies with one label, all rows but one are dropped: a row of the test or val side is kept
    if splits are given, then a labelled row, then the best one. Copies with different labels are
    for review, and so is what is mirrored, turned, or of another colour or detail: it shares the
    group, and nothing more is known. The score is the correlation with the other picture, 1 for
    the same pixels.

    Args:
        found: of N pictures.
        measures: of them.
        manifest: of them.
        most: if near copies are a larger share of the pictures than this, they are for review:
            then it is the data in which pictures are so alike.
    """
    finding = _decided(found, measures, manifest)
    near = (finding.action == 'drop') & np.char.startswith(finding.reason.astype(str),
                                                           _OF_KIND['near'])
    if near.mean() <= most:
        return finding
    pairs = found.pairs
    alike = (pairs['kind'] == 'near') & (pairs['differs'] == '')
    found = dataclasses.replace(found, pairs=pairs.assign(
        differs=pairs['differs'].where(~alike, 'little')))
    return dataclasses.replace(_decided(found, measures, manifest), note=(
        f'{near.sum():,} of {len(near):,} pictures are near copies of others, which describes the '
        f'data: they are for review'))


def chips_of(pair) -> tuple[str, ...]:
    """In words, how the pictures of a row of `Duplicates.pairs` differ; () for copies."""
    return ((POSITIONS[pair.position],) if pair.position else ()) + (
        (WORDS[pair.differs],) if pair.differs else ())


def _decided(found: Duplicates, measures: Measures, manifest: Manifest) -> Finding:
    group, ids = found.group, manifest.table['id'].to_numpy(object)
    copies = found.copies()
    count = copies.max(initial=-1) + 1
    conflict, labelled = np.zeros(count, bool), np.zeros(len(group), int)
    for head in manifest.heads:
        conflict |= conflicting(copies, manifest.labels(head))
        labelled += manifest.labels(head) >= 0
    rank = labelled.astype(float)
    if 'split' in manifest.table:
        rank += 1000 * manifest.table['split'].map(_SIDES).fillna(0).to_numpy(float)
    highest = np.full(count, -1.0)
    np.maximum.at(highest, copies[copies >= 0], rank[copies >= 0])
    first = np.where((copies >= 0) & (rank == np.append(highest, -1)[copies]), copies, -1)
    best = best_of_group(first, measures.table)
    twin = np.where(copies >= 0, np.append(best, -1)[copies], -1)
    twin[best] = -1
    # A copy of a copy may differ from the first one, and then it is not its copy.
    variants = found.pairs[~found.same()]
    for one, other in (('first', 'second'), ('second', 'first')):
        rows, others = (variants[name].to_numpy(int) for name in (one, other))
        twin[rows[twin[rows] == others]] = -1
    kind = _kinds(found, twin)
    conflict = np.append(conflict, False)[copies]
    of_copy, of_variant = (_closest(pairs, len(group))
                           for pairs in (found.pairs[found.same()], variants))
    action, reason = np.full(len(group), 'keep', object), np.full(len(group), '', object)
    score, beside = np.zeros(len(group)), np.full(len(group), -1)
    chips: list[tuple[str, ...]] = [()] * len(group)
    for row in np.flatnonzero(group >= 0):
        score[row] = max(pair.correlation for pair in (of_copy[row], of_variant[row]) if pair)
        if conflict[row]:
            action[row], reason[row] = 'review', 'copies with different labels'
        elif twin[row] >= 0:
            action[row], beside[row] = 'drop', twin[row]
            reason[row] = f'{_OF_KIND[kind[row]]} {ids[twin[row]]}'
        elif of_variant[row]:
            pair = of_variant[row]
            other = int(pair.second if pair.first == row else pair.first)
            beside[row] = twin[other] if twin[other] >= 0 else other
            action[row], chips[row] = 'review', chips_of(pair)
            reason[row] = f'{", ".join(chips[row])}: {ids[beside[row]]}'
    names = np.where(group >= 0, group.astype(str).astype(object), '')
    return Finding('duplicates', score, action, reason, group=names,
                   twin=np.where(action == 'drop', twin, -1), beside=beside, chips=chips)


def _kinds(found: Duplicates, twin: np.ndarray) -> np.ndarray:
    """How each row is a copy of its twin, str [N]: the loosest kind of pair between them."""
    kinds = np.full(len(twin), KINDS[-1], object)
    for number in reversed(range(1, len(KINDS))):
        part = found.copies(KINDS[:number])
        kinds[(part >= 0) & (part == part[twin])] = KINDS[number - 1]
    return kinds


def _closest(pairs: pd.DataFrame, count: int) -> list:
    """The pair of each row that has the highest correlation; None for a row without a pair."""
    closest = [None] * count
    for pair in pairs.itertuples():
        for row in (pair.first, pair.second):
            if closest[row] is None or pair.correlation > closest[row].correlation:
                closest[row] = pair
    return closest
