"""Votes on classes that have an order or are leaves of a tree: the keys of result.json."""

import csv
import json
import shutil

import numpy as np
import pytest

from tests.train_lib.commands.stored_runs import refused, result_of, vote
from train_lib.metrics.scores import softmax
from train_lib.metrics.structured import level_scores, medians, ordinal_scores
from train_lib.predictions import store
from train_lib.predictions.class_order import ordered_of

AGES = ('young', 'middle', 'old', 'oldest')
KINDS = ('bar/across', 'bar/down', 'box/filled')
IDS = np.array([f'{k:02d}.png' for k in range(40)])
HEADS = {'age': AGES, 'kind': KINDS}
RNG = np.random.default_rng(0)
TRUTH = {head: RNG.integers(0, len(names), len(IDS)).astype(np.int32)
         for head, names in HEADS.items()}


def run(folder, seed, classes, known=True, **config):
    """A run with stored predictions of the test, and what its config says."""
    rng = np.random.default_rng(seed)
    logits = {}
    for head, names in classes.items():
        logits[head] = rng.normal(size=(len(IDS), len(names))).astype(np.float32)
        logits[head][np.arange(len(IDS)), TRUTH[head]] += 1
    writer = store.Writer(folder / 'predictions/test/identity',
                          dict(model='tiny', step=5, digest=f'{seed}', data='', view='identity'),
                          IDS, {head: TRUTH[head] if known else np.full(len(IDS), -1, np.int32)
                                for head in classes}, classes, 'float32')
    writer.write(np.arange(len(IDS)), logits)
    writer.commit()
    with open(folder / 'split.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows(
            [['id', 'split', 'group', *(f'label/{head}' for head in classes)],
             *([name, 'test', '', *[''] * len(classes)] for name in IDS)])
    (folder / 'config.json').write_text(json.dumps(config))
    return logits


def three(folder, classes, **config):
    logits = [run(folder / name, seed, classes, **config) for seed, name in enumerate('abc')]
    assert vote(f'{folder}/?', folder / 'vote', '--config.temperature=False') == 0
    return logits, result_of(folder / 'vote')


def test_an_ordered_head(tmp_path):
    logits, result = three(tmp_path, {'age': AGES}, data=dict(ordered='age'))
    mean = np.mean([softmax(one['age']) for one in logits], axis=0)
    truth = TRUTH['age']
    wanted = ordinal_scores(np.log(mean), truth)
    entry = result['ensembles']['soft']
    assert {key: entry[key] for key in wanted} == pytest.approx(wanted)
    hard = result['ensembles']['hard']
    with np.load(tmp_path / 'vote/predictions.npz') as file:
        assert entry['mae'] == np.abs(file['predicted'] - truth).mean()
    assert hard['mae_median'] is None and hard['mae'] is not None and hard['qwk'] is not None
    log_mean = np.mean([np.log(softmax(one['age'])) for one in logits], axis=0)
    assert result['ensembles']['log_mean']['mae_median'] == pytest.approx(
        ordinal_scores(log_mean, truth)['mae_median'])
    for member, one in zip(result['members'], logits):
        own = ordinal_scores(one['age'], truth)
        assert {key: member[key] for key in own} == pytest.approx(own)
        if member['name'] == result['best_single']['name']:
            assert result['best_single']['qwk'] == pytest.approx(own['qwk'])
    assert result['members_mean']['mae'] == pytest.approx(
        np.mean([one['mae'] for one in result['members']]))
    assert 'levels' not in entry and result['order'] == {'age': []}
    assert 'mae_median' in (tmp_path / 'vote/members.csv').read_text().splitlines()[0]
    page = (tmp_path / 'vote/report.html').read_text()
    assert 'weighted kappa' in page and 'right node, wrong class' not in page


