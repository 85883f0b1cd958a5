"""What stands behind the colon of --config=FILE:key=value: a mistake is one sentence that names the
nearest argument, in every config."""

import re
from pathlib import Path

import pytest

from configs import common
from configs.tiny import is_tiny
from train_lib.commands.command_line import parse
from train_lib.runtime.errors import ConfigError

FOLDER = Path(__file__).parents[1] / 'configs'
FILES = sorted(path for path in FOLDER.rglob('*.py')
               if 'def get_config(' in path.read_text('utf-8') and path.name != 'common.py')
STUDIES = [path for path in FILES if path.parent.name == 'studies']
OWN = {  # of studies, besides the arguments of the config that they start from
    'studies/people_models.py': ('from', 'decisions', 'faces'),
    'studies/illustration.py': ('rare',),
    'studies/long_tail.py': ('size',),
    'studies/sketch.py': ('head', 'curriculum')}


def read(path, arg):
    verb = {'studies': 'study', 'vote': 'vote'}.get(path.parent.name, 'train')
    return parse([verb, f'--config={path}:{arg}'])


def refused(path, arg):
    with pytest.raises(ConfigError) as caught:
        read(path, arg)
    message = str(caught.value)
    assert '\n' not in message and 'Traceback' not in message and len(message) < 400
    assert message.startswith(f'--config={path}:{arg}: ')
    return message


def arguments(path):
    """As the config itself lists them."""
    listed = re.search(r'the known ones are (.*)\.$', refused(path, 'qqqqqq=1'))
    return list(dict.fromkeys([*listed[1].split(', '), *OWN.get(name_of(path), ())]))


def name_of(path):
    return path.relative_to(FOLDER).as_posix()


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_a_mistyped_argument_is_one_sentence_that_names_the_nearest(path):
    known = arguments(path)
    assert known
    for key in known:
        typed = key[:-2] + key[:-3:-1]  # the last two letters are exchanged
        assert f'did you mean {key}=one?' in refused(path, f'{typed}=one'), key
        assert f'{key} has no value' in refused(path, key)


@pytest.mark.parametrize('path', STUDIES, ids=name_of)
def test_every_study_can_be_tiny(path):
    config = read(path, 'size=tiny').config
    assert config.duration.to_dict() == {'steps': 8} and not config.init.pretrained
    assert 'size' in arguments(path)


def test_the_examples_of_a_hurry():
    sketch = FOLDER / 'sketch_vit.py'
    assert refused(sketch, 'flip=no').endswith('did you mean flips=no?')
    assert refused(sketch, 'folder').endswith('write folder=...')
    assert 'data, folder, csv' in refused(sketch, 'siez=tiny')
    assert refused(sketch, 'digits').endswith('did you mean data=digits?')
    assert refused(sketch, 'data/cats').endswith('did you mean folder=data/cats?')
    assert refused(sketch, 'train.csv').endswith('did you mean csv=train.csv?')
    assert refused(FOLDER / 'mask_cnn.py', 'siez=tiny').endswith('did you mean size=tiny?')
    assert refused(FOLDER / 'mask_cnn.py', 'size=big').endswith(
        'size=big is not a whole number: give size=NUMBER or size=tiny.')
    assert 'imbalance=much is not a number' in refused(FOLDER / 'cifar_lt.py', 'imbalance=much')


def test_an_empty_value_does_not_train_on_the_built_in_drawings():
    """As `folder=$PICTURES` where the variable is not set."""
    assert 'folder= is empty' in refused(FOLDER / 'sketch_vit.py', 'folder=')
    assert 'from= is empty' in refused(FOLDER / 'studies/people_models.py', 'from=')
    assert read(FOLDER / 'food_densenet.py', 'pretrained=').config.init.pretrained == ''


def test_an_argument_given_twice_is_refused():
    assert 'flips= is given twice' in refused(FOLDER / 'sketch_vit.py', 'flips=no,flips=yes')
    assert 'decisions= is given twice' in refused(FOLDER / 'studies/people_models.py',
                                                  'decisions=a,decisions=b')
    assert common.parse_arg('csv=/a,b.csv')['csv'] == '/a,b.csv'


def test_the_error_of_a_config_of_ones_own_keeps_its_line(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('def get_config(arg=None):\n    return len(3)\n')
    message = refused(file, 'a=1')
    assert 'TypeError' in message and '(line 2)' in message
    assert is_tiny('folder=x,size=tiny') and not is_tiny('size=32') and not is_tiny(None)
