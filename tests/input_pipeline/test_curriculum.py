"""Durations, stages, and the messages for a bad curriculum."""

import pytest

from input_pipeline.curriculum import make_stages, stage_at
from input_pipeline.durations import to_steps
from input_pipeline.errors import DataError


def steps(duration, key, total=None):
    return to_steps(duration, key=key, examples_per_epoch=100, batch_size=8, total_steps=total)


@pytest.mark.parametrize('duration, expected', [
    ({'epochs': 2}, 25), ({'epochs': 1}, 13), ({'steps': 7}, 7), ({'examples': 17}, 3),
    ({'percent': 10}, 20), ({'epochs': 0.04}, 1), ({'epochs': 0}, 0)])
def test_any_unit_becomes_steps(duration, expected):
    assert steps(duration, 'x', total=200) == expected


@pytest.mark.parametrize('duration', [{}, {'epochs': 1, 'steps': 2}, {'weeks': 1}, {'epochs': -1},
                                      {'epochs': 'two'}, {'steps': True},
                                      {'epochs': float('nan')}])
def test_bad_durations_name_their_key(duration):
    with pytest.raises(DataError, match=r'config\.warmup'):
        steps(duration, 'warmup')


def test_stages_follow_each_other():
    stages = make_stages([
        {'until': {'epochs': 2}},
        {'until': {'epochs': 4}, 'transforms': ['hflip'], 'lr_scale': 0.5},
        {'transforms': ['hflip', {'kind': 'elastic', 'alpha': 5}]}], steps)
    assert [stage.start for stage in stages] == [0, 25, 50]
    assert [stage.lr_scale for stage in stages] == [1.0, 0.5, 1.0]
    assert [stage_at(stages, step) for step in (0, 24, 25, 49, 50, 10**9)] == [0, 0, 1, 1, 2, 2]
    assert stages[2].transforms[1].params == {'alpha': 5, 'sigma': 4.0, 'unit': 'pixels'}


def test_no_curriculum_is_one_plain_stage():
    stages = make_stages((), steps)
    assert len(stages) == 1
    assert stages[0].transforms == ()


@pytest.mark.parametrize('curriculum, words', [
    ([{'untill': {'epochs': 1}}], ['curriculum[0]', 'untill']),
    ([{'transforms': []}, {'transforms': []}], ['curriculum[0]', 'until']),
    ([{'until': {'epochs': 2}}, {'until': {'epochs': 1}}, {}], ['curriculum[1]']),
    ([{'transforms': ['rotat']}], ['rotat', 'rotate']),
    ([{'transforms': [{'kind': 'rotate', 'degree': 3}]}], ['degree', 'degrees']),
    ([{'transforms': [{'kind': 'hflip', 'p': 1.5}]}], ['p=1.5', '0 to 1']),
    ([{'lr_scale': -1}], ['lr_scale'])])
def test_a_bad_curriculum_is_located(curriculum, words):
    with pytest.raises(DataError) as caught:
        make_stages(curriculum, steps)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize('given', ['hflip', 5, dict(kind='hflip')])
def test_transforms_that_are_not_a_list_are_named(given):
    with pytest.raises(DataError, match=r'transforms = .* is not a list'):
        make_stages([dict(transforms=given)], lambda duration, key: 1)
