"""Decisions about duplicates: the best of a group is kept and the rest dropped; if labels conflict,
a person decides."""

import numpy as np

from input_pipeline.curation.decisions import Finding
from input_pipeline.curation.duplicates import Duplicates, best_of_group, conflicting
from input_pipeline.curation.measures import Measures
from input_pipeline.manifest import Manifest

_SIDES = {'test': 2, 'val': 1}  # a copy of a test picture leaves the training side
_WORDS = {'bytes': 'the same file as', 'pixels': 'the same pixels as', 'near': 'nearly the same as'}


def to_finding(found: Duplicates, measures: Measures, manifest: Manifest) -> Finding:
    """Decisions about every row of the manifest that has a copy.

    In a group with one label, all rows but one are dropped: a row of the test or val side is kept
    if splits are given, then a labelled row, then the best one. In a group with different labels,
    all rows are for review. The score is the correlation with a copy, 1 for the same pixels.
    """
    group, ids = found.group, manifest.table['id'].to_numpy(object)
    count = group.max(initial=-1) + 1
    conflict, labelled = np.zeros(count, bool), np.zeros(len(group), int)
    for head in manifest.heads:
        conflict |= conflicting(group, manifest.labels(head))
        labelled += manifest.labels(head) >= 0
    rank = labelled.astype(float)
    if 'split' in manifest.table:
        rank += 1000 * manifest.table['split'].map(_SIDES).fillna(0).to_numpy(float)
    highest = np.full(count, -1.0)
    np.maximum.at(highest, group[group >= 0], rank[group >= 0])
    first = np.where((group >= 0) & (rank == np.append(highest, -1)[group]), group, -1)
    best = best_of_group(first, measures.table)
    score, kind = np.zeros(len(group)), np.full(len(group), '', object)
    for pair in found.pairs.itertuples():
        for row in (pair.first, pair.second):
            if pair.correlation > score[row]:
                score[row], kind[row] = pair.correlation, pair.kind
    twin = np.where(group >= 0, np.append(best, -1)[group], -1)
    twin[best] = -1
    action, reason = np.full(len(group), 'keep', object), np.full(len(group), '', object)
    for row in np.flatnonzero(group >= 0):
        if conflict[group[row]]:
            action[row], reason[row] = 'review', 'copies with different labels'
        elif twin[row] >= 0:
            action[row] = 'drop'
            reason[row] = f'{_WORDS[kind[row]]} {ids[twin[row]]}'
    names = np.where(group >= 0, group.astype(str).astype(object), '')
    return Finding('duplicates', score, action, reason, group=names, twin=twin)