def test_a_tree(tmp_path, capsys):
    logits, result = three(tmp_path, {'kind': KINDS})
    mean = np.mean([softmax(one['kind']) for one in logits], axis=0)
    wanted, = level_scores(np.log(mean), TRUTH['kind'], KINDS)
    found, = result['ensembles']['soft']['levels']
    assert found == pytest.approx(wanted)
    assert result['ensembles']['hard']['levels'][0]['accuracy_summed'] is None
    assert len(result['members'][0]['levels']) == 1 and 'mae' not in result['best_single']
    shown = capsys.readouterr().err
    assert f'level 1 accuracy {wanted["accuracy"]:.4f}  by sums ' in shown
    assert 'right node, wrong class' in (tmp_path / 'vote/report.html').read_text()


@pytest.mark.parametrize('combine', ['vote_then_combine', 'combine_then_vote'])
def test_several_heads(tmp_path, combine):
    logits = [run(tmp_path / name, seed, HEADS, model=dict(name='tiny', head_order={'age': 'corn'}))
              for seed, name in enumerate('ab')]
    assert vote(f'{tmp_path}/?', tmp_path / 'vote', '--config.temperature=False',
                f'--config.combine={combine}') == 0
    result = result_of(tmp_path / 'vote')
    entry = result['ensembles']['soft']
    assert set(entry['heads']['kind']) == {'accuracy', 'f1_macro', 'levels'}
    assert entry['heads']['age']['mae'] == entry['mae'] and 'levels' not in entry['heads']['age']
    with np.load(tmp_path / 'vote/predictions.npz') as file:
        predicted = file['predicted'] // len(KINDS)
    assert entry['mae'] == np.abs(predicted - TRUTH['age']).mean()
    if combine == 'vote_then_combine':  # else the product has the mean of products
        mean = np.mean([softmax(one['age']) for one in logits], axis=0)
        assert entry['mae_median'] == ordinal_scores(np.log(mean), TRUTH['age'])['mae_median']
    own = ordinal_scores(logits[0]['age'], TRUTH['age'])
    assert result['members'][0]['heads']['age'] == pytest.approx(own)
    level, = result['members'][0]['heads']['kind']['levels']
    assert level == pytest.approx(level_scores(logits[0]['kind'], TRUTH['kind'], KINDS)[0])


def test_members_that_do_not_say_the_order(tmp_path, capsys):
    run(tmp_path / 'a', 0, {'age': AGES}, data=dict(ordered=['age']))
    run(tmp_path / 'b', 1, {'age': AGES}, data=dict(ordered=[]))
    assert vote(f'{tmp_path}/?', tmp_path / 'vote', '--config.temperature=False') == 0
    assert result_of(tmp_path / 'vote')['order'] == {'age': ['b']}
    shown = capsys.readouterr().err
    assert 'The classes of age have an order' in shown and 'the config of b' in shown
    assert max(len(line) for line in shown.splitlines() if 'order' in line) <= 80
    assert 'the config of b does not say so' in (tmp_path / 'vote/report.html').read_text()


def test_members_of_another_order_are_refused(tmp_path, capsys):
    run(tmp_path / 'a', 0, {'age': AGES}, data=dict(ordered='age'))
    run(tmp_path / 'b', 1, {'age': AGES[::-1]}, data=dict(ordered='age'))
    line = refused(capsys, [tmp_path / 'a', tmp_path / 'b'], tmp_path / 'vote')
    assert "has the class 'oldest' as number 0 of 'age'" in line and 'in the same order' in line


def test_no_order_and_no_tree_leave_the_vote_as_it_was(tmp_path):
    _, result = three(tmp_path, {'age': AGES})
    assert 'order' not in result and not {'mae', 'levels'} & set(result['ensembles']['soft'])
    assert 'mae' not in (tmp_path / 'vote/members.csv').read_text()


MEDIAN = dict(data=dict(ordered='age'), eval=dict(answer='median'))


