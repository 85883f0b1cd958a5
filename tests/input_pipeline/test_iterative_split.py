"""Splits of pictures with several labels: each side gets its share of every label."""

import numpy as np
import pytest

from configs.common import get_config
from input_pipeline.iterative_split import deal, deal_sets, label_ranks
from input_pipeline.label_sets import numbered
from input_pipeline.manifest import class_counts, make_manifest
from input_pipeline.splits import assign_splits

SHARES = (.5, .3, .1, .05, .02, .01)


def manifest(rows=600, seed=0, grouped=False):
    rng = np.random.default_rng(seed)
    sets = [np.flatnonzero(rng.random(len(SHARES)) < SHARES).tolist() for _ in range(rows)]
    numbers, table = numbered(sets, len(SHARES))
    columns = {'id': [f'{k:04}' for k in range(rows)], 'location': ['x'] * rows,
               'label/tags': numbers}
    if grouped:
        columns['group'] = [f'g{rng.integers(rows // 4)}' for _ in range(rows)]
    return make_manifest(columns, {'tags': [f't{k}' for k in range(len(SHARES))]}, '',
                         {'tags': table})


def error(found, side, share):
    """Mean relative distance of a side's share of each label from what it should be."""
    part = found.select((found.table['split'] == side).to_numpy())
    counts, whole = class_counts(part, 'tags'), class_counts(found, 'tags')
    return float(np.mean(np.abs(counts / whole - share) / share))


def split(found, **changes):
    return assign_splits(found, get_config().split.to_dict() | changes, seed=changes.pop('seed', 0))


@pytest.mark.parametrize('grouped', [False, True])
def test_it_is_nearer_to_the_shares_than_chance(grouped):
    whole = manifest(grouped=grouped)
    ours = split(whole, val=0.2, test=0.2)
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(20):
        groups = whole.table['group'] if grouped else whole.table['id']
        chosen = set(rng.permutation(groups.unique())[:round(0.2 * groups.nunique())])
        drawn = whole.with_column('split', np.where(groups.isin(chosen), 'test', 'train'))
        chance.append(error(drawn, 'test', 0.2))
    assert error(ours, 'test', 0.2) < 0.5 * np.mean(chance)
    if grouped:
        assert (ours.table.groupby('group')['split'].nunique() == 1).all()


def test_folds_have_every_label_and_depend_on_ids_and_seed_only():
    whole = manifest()
    folds = [split(whole, kind='kfold', test=0.0, folds=4, fold=k) for k in range(4)]
    held = [set(one.table.loc[one.table['split'] == 'val', 'id']) for one in folds]
    assert sorted(set().union(*held)) == sorted(set(whole.table['id'])) or \
        sum(map(len, held)) >= 0.98 * len(whole)  # the only rows of a rare label train
    assert all(not a & b for a in held for b in held if a is not b)
    for k in range(4):
        counts = class_counts(folds[k].select((folds[k].table['split'] == 'val').to_numpy()),
                              'tags')
        assert (np.abs(counts[:4] - class_counts(whole, 'tags')[:4] / 4) <= 2).all()
    shuffled = whole.select(np.random.default_rng(1).permutation(len(whole)))
    again = split(shuffled, kind='kfold', test=0.0, folds=4, fold=0)
    assert set(again.table.loc[again.table['split'] == 'val', 'id']) == held[0]
    other = split(whole, kind='kfold', test=0.0, folds=4, fold=0, seed=1)
    assert set(other.table.loc[other.table['split'] == 'val', 'id']) != held[0]


def test_a_label_of_one_picture_trains():
    numbers, sets = numbered([[0], [0], [0], [0], [0, 1], [0], [2], [2], [0], [0]], 3)
    found = split(make_manifest(
        {'id': [str(k) for k in range(10)], 'location': ['x'] * 10, 'label/tags': numbers},
        {'tags': ('a', 'rare', 'b')}, '', {'tags': sets}), val=0.3, test=0.0)
    assert found.table['split'][4] == 'train'
    seen = class_counts(found.select((found.table['split'] == 'train').to_numpy()), 'tags')
    assert (seen > 0).all()


def test_deal_gives_every_part_its_share_of_the_rarest_label():
    counts = np.zeros((40, 3), int)
    counts[:, 0], counts[:4, 1] = 1, 1
    counts[30:, :] = [0, 0, 1]  # no label
    part = deal(counts, np.array([0.25] * 4), np.random.default_rng(0))
    assert np.bincount(part[:4], minlength=4).tolist() == [1, 1, 1, 1]
    assert np.ptp(np.bincount(part, minlength=4)) <= 1
    rows = np.arange(40) < 20
    _, sets = numbered([[0], []], 2)
    some = deal_sets(sets.table, np.zeros(40, int), np.arange(40) // 2, rows, (0.5, 0.5),
                     np.random.default_rng(0))
    assert (some[~rows] == -1).all() and (some[:20:2] == some[1:20:2]).all()
    assert np.bincount(some[:20]).tolist() == [10, 10]


def test_ranks_list_the_labels_of_each_row():
    _, sets = numbered([[0, 2], [], [1]], 3)
    ranks = label_ranks(sets.table, np.array([0, 1, 2, -1]))
    assert sorted(tuple(sorted(column)) for column in ranks.T.tolist()) == \
        [(-1, -1), (-1, -1), (-1, 1), (0, 2)]
