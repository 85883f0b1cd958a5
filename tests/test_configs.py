"""Every config resolves, with its arguments, to a model that can be built."""

import functools
import importlib
import json
from pathlib import Path

import jax
import pytest
from flax import nnx

from configs import common
from train_lib.ensembles.fit.fitting import CHOICES
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.voters import split_words
from train_lib.optim.param_groups import plan
from train_lib.training.network import make_model
from train_lib.training.preprocess_spec import preprocess_spec

FOLDER = Path(__file__).parents[1] / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py')
               if path.stem not in ('__init__', 'arguments', 'common', 'tiny'))
ARGUMENTS = {
    'cifar_lt': tuple(f'method={name}' + ',from=runs/ce' * (name == 'crt')
                      for name in importlib.import_module('configs.cifar_lt').METHODS),
    'distill': ('size=tiny', 'teacher=runs/five,weight=0.7,extra=pseudo.csv'),
    'few_labels': ('size=tiny', 'folds=3', 'extra=pseudo.csv,share=0.5,steps=9'),
    'food_densenet': ('size=tiny', 'from=runs/food'),
    'illustration_lite': ('size=tiny', 'method=lora', 'method=probe', 'flips=no,model=resnet18'),
    'illustration_resnet': ('size=tiny', 'model=cnn_final,sampling=cluster'),
    'mask_lite': ('size=tiny', 'method=lora,size=tiny', 'folder=masks.zip'),
    'mask_cnn': ('model=cnn_basic', 'model=cnn_final', 'size=tiny'),
    'people_multihead': (
        'model=a,mixing=rare', 'model=b,mixing=rare', 'model=c,mixing=halves', 'from=runs/a',
        'size=tiny', 'csv=labels.csv,images=faces', 'data=digits'),
    'sketch_eva': ('size=tiny,head=linear,train=lora,curriculum=none', 'size=tiny,train=all'),
    'sketch_lite': ('method=lora', 'size=tiny,flips=yes'),
    'sketch_eva_probe': ('model=eva02_tiny_patch14_224,pretrained=,size=56', 'folder=sketches.zip'),
}
CASES = [(name, arg) for name in NAMES for arg in (None, *ARGUMENTS.get(name, ()))]


def build(name, arg):
    return importlib.import_module(f'configs.{name}').get_config(arg)


@functools.cache
def abstract_model(settings, size, classes):
    """The model without its weights."""
    config = common.get_config()
    config.image.size = size
    config.model = dict(json.loads(settings))
    return nnx.eval_shape(lambda: make_model(config, json.loads(classes), jax.devices()[0]))


@pytest.mark.parametrize(('name', 'arg'), CASES)
def test_a_config_makes_a_model(name, arg):
    config = build(name, arg)
    preprocess_spec(config)
    if config.probe.heads:
        return
    several = config.model.get('head') in ('shallow', 'deep')
    classes = {'a': ('x', 'y', 'z'), 'b': ('u', 'v')} if several else {'a': ('x', 'y')}
    model = abstract_model(config.model.to_json(), config.image.size, json.dumps(classes))
    plan(model, config.finetune.to_dict())


@pytest.mark.parametrize('name', ['illustration_lite', 'mask_lite', 'sketch_lite'])
def test_the_tiny_ones_have_few_pictures(name):
    doodles = build(name, 'size=tiny').data.doodles
    assert doodles.classes <= 4 and doodles.per_class == 30
    assert build('mask_lite', None).data.doodles.per_class == 300


def test_the_ways_to_learn_several_labels():
    a, b, c = (build('people_multihead', f'csv=x.csv,model={kind},mixing=rare') for kind in 'abc')
    heads = ('mask', 'gender', 'age')
    assert a.data.combine == heads and not b.data.combine
    assert b.data.columns.labels == 'mask,gender,age'
    assert (a.model.head, b.model.head, c.model.head) == ('linear', 'shallow', 'deep')
    assert len(a.mixing[0]['classes']) == 6 and a.mixing[0]['head'] == 'mask/gender/age'
    assert b.mixing[0]['classes'] == ('old',) and b.mixing[0]['head'] == 'age'
    both = build('people_multihead', 'from=runs/a')
    assert both.init['from'] == 'runs/a' and not both.init.pretrained
    assert both.finetune.table and both.model.head == 'deep'
    with pytest.raises(ValueError, match='from=WORKDIR'):
        build('people_multihead', 'model=ac')
    with pytest.raises(ValueError, match='model=d is not known'):
        build('people_multihead', 'model=d')


def test_the_probe_is_the_recipe():
    config = build('sketch_eva_probe', None)
    assert preprocess_spec(config).mean[0] == 0.48145466  # CLIP's, as the weights ask for
    assert (config.probe.views, config.duration.epochs, config.split.fold) == (20, 20, 'all')
    assert {head['name'] for head in config.probe.heads} == {'linear', 'mlp3'}


@pytest.mark.parametrize('name', sorted(path.stem for path in (FOLDER / 'vote').glob('*.py')
                                        if path.stem not in ('__init__', 'common')))
def test_a_vote_has_members_and_known_rules(name):
    config = build(f'vote.{name}', None).to_dict()
    assert config['members']
    for spec in ({'rule': config['rule']}, *config['ensembles'].values()):
        assert set(split_words(spec.get('rule', 'soft'))) <= set(RULES)
        assert set(spec.get('members', ())) <= set(config['members'])
    assert config['choose'] in ('', *CHOICES)
    with pytest.raises(ValueError, match='nonsense'):
        build(f'vote.{name}', 'nonsense=1')