@pytest.mark.parametrize('classes', [{'age': AGES}, HEADS], ids=['one', 'several'])
def test_members_that_answer_the_median(tmp_path, classes, capsys):
    several = len(classes) > 1
    logits, result = three(tmp_path, classes, **MEDIAN)
    assert result['medians'] == ['age']
    mean = np.mean([softmax(one['age']) for one in logits], axis=0)
    wanted = medians(np.log(mean))
    assert (wanted != mean.argmax(1)).any()
    lines = list(csv.reader((tmp_path / 'vote/submission.csv').open()))[1:]
    kinds = np.mean([softmax(one['kind']) for one in logits], axis=0).argmax(1) if several else None
    assert [line[2] for line in lines] == [
        f'{AGES[k]}/{KINDS[kinds[i]]}' if several else AGES[k] for i, k in enumerate(wanted)]
    with np.load(tmp_path / 'vote/predictions.npz') as file:
        assert (file['predicted'] // (len(KINDS) if several else 1)).tolist() == wanted.tolist()
    soft = result['ensembles']['soft']  # of the most probable class, but for the median
    assert soft['mae'] == np.abs(mean.argmax(1) - TRUTH['age']).mean()
    assert soft['mae_median'] == np.abs(wanted - TRUTH['age']).mean()
    assert 'The answer to age is the median' in capsys.readouterr().err
    line = refused(capsys, [tmp_path / 'a'], tmp_path / 'hard', '--config.rule=hard',
                   '--config.temperature=False')
    assert "'hard' gives no probabilities" in line and not (tmp_path / 'hard/vote.json').exists()


def test_a_temperature_leaves_the_median_alone(tmp_path):
    for seed, name in enumerate('ab'):
        run(tmp_path / name, seed, {'age': AGES}, **MEDIAN)
        shutil.copytree(tmp_path / name / 'predictions/test', tmp_path / name / 'predictions/val')
    answers = []
    for flag in ('--config.temperature=False', '--config.source=test'):
        assert vote(f'{tmp_path}/?', tmp_path / f'vote{flag}', flag) == 0
        answers.append((tmp_path / f'vote{flag}/submission.csv').read_text())
    assert answers[0] == answers[1]
    assert result_of(tmp_path / 'vote--config.source=test')['fit']['temperature'] < 0.5


def test_medians_of_rows_without_labels(tmp_path):
    logits = run(tmp_path / 'a', 0, {'age': AGES}, known=False, **MEDIAN)['age']
    assert vote([tmp_path / 'a'], tmp_path / 'vote', '--config.temperature=False') == 0
    lines = list(csv.reader((tmp_path / 'vote/submission.csv').open()))[1:]
    assert [line[2] for line in lines] == [AGES[k] for k in medians(logits)]
    assert 'The answer to age is the median' in (tmp_path / 'vote/report.html').read_text()


def test_members_that_answer_differently_are_refused(tmp_path, capsys):
    run(tmp_path / 'a', 0, {'age': AGES}, **MEDIAN)
    run(tmp_path / 'b', 1, {'age': AGES}, data=dict(ordered='age'))
    line = refused(capsys, [tmp_path / 'a', tmp_path / 'b'], tmp_path / 'vote',
                   '--config.temperature=False')
    assert "The member a answers 'age' by its median, and b by its most probable class" in line
    # One that does not say that there is an order has no say.
    (tmp_path / 'b/config.json').write_text(json.dumps(dict(data={})))
    assert vote(f'{tmp_path}/[ab]', tmp_path / 'vote', '--config.temperature=False') == 0
    assert result_of(tmp_path / 'vote')['medians'] == ['age']


@pytest.mark.parametrize('config, wanted', [
    ({}, ()), (dict(data=dict(ordered='age')), ('age',)), (dict(model=dict(head_order='')), ()),
    (dict(model=dict(head_order='corn')), ('age', 'kind')),
    (dict(data=dict(ordered=['kind']), model=dict(head_order={'age': 'corn'})), ('age', 'kind'))])
def test_what_a_config_says(config, wanted):
    assert ordered_of(config, HEADS) == wanted
