"""Nested settings as one flat dict."""

from configs import common
from input_pipeline.durations import is_duration
from train_lib.run_dir.dotted_keys import by_dotted_key


def test_lists_and_empty_dicts_are_values():
    tree = {'a': {'b': {'c': 1}, 'd': []}, 'e': {}}
    assert by_dotted_key(tree) == {'a.b.c': 1, 'a.d': [], 'e': {}}
    assert by_dotted_key(tree, '/') == {'a/b/c': 1, 'a/d': [], 'e': {}}


def test_a_duration_may_be_one_value():
    tree = {'a': {'every': {'steps': 3}}, 'b': {'steps': 3, 'epochs': 2}}
    assert by_dotted_key(tree, is_leaf=is_duration) == {
        'a.every': {'steps': 3}, 'b.steps': 3, 'b.epochs': 2}


def test_a_config_dict_is_read_like_a_dict():
    config = common.get_config()
    flat = by_dotted_key(config)
    assert flat['schedule.warmup.percent'] == 5 and flat['curriculum'] == ()
    assert list(flat) == list(by_dotted_key(config.to_dict()))
