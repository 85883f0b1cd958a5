"""Stored logits: what is written is read back, half-written or damaged is refused, rows are joined
by id, and nobody scores what it saw."""

import json

import numpy as np
import pytest

from train_lib.predictions import members, store
from train_lib.runtime.errors import ConfigError

CLASSES = {'class': ('cat', 'dog', 'eel')}
IDS = np.array([f'{name}/{k}.png' for name in ('cat', 'dog') for k in range(4)])
LABELS = {'class': np.repeat([0, 1], 4).astype(np.int32)}
ABOUT = dict(model='tiny', step=5, digest='abc', data='def', view='identity', batch_size=2)


def logits_for(ids, seed=0, classes=CLASSES):
    rng = np.random.default_rng(seed)
    return {head: rng.normal(size=(len(ids), len(names))).astype(np.float32) * 4
            for head, names in classes.items()}


def write(workdir, source='val', view='identity', *, ids=IDS, labels=None, classes=CLASSES,
          seed=0, dtype='float16', roles=None, groups=None, **about):
    """A run with one folder of the store; its split.csv says what `roles` and `groups` say."""
    labels = {head: LABELS['class'][:len(ids)] for head in classes} if labels is None else labels
    logits = logits_for(ids, seed, classes)
    writer = store.Writer(workdir / 'predictions' / source / view, ABOUT | about, np.array(ids),
                          labels, classes, dtype)
    writer.write(np.arange(len(ids)), logits)
    writer.commit()
    if roles is None:
        roles = dict.fromkeys(ids, 'val')
    rows = [f'"{name}","{role}","{(groups or {}).get(name, "")}",""'
            for name, role in roles.items()]
    (workdir / 'split.csv').write_text('\n'.join(['"id","split","group","label/class"', *rows]))
    return logits


def test_what_is_written_is_read_back(tmp_path):
    classes = {'class': ('cat', 'dog'), 'paper/side': ('a', 'b', 'c')}
    labels = {'class': LABELS['class'], 'paper/side': np.full(8, -1, np.int32)}
    wanted = write(tmp_path / 'run/fold_3', classes=classes, labels=labels,
                   groups={'cat/0.png': 'w1'})
    member, = store.members_of(tmp_path / 'run/fold_3', 'val')
    assert (member.name, member.model, member.fold, member.view) == ('run/fold_3', 'run', 3,
                                                                     'identity')
    assert (member.architecture, member.digest, member.source) == ('tiny', 'abc', 'val')
    assert member.ids.tolist() == IDS.tolist() and member.classes == classes
    assert member.roles['cat/0.png'] == 'val' and member.groups == {'cat/0.png': 'w1'}
    for head in classes:
        assert isinstance(member.logits[head], np.memmap)
        assert member.logits[head].dtype == np.float16
        np.testing.assert_array_equal(member.labels[head], labels[head])
        np.testing.assert_allclose(member.logits[head], wanted[head], rtol=2**-11, atol=1e-6)


def test_unfinished_work_goes_on_and_is_never_read(tmp_path):
    folder = tmp_path / 'run/predictions/val/identity'
    logits = logits_for(IDS)

    def open_writer(**about):
        return store.Writer(folder, ABOUT | about, IDS, LABELS, CLASSES, 'float16')

    writer = open_writer()
    writer.write(np.arange(4), {'class': logits['class'][:4]})
    writer.flush(4)
    writer.write(np.arange(4, 6), {'class': logits['class'][4:6]})  # not recorded as finished
    with pytest.raises(ConfigError, match='no predictions'):
        store.members_of(tmp_path / 'run', 'val')
    again = open_writer()
    assert again.rows_done == 4
    again.write(np.arange(4, 8), {'class': logits['class'][4:]})
    again.commit()
    np.testing.assert_array_equal(store.open_member(folder).logits['class'],
                                  logits['class'].astype(np.float16))
    # Other weights, other rows, another batch size in the middle: from the beginning.
    about = store.make_about(ABOUT, IDS, CLASSES, 'float16')
    assert store.is_stored(folder, about)
    assert store.is_stored(folder, about | dict(batch_size=7))
    assert not store.is_stored(folder, about | dict(digest='other'))
    half = open_writer(digest='other')
    half.write(np.arange(2), {'class': logits['class'][:2]})
    half.flush(2)
    assert open_writer(digest='other', batch_size=4).rows_done == 0
    assert store.open_member(folder).digest == 'abc'


