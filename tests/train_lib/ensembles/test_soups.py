import numpy as np
import pytest

from train_lib.ensembles.soups import check_ingredients, greedy_soup, uniform_soup
from train_lib.runtime.errors import ConfigError


def member(value, **more):
    return {'conv/kernel': np.full((2, 3), value, np.float32), 'count': np.array(7), **more}


def test_a_uniform_soup_is_the_mean():
    soup = uniform_soup([member(1), member(2), member(6)])
    np.testing.assert_array_equal(soup['conv/kernel'], np.full((2, 3), 3, np.float32))
    assert soup['conv/kernel'].dtype == np.float32 and soup['count'] == 7
    ml_dtypes = pytest.importorskip('ml_dtypes')
    halves = [{'w': np.array([value], ml_dtypes.bfloat16)} for value in (1, 2)]
    check_ingredients(halves, 'ab', ['x', 'x'])
    assert uniform_soup(halves)['w'].dtype == ml_dtypes.bfloat16
    assert float(uniform_soup(halves)['w'][0]) == 1.5


def test_a_greedy_soup_keeps_what_does_not_lower_the_score():
    """The best weights are at 4; alone the order is 5, 2, 9, 3."""
    values = [2, 5, 9, 3]
    evaluate = lambda soup: -abs(float(soup['conv/kernel'][0, 0]) - 4)
    scores = [-2, -1, -5, -1.5]
    soup, chosen, score = greedy_soup([member(value) for value in values], scores, evaluate)
    # 5 -> (5, 3) = 4 -> (5, 3, 2) = 3.3 is worse -> (5, 3, 9) = 5.7 is worse
    assert chosen == [1, 3] and score == 0
    np.testing.assert_array_equal(soup['conv/kernel'], 4)
    # Where nothing changes the score, all come in.
    assert greedy_soup([member(value) for value in values], scores, lambda soup: -1)[1] == [
        1, 3, 0, 2]


@pytest.mark.parametrize('other, start, message', [
    (member(1), 'elsewhere', 'b from elsewhere'),
    (member(1), None, 'b from None'),
    (member(1, extra=np.zeros(1)), 'x', 'has extra'),
    ({**member(1), 'conv/kernel': np.zeros((3, 2), np.float32)}, 'x', r'conv/kernel is float32'),
    ({**member(1), 'conv/kernel': np.zeros((2, 3))}, 'x', r'float64\(2, 3\) in b'),
    ({**member(1), 'count': np.array(8)}, 'x', 'count differs'),
])
def test_ingredients_must_fit(other, start, message):
    with pytest.raises(ConfigError, match=message):
        check_ingredients([member(1), other], ['a', 'b'], ['x', start])
    check_ingredients([member(1), member(2)], ['a', 'b'], ['x', 'x'])
    with pytest.raises(ConfigError, match='a started from None'):
        check_ingredients([member(1), member(2)], ['a', 'b'], [None, None])
