"""The verb models: what it prints, how wide, and what it answers to a wrong name."""

import re

import pytest

import main
from models import list_models
from models.costs import costs
from models.tags import tags_of
from train_lib.commands.models import matching
from train_lib.runtime.errors import ConfigError


def printed(capsys, *words):
    assert main.main(['models', *words]) == 0
    return capsys.readouterr().out.splitlines()


def rows(lines):
    """The cells of each model's line, by name."""
    return {line.split()[0]: line.split() for line in lines if line.split()[0] in list_models()}


def test_without_a_word_every_model_has_a_line(capsys):
    lines = printed(capsys)
    assert list(rows(lines)) == list_models()
    assert rows(lines)['resnet50'][:4] == ['resnet50', '25.6M', '7.95', '224']
    assert rows(lines)['small_cnn'][4:] == ['-']
    more = len(tags_of('resnet50')) - 1
    assert rows(lines)['resnet50'][4:] == [tags_of('resnet50')[0].tag, f'(+{more})']
    assert any(line.startswith('imagenet  mean 0.485 0.456 0.406, std 0.229') for line in lines)


@pytest.mark.parametrize('name', ['eva02_large_patch14_448', 'resnet50', 'small_cnn'])
def test_of_one_model_every_tag_is_described(capsys, name):
    lines = printed(capsys, name)
    assert list(rows(lines)) == [name]
    cells = {line.split()[0]: line for line in lines if line.startswith('  ')}
    assert list(cells) == [tag.tag for tag in tags_of(name)]
    if name.startswith('eva'):
        line = cells['mim_in22k_ft_in22k_in1k']
        assert re.search(r'448 px, squash 1, clip, 1,000 classes$', line)
        assert any(line.startswith('clip ') and '0.4815' in line for line in lines)
        assert not any(line.startswith('imagenet ') for line in lines)


def test_no_line_is_wider_than_80_columns(capsys):
    for words in ((), *((name,) for name in list_models())):
        wide = [line for line in printed(capsys, *words) if len(line) > 80]
        assert not wide


def test_a_pattern_or_a_part_of_a_name_filters(capsys):
    assert list(rows(printed(capsys, 'vit_*_384'))) == list_models('vit_*_384')
    assert matching('eva_giant') == ['eva_giant_patch14_224', 'eva_giant_patch14_336']
    assert matching('resnet18') == ['resnet18']  # a whole name is not a part of others
    assert matching('') == list_models()


def test_a_model_that_is_not_in_the_table_is_measured(capsys, monkeypatch):
    table = {name: cost for name, cost in costs().items() if name != 'cnn_basic'}
    monkeypatch.setattr('train_lib.commands.models.costs', lambda: table)
    assert rows(printed(capsys, 'cnn_basic'))['cnn_basic'][1:4] == ['2.4M', '0.08', '64']


def test_an_unknown_name_ends_with_code_2_and_the_nearest(capsys):
    assert main.main(['models', 'resnet5O']) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert "'resnet5O'" in captured.err and 'resnet50' in captured.err
    assert captured.err.count('\n') == 1
    assert main.main(['models', 'resnet50', 'vit']) == 2
    with pytest.raises(ConfigError, match=r'`main\.py models`'):
        matching('%%%')
