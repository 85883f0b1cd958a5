"""A vote on pictures without labels: what its page says, and where its pictures come from."""

import csv
import html
import json
import re

import cv2
import numpy as np
import pytest

from configs.vote import common
from tests.train_lib.commands.stored_runs import (
    GROUPS,
    NAMES,
    TRAIN,
    TRUTH,
    kfold,
    result_of,
    vote,
    write,
)
from train_lib.commands.vote import run_vote
from train_lib.ensembles.validated_members import even_rows
from train_lib.metrics.intervals import accuracy_interval
from train_lib.metrics.p_values import p_text
from train_lib.metrics.scores import softmax
from train_lib.metrics.statistics import disagreement
from train_lib.predictions import members, store
from train_lib.reporting.unlabelled_vote import preview

NEW = [f'new/{k:03d}.png' for k in range(90)]


def unlabelled(workdir, *, seed, ids=NEW, strength=1.5, shares=(1, 1, 1)):
    """Predictions of new pictures, whose classes come in these shares."""
    truth = np.repeat(np.arange(3), shares)
    for k, name in enumerate(ids):
        TRUTH[name] = TRUTH[name] if name in TRAIN else int(truth[k % len(truth)])
    write(workdir, 'new', ids, seed=seed, strength=strength,
          labels=np.full(len(ids), -1, np.int32))


def label_rows(root):
    """Writes the classes into the split.csv of every fold."""
    for path in root.glob('fold_*/split.csv'):
        rows = list(csv.DictReader(path.open()))
        path.write_text('id,split,group,label/class\n' + ''.join(
            f'"{row["id"]}","{row["split"]}","{row["group"]}","{NAMES[TRUTH[row["id"]]]}"\n'
            for row in rows))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    for name, seed, strength in (('weak', 1, 0.8), ('strong', 2, 4.0)):
        root = kfold(folder / name, seed, strength=strength)
        label_rows(root)
        for k in range(3):
            unlabelled(root / f'fold_{k}', seed=10 * seed + k, strength=strength,
                       shares=(8, 1, 1))
    assert vote([folder / 'weak', folder / 'strong'], folder / 'vote', '--config.source=new') == 0
    return folder


def text_of(page) -> str:
    """What a reader sees of a page."""
    text = re.sub(r'<style.*?</style>|<script.*?</script>|<wbr>', '', page.read_text(), flags=re.S)
    return ' '.join(html.unescape(re.sub(r'<[^>]+>', ' ', text)).split())


def test_members_have_the_scores_of_their_validation_rows(runs):
    found = result_of(runs / 'vote')['unlabelled']
    names = [f'{name}/fold_{k}' for name in ('weak', 'strong') for k in range(3)]
    for name, scores in zip(names, found['members'], strict=True):
        member, = store.members_of(runs / name, 'val')
        right = member.logits['class'].argmax(1) == member.labels['class']
        groups = np.array([GROUPS[one] for one in member.ids])
        assert (scores['n'], scores['groups'], scores['rows']) == (12, 4, 'val')
        assert scores['accuracy'] == right.mean()
        assert (scores['low'], scores['high']) == pytest.approx(accuracy_interval(right, groups))
        assert scores['f1_low'] <= scores['f1_macro'] <= scores['f1_high']
    assert list(found['runs']) == ['weak', 'strong'] and found['without'] == []
    whole = members.out_of_fold(runs / 'strong')
    right = np.asarray(whole.logits['class'][:]).argmax(1) == whole.labels['class']
    assert found['runs']['strong']['accuracy'] == right.mean()
    assert found['runs']['strong']['n'] == 36
    text = text_of(runs / 'vote/report.html')
    assert f'{right.mean():.3f}' in text and 'accuracy out of fold' in text


def test_classes_are_counted_and_a_shift_is_marked(runs):
    part = result_of(runs / 'vote')['unlabelled']['classes']['class']
    answers = [row['target'] for row in csv.DictReader((runs / 'vote/submission.csv').open())]
    assert part['predicted'] == [answers.count(name) for name in NAMES]
    assert part['trained'] == [12, 12, 12]  # every row once, whichever folds trained on it
    here, there = (np.mean([np.bincount(store.members_of(runs / name / f'fold_{k}', source)[0]
                                        .logits['class'].argmax(1), minlength=3)
                            for name in ('weak', 'strong') for k in range(3)], axis=0)
                   for source in ('new', 'val'))
    np.testing.assert_allclose(part['members'], here, atol=0.5)
    np.testing.assert_allclose(part['validated'], 3 * there, atol=0.5)  # three folds' rows
    assert part['reference'] == 'validation' and part['marked'][0]
    text = text_of(runs / 'vote/report.html')
    assert re.search(r'<b>cat</b> more \d+', text) and p_text(part['p'][0]) in text
    assert 'p = 0.000' not in text


