"""Sections of the config: every key, and no other; the names are those of configs/common.py."""

import pytest

from configs.common import get_config
from input_pipeline import resampling, splits
from input_pipeline.errors import DataError
from input_pipeline.sections import checked_section


@pytest.mark.parametrize('name, keys', [('split', splits.KEYS), ('resample', resampling.KEYS)])
def test_the_keys_are_those_of_the_config(name, keys):
    section = get_config()[name].to_dict()
    assert set(section) == set(keys) and checked_section(section, keys, name) == section


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(DataError, match=r"split\.vall is unknown: did you mean 'val'\?"):
        checked_section({'vall': 1, 'val': 1}, ('val',), 'split')
    with pytest.raises(DataError, match=r'split\.test is missing: .*configs/common\.py'):
        checked_section({'val': 1}, ('val', 'test'), 'split')
