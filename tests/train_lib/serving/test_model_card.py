"""What a model card says where a run is not like the one in test_export.py."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from train_lib.serving import card_weights
from train_lib.serving.card_scores import scores_of_run
from train_lib.serving.card_weights import origin
from train_lib.serving.model_card import _settings, cell
from train_lib.serving.trained_models import TrainedModel


def trained(workdir=Path('nowhere'), classes=('a', 'b'), **init) -> TrainedModel:
    init = dict(dict(pretrained='', resume_from=''), **init)
    init.setdefault('from', '')
    config = ConfigDict(dict(model=dict(name='resnet18'), init=init))
    return TrainedModel(workdir, config, {'class': classes}, None, None, {}, 1, '')


@pytest.mark.parametrize('source, wanted', [
    ('', ['random weights']),
    ('default', ['`timm/resnet18.a1_in1k`', 'licence: apache-2.0 as timm 1.0.31 records it',
                 'https://huggingface.co/timm/resnet18.a1_in1k']),
    ('fb_swsl_ig1b_ft_in1k', ['cc-by-nc-4.0']),
    ('timm/resnet18.tv_in1k', ['bsd-3-clause']),
    ('somebody/weights', ['licence is not known', 'https://huggingface.co/somebody/weights']),
    ('/home/me/mine.safetensors', ['the file `mine.safetensors`', 'licence is not known']),
    ('/home/me/resnet18.tv_in1k.safetensors', ['bsd-3-clause']),
])
def test_licences_are_those_that_are_known(source, wanted):
    line, = origin(trained(pretrained=source))
    assert all(word in line for word in wanted), line
    assert '/home/me' not in line


def test_a_licence_that_timm_does_not_record_is_not_known():
    model = trained(pretrained='bamboo')
    model.config.model.name = 'resnet50'
    line, = origin(model)
    assert 'licence: not known to this project' in line and 'timm/resnet50.bamboo' in line


def test_ancestors_are_named_by_their_folder(tmp_path, monkeypatch):
    (tmp_path / 'first').mkdir()
    (tmp_path / 'first/config.json').write_text(json.dumps(dict(
        model=dict(name='resnet18'), init={'pretrained': 'tv_in1k', 'from': ''})))
    runs = [dict(workdir=str(tmp_path / 'gone'), checkpoint=''),
            dict(workdir=str(tmp_path / 'first'), checkpoint='abc')]
    monkeypatch.setattr(card_weights, 'ancestry_of',
                        lambda workdir: type('Ancestry', (), dict(runs=runs)))
    own, gone, first = origin(trained(**{'from': str(tmp_path / 'gone')}))
    assert own == '- the weights of another run'
    assert 'run `gone`' in gone and 'is not known' in gone and 'digest' in gone
    assert 'run `first`' in first and '`abc`' in first and 'bsd-3-clause' in first
    assert str(tmp_path) not in own + gone + first


def test_scores_without_predictions_have_no_intervals(tmp_path):
    result = dict(val=dict(n=40, accuracy=0.5, f1_macro=0.4, nll=1.0, ece=0.1), test={})
    score, = scores_of_run(tmp_path, [trained(tmp_path)], result)
    assert (score.split, score.n, score.accuracy, score.f1) == ('val', 40, 0.5, 0.4)
    assert score.accuracy_interval is score.f1_interval is None


def test_tests_of_folds_are_averaged(tmp_path):
    folds = [trained(tmp_path / f'fold_{number}') for number in (0, 1)]
    tests = [dict(test=dict(n=10, accuracy=accuracy, f1_macro=.5, nll=1., ece=.1))
             for accuracy in (0.4, 0.6)]
    out, test = scores_of_run(tmp_path, folds, dict(
        out_of_fold=dict(n=20, accuracy=0.45), folds=tests))
    assert (out.split, out.accuracy, out.f1) == ('out of fold', 0.45, None)
    assert (test.split, test.n) == ('test, mean of 2 folds', 10)
    assert test.accuracy == pytest.approx(0.5)


def test_settings_show_no_folder():
    config = {'data': dict(folder='/home/me/faces', classes=['a']), 'curriculum': ['/home/me/x'],
              'batch_size': 3, 'name': '~/runs/a',
              'defaults': {'data.folder': '', 'curriculum': [], 'batch_size': 64, 'name': ''}}
    text = '\n'.join(_settings(config))
    assert '/home' not in text and '~' not in text
    assert '| `batch_size` | 3 | 64 |' in text and '| `name` | a |' in text


def test_a_class_name_cannot_break_a_table():
    assert cell('a|b\n`c` <i>_d_') == r'a\|b \`c\` \<i\>\_d\_'
