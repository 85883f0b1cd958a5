"""A run with a multi-label head beside one with one label: trained in folds, gone on with, loaded,
predicted, voted on and submitted."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import main
import train_lib
from input_pipeline.label_sets import UNLABELLED
from tests.train_lib.tagged_pictures import TAGS, make_tagged
from tests.train_lib.training.test_resume import final_arrays
from train_lib.metrics.set_scores import predicted_sets, set_scores, sigmoid
from train_lib.metrics.thresholds import fit_thresholds, nested_scores

ROOT = Path(__file__).parents[3]
TINY = ['--config=configs/sketch_cnn.py', '--config.data.source=csv', '--config.image.size=16',
        '--config.curriculum=()', '--config.batch_size=16', '--config.log.tensorboard=false',
        '--config.model=dict(name="small_cnn", width=4, stages=1)',
        '--config.data.multi_label=tags', '--config.schedule.name=constant',
        '--config.eval.every.steps=3', '--config.checkpoint.every.steps=2',
        '--config.schedule.lr=3e-3', '--config.schedule.warmup.steps=0',
        '--config.eval.metric=map', '--config.split.tolerance=0.0']
MIXED = [*TINY, '--config.data.columns.labels=tags,kind',
         '--config.loss.name={"tags":"asymmetric"}',
         '--config.mixing=[dict(kind="mixup", p=0.5)]', '--config.accumulate=2']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """72 pictures of coloured squares; every tenth has no label."""
    folder = tmp_path_factory.mktemp('tags')
    make_tagged(folder, 72, (0.5, 0.5, 0.5))
    return folder


@pytest.fixture(scope='module')
def folds(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('folds') / 'run'
    assert main.main([*MIXED, f'--config.data.csv={data}/t.csv', f'--workdir={workdir}',
                      '--config.duration.steps=4', '--config.split.kind=kfold',
                      '--config.split.folds=2', '--config.split.fold=all',
                      '--config.split.test=0.2', '--config.data.columns.group=group']) == 0
    return workdir


def arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def read(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def result_of(run):
    return json.loads((run / 'result.json').read_text())


def test_result_and_predictions(folds):
    fold, stored = result_of(folds / 'fold_0'), arrays(folds / 'fold_0/predictions/test.npz')
    targets, logits = stored['labels/tags'], stored['logits/tags']
    assert targets.dtype == np.uint8 and targets.shape == logits.shape
    assert set(np.unique(targets)) <= {0, 1, UNLABELLED} and stored['labels/kind'].ndim == 1
    found = fold['test']['tags']
    assert {'n', 'loss', 'accuracy', 'precision_macro', 'recall_macro', 'f1_macro', 'nll', 'ece',
            'map', 'f1_micro', 'f1_examples'} <= set(found)
    assert {key: found[key] for key in ('map', 'accuracy', 'f1_macro')} == {
        key: set_scores(logits, targets)[key] for key in ('map', 'accuracy', 'f1_macro')}
    assert fold['test']['map'] == found['map'] and 'map' not in fold['test']['kind']
    assert 'accuracy_product' not in fold['test']
    rows = [json.loads(line) for line in (folds / 'fold_0/metrics.jsonl').read_text().splitlines()]
    assert all(0 <= row['map'] <= 1 for row in rows if row['split'] == 'val')


def test_thresholds_are_of_validation_rows_and_their_scores_of_others(folds):
    whole, stored = result_of(folds), arrays(folds / 'predictions/out_of_fold.npz')
    targets, logits = stored['labels/tags'], stored['logits/tags']
    fitted = fit_thresholds(logits, targets)
    assert list(whole['thresholds']) == ['tags']
    np.testing.assert_allclose([whole['thresholds']['tags'][tag] for tag in TAGS], fitted)
    group = {row['id']: row['group'] for name in ('fold_0', 'fold_1')
             for row in read(folds / name / 'split.csv')}
    nested = nested_scores(logits, targets, [f'group {group[name]}' for name in stored['ids']])
    assert whole['out_of_fold']['tags']['f1_macro_fitted'] == nested['f1_macro']
    test = arrays(folds / 'fold_1/predictions/test.npz')
    own = result_of(folds / 'fold_1')
    known = test['labels/tags'][:, 0] != UNLABELLED
    said = predicted_sets(test['logits/tags'], np.array(
        [own['thresholds']['tags'][tag] for tag in TAGS]))
    right = (said == (test['labels/tags'] == 1)).all(1)[known].mean()
    assert own['test']['tags']['accuracy_fitted'] == pytest.approx(right)


def test_the_split_and_the_answers_are_texts(folds):
    row = next(row for row in read(folds / 'fold_0/split.csv') if row['id'] == '09.png')
    assert row['label/tags'] == ''
    answers = read(folds / 'fold_0/predictions/test.csv')
    assert list(answers[0]) == ['id', 'label/tags', 'label/kind', 'prediction/tags',
                                'prediction/kind', 'probability/tags', 'probability/kind']
    for row in answers:
        assert set(row['prediction/tags'].split('|')) <= {*TAGS, ''} and row['prediction/tags']
        assert 0 < float(row['probability/tags']) <= 1


def test_reports_show_the_labels(folds):
    for path in (folds, folds / 'fold_0'):
        page = (path / 'report.html').read_text()
        assert 'labels and errors' in page and 'fitted per class' in page and 'mAP' in page


def test_a_loaded_run_answers_with_sets(folds, data):
    run = train_lib.load(folds)
    paths = [str(data / f'{k:02}.png') for k in range(6)]
    table = run.predict(paths, probabilities=True)
    probs = table[[f'tags/{tag}' for tag in TAGS]].to_numpy()
    thresholds = np.array([result_of(folds)['thresholds']['tags'][tag] for tag in TAGS])
    sets = ['|'.join(tag for tag, yes in zip(TAGS, row) if yes) or '|'
            for row in probs >= thresholds]
    assert table['prediction/tags'].tolist() == sets
    sure = np.where(probs >= thresholds, probs, 1 - probs).prod(1)
    np.testing.assert_allclose(table['probability/tags'], sure, rtol=1e-4)
    members = [train_lib.load(folds / f'fold_{k}').predict(paths, probabilities=True)
               for k in range(2)]
    mean = np.mean([one[[f'tags/{tag}' for tag in TAGS]] for one in members], axis=0)
    np.testing.assert_allclose(probs, mean, rtol=1e-4)
    assert set(table['prediction/kind']) <= {'odd', 'even'}


def test_the_folds_vote_with_thresholds_of_out_of_fold_rows(folds, tmp_path, capfd):
    flags = ['vote', '--config=configs/vote/common.py', f'--config.members={folds}',
             f'--workdir={tmp_path}/vote']
    assert main.main(flags) == 2
    assert 'vote on it alone by --config.heads=tags' in capfd.readouterr().err
    assert main.main([*flags, '--config.heads=tags', '--config.rule=trimmed_mean']) == 2
    assert 'choose soft, log_mean, hard' in capfd.readouterr().err
    assert main.main([*flags, '--config.heads=tags', '--config.weights=fit']) == 2
    assert "set it to 'none'" in capfd.readouterr().err
    assert main.main([*flags, '--config.heads=tags']) == 0
    assert all(len(line) <= 80 or '/' in line for line in capfd.readouterr().err.splitlines())
    vote = json.loads((tmp_path / 'vote/vote.json').read_text())
    out = arrays(folds / 'predictions/out_of_fold.npz')
    assert vote['thresholds_from'] == 'out_of_fold' and not vote['nested']
    np.testing.assert_allclose(list(vote['thresholds'].values()),
                               fit_thresholds(out['logits/tags'], out['labels/tags']), atol=1e-6)
    parts = [arrays(folds / f'fold_{k}/predictions/test.npz') for k in range(2)]
    mean = np.mean([sigmoid(part['logits/tags']) for part in parts], axis=0)
    found = arrays(tmp_path / 'vote/predictions.npz')
    np.testing.assert_allclose(sigmoid(found['logits']), mean, atol=1e-5)
    np.testing.assert_array_equal(
        found['predicted'], mean >= np.array(list(vote['thresholds'].values())))
    assert vote['ensembles']['soft']['map'] == pytest.approx(
        set_scores(np.log(mean / (1 - mean)), parts[0]['labels/tags'])['map'])
    assert vote['ensembles']['hard']['nll'] is None
    row = read(tmp_path / 'vote/submission.csv')[0]
    assert row['ID'] == found['ids'][0]
    assert row['target'] == '|'.join(tag for tag, yes in zip(TAGS, found['predicted'][0]) if yes)
    assert 'average precision' in (tmp_path / 'vote/report.html').read_text()


def test_a_vote_on_the_rows_that_fit_its_thresholds_is_nested(folds, tmp_path):
    assert main.main(['vote', '--config=configs/vote/common.py', f'--config.members={folds}',
                      '--config.heads=tags', '--config.source=out_of_fold',
                      f'--workdir={tmp_path}']) == 0
    vote = json.loads((tmp_path / 'vote.json').read_text())
    assert vote['nested'] and vote['thresholds_from'] == 'out_of_fold'
    own = result_of(folds)['out_of_fold']['tags']  # one member: that run
    for name in ('f1_macro', 'f1_micro', 'accuracy'):
        assert vote['fitted'][name] == pytest.approx(own[f'{name}_fitted'])
        assert vote['ensembles']['soft'][name] == pytest.approx(own[name])


@pytest.mark.parametrize(('header', 'cells'), [
    ('image,labels', ['']), ('image,red,blue,green', ['0.5'] * 3),
    ('image,red,blue,green', ['1', '0', '1'])])
def test_a_submission_has_a_cell_of_labels_or_a_column_per_class(folds, data, tmp_path, header,
                                                                 cells):
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for k in range(3):
        shutil.copy(data / f'{k:02}.png', pictures / f'{k:02}.png')
    sample = tmp_path / 'sample.csv'
    sample.write_text('\n'.join([header, *(','.join([f'{k:02}.png', *cells])
                                           for k in (2, 0, 1))]) + '\n')
    assert main.main(['submit', f'--workdirs={folds}', f'--sample={sample}',
                      f'--images={pictures}', f'--out={tmp_path}/out', '--config.heads=tags',
                      '--config.label_separator= ']) == 0
    rows = read(tmp_path / 'out/submission.csv')
    found = arrays(tmp_path / 'out/predictions.npz')
    assert [row['image'] for row in rows] == ['02.png', '00.png', '01.png']
    place = {name: k for k, name in enumerate(found['ids'])}
    for row in rows:
        said = found['predicted'][place[row['image']]]
        if 'labels' in row:
            assert row['labels'] == ' '.join(tag for tag, yes in zip(TAGS, said) if yes)
        elif cells[0] == '1':
            assert [row[tag] for tag in TAGS] == [str(int(yes)) for yes in said]
        else:
            np.testing.assert_allclose([float(row[tag]) for tag in TAGS],
                                       sigmoid(found['logits'][place[row['image']]]), atol=1e-5)


def test_other_data_are_predicted_with_and_without_labels(folds, data, tmp_path, capfd):
    flags = ['predict', '--config=configs/sketch_cnn.py', f'--workdir={folds}/fold_0',
             '--config.data.source=csv', f'--config.data.csv={data}/t.csv',
             '--config.predict.source=data']
    labels = '--config.data.columns.labels=tags,kind'
    assert main.main([*flags, labels, '--config.data.multi_label=tags',
                      '--config.predict.name=other']) == 0
    stored = arrays(folds / 'fold_0/predictions/other.npz')
    assert len(stored['ids']) == 72 and (stored['labels/tags'] == UNLABELLED).all(1).sum() == 7
    assert main.main([*flags, '--config.predict.labelled=False',
                      '--config.predict.name=bare']) == 0
    bare = arrays(folds / 'fold_0/predictions/bare.npz')
    assert (bare['labels/tags'] == UNLABELLED).all()
    np.testing.assert_array_equal(bare['logits/tags'], stored['logits/tags'])
    capfd.readouterr()
    assert main.main([*flags, labels, '--config.predict.name=odd']) == 2
    assert 'set config.data.multi_label as in training' in capfd.readouterr().err


@pytest.mark.parametrize(('flags', 'words'), [
    (['--config.data.columns.labels=tags'], 'is not a loss for the head'),
    (['--config.data.columns.labels=tags,kind', '--config.loss.name=asymmetric'],
     "is not a loss for the head 'kind'"),
    (['--config.data.columns.labels=tags', '--config.loss.name=asymmetric',
      '--config.eval.adjust_tau=1.0'], 'adjusts a softmax'),
    (['--config.data.columns.labels=tags', '--config.loss.name=asymmetric',
      '--config.resample.kind=balanced'], 'goes by one label per picture'),
    (['--config.data.columns.labels=tags', '--config.data.long_tail.per_class=2'],
     'has several labels per picture'),
    (['--config.data.columns.labels=tags', '--config.data.multi_label=tag'],
     "names the head 'tag'"),
    (['--config.data.columns.labels=kind', '--config.data.multi_label=()'],
     'is a score of multi-label heads')])
def test_what_has_no_meaning_is_refused(data, tmp_path, capfd, flags, words):
    keys = {flag.partition('=')[0] for flag in flags}
    usual = [flag for flag in TINY if flag.partition('=')[0] not in keys]
    assert main.main([*usual, f'--config.data.csv={data}/t.csv', f'--workdir={tmp_path}/run',
                      '--config.duration.steps=1', *flags]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith('main.py:')]
    assert len(said) == 1 and words in said[0]
    assert not (tmp_path / 'run/config.json').exists()


def test_other_verbs_refuse(folds, capfd):
    assert main.main(['export', f'--workdir={folds}', '--format=timm']) == 2
    assert 'The run has 2 heads' in capfd.readouterr().err


@pytest.mark.slow
def test_it_goes_on_as_if_it_had_not_stopped(data, tmp_path):
    flags = [*MIXED, f'--config.data.csv={data}/t.csv', '--config.report.heat_maps=false',
             '--config.eval.thresholds=half', '--config.resample.kind=repeat_factor',
             '--config.resample.target=60', '--config.loss.class_weights.kind=pos_weight',
             '--config.loss.class_weights.head=tags']
    assert main.main([*flags, '--config.duration.steps=4', f'--workdir={tmp_path}/whole']) == 0
    for steps in (2, 4):
        assert main.main([*flags, f'--config.duration.steps={steps}',
                          f'--workdir={tmp_path}/parts']) == 0
    whole, parts = (final_arrays(tmp_path / name, 4) for name in ('whole', 'parts'))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        if 'metric_sums' not in name:  # sums since the last line of the log, which ends a run
            np.testing.assert_array_equal(value, parts[name])
    result = result_of(tmp_path / 'whole')
    assert result['test'] == result_of(tmp_path / 'parts')['test']
    assert 'thresholds' not in result and 'f1_macro_fitted' not in result['test']['tags']


@pytest.mark.faults
def test_a_killed_run_ends_the_same(data, tmp_path):
    flags = [*MIXED, f'--config.data.csv={data}/t.csv', '--config.duration.steps=40']

    def start(workdir):
        return subprocess.Popen([sys.executable, 'main.py', *flags, f'--workdir={workdir}'],
                                cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'},
                                stderr=subprocess.DEVNULL)

    assert start(tmp_path / 'whole').wait() == 0
    for steps in (6, 20):
        process = start(tmp_path / 'killed')
        while process.poll() is None and not any(
                int(path.name) >= steps for path in (tmp_path / 'killed/checkpoints').glob('[0-9]*')
                if path.name.isdecimal()):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / 'killed').wait() == 0
    left, right = final_arrays(tmp_path / 'whole', 40), final_arrays(tmp_path / 'killed', 40)
    assert all((value == right[name]).all() for name, value in left.items())
    assert (tmp_path / 'whole/metrics.jsonl').read_bytes() == \
        (tmp_path / 'killed/metrics.jsonl').read_bytes()
    whole = arrays(tmp_path / 'whole/predictions/test.npz')
    for name, value in arrays(tmp_path / 'killed/predictions/test.npz').items():
        np.testing.assert_array_equal(value, whole[name])
