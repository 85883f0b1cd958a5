"""The verb vote through main: what it writes, and what it refuses."""

import csv
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from tests.train_lib.commands.stored_runs import (
    NAMES,
    TEST,
    TRAIN,
    TRUTH,
    kfold,
    refused,
    result_of,
    split,
    vote,
    write,
)
from train_lib.metrics.scores import scores, softmax
from train_lib.predictions import store


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Two k-fold runs, the second of them better, and a vote of all their folds."""
    folder = tmp_path_factory.mktemp('runs')
    kfold(folder / 'weak', 1, strength=0.8)
    kfold(folder / 'strong', 2, strength=2.2)
    assert vote([folder / 'weak', folder / 'strong'], folder / 'vote', '--config.weights=fit',
                '--config.pictures=5') == 0
    return folder


def members_of(runs, *names):
    return [store.members_of(runs / name / f'fold_{k}', 'test')[0]
            for name in names for k in range(3)]


def test_what_a_vote_leaves(runs):
    result = result_of(runs / 'vote')
    members = members_of(runs, 'weak', 'strong')
    table = pd.read_csv(runs / 'vote/members.csv')
    assert table['name'].tolist() == [f'{name}/fold_{k}' for name in ('weak', 'strong')
                                      for k in range(3)]
    alone = [scores(member.logits['class'], member.labels['class'])['accuracy']
             for member in members]
    np.testing.assert_allclose(table['accuracy'], alone)
    assert result['best_single']['name'] == table['name'][np.argmax(alone)]
    # The better run weighs more, and folds share what their run has.
    assert table['weight'].sum() == pytest.approx(1)
    assert table['weight'][3] > table['weight'][0]
    assert table['weight'][3] == pytest.approx(table['weight'][5])
    with np.load(runs / 'vote/predictions.npz', allow_pickle=False) as file:
        assert file['ids'].tolist() == TEST and file['classes'].tolist() == list(NAMES)
        pooled = sum(weight * softmax(member.logits['class'])
                     for weight, member in zip(table['weight'], members))
        temperature = result['fit']['temperature']
        wanted = pooled ** (1 / temperature)
        np.testing.assert_allclose(softmax(file['logits']),
                                   wanted / wanted.sum(1, keepdims=True), rtol=1e-4)
        assert file['logits'].argmax(1).tolist() == file['predicted'].tolist()
        answers = file['predicted']
    lines = list(csv.reader((runs / 'vote/submission.csv').open()))
    assert lines[0] == ['ID', 'image_path', 'target']
    assert lines[1:] == [[name, name, NAMES[k]] for name, k in zip(TEST, answers)]
    entry = result['ensembles']['soft']
    assert entry['accuracy'] == np.mean([TRUTH[name] == k for name, k in zip(TEST, answers)])
    for unit in ('example', 'group'):
        found = entry['intervals'][unit]['accuracy']
        assert found['best_single'][0] == pytest.approx(entry['accuracy'] - max(alone))
        assert found['mean_member'][0] == pytest.approx(entry['accuracy'] - np.mean(alone))
        assert found['low'] <= entry['accuracy'] <= found['high']
    # Fitted on rows that no fold trained on, and scored there twice.
    assert (result['fit']['source'], result['fit']['n']) == ('out_of_fold', 36)
    nll = {name: one['nll'] for name, one in result['fit']['answer'].items()}
    assert nll['naive'] < nll['nested'] and nll['naive'] < nll['plain']
    assert set(result['ensembles']) == {'soft', 'log_mean', 'rank_mean', 'median',
                                        'trimmed_mean', 'hard'}


def test_one_member_is_the_member(runs, tmp_path):
    assert vote([runs / 'strong/fold_1'], tmp_path / 'v', '--config.temperature=False') == 0
    member = members_of(runs, 'strong')[1]
    with np.load(tmp_path / 'v/predictions.npz', allow_pickle=False) as file:
        np.testing.assert_allclose(softmax(file['logits']), softmax(member.logits['class']),
                                   rtol=1e-5)
    entry = result_of(tmp_path / 'v')['ensembles']['soft']
    wanted = scores(member.logits['class'], member.labels['class'])
    assert (entry['accuracy'], entry['nll']) == pytest.approx((wanted['accuracy'], wanted['nll']))
    assert entry['intervals']['example']['accuracy']['best_single'] == [0, 0, 0]


def test_rows_without_labels_are_answered(tmp_path):
    for k in (0, 1):
        write(tmp_path / f'run{k}', 'new', TEST, seed=k, labels=np.full(24, -1, np.int32))
    assert vote(f'{tmp_path}/run*', tmp_path / 'v', '--config.source=new',
                '--config.temperature=False') == 0
    assert len(pd.read_csv(tmp_path / 'v/submission.csv')) == 24
    result = result_of(tmp_path / 'v')
    assert result['labelled'] == 0 and 'ensembles' not in result
    assert 'nothing is scored' in (tmp_path / 'v/report.html').read_text()


def test_scores_on_the_rows_of_the_fit_are_marked(runs, tmp_path):
    flags = ['--config.source=out_of_fold', '--config.weights=greedy', '--config.choose=evenness']
    assert vote([runs / 'weak', runs / 'strong'], tmp_path / 'v', *flags) == 0
    result = result_of(tmp_path / 'v')
    assert result['fit']['on_the_scored_rows'] and result['n'] == 36
    assert not result_of(runs / 'vote')['fit']['on_the_scored_rows']


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.stack = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ('meta', 'img', 'br', 'wbr'):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_the_report_opens_and_escapes(runs):
    text = (runs / 'vote/report.html').read_text()
    page = _Page()
    page.feed(text)
    assert page.stack == [] and 'svg' in page.tags
    assert '&lt;b&gt;cat&lt;' in text and '<b>cat' not in text
    assert '://' not in text and len(text) < 5e6


def test_rows_are_joined_by_id_and_the_sample_orders_them(runs, tmp_path):
    for k in (0, 1):  # the same logits, in another order
        order = np.random.default_rng(k).permutation(24) if k else np.arange(24)
        write(tmp_path / f'run{k}', 'test', TEST, seed=5, order=order)
    sample = tmp_path / 'sample.csv'
    names = TEST[::-1]
    sample.write_text('number,picture,answer,note\n' + ''.join(
        f'{k},{name},0,"a, b"\n' for k, name in enumerate(names)))
    flags = [f'--config.sample={sample}',
             "--config.columns=dict(picture='id',answer='index')", '--config.temperature=False']
    assert vote([tmp_path / 'run0', tmp_path / 'run1'], tmp_path / 'v', *flags) == 0
    result = result_of(tmp_path / 'v')
    assert result['diversity']['disagreement'] == [[0, 0], [0, 0]]
    with np.load(tmp_path / 'v/predictions.npz', allow_pickle=False) as file:
        answers = dict(zip(file['ids'].tolist(), file['predicted'].tolist()))
    lines = list(csv.reader((tmp_path / 'v/submission.csv').open()))
    assert lines[0] == ['number', 'picture', 'answer', 'note']
    assert lines[1:] == [[str(k), name, str(answers[name]), 'a, b']
                         for k, name in enumerate(names)]


@pytest.mark.parametrize('ids, words', [
    (TEST[1:], 'lacks 1 of 24'), ([*TEST, 'other.png'], 'not predicted'),
    ([*TEST, TEST[3]], 'twice')])
def test_a_sample_with_other_ids_is_refused(runs, tmp_path, capsys, ids, words):
    sample = tmp_path / 'sample.csv'
    sample.write_text('\n'.join(['ID,target', *(f'{name},0' for name in ids)]))
    line = refused(capsys, [runs / 'weak'], tmp_path / 'v', f'--config.sample={sample}')
    assert words in line and str(sample) in line


def harmed(tmp_path, kind):
    """Two runs, the second of them wrong in one way."""
    for k in (0, 1):
        workdir = tmp_path / f'run{k}'
        ids, classes = list(TEST), NAMES
        bad = k == 1
        if bad and kind == 'partial':
            ids = TEST[2:]
        elif bad and kind == 'twice':
            ids = [*TEST, TEST[0]]
        elif bad and kind == 'classes':
            classes = (NAMES[1], NAMES[0], NAMES[2])
        labels = np.roll([TRUTH[name] for name in TEST], 1) if bad and kind == 'labels' else None
        write(workdir, 'test', ids, seed=k, classes=classes, labels=labels)
        roles = dict.fromkeys(TRAIN, 'train') | dict.fromkeys(TEST, 'test')
        if bad and kind == 'trained':
            roles[TEST[7]] = 'train'
        if bad and kind == 'group':  # a visitor of the test is in the training by another picture
            roles[TEST[0]] = 'train'
        split(workdir, roles)
    return [tmp_path / 'run0', tmp_path / 'run1']


@pytest.mark.parametrize('kind, words', [
    ('partial', ['run1', '2 of 24']), ('twice', ['run1', 'twice']),
    ('classes', ['run1', 'dog']), ('labels', ['run1', 'other labels']),
    # Row 7 is of visitor 1, who has four pictures.
    ('trained', ['run1', 'trained on 4 of the 24']), ('group', ['run1', 'trained on 4 of the 24'])])
def test_members_that_do_not_fit_are_refused_by_name(tmp_path, capsys, kind, words):
    line = refused(capsys, harmed(tmp_path, kind), tmp_path / 'v', '--config.temperature=False')
    assert all(word in line for word in words), line
    assert not (tmp_path / 'v/vote.json').exists()


def test_leakage_among_the_rows_of_the_fit_is_refused(tmp_path, capsys):
    root = kfold(tmp_path / 'run', 3)
    held = [name for k, name in enumerate(TRAIN) if k % 12 % 3 == 1]
    # The person of row 1 is held out with it, but for one picture.
    split(root / 'fold_1', {name: 'val' if name in held and name != TRAIN[13] else 'train'
                            for name in TRAIN} | dict.fromkeys(TEST, 'test'))
    write(root / 'fold_1', 'val', [name for name in held if name != TRAIN[13]], seed=31)
    line = refused(capsys, [root], tmp_path / 'v')
    assert 'run/fold_1 trained on' in line


ENSEMBLES = ("--config.ensembles={'a':{'members':('w',),'rule':'hard'},'b':{'rule':('soft','hard')"
             "},'c':{'weights':'fit'},'d':{'rule':('hard','soft'),'weights':{'w':3}}}")


def test_ensembles_side_by_side_and_the_choice(runs, tmp_path):
    table = f"dict(w='{runs / 'weak'}',s='{runs / 'strong'}')"
    assert vote(table, tmp_path / 'v', ENSEMBLES, '--config.choose=worst_class') == 0
    result = result_of(tmp_path / 'v')
    found = result['ensembles']
    assert {name: (one['rule'], one['members']) for name, one in found.items()} == {
        'a': ('hard', 3), 'b': ('soft-hard', 6), 'c': ('soft', 6), 'd': ('hard-soft', 6)}
    robust = {name: one['robustness']['worst_class']
              for name, one in result['fit']['ensembles'].items()}
    assert robust[result['answer']] == max(robust.values()) > robust['a']
    members = members_of(runs, 'weak', 'strong')
    labels = members[0].labels['class']
    votes = np.stack([member.logits['class'].argmax(1) for member in members])
    # Hard within three folds, then the shares of both models weighted 3 to 1.
    shares = [np.mean(votes[part, :, None] == np.arange(3), axis=0) for part in
              (slice(0, 3), slice(3, 6))]
    pooled = 3 * shares[0] + shares[1]
    clear = np.sort(pooled, 1)[:, -1] > np.sort(pooled, 1)[:, -2] + 1e-6
    assert clear.mean() > 0.5
    assert found['d']['ties'] == (~clear).sum()
    low = np.mean((pooled.argmax(1) == labels) & clear)
    assert low <= found['d']['accuracy'] <= low + np.mean(~clear)
    assert result['members'][0]['model'] == 'w'


def test_several_heads_as_one_product(tmp_path):
    classes = {'age': ('young', 'old'), 'mask': ('on', 'off', 'odd')}
    sizes = dict(age=2, mask=3)
    logits, labels = {}, {head: np.arange(12, dtype=np.int32) % n for head, n in sizes.items()}
    for k in (0, 1):
        logits[k] = {head: np.random.default_rng((k, n)).normal(size=(12, n)).astype(np.float32)
                     for head, n in sizes.items()}
        writer = store.Writer(tmp_path / f'run{k}/predictions/test/identity',
                              dict(model='tiny', step=1, digest='', data='', view='identity'),
                              np.array(TEST[:12]), labels, classes, 'float32')
        writer.write(np.arange(12), logits[k])
        writer.commit()
    pooled = {head: sum(softmax(logits[k][head]) for k in (0, 1)) / 2 for head in sizes}
    products = [(softmax(logits[k]['age'])[:, :, None] * softmax(logits[k]['mask'])[:, None]
                 ).reshape(12, 6) for k in (0, 1)]
    wanted = dict(
        vote_then_combine=pooled['age'].argmax(1) * 3 + pooled['mask'].argmax(1),
        combine_then_vote=sum(products).argmax(1))
    truth = labels['age'] * 3 + labels['mask']
    for combine, answers in wanted.items():
        assert vote([tmp_path / 'run0', tmp_path / 'run1'], tmp_path / combine,
                    '--config.temperature=False', f'--config.combine={combine}',
                    "--config.columns=dict(ID='id',age='age',target='class')") == 0
        table = pd.read_csv(tmp_path / combine / 'submission.csv')
        names = [f'{a}/{m}' for a in classes['age'] for m in classes['mask']]
        assert table['target'].tolist() == [names[k] for k in answers]
        assert table['age'].tolist() == [classes['age'][k // 3] for k in answers]
        entry = result_of(tmp_path / combine)['ensembles']['soft']
        assert entry['accuracy'] == np.mean(answers == truth)
        assert entry['heads']['age']['accuracy'] == np.mean(answers // 3 == labels['age'])


@pytest.mark.parametrize('flag, words', [
    ('--config.rule=softt', ["'softt'", 'soft']),
    ('--config.sorce=val', ['sorce', 'config.source']),
    ('--config.columns=dict(ID="id",target="clas")', ["'class'"]),
    ('--config.weights=dict(nobody=2)', ["'nobody'", 'weak']),
    ('--config.source=val', ['weak/fold_1']),
    ("--config.ensembles=dict(a=dict(rul='soft'))", ["'rul'", 'rule']),
    ('--config.choose=best', ["'best'", 'worst_class'])])
def test_mistakes_are_one_sentence(runs, tmp_path, capsys, flag, words):
    line = refused(capsys, [runs / 'weak'], tmp_path / 'v', flag)
    assert all(word in line for word in words), line
