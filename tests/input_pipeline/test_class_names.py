"""Names of classes: NFC everywhere, numbers in their order, and cells that are odd."""

import logging
import unicodedata

import numpy as np
import pytest
from PIL import Image

from input_pipeline import manifest_files
from input_pipeline.class_factors import factors_by_name
from input_pipeline.class_names import check_cells, in_order, place_of
from input_pipeline.curation.decisions import apply_decisions
from input_pipeline.errors import DataError
from input_pipeline.long_tail import cut_tail
from input_pipeline.manifest import digest, make_manifest
from input_pipeline.products import combine_heads, separate_head
from input_pipeline.sources import load_source

NFC, NFD = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
KOREAN = unicodedata.normalize('NFD', '강아지')
DOT = Image.fromarray(np.full((4, 6, 3), 200, np.uint8))


def folder(root, *paths, **data):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        DOT.save(root / path, 'PNG')
    return load_source({'source': 'folder', 'folder': str(root)} | data)


def table(root, text, **data):
    (root / 't.csv').write_text(text, encoding='utf-8')
    return load_source({'source': 'csv', 'csv': str(root / 't.csv')} | data)


def labels(manifest, head='class'):
    names = np.array([*manifest.classes[head], ''], object)
    return dict(zip(manifest.table['id'], names[manifest.labels(head)]))


# NFC everywhere


def test_class_names_are_composed_and_ids_stay(tmp_path):
    found = folder(tmp_path / 'data', f'{NFD}/1.png', f'{KOREAN}/2.png')
    assert found.classes['class'] == (NFC, '강아지')
    assert labels(found) == {f'{NFD}/1.png': NFC, f'{KOREAN}/2.png': '강아지'}
    assert found.table['location'].tolist() == [f'{NFD}/1.png', f'{KOREAN}/2.png']
    of_table = table(tmp_path, f'image,label\na,{NFD}\nb,강아지\n')
    assert of_table.classes == found.classes
    manifest_files.save(make_manifest({'id': ['1'], 'location': ['a'], 'label/class': [0]},
                                      {'class': (NFD,)}), str(tmp_path / 'm.parquet'))
    saved = load_source({'source': 'csv', 'csv': str(tmp_path / 'm.parquet')})
    assert saved.classes['class'] == (NFC,)


def test_two_forms_of_a_name_are_one_class(tmp_path, caplog):
    text = f'image,label,group\na,{NFD},{NFD}\nb,{NFC},{NFC}\nc,x,\n'
    found = table(tmp_path, text)
    assert found.classes['class'] == (NFC, 'x') and found.labels('class').tolist() == [0, 0, 1]
    assert found.table['group'].nunique() == 2  # one of the accent, and ''
    assert r"'cafe\u0301', 'caf\xe9'" in caplog.text and 'they are one class' in caplog.text
    split = folder(tmp_path / 'data', f'train/{NFC}/1.png', f'test/{NFD}/2.png')
    assert split.classes['class'] == (NFC,)
    given = table(tmp_path, text, classes=('x', NFC))
    assert given.labels('class').tolist() == [1, 1, 0]


def test_names_that_a_user_writes_are_found_in_both_forms(tmp_path):
    manifest = make_manifest({'id': ['1', '2'], 'location': ['a', 'b'], 'label/class': [0, 1]},
                             {'class': (NFD, 'x')})
    assert factors_by_name({NFC: 3.0}, manifest.classes['class'], 'key').tolist() == [3, 1]
    (tmp_path / 'd.csv').write_text(f'id,action,label\n2,keep,{NFC}\n', encoding='utf-8')
    assert apply_decisions(manifest, [str(tmp_path / 'd.csv')]).labels('class').tolist() == [0, 0]
    assert place_of(NFC, (NFC, NFD)) == 0 and place_of('y', (NFC, NFD)) is None
    manifest_files.save(manifest, str(tmp_path / 'm.csv'))
    text = (tmp_path / 'm.csv').read_text('utf-8')
    (tmp_path / 'm.csv').write_text(text.replace(NFD, NFC), encoding='utf-8')
    assert digest(manifest_files.load(str(tmp_path / 'm.csv'))) == digest(manifest)


def test_an_unknown_class_that_only_looks_known_is_shown_in_ascii(tmp_path):
    wide = 'cafe１'
    with pytest.raises(DataError, match=r"did you mean 'cafe1', which differs from 'cafe\\uff11' "
                                        r'by Unicode normalisation only\?'):
        table(tmp_path, f'image,label\na,{wide}\n', classes=('cafe1', 'x'))


