"""Seeds sample splits even where groups are few and unequal, and nearly as balanced as can be."""

import time

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from configs.common import get_config
from input_pipeline import splits
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from input_pipeline.near_optimal import class_shares, draw_parts, errors, greedy_folds

SECTION = get_config().split.to_dict()


def unequal(people=30, classes=8, drawings=900, seed=0):
    """Drawers of very different diligence, each with a taste."""
    rng = np.random.default_rng(seed)
    diligence = rng.lognormal(0, 0.7, people)
    groups = np.append(np.repeat(np.arange(people), 2), rng.choice(
        people, drawings - 2 * people, p=diligence / diligence.sum()))
    taste = rng.dirichlet(np.ones(classes), people)
    labels = np.array([rng.choice(classes, p=taste[group]) for group in groups])
    labels[:2 * classes] = np.arange(2 * classes) % classes
    return groups, labels


def manifest_of(groups, labels):
    names = [f'{n:05d}' for n in range(len(labels))]
    return make_manifest({'id': names, 'location': names, 'label/class': labels,
                          'group': [f'person {group}' for group in groups]},
                         {'class': tuple(f'class {n}' for n in range(max(labels) + 1))})


def held_out(manifest, seed, name='test', **split):
    side = splits.assign_splits(manifest, SECTION | split, seed=seed).table['split']
    return (side == name).to_numpy()


def far_off(manifest, held):
    """Mean and largest difference of the share of each class that is held out from 0.15, and of
    each class among these pictures from that among all."""
    labels = manifest.labels('class')
    every, here = np.bincount(labels), np.bincount(labels[held], minlength=max(labels) + 1)
    off, among = here / every - 0.15, here / here.sum() - every / every.sum()
    return np.array([np.abs(off).mean(), np.abs(off).max(), np.abs(among).sum()])


@pytest.mark.parametrize('data', range(2))
def test_seeds_sample_the_test_sets_of_thirty_groups(data):
    manifest = manifest_of(*unequal(seed=data))
    greedy = [held_out(manifest, seed, tolerance=0) for seed in range(3)]
    assert len({rows.tobytes() for rows in greedy}) == 1
    drawn = [held_out(manifest, seed) for seed in range(30)]
    assert len({rows.tobytes() for rows in drawn}) >= 20
    found = np.array([far_off(manifest, rows) for rows in drawn])
    assert (found.mean(0) <= 1.3 * far_off(manifest, greedy[0])).all()
    assert (found <= 1.3 * far_off(manifest, greedy[0]) + 1e-9).all()
    # Many groups are drawn, and no group always or nearly always.
    often = np.bincount(np.concatenate([np.unique(unequal(seed=data)[0][rows])
                                        for rows in drawn]), minlength=30)
    assert (often > 0).sum() >= 20 and often.max() <= 24


def test_seeds_sample_the_validation_sets_and_the_folds():
    manifest = manifest_of(*unequal())
    assert len({held_out(manifest, seed, 'val').tobytes() for seed in range(30)}) >= 20
    folds = {held_out(manifest, seed, 'val', kind='kfold', test=0.0).tobytes()
             for seed in range(30)}
    assert len(folds) >= 20
    greedy = held_out(manifest, 0, 'val', kind='kfold', test=0.0, tolerance=0)
    assert all(held_out(manifest, seed, 'val', kind='kfold', test=0.0, tolerance=0).tobytes()
               == greedy.tobytes() for seed in range(3))


def test_folds_are_nearly_as_balanced_as_the_greedy_ones():
    groups, labels = unequal()
    shares, targets = class_shares(groups, labels), np.full(5, 0.2)
    greedy = greedy_folds(shares, 5, np.random.default_rng(0))
    for seed in range(10):
        drawn = draw_parts(shares, targets, greedy, 0.3, lambda part: True,
                           np.random.default_rng(seed))
        assert (errors(shares, drawn, targets) <= 1.3 * errors(shares, greedy, targets) + 1e-8
                ).all()


def parts(of_group):
    """The parts, whatever their numbers."""
    return {tuple(np.flatnonzero(of_group == number)) for number in np.unique(of_group)}


def test_the_greedy_folds_are_those_of_scikit_learn():
    """Where no two groups have the same spread over the classes, so that nothing is drawn."""
    for seed in range(5):
        groups, labels = unequal(people=20, seed=seed)
        spread = np.std(np.bincount(groups * 8 + labels, minlength=160).reshape(20, 8), axis=1)
        if len(np.unique(spread.round(9))) < 20:
            continue
        folds = np.zeros(20, int)
        for number, (_, rows) in enumerate(StratifiedGroupKFold(4, shuffle=True, random_state=1)
                                           .split(groups, labels, groups)):
            folds[groups[rows]] = number
        ours = greedy_folds(class_shares(groups, labels), 4, np.random.default_rng(2))
        assert parts(ours) == parts(folds)
        break
    else:
        pytest.fail('every seed has ties')


def test_errors_by_hand():
    # Class 0: 3 rows in group 0, 1 in group 1; class 1: 2 rows in group 1.
    shares = class_shares(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 5, 5]))
    found = errors(shares, np.array([0, 1]), np.array([0.5, 0.5]))
    # Class 0: 3/4 and 1/4, class 1: 0 and 1; among the rows 3:0 and 1:2, of all rows 4:2.
    np.testing.assert_allclose(found, [(1 / 4 + 1 / 2) / 2, 1 / 2, 1 / 3, 1 / 3])


def test_without_another_split_within_the_tolerance_the_greedy_one_stays():
    shares = class_shares(np.repeat(np.arange(4), [8, 4, 2, 2]), np.zeros(16, int))
    greedy = np.array([0, 1, 1, 1])
    drawn = {draw_parts(shares, np.array([0.5, 0.5]), greedy, 0.3, lambda part: True,
                        np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert drawn == {greedy.tobytes(), (1 - greedy).tobytes()}
    refused = draw_parts(shares, np.array([0.5, 0.5]), greedy, 0.3, lambda part: False,
                         np.random.default_rng(0))
    assert refused.tolist() == greedy.tolist()


def test_every_part_has_a_group():
    shares = class_shares(np.repeat(np.arange(5), [50, 3, 2, 2, 2]), np.zeros(59, int))
    greedy = np.arange(5)
    for seed in range(10):
        drawn = draw_parts(shares, np.full(5, 0.2), greedy, 5.0, lambda part: True,
                           np.random.default_rng(seed))
        assert sorted(drawn) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('value', [-0.1, True, 'a lot', float('nan'), float('inf')])
def test_wrong_tolerance(value):
    with pytest.raises(DataError, match=r'split\.tolerance=.* is not a valid tolerance'):
        held_out(manifest_of(*unequal()), 0, tolerance=value)


def test_many_groups_are_dealt_in_seconds():
    """200,000 rows in 20,000 groups and 100 classes take about 2 s; scikit-learn more than 10."""
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 20_000, 200_000), rng.integers(0, 100, 200_000)
    began = time.process_time()
    shares = class_shares(np.unique(groups, return_inverse=True)[1], labels)
    greedy = greedy_folds(shares, 5, rng)
    targets = np.full(5, 0.2)
    found = draw_parts(shares, targets, greedy, 0.3, lambda part: True, rng)
    assert (found != greedy).any()
    assert (errors(shares, found, targets) <= 1.3 * errors(shares, greedy, targets) + 1e-8).all()
    assert time.process_time() - began < 8
