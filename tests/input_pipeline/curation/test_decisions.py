import itertools

import numpy as np
import pytest

from input_pipeline.curation.decisions import (
    Finding,
    apply_decisions,
    decide,
    read_decisions,
    save_decisions,
)
from input_pipeline.errors import DataError
from input_pipeline.manifest import digest, make_manifest

IDS = ['a', 'b', 'c', 'd', 'e', 'f']


def manifest(group=('p', 'p', 'q', 'r', '', ''), **columns):
    return make_manifest(
        {'id': IDS, 'location': IDS, 'label/class': [0, 0, 1, 1, 0, -1], 'group': list(group),
         **columns}, {'class': ('cat', 'dög')})


def write(tmp_path, text, name='d.csv', encoding='utf-8'):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def applied(tmp_path, *texts, rules=2, **columns):
    paths = [write(tmp_path, text, f'{k}.csv') for k, text in enumerate(texts)]
    table = apply_decisions(manifest(**columns), paths, rules).table
    return table.set_index('id')


@pytest.mark.parametrize('text', [
    'id,action,weight,label\na,drop,,\nb,keep,0.5,dög\n',
    '\ufeffid;action;weight;label\r\na;drop;;\r\nb;keep;0,5;dög\r\n',  # a German spreadsheet
    '\ufeffid,action,weight,label,,\r\na, Drop ,,,,\r\nb,KEEP,0.5,dög,,\r\n,,,,,\r\n\r\n',
    'id\taction\tweight\tlabel\na\tdrop\nb\tkeep\t0.5\tdög\n',  # cells cut off at the end
])
def test_a_file_saved_by_a_spreadsheet_is_read(tmp_path, text):
    table = applied(tmp_path, text)
    assert list(table.index) == IDS[1:]
    assert table['weight'].tolist() == [0.5, 1, 1, 1, 1]
    assert table['label/class'].tolist() == [1, 1, 1, 0, -1]


def test_review_keeps_and_weights_multiply(tmp_path):
    table = applied(tmp_path, 'id,action,weight\na,review,0.5\nb,keep,0\n',
                    weight=[2.0, 3, 1, 1, 1, 1])
    assert table['weight'].tolist() == [1.0, 0, 1, 1, 1, 1]


def test_a_run_of_older_rules_goes_on_with_the_last_file(tmp_path):
    first = 'id,action,duplicate_group,label\na,drop,1,\nc,drop,1,\nd,keep,,cat\n'
    table = applied(tmp_path, first, 'id,action\na,keep\nd,keep\n', rules=1)
    assert list(table.index) == ['a', 'b', 'd', 'e', 'f']
    assert table.loc['d', 'label/class'] == 0


SCORED = 'id,action,reason,duplicate_group,suggested_action,label,weight,score/x\n'
# Two files of detectors, of which a person changed b in the first one, and one typed altogether.
THREE = (SCORED + 'a,drop,far,1,drop,,,2\nb,keep,far,,drop,,.5,2\nc,keep,,1,keep,,,0\n',
         SCORED + 'a,keep,,,keep,,,0\nb,drop,dark,,drop,,.25,1\nc,keep,,7,keep,cat,,0\n'
                  'd,drop,dark,,drop,,,1\ne,drop,dark,7,drop,,,1\nf,review,dark,,review,,,1\n',
         'id,action\ne,keep\nf,\n')


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_no_file_erases_another_in_any_order(tmp_path, order):
    table = applied(tmp_path, *(THREE[k] for k in order))
    # a: one detector's keep is no answer to another's drop; b and e: somebody typed keep.
    assert list(table.index) == ['b', 'c', 'e', 'f']
    assert table.loc['c', 'label/class'] == 0 and table['weight'].tolist() == [.25, 1, 1, 1]
    assert table['group'].tolist() == ['p', 'q', 'q', '']  # c and e, although a is dropped


def test_groups_of_several_files_are_one_in_any_order(tmp_path):
    header = 'id,action,duplicate_group\n'
    texts = [header + 'b,keep,1\nc,keep,1\n', header + 'c,keep,2\nd,keep,2\na,keep,\n',
             header + 'e,keep,1\nf,keep,1\n']
    found = [applied(tmp_path, *(texts[k] for k in order), group=[''] * 6)['group'].tolist()
             for order in itertools.permutations(range(3))]
    assert found == [['', *['copies of b'] * 3, *['copies of e'] * 2]] * 6


@pytest.mark.parametrize('texts, words', [
    (('id,action\na,drop\n', 'id,action\na,keep\n'), "'a' .action 'drop' and 'keep'"),
    (('id,action,label\na,,cat\n', 'id,action,label/class\na,,dög\n'),
     "label 'cat' and 'dög'")])
def test_two_typed_files_must_agree(tmp_path, texts, words):
    for order in (texts, texts[::-1]):
        with pytest.raises(DataError, match=r'0\.csv.* and .*1\.csv.* contradict') as error:
            applied(tmp_path, *order)
    assert "'a'" in str(error.value)
    with pytest.raises(DataError, match=words):
        applied(tmp_path, *texts)
    applied(tmp_path, texts[0], texts[0])
    applied(tmp_path, texts[0], 'id,action\na,\nb,review\n')


def test_what_an_older_version_wrote_is_told_from_what_was_typed(tmp_path):
    """Without the column suggested_action: detectors give a reason for all but a plain keep."""
    header = 'id,action,reason,weight,score/x\n'
    detected = header + 'a,keep,,,0\nb,keep,age from 57 to 59: weight 0.5,.5,0\nc,keep,far,,1\n'
    table = applied(tmp_path, detected, SCORED + ''.join(
        f'{name},drop,dark,,drop,,,1\n' for name in 'abc'))
    assert list(table.index) == ['c', 'd', 'e', 'f']  # c: somebody changed drop to keep


