"""RandAugment and TrivialAugment: how often operations are drawn, and how strong they are."""

from collections import Counter

import numpy as np
import pytest

from input_pipeline import auto_augment, pull_maps, transforms

SIZE = (100, 200)


def steps(kind, seed, **params):
    return auto_augment.KINDS[kind][0](np.random.default_rng(seed), SIZE, **params)


def test_operations_are_drawn_evenly():
    groups = Counter(group for seed in range(3000)
                     for group, _ in steps('rand_augment', seed, num_ops=2, magnitude=9, bins=31))
    # Of the fourteen, one does nothing, five are geometric, seven change colour, one is a filter.
    assert groups['geometry'] / 6000 == pytest.approx(5 / 14, abs=0.03)
    assert groups['color'] / 6000 == pytest.approx(7 / 14, abs=0.03)
    assert groups['filter'] / 6000 == pytest.approx(1 / 14, abs=0.03)


@pytest.mark.parametrize('magnitude, angle, across, lean', [
    (9, 9, 0.3 * 150 / 331, 0.09), (30, 30, 150 / 331, 0.3), (0, 0, 0, 0)])
def test_the_strength_of_rand_augment(magnitude, angle, across, lean):
    angles, shifts, leans = set(), set(), set()
    for seed in range(300):
        for group, item in steps('rand_augment', seed, num_ops=1, magnitude=magnitude, bins=31):
            if group == 'geometry':
                (a, b, _), (_, d, _), _ = item.matrix
                x, y = item.pull(99.5, 49.5)
                if a == d == 1 and b == 0:
                    shifts.add(round(max(abs(x - 99.5) / 200, abs(y - 49.5) / 100), 6))
                if a == d == 1:
                    leans.add(round(abs(b), 6))
                angles.add(round(np.degrees(np.arccos(min(a, 1))), 3))
    assert max(angles) == pytest.approx(angle, abs=1e-3)
    assert max(shifts) == pytest.approx(across, abs=1e-5)
    assert max(leans) == pytest.approx(lean, abs=1e-6)


def test_trivial_augment_draws_one_operation_of_any_strength():
    angles = []
    for seed in range(3000):
        drawn = steps('trivial_augment', seed, bins=31)
        assert len(drawn) <= 1
        for group, item in drawn:
            if group == 'geometry' and abs(item.matrix[0, 1]) > 1e-9 and item.matrix[1, 0]:
                angles.append(np.degrees(np.arctan2(item.matrix[1, 0], item.matrix[0, 0])))
    assert max(angles) == pytest.approx(135, abs=1e-6) and min(angles) == pytest.approx(-135)
    assert len(np.unique(np.round(np.abs(angles), 3))) == 30


def test_several_operations_still_make_one_warp_and_one_table():
    stage = (transforms.make_transform({'kind': 'rand_augment', 'num_ops': 12}, ''),)
    plan = transforms.draw(stage, np.random.default_rng(3), SIZE)
    assert len(plan.geometry) > 2 and len(pull_maps.compose(plan.geometry)) == 1
    assert len(plan.color) > 2
