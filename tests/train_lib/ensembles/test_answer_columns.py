"""What a sample submission asks for: classes, indices, probabilities, heads or names."""

import re

import pytest

from train_lib.ensembles.answer_columns import decide_columns, question_of
from train_lib.runtime.errors import ConfigError

ANIMALS = dict(animal=('cat', 'dog', 'eel'))
TAGS = dict(hat=('no', 'yes'), coat=('no', 'yes'))
PEOPLE = dict(mask=('off', 'on'), age=('old', 'young'))
DIGITS = {'class': tuple('0123456789')}
FROM_1 = {'class': ('1', '2', '3')}
PADDED = {'class': ('05', '10', '20')}


def decide(columns, heads, **told):
    columns = {'ID': ['a', 'b', 'c']} | columns
    return decide_columns(columns, 'ID', question_of(heads), told, 's.csv').contents


@pytest.mark.parametrize('cells, heads, wanted', [
    (['cat', 'cat', 'cat'], ANIMALS, 'class'),
    (['dog', 'eel', 'dog'], ANIMALS, 'class'),
    (['', '', ''], ANIMALS, 'class'),
    (['0', '0', '0'], ANIMALS, 'index'),
    (['-1', '-1', '-1'], ANIMALS, 'index'),
    (['2', '0', '1'], ANIMALS, 'index'),
    (['0', '0', '0'], DIGITS, 'class'),
    (['9', '3', '0'], DIGITS, 'class'),
    (['0', '0', '0'], FROM_1, 'class'),  # the numbers of the training, not their places
    (['1', '3', '2'], FROM_1, 'class'),
    (['0', '0', '0'], {'class': ('1.0', '2.0')}, 'class'),
    (['0', '0', '0'], PADDED, 'class'),
    (['0.5', '0.5', '0.5'], dict(pet=('cat', 'pet')), 'probability:pet'),
    (['0.5', '0.5', '0.5'], dict(pet=('0', '1')), 'probability:1'),
    (['0', '0', '0'], PEOPLE, 'index'),
    (['off/old', 'on/old', 'on/young'], PEOPLE, 'class'),
    (['off old', 'on old', 'on young'], PEOPLE, 'names'),
    (['hat coat', '', 'coat'], TAGS, 'names'),
])
def test_one_column(cells, heads, wanted):
    assert decide({'target': cells}, heads) == {'ID': 'id', 'target': wanted}


@pytest.mark.parametrize('names, heads, classes', [
    (('eel', 'cat', 'dog'), ANIMALS, ('eel', 'cat', 'dog')),
    (('Cat', 'Dog', 'Eel'), ANIMALS, ('cat', 'dog', 'eel')),
    (('p_dog', 'p_cat', 'p_eel'), ANIMALS, ('dog', 'cat', 'eel')),
    (('class_0', 'class_2', 'class_1'), ANIMALS, ('cat', 'eel', 'dog')),
    (('1', '2', '3'), FROM_1, ('1', '2', '3')),
    (('off', 'on', 'old', 'young'), PEOPLE, ('off', 'on', 'old', 'young')),
])
def test_one_column_per_class(names, heads, classes):
    columns = {'usage': ['Public', 'Private', 'Public']} | {name: ['0'] * 3 for name in names}
    assert decide(columns, heads) == {'ID': 'id', 'usage': 'copy'} | {
        name: f'probability:{one}' for name, one in zip(names, classes)}


def test_one_column_per_head():
    assert decide(dict(coat=['no'] * 3, hat=['0'] * 3), TAGS) == {
        'ID': 'id', 'coat': 'coat', 'hat': 'index:hat'}
    assert decide(dict(hat=['0.5'] * 3, coat=['0.0'] * 3), TAGS) == {
        'ID': 'id', 'hat': 'probability:hat', 'coat': 'probability:coat'}


def test_other_columns_are_copied():
    assert decide(dict(image_path=['x/a.png', 'x/b.png', 'x/c.png'], answer=['0'] * 3,
                       confidence=['0'] * 3), ANIMALS) == {
        'ID': 'id', 'image_path': 'copy', 'answer': 'index', 'confidence': 'confidence'}
    assert decide(dict(species=['0'] * 3, confidence=['0'] * 3), ANIMALS) == {
        'ID': 'id', 'species': 'index', 'confidence': 'confidence'}
    # The only one whose cells are classes.
    assert decide(dict(species=['cat'] * 3, place=['x', 'y', 'z']), ANIMALS) == {
        'ID': 'id', 'species': 'class', 'place': 'copy'}


def test_what_the_user_says_counts():
    assert decide(dict(target=['0'] * 3, more=['0'] * 3), ANIMALS, target='class',
                  more='probability:eel') == {
        'ID': 'id', 'target': 'class', 'more': 'probability:eel'}
    assert decide(dict(target=['0'] * 3, more=['0'] * 3), ANIMALS, more='copy') == {
        'ID': 'id', 'target': 'index', 'more': 'copy'}


@pytest.mark.parametrize('columns, heads, words', [
    (dict(target=['zebra', 'cat', 'zebu']), ANIMALS, "lack ('zebra', 'zebu')"),
    (dict(target=['3', '1', '2']), ANIMALS, "from 0 to 2 ('3')"),
    (dict(target=['0.5'] * 3), ANIMALS, "'probability:eel'"),
    (dict(target=['1', '0', '2']), FROM_1, "('1', '0', '2', and classes such as '1')"),
    (dict(target=['5', '10', '20']), PADDED, "such as '05'"),
    (dict(cat=['0'] * 3, dog=['0'] * 3), ANIMALS, "for 2 of 3 classes, and none for 'eel'"),
    (dict(cat=['0'] * 3, dog=['0'] * 3, fox=['0'] * 3), ANIMALS,
     "lack ('fox'), and none for 'eel'"),
    (dict(cat=['0'] * 3, dog=['0'] * 3, eel=['0'] * 3, fox=['0'] * 3), ANIMALS, "lack ('fox')"),
    (dict(p_cat=['.1'] * 3, p_dog=['.1'] * 3, p_eel=['.1'] * 3, p_fox=['.2'] * 3), ANIMALS,
     "lack ('p_fox')"),
    (dict(hat=['0'] * 3), TAGS, "1 of 2 heads, and none for 'coat'"),
    (dict(hat=['0'] * 3, coat=['0'] * 3, shoe=['0'] * 3), TAGS, "row of the column 'shoe'"),
    (dict(tags=['hat shoe', 'hat', 'hat']), TAGS, "lack ('shoe')"),
    (dict(), ANIMALS, 'no column besides the ids: add an empty one'),
    (dict(confidence=['1', '1']), ANIMALS, 'no column besides the ids'),
    (dict(label=['0'] * 3, target=['0'] * 3), ANIMALS, "several columns for the answer ('label', "),
])
def test_what_is_refused(columns, heads, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        decide(columns, heads)


@pytest.mark.parametrize('told, words', [
    (dict(targt='class'), "did you mean 'target'?"),
    (dict(target='clas'), "did you mean 'class'?"),
    (dict(target='probability:fox'), "cannot hold 'probability:fox'"),
])
def test_what_the_user_says_is_checked(told, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        decide(dict(target=['0'] * 3), ANIMALS, **told)