@pytest.mark.parametrize('value, words', [(7e4, ['65504', 'float32', '7e+04']),
                                          (np.nan, ['not finite'])])
def test_numbers_that_cannot_be_stored(tmp_path, value, words):
    writer = store.Writer(tmp_path / 'run/predictions/val/identity', ABOUT, IDS, LABELS, CLASSES,
                          'float16')
    logits = logits_for(IDS)
    logits['class'][5, 1] = value
    with pytest.raises(ConfigError) as error:
        writer.write(np.arange(8), logits)
    assert all(word in str(error.value) for word in words)


def test_damage_and_age_are_refused(tmp_path):
    run = tmp_path / 'run'
    write(run)
    folder = run / 'predictions/val/identity'
    (run / 'result.json').write_text('{"best_step": 5}')
    store.open_member(folder)
    (run / 'result.json').write_text('{"best_step": 9}')
    with pytest.raises(ConfigError, match='step 5, and the best step'):
        store.open_member(folder)
    (run / 'result.json').unlink()
    meta = json.loads((folder / 'meta.json').read_text())
    (folder / 'meta.json').write_text(json.dumps(meta | dict(format=2)))
    with pytest.raises(ConfigError, match='format 2'):
        store.open_member(folder)
    (folder / 'meta.json').write_text(json.dumps(meta))
    for name in ('logits.npy', 'labels.npy', 'ids.npy', 'meta.json'):
        data = (folder / name).read_bytes()
        middle = data.rfind(b'v') if name == 'meta.json' else len(data) - 8
        for damaged in (data[:-20], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1:]):
            (folder / name).write_bytes(damaged)
            with pytest.raises(ConfigError, match='cannot be read'):
                store.open_member(folder)
        (folder / name).write_bytes(data)
    store.open_member(folder)
    (run / 'predictions/test.npz').write_bytes(b'PK\x03\x04 no')
    with pytest.raises(ConfigError, match=r'test\.npz'):
        store.members_of(run, 'test')


def test_rows_are_joined_by_id(tmp_path):
    order = np.random.default_rng(1).permutation(8)
    write(tmp_path / 'a', seed=1)
    write(tmp_path / 'b', seed=2, ids=IDS[order], labels={'class': LABELS['class'][order]})
    found = members.find_members([str(tmp_path / '*')], 'val')
    rows = members.join(found)
    for member, row in zip(found, rows):
        np.testing.assert_array_equal(member.ids[row], IDS)
        np.testing.assert_array_equal(member.labels['class'][row], LABELS['class'])
    some = members.join(found, IDS[[6, 1]])
    np.testing.assert_array_equal(found[1].ids[some[1]], IDS[[6, 1]])


OTHER = LABELS['class'].copy()
OTHER[2] = 2


@pytest.mark.parametrize('changes, words', [
    (dict(ids=np.array([*IDS[:7], IDS[0]])), ['1 ids twice', 'cat/0.png']),
    (dict(ids=IDS[:6]), ['lacks 2 of 8', 'dog/2.png']),
    (dict(labels={'class': OTHER}), ['other labels', 'cat/2.png']),
    (dict(classes={'class': ('cat', 'eel', 'dog')}), ["'eel' as number 1", "'dog'"]),
    (dict(classes={'class': ('cat', 'dog')}), ["2 classes of 'class'", "'eel'"]),
    (dict(classes={'kind': CLASSES['class']}, labels={'kind': OTHER}), ['heads', 'kind']),
])
def test_members_that_do_not_fit_are_named(tmp_path, changes, words):
    write(tmp_path / 'good')
    write(tmp_path / 'strange', **changes)
    found = members.find_members([tmp_path / 'good', tmp_path / 'strange'], 'val')
    with pytest.raises(ConfigError) as error:
        members.join(found)
    assert str(error.value).startswith('The member strange ')
    assert all(word in str(error.value) for word in words), error.value


def test_the_first_member_may_be_the_one_that_lacks_rows(tmp_path):
    write(tmp_path / 'a', ids=IDS[:5])
    write(tmp_path / 'b')
    found = members.find_members([tmp_path / 'a', tmp_path / 'b'], 'val')
    with pytest.raises(ConfigError, match='The member a lacks 3 of 8 rows of b'):
        members.join(found)