def test_by_rules_1_names_are_as_written(tmp_path):
    found = folder(tmp_path / 'data', f'{NFD}/1.png', 'b/2.png', rules=1)
    assert found.classes['class'] == ('b', NFD)
    with pytest.raises(DataError, match='look alike'):
        folder(tmp_path / 'data', f'{NFC}/2.png', rules=1)
    with pytest.raises(DataError, match=r'data.rules=3 is unknown'):
        folder(tmp_path / 'data', rules=3)


# The order of classes


@pytest.mark.parametrize('names, wanted', [
    (('10', '2', '0', '1'), ('0', '1', '2', '10')),
    (('10.0', '2.0', '-1.0'), ('-1.0', '2.0', '10.0')),
    (('010', '2', '9'), ('2', '9', '010')),
    (('10', '2', 'x'), ('10', '2', 'x')),
    (('10', '2', '0.5'), ('0.5', '10', '2')),
    ((), ())])
def test_whole_numbers_are_sorted_as_numbers(names, wanted):
    assert in_order(names, 2) == wanted
    assert in_order(names, 1) == tuple(sorted(names))


def test_every_source_sorts_numbers(tmp_path):
    names = [str(k) for k in range(11)]
    found = folder(tmp_path / 'data', *(f'{name}/1.png' for name in names))
    assert found.classes['class'] == tuple(names)
    old = folder(tmp_path / 'data', rules=1)
    assert old.classes['class'] == tuple(sorted(names)) and digest(old) != digest(found)
    text = 'image,label\n' + ''.join(f'{name}.png,{name}\n' for name in reversed(names))
    assert table(tmp_path, text).labels('class').tolist() == list(range(10, -1, -1))
    assert table(tmp_path, text, rules=1).classes['class'] == tuple(sorted(names))
    parts = make_manifest({'id': names, 'location': names, 'label/class': range(11)},
                          {'class': [f'{name}/a' for name in names]})
    assert separate_head(parts, 'class', ('n', 'a')).classes['n'] == tuple(names)
    assert separate_head(parts, 'class', ('n', 'a'), 1).classes['n'] == tuple(sorted(names))


# data.classes


def test_data_classes_is_obeyed_by_every_source(tmp_path):
    root = tmp_path / 'data'
    found = folder(root, 'a/1.png', 'b/2.png', classes=('b', 'c', 'a'))
    assert found.classes['class'] == ('b', 'c', 'a') and found.labels('class').tolist() == [2, 0]
    with pytest.raises(DataError, match=r"data.classes lacks the class 'b' of the head 'class' "
                                        r"\(1 of 2 images, such as 'b/2.png'\): add it"):
        folder(root, classes=('a', 'c'))
    with pytest.raises(DataError, match="names 'a' twice"):
        folder(root, classes=('a', 'b', 'a'))
    with pytest.raises(DataError, match=r"names the head 'klass'.*did you mean 'class'"):
        folder(root, classes={'klass': ('a', 'b')})
    digits = load_source({'source': 'digits', 'classes': tuple('9876543210')})
    assert digits.classes['class'] == tuple('9876543210')
    assert digits.labels('class')[:3].tolist() == [9, 8, 7]
    manifest_files.save(found, str(tmp_path / 'm.parquet'))
    saved = load_source({'source': 'csv', 'csv': str(tmp_path / 'm.parquet'),
                         'classes': ('a', 'b')})
    assert labels(saved) == labels(found) and saved.classes['class'] == ('a', 'b')
    drawn = load_source({'source': 'doodles', 'doodles': dict(
        classes=2, per_class=2, writers=2, size=16)})
    turned = drawn.classes['class'][::-1]
    other = load_source({'source': 'doodles', 'classes': turned, 'doodles': dict(
        classes=2, per_class=2, writers=2, size=16)})
    assert labels(other) == labels(drawn) and other.classes['class'] == turned
    # An older run was not asked, and pictures without labels have no classes.
    assert folder(root, classes=('c',), rules=1).classes['class'] == ('a', 'b')
    assert folder(root, classes=('c',), labelled=False).classes['class'] == ()


# Odd cells of a table


def test_groups_that_mean_none(tmp_path, caplog):
    text = 'image,label,group\n' + ''.join(
        f'{k},a,{group}\n' for k, group in enumerate(('NaN', 'ann', 'None', '', 'null', ' bob ')))
    found = table(tmp_path, text)
    assert found.table['group'].tolist() == ['', 'ann', '', '', '', 'bob']
    assert len(caplog.records) == 1
    assert "the groups 'NaN', 'None', 'null' count as none, in 3 rows" in caplog.text
    assert table(tmp_path, text, rules=1).table['group'].tolist() == [
        'NaN', 'ann', 'None', '', 'null', 'bob']


