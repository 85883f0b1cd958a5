import numpy as np
import pandas as pd
import pytest

from configs import common
from input_pipeline.curation.quality import FLAGS, flags, suspicions
from input_pipeline.errors import DataError

THRESHOLDS = common.get_config().curate.quality.to_dict()
PLAIN = dict(chroma=40., brightest=1., darkest=0., sharpness=500., contrast=.2, aspect=1.,
             width=200., height=200., brightness=.5, colourfulness=40., edges=.1, flat=.3,
             entropy=7., white=.1)


def table(count, **changes):
    """`count` plain pictures; changes: column -> {row: value}."""
    found = pd.DataFrame([PLAIN] * count)
    for column, values in changes.items():
        for row, value in values.items():
            found.loc[row, column] = value
    return found


def test_each_flag_and_no_other():
    found = flags(table(
        9, chroma={1: 2.}, brightest={2: .3}, darkest={3: .8}, sharpness={4: 10.},
        contrast={5: .01}, aspect={6: .2, 7: 5.}, height={8: 31.}), THRESHOLDS)
    flagged = [list(found.columns[row]) for row in found.to_numpy()]
    assert flagged == [[], *([name] for name in FLAGS[:5]), ['odd_aspect'], ['odd_aspect'],
                       ['tiny']]


def test_the_rare_is_suspicious_and_the_worst_first():
    found = table(40, chroma=dict.fromkeys(range(20, 40), 1.), sharpness={3: 20., 4: 10.},
                  entropy={7: 1.}, darkest={4: .8}, width={9: np.nan})
    scores, why = suspicions(found, THRESHOLDS)
    assert not scores[20:].any()  # half of the pictures have no colour: that is the data
    assert why[3] == 'blurred' and why[4] == 'blurred, bright'
    assert why[7] == 'entropy unusually low' and why[0] == why[9] == ''
    assert scores[4] > scores[3] > 0 == scores[0]


def test_nothing_to_judge():
    found = table(3).assign(**dict.fromkeys(PLAIN, np.nan))
    scores, why = suspicions(found, THRESHOLDS)
    assert not scores.any() and why == [''] * 3 and not flags(found, THRESHOLDS).any(axis=None)


@pytest.mark.parametrize('value', [0, -1, None, 'much', float('inf')])
def test_a_threshold_is_a_positive_number(value):
    with pytest.raises(DataError, match=r'curate\.quality\.blurred'):
        flags(table(1), THRESHOLDS | {'blurred': value})