def test_members_are_found_in_natural_order_under_names_that_differ(tmp_path):
    for name in ('x/run_10', 'x/run_9', 'y/run_9'):
        write(tmp_path / name)
    for fold in (0, 2, 10):
        write(tmp_path / 'x/run_10' / f'fold_{fold}')
        write(tmp_path / 'x/run_10' / f'fold_{fold}', view='hflip')
    found = members.find_members([tmp_path / 'x/run_*', str(tmp_path / 'y/run_9'),
                                  tmp_path / 'x/run_9'], 'val', ['identity'])
    assert [member.name for member in found] == [
        'x/run_9', 'x/run_10/fold_0', 'x/run_10/fold_2', 'x/run_10/fold_10', 'y/run_9']
    assert [member.model for member in found][1:4] == ['x/run_10'] * 3
    both = members.find_members([tmp_path / 'x/run_10'], 'val')
    assert [member.name for member in both][:2] == ['run_10/fold_0:hflip', 'run_10/fold_0']
    for pattern, word in ((tmp_path / 'z*', 'no folders'), (tmp_path / 'z', 'is not a folder')):
        with pytest.raises(ConfigError, match=word):
            members.find_members([pattern], 'val')


def test_nobody_scores_a_row_or_a_group_that_it_trained_on(tmp_path):
    roles = dict.fromkeys(IDS, 'val') | {'cat/0.png': 'train'}
    groups = {'cat/0.png': 'w1', 'dog/0.png': 'w1', 'dog/1.png': 'w2'}
    write(tmp_path / 'a', roles=roles, groups=groups)
    member, = members.find_members([tmp_path / 'a'], 'val')
    assert members.leakage(member, IDS) == ['cat/0.png', 'dog/0.png']
    assert members.leakage(member, ['new'], {'new': 'w1'}) == ['new']
    assert not members.leakage(member, ['new', 'dog/1.png'], {'new': 'w2'})
    with pytest.raises(ConfigError, match=r'The member a trained on 2 of the 8 rows.*cat/0.png'):
        members.refuse_leakage([member], IDS)
    # Groups on two sides were asked for.
    (tmp_path / 'a/config.json').write_text('{"split": {"grouped": false}}')
    member, = members.find_members([tmp_path / 'a'], 'val')
    assert members.leakage(member, IDS) == ['cat/0.png']


def folds(tmp_path, groups=None, swap=False):
    """Two folds: even ids validate in the first, odd ones in the second."""
    wanted = {}
    for fold in (0, 1):
        mine = IDS[fold::2]
        roles = {name: 'val' if name in mine else 'train' for name in IDS} | {'t': 'test'}
        logits = write(tmp_path / 'run' / f'fold_{fold}', ids=mine, roles=roles, groups=groups,
                       labels={'class': LABELS['class'][fold::2]}, seed=fold)
        wanted |= dict(zip(mine, logits['class'].astype(np.float16)))
    (tmp_path / 'run/config.json').write_text('{"split": {"folds": 2, "fold": "all"}}')
    return wanted


def test_out_of_fold_rows_come_from_the_fold_that_did_not_see_them(tmp_path):
    wanted = folds(tmp_path)
    member, = members.find_members([tmp_path / 'run'], 'out_of_fold')
    assert (member.name, member.fold, member.source) == ('run', None, 'out_of_fold')
    rows, = members.join([member], IDS)
    np.testing.assert_array_equal(member.logits['class'][rows], [wanted[name] for name in IDS])
    np.testing.assert_array_equal(member.logits['class'][2:5], np.asarray(
        member.logits['class'])[2:5])
    np.testing.assert_array_equal(member.labels['class'][rows], LABELS['class'])
    assert not members.leakage(member, [*IDS, 't'])


def test_out_of_fold_is_checked_against_the_splits(tmp_path):
    folds(tmp_path, groups={'cat/0.png': 'w', 'cat/1.png': 'w'})
    with pytest.raises(ConfigError, match='fold_0 trained on 1 of the 4 rows'):
        members.out_of_fold(tmp_path / 'run')
    folds(tmp_path)
    split = tmp_path / 'run/fold_1/split.csv'
    split.write_text(split.read_text().replace('"dog/1.png","val"', '"dog/1.png","train"'))
    with pytest.raises(ConfigError, match=r'fold_1 was not scored on the 3 rows.*dog/1.png'):
        members.out_of_fold(tmp_path / 'run')
    (tmp_path / 'run/config.json').write_text('{"split": {"folds": 3, "fold": "all"}}')
    with pytest.raises(ConfigError, match='2 of 3 folds'):
        members.out_of_fold(tmp_path / 'run')