def test_names_are_text_and_the_page_needs_no_network(runs):
    page = (runs / 'vote/report.html').read_text()
    assert '&lt;b&gt;cat&lt;' in page and '<b>cat' not in page
    assert '://' not in page and len(page) < 3e6
    for tag in ('div', 'section', 'figure', 'ul', 'li', 'table', 'tr', 'td', 'span', 'p'):
        assert len(re.findall(f'<{tag}[ >]', page)) == page.count(f'</{tag}>'), tag


def test_one_set_of_pictures_in_two_halves_is_not_marked(tmp_path):
    for k in range(2):
        unlabelled(kfold(tmp_path / f'run{k}', 3 + k) / 'fold_0', seed=3 + k)
        for fold in (1, 2):
            unlabelled(tmp_path / f'run{k}/fold_{fold}', seed=3 + k)
    assert vote(f'{tmp_path}/run*', tmp_path / 'v', '--config.source=new') == 0
    part = result_of(tmp_path / 'v')['unlabelled']['classes']['class']
    assert not any(part['marked']) and part['p_distance'] > 0.01


def test_confidence_and_agreement(runs):
    found = result_of(runs / 'vote')['unlabelled']
    answers = [store.members_of(runs / name / f'fold_{k}', 'new')[0].logits['class']
               for name in ('weak', 'strong') for k in range(3)]
    np.testing.assert_allclose(found['disagreement'],
                               disagreement(np.stack([one.argmax(1) for one in answers])))
    assert found['confidence']['members']['mean'] == pytest.approx(
        np.mean([softmax(one).max(1) for one in answers]), rel=1e-5)
    with np.load(runs / 'vote/predictions.npz', allow_pickle=False) as file:
        sure = softmax(file['logits']).max(1)
    assert found['confidence']['vote']['mean'] == pytest.approx(sure.mean(), rel=1e-4)
    assert sum(found['confidence']['vote']['counts']) == len(NEW)
    assert sum(found['confidence']['validated']['counts']) == 6 * 12
    page = (runs / 'vote/report.html').read_text()
    assert page.count('class="matrix"') == 1 and 'both wrong' not in page


def test_the_least_sure_pictures_come_first_and_who_voted_what(runs):
    text = text_of(runs / 'vote/report.html')
    with np.load(runs / 'vote/predictions.npz', allow_pickle=False) as file:
        order = np.argsort(softmax(file['logits']).max(1))
        ids = file['ids']
    unsure, contested = text.split('Least sure')[1].split('Most contested')
    contested = contested.split('Diversity')[0]
    assert '.png' in contested
    shown = re.findall(r'new/(\d+)\.png', unsure)
    assert shown[:5] == [str(ids[k])[4:7] for k in order[:5]]
    assert set(shown).isdisjoint(re.findall(r'new/(\d+)\.png', contested))
    k = order[0]
    votes = [store.members_of(runs / name / f'fold_{fold}', 'new')[0].logits['class'][k].argmax()
             for name in ('weak', 'strong') for fold in range(3)]
    for number in set(votes):
        assert f'{NAMES[number]} : {votes.count(number)}' in unsure.split(str(ids[k]))[0]


def test_the_log_and_the_page_say_where_the_submission_is(runs, tmp_path, capsys):
    assert vote([runs / 'weak'], tmp_path / 'v', '--config.source=new') == 0
    log = capsys.readouterr().err
    assert f'submission  {tmp_path}/v/submission.csv' in log
    assert 'weak, out of fold' in log and 'on validation rows' in log
    paths = [line for line in log.splitlines() if str(tmp_path) in line]
    assert all(len(line) <= 80 for line in log.splitlines() if line not in paths), log
    text = text_of(tmp_path / 'v/report.html')
    assert f'{tmp_path}/v/submission.csv' in text
    assert 'ID image_path target new/000.png new/000.png' in text