def test_a_spreadsheet_can_tell_the_encoding_and_save_another(tmp_path):
    path = str(tmp_path / 'out.csv')
    names = ['한글 그림.png', 'b', 'c', 'd', 'e', 'f']
    data = manifest().with_column('id', names)
    save_decisions(decide(data, [finding('x', ['drop', 'drop', *['keep'] * 4])]), path)
    assert (tmp_path / 'out.csv').read_bytes().startswith(b'\xef\xbb\xbfid,')
    assert apply_decisions(data, [path]).table['id'].tolist() == list('cdef')
    korean = write(tmp_path, 'id,action,label\n한글 그림.png,drop,\n', 'k.csv', 'cp949')
    assert apply_decisions(data, [korean]).table['id'].tolist() == names[1:]


def test_copies_join_groups_of_kept_pictures_only(tmp_path):
    # b (p) and c (q) are copies, so are d (r) and e (alone); a is p too, and f is q.
    text = 'id,action,duplicate_group\nb,{},1\nc,keep,1\nd,keep,2\ne,keep,2\n'
    of = ['p', 'p', 'q', 'r', '', 'q']
    group = applied(tmp_path, text.format('review'), group=of)['group']
    assert len(set(group[['a', 'b', 'c', 'f']])) == 1 and group['d'] == group['e'] == 'r'
    assert group['a'] != group['d']
    group = applied(tmp_path, text.format('drop'), group=of)['group']
    # The picture that joined them is dropped.
    assert group['a'] == 'p' and group['c'] == group['f'] == 'q'


def test_groups_join_across_files_and_without_given_groups(tmp_path):
    header = 'id,action,duplicate_group\n'
    texts = [header + 'a,keep,1\nb,keep,1\n', header + 'c,keep,1\nd,keep,1\nf,keep,\n']
    group = applied(tmp_path, *texts, group=[''] * 6)['group']
    assert group['a'] == group['b'] != '' and group['c'] == group['d'] != group['a']
    assert group['e'] == group['f'] == ''


def test_decisions_change_the_digest_of_the_data(tmp_path):
    plain = digest(manifest())
    texts = ['id,action\na,drop\n', 'id,action,weight\na,keep,.5\n',
             'id,action,label\na,keep,dög\n',
             'id,action,duplicate_group\na,keep,1\nc,keep,1\n']
    found = {digest(apply_decisions(manifest(), [write(tmp_path, text)])) for text in texts}
    assert len(found | {plain}) == 5
    assert digest(apply_decisions(manifest(), [write(tmp_path, 'id,action\na,keep\n')])) == plain


@pytest.mark.parametrize('text, words', [
    ('id,action\nx,drop\n', "the id 'x'"),
    ('id,action\na,dorp\n', "'dorp' in line 2 .did you mean 'drop'"),
    ('id,acton\na,drop\n', "no column 'action' .did you mean 'acton'"),
    ('id,action\na,drop\n\na,keep\n', "id 'a' in line 2 and in line 4"),
    ('id,action,weight\na,keep,-1\n', "weight '-1' in line 2"),
    ('id,action,weight\na,keep,much\n', "weight 'much'"),
    ('id,action,label\na,keep,dig\n', "'a' as 'dig'.*head 'class'"),
    ('id,action,label/age\na,keep,1\n', "'label/age'.*heads are class"),
    ('id,action\n' + ''.join(f'{name},drop\n' for name in IDS), 'drop every image'),
    ('', 'is empty'),
])
def test_mistakes_are_one_sentence(tmp_path, text, words):
    with pytest.raises(DataError, match=words) as error:
        apply_decisions(manifest(), [write(tmp_path, text)])
    assert '\n' not in str(error.value) and 'd.csv' in str(error.value)


def test_another_encoding_is_named(tmp_path):
    with pytest.raises(DataError, match='CSV UTF-8'):
        read_decisions(write(tmp_path, 'id,action,label\na,keep,dög\n', encoding='cp1252'))


def finding(name, actions, **fields):
    reason = np.array([f'{name}!' if action != 'keep' else '' for action in actions], object)
    return Finding(name, np.arange(6) / 4, np.array(actions, object), reason, **fields)


def test_the_strongest_action_wins_and_comes_back_from_the_file(tmp_path):
    group = np.array(['1', '1', '', '', '', ''], object)
    twin = np.array([-1, 0, -1, -1, -1, -1])
    findings = [
        finding('x', ['keep', 'drop', 'review', 'keep', 'keep', 'keep'], group=group, twin=twin),
        finding('y', ['keep', 'review', 'drop', 'review', 'keep', 'keep'],
                label=np.array(['', '', '', 'cat', '', ''], object),
                weight=np.array([np.nan, np.nan, np.nan, np.nan, .5, np.nan]))]
    path = str(tmp_path / 'out.csv')
    save_decisions(decide(manifest(), findings), path)
    table = read_decisions(path)
    assert table['action'].tolist() == ['keep', 'drop', 'drop', 'review', 'keep', 'keep']
    assert table['reason'][1] == 'x!; y!' and table['twin'].tolist() == ['', 'a', '', '', '', '']
    assert table['given_label'].tolist() == ['cat', 'cat', 'dög', 'dög', 'cat', '']
    assert table['suggested_label'][3] == 'cat' and (table['label'] == '').all()
    assert table['score/y'][3] == '0.75'
    kept = apply_decisions(manifest(), [path]).table
    assert kept['id'].tolist() == ['a', 'd', 'e', 'f'] and kept['weight'].tolist() == [1, 1, .5, 1]
    assert kept['label/class'].tolist() == [0, 1, 0, -1]  # a suggestion changes nothing