@pytest.mark.parametrize('cells', [('0', '0.0'), ('1', '1.0'), ('1', '1.'), ('2', '2e0'),
                                   ('0.5', '.5'), ('3', '+3')])
def test_one_number_in_two_forms_is_refused(tmp_path, caplog, cells):
    text = 'image,label\n' + ''.join(f'{k},{cell}\n' for k, cell in enumerate(cells))
    with pytest.raises(DataError, match=r't.csv.*are the same number: write it the same way'):
        table(tmp_path, text)
    assert len(table(tmp_path, text, classes=cells).classes['class']) == 2
    assert len(table(tmp_path, text, rules=1).classes['class']) == 2
    assert 'are the same number' in caplog.text


def test_padded_numbers_may_be_codes(tmp_path, caplog):
    found = table(tmp_path, 'image,label\na,7\nb,007\n')
    assert found.classes['class'] == ('007', '7') and 'are the same number' in caplog.text


@pytest.mark.parametrize('name', ['-1', 'unknown', 'Unlabelled', '?', 'None', '<NA>', '#N/A'])
def test_labels_that_mean_none_are_named(tmp_path, caplog, name):
    found = table(tmp_path, f'image,label\na,{name}\nb,0\nc,1\n')
    assert len(found.classes['class']) == 3
    assert f'{name!r} counts as a class' in caplog.text
    assert 'leave the field empty for an image without a label' in caplog.text
    caplog.clear()
    table(tmp_path, f'image,label\na,{name}\nb,0\nc,1\n', classes=(name, '0', '1'))
    assert not caplog.text  # the user named it


@pytest.mark.parametrize('name', ['-1', 'unknown', 'Unlabelled', '?'])
def test_folders_that_mean_none_are_named(tmp_path, caplog, name):
    folder(tmp_path / 'data', f'{name}/1.png', 'x/1.png')
    assert f'{name!r} counts as a class' in caplog.text


@pytest.mark.parametrize('names', [
    ('scab', 'rust', 'healthy', 'complex', 'scab rust', 'rust complex', 'scab rust complex'),
    ('16', '0', '3', '16 0', '0 3'), ('Action|Drama', 'Drama|War', 'Action|War', 'Crime|Drama'),
    ('a', 'b', 'a,b', 'b, a'), ('a', 'b', 'c', 'a/b', 'b/c'), ('a', 'b', 'c', 'a_b', 'b_c'),
    ("['a']", "['b']", "['a', 'b']", "['b', 'c']", "['c']")])
def test_several_labels_in_a_cell_are_noticed(caplog, names):
    check_cells(names, 'class', 't.csv', 2)
    assert 'cells of the head' in caplog.text and 'multi-label' in caplog.text


@pytest.mark.parametrize('names', [
    ('ice cream', 'hot dog', 'hot pot', 'cream'), ('red', 'blue', 'red blue', 'dark red', 'sky'),
    ('a', 'b', 'c'), ('Kim, A', 'Kim, B', 'Lee, C')])
def test_names_of_two_words_are_names(caplog, names):
    with caplog.at_level(logging.INFO):
        check_cells(names, 'class', 't.csv', 2)
    assert not caplog.text


@pytest.mark.parametrize('mistake', [
    lambda found: make_manifest({'id': ['a'], 'label/x': [0]}, {'x': ('\xe9\n', 'e\u0301\n')}),
    lambda found: load_source({'source': 'digits', 'classes': ('0\n0',)}),
    lambda found: cut_tail(found, dict(imbalance=2.0, largest=0, head='x'), seed=0),
    lambda found: separate_head(found, 'x', ('p', 'q')),
    lambda found: combine_heads(found, ('x', 'y')),
    lambda found: separate_head(found, 'a\nb', ('p\nq', 'r'))])
def test_a_line_break_in_a_name_does_not_break_the_sentence(tmp_path, mistake):
    text = 'image,"a\nb",c\n' + ''.join(f'{i}.png,u{i % 2},v\n' for i in range(4))
    found = table(tmp_path, text, columns={'labels': 'a\nb,c'})
    assert found.heads == ('a\nb', 'c')
    with pytest.raises(DataError) as error:
        mistake(found)
    assert str(error.value).isprintable()