@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_the_preview_of_a_submission_with_another_separator(separator, tmp_path):
    with open(tmp_path / 's.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file, delimiter=separator).writerows([['id', 'a b'], ['x', '1,5; "y"\t']])
    found = preview(tmp_path / 's.csv')
    assert found['columns'] == ['id', 'a b'] and found['rows'] == [['x', '1,5; "y"\t']]


def test_of_several_runs_the_score_in_the_head_has_the_name_of_its_run(runs, tmp_path):
    """Also where only one of them has folds."""
    unlabelled(tmp_path / 'alone', seed=7)
    flags = ['--config.source=new', '--config.temperature=False']
    assert vote([runs / 'weak', tmp_path / 'alone'], tmp_path / 'v', *flags) == 0
    assert 'weak , accuracy out of fold' in text_of(tmp_path / 'v/report.html')
    assert vote([runs / 'weak'], tmp_path / 'w', *flags) == 0
    assert 'weak , accuracy' not in text_of(tmp_path / 'w/report.html')


def test_pictures_that_are_given_are_shown_and_one_that_cannot_be_read_is_counted(runs, tmp_path):
    asked = []

    def read(location):
        asked.append(location)
        if location == 'at 3':
            raise OSError('gone')
        return np.full((40, 60, 3), 7, np.uint8)

    config = common.get_config().to_dict() | dict(
        members=str(runs / 'weak'), source='new', bootstrap=50, pictures=90)
    result = run_vote(config, tmp_path / 'v',
                      pictures=(read, {name: f'at {k}' for k, name in enumerate(NEW)}))
    assert result == result_of(tmp_path / 'v')
    assert set(asked) == {f'at {k}' for k in range(90)}
    page = (tmp_path / 'v/report.html').read_text()
    assert page.count('src="data:image/webp') == 89 and 'pic blank' in page
    assert '1 of the pictures below could not be read' in page


def test_pictures_of_the_run_are_not_taken_for_others_of_the_same_name(tmp_path):
    """The run has a training picture of the same id."""
    workdir = tmp_path / 'run'
    for k, name in enumerate(TRAIN):
        path = tmp_path / 'data' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 40, 3), k, np.uint8))
    unlabelled(workdir, seed=1, ids=TRAIN)
    (workdir / 'config.json').write_text(json.dumps(dict(data=dict(
        source='folder', folder=str(tmp_path / 'data')))))
    assert vote([workdir], tmp_path / 'v', '--config.source=new',
                '--config.temperature=False') == 0
    page = (tmp_path / 'v/report.html').read_text()
    assert 'No pictures are shown. ' in page and 'data:image/webp' not in page


def test_several_heads_are_shown_one_by_one(tmp_path):
    classes = {'age': ('young', 'old'), 'mask': ('on', 'off', 'odd')}
    rng = np.random.default_rng(0)
    for k, source in ((0, 'new'), (0, 'val'), (1, 'new'), (1, 'val')):
        labels = {head: rng.integers(len(names), size=30).astype(np.int32) if source == 'val'
                  else np.full(30, -1, np.int32) for head, names in classes.items()}
        writer = store.Writer(tmp_path / f'run{k}/predictions/{source}/identity',
                              dict(model='tiny', step=1, digest='', data='', view='identity'),
                              np.array(NEW[:30]), labels, classes, 'float32')
        logits = {head: rng.normal(size=(30, len(names))).astype(np.float32)
                  for head, names in classes.items()}
        writer.write(np.arange(30), logits)
        writer.commit()
    assert vote(f'{tmp_path}/run*', tmp_path / 'v', '--config.source=new',
                '--config.temperature=False',
                "--config.columns=dict(ID='id',age='age',mask='mask')") == 0
    found = result_of(tmp_path / 'v')['unlabelled']
    rows = list(csv.DictReader((tmp_path / 'v/submission.csv').open()))
    for head, names in classes.items():
        assert found['classes'][head]['predicted'] == [
            sum(row[head] == name for row in rows) for name in names]
    member, = store.members_of(tmp_path / 'run1', 'val')
    right = {head: member.logits[head].argmax(1) == member.labels[head] for head in classes}
    assert found['members'][1]['accuracy'] == np.mean(right['age'] & right['mask'])
    assert found['members'][1]['heads'] == {head: right[head].mean() for head in classes}
    text = text_of(tmp_path / 'v/report.html')
    assert 'ID age mask' in text and 'young/on' in text


def test_the_page_stands_without_validation_rows(tmp_path, capsys):
    unlabelled(tmp_path / 'alone', seed=1)
    flags = ['--config.source=new', '--config.temperature=False']
    assert vote([tmp_path / 'alone'], tmp_path / 'v', *flags) == 0
    found = result_of(tmp_path / 'v')['unlabelled']
    assert found['members'] == [None] and found['classes']['class']['reference'] == ''
    text = text_of(tmp_path / 'v/report.html')
    assert 'nothing to compare with' in text and 'There is only one member' in text
    assert f'1 member votes on {len(NEW)} pictures of' in text
    assert 'no member has predictions of validation rows' in capsys.readouterr().err
    (tmp_path / 'alone/result.json').write_text(json.dumps(dict(
        best_step=5, val=dict(accuracy=0.75, n=40))))
    assert vote([tmp_path / 'alone'], tmp_path / 'w', *flags) == 0
    scores, = result_of(tmp_path / 'w')['unlabelled']['members']
    assert scores['accuracy'] == 0.75 and 0.59 < scores['low'] < 0.75 < scores['high'] < 0.9
    # Of pictures in groups result.json does not say who was right.
    (tmp_path / 'alone/split.csv').write_text('id,split,group\nx,val,ann\ny,val,bob\n')
    assert vote([tmp_path / 'alone'], tmp_path / 'w', *flags) == 0
    scores, = result_of(tmp_path / 'w')['unlabelled']['members']
    assert scores['accuracy'] == 0.75 and scores['low'] is None is scores['high']


def test_rows_are_spread_evenly():
    assert even_rows(5).tolist() == [0, 1, 2, 3, 4] and even_rows(0).size == 0
    some = even_rows(100_000)
    assert len(some) == 2000 and some[0] == 0 and some[-1] == 99_999
    assert np.ptp(np.diff(some)) <= 1
