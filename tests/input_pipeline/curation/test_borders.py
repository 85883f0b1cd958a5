import numpy as np
import pytest

from input_pipeline.curation.borders import find_borders, missing_columns
from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest

AGES = ['56', '57', '59', '60', '', 'n/a']


@pytest.fixture
def manifest():
    return make_manifest({'id': list('abcdef'), 'location': list('abcdef'), 'age': AGES,
                          'label/kind': [0, 1, 0, 1, 0, -1]}, {'kind': ('scan', 'web')})


def test_values_between_are_dropped_or_weigh_less(manifest):
    found = find_borders(manifest, [dict(column='age', between=(57, 59), action='drop'),
                                    dict(column='kind', values=('web',), weight=.5),
                                    dict(column='age', between=(0, 57), weight=.4)])
    assert found.action.tolist() == ['keep', 'drop', 'drop', 'keep', 'keep', 'keep']
    np.testing.assert_allclose(found.weight, [.4, .2, np.nan, .5, np.nan, np.nan])
    assert 'age from 57 to 59' in found.reason[2] and found.reason[4] == ''


def test_a_column_from_elsewhere(manifest):
    rules = [dict(column='place', values=['x'], action='review')]
    assert missing_columns(manifest, rules) == ['place']
    found = find_borders(manifest, rules, {'place': list('xyxyxy')})
    assert found.action.tolist() == ['review', 'keep'] * 3 and found.weight is None


@pytest.mark.parametrize('rule, words', [
    (dict(column='agr', between=(1, 2), action='drop'), "'agr' does not exist .did you mean 'age'"),
    (dict(column='age', action='drop'), 'between=.low, high. and values'),
    (dict(column='age', between=(2, 1), action='drop'), 'not a valid range'),
    (dict(column='age', between=(1, 2)), 'one of action'),
    (dict(column='age', between=(1, 2), action='delete'), "'delete'"),
    (dict(column='age', between=(1, 2), weight=2), 'weight=2'),
    (dict(column='age', betwen=(1, 2), weight=1), "did you mean 'between'"),
    (dict(column='age', between=3, weight=1), 'between=3 is not a valid range'),
    (dict(column='kind', values='web', weight=1), r"'web' is not a tuple.*\('web',\)"),
    ('age', "'age' is not a rule"),
    (dict(between=(1, 2), weight=1), 'column is missing'),
])
def test_mistakes(manifest, rule, words):
    with pytest.raises(DataError, match=words) as error:
        find_borders(manifest, [rule])
    assert 'curate.borders[0]' in str(error.value) and '\n' not in str(error.value)
