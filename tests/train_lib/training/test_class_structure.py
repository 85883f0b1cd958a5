"""Runs whose classes have an order or are leaves of a tree: losses, scores, and what follows."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

import train_lib
from configs.common import get_config
from input_pipeline.manifest import make_manifest
from main import main
from tests.faults.running import assert_same_run
from tests.train_lib.commands.stored_runs import result_of, vote
from train_lib.metrics.structured import medians, ordinal_scores
from train_lib.predictions import store
from train_lib.runtime.errors import ConfigError
from train_lib.training import loop
from train_lib.training.class_structure import (
    check_structure,
    ordered_heads,
    with_levels,
    with_structure,
)

LENGTHS = ('short', 'middle', 'long', 'longest')
KINDS = ('bar/across', 'bar/down', 'box/filled', 'box/open')


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    """Drawings of 16 px: four lengths of four figures of two kinds."""
    root = tmp_path_factory.mktemp('figures')
    rng, rows = np.random.default_rng(0), []
    for number in range(128):
        length, kind = number % 4, number // 4 % 4
        image = rng.integers(180, 255, (16, 16, 3), np.uint8)
        end = 4 + 3 * length
        corner = [(end, 4), (4, end), (end, end), (end, end)][kind]
        cv2.rectangle(image, (2, 2), corner, (20, 20, 20), 1 if kind == 3 else -1)
        cv2.imwrite(str(root / f'{number:03d}.png'), image)
        rows.append(dict(path=f'{number:03d}.png', length=LENGTHS[length], kind=KINDS[kind]))
    pd.DataFrame(rows).to_csv(root / 'table.csv', index=False)
    return root / 'table.csv'


MODEL = 'dict(name="small_cnn", width=8, stages=2%s)'
CORN = MODEL % ', head_order={"length": "corn"}'
FLAGS = {
    'data.source': 'csv', 'data.columns.labels': 'length,kind', 'curriculum': '()',
    'init.pretrained': '', 'image.size': 16, 'model': CORN, 'batch_size': 32,
    'loss.levels': '{"kind": (0.5, 1.0)}', 'duration.steps': 40, 'eval.every.steps': 20,
    'checkpoint.every.steps': 10, 'schedule.lr': 0.01, 'ema.decay': 0, 'loss.label_smoothing': 0,
    'log.tensorboard': False, 'report.heat_maps': False}


def train(workdir, table, names=LENGTHS, code=0, **changes):
    """A run; changes have '__' for dots."""
    flags = FLAGS | {key.replace('__', '.'): value for key, value in changes.items()}
    flags['data.classes'] = {'length': list(names)} if names else ''
    assert main(['--config=configs/sketch_cnn.py', f'--config.data.csv={table}',
                 *(f'--config.{key}={value}' for key, value in flags.items()),
                 f'--workdir={workdir}']) == code
    return workdir


@pytest.fixture(scope='module')
def run(tmp_path_factory, table):
    return train(tmp_path_factory.mktemp('run'), table)


def test_scores_of_order_and_tree(run, table):
    result = json.loads((run / 'result.json').read_text())
    stored = store.open_member(run / 'predictions/test.npz')
    for head, values in result['test'].items():
        if head not in ('length', 'kind'):
            continue
        labels, predicted = stored.labels[head], stored.logits[head].argmax(1)
        if head == 'length':
            assert values['mae'] == pytest.approx(np.abs(labels - predicted).mean())
            np.testing.assert_allclose(np.exp(stored.logits[head]).sum(1), 1, rtol=1e-3)
            assert 'levels' not in values and values['qwk'] > 0.5
        else:
            level, = values['levels']
            assert level['accuracy'] == pytest.approx(np.mean(labels // 2 == predicted // 2))
            assert 'mae' not in values and level['nodes'] == 2
    page = (run / 'report.html').read_text()
    assert 'weighted kappa' in page and 'right node, wrong class' in page


def test_the_verb_predict_scores_order_and_tree(run, capsys, tmp_path):
    run = Path(shutil.copytree(run, tmp_path / 'run'))
    found = json.loads((run / 'result.json').read_text())['test']
    assert main(['predict', f'--workdir={run}', '--config.predict.source=test']) == 0
    shown = capsys.readouterr().err
    order = '  '.join(f'{key} {found["length"][key]:.4f}' for key in ('mae', 'mae_median', 'qwk'))
    level, = found['kind']['levels']
    assert f'length  {order}' in shown
    assert (f'kind  level 1 accuracy {level["accuracy"]:.4f}  by sums '
            f'{level["accuracy_summed"]:.4f}  mistaken {level["mistaken"]:.4f}') in shown


def test_the_log_says_the_order(table, tmp_path, capsys):
    train(tmp_path, table, plan_only=True)
    assert 'order    length: short < middle < long < longest' in capsys.readouterr().err


def test_a_new_program_and_other_verbs_have_the_probabilities(run, table, tmp_path):
    run = Path(shutil.copytree(run, tmp_path / 'run'))
    stored = store.open_member(run / 'predictions/test.npz')
    paths = [str(table.parent / name) for name in stored.ids]
    found = train_lib.load(run).predict(paths, probabilities=True)
    columns = [f'length/{name}' for name in LENGTHS]
    np.testing.assert_allclose(found[columns].to_numpy(), softmax(stored.logits['length'], 1),
                               atol=1e-5)
    assert main(['export', f'--workdir={run}', '--format=stablehlo']) == 0
    assert main(['export', f'--workdir={run}', '--format=timm']) == 2
    # The order is part of the weights that another run starts from.
    train(tmp_path / 'next', table, init__from=run, duration__steps=1)
    again = train_lib.load(tmp_path / 'next').predict(paths, probabilities=True)
    assert np.abs(again[columns].to_numpy() - found[columns].to_numpy()).mean() < 0.1


@pytest.mark.parametrize('order', ['corn', 'cumulative_link'])
def test_heads_of_other_order_start_anew(run, table, tmp_path, capsys, order):
    train(tmp_path, table, LENGTHS[::-1] if order == 'corn' else LENGTHS, init__from=run,
          model=CORN.replace('corn', order), duration__steps=1, init__seen='accept')
    assert 'head length of ordered classes starts anew' in capsys.readouterr().err


@pytest.mark.parametrize('metric', ['mae_median', 'qwk'])
def test_the_best_checkpoint_by_a_score_of_the_order(table, tmp_path, metric, capsys):
    """The least distance, or the largest kappa, of all validations, each of which is scored."""
    train(tmp_path, table, eval__metric=metric, eval__every__steps=4, schedule__lr=0.03,
          schedule__plateau__patience__steps=4, duration__steps=32)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    values = {row['step']: row[metric] for row in rows if row['split'] == 'val'}
    assert len(values) == 8 and len(set(values.values())) > 2
    best = (max if metric == 'qwk' else min)(values.values())
    result = json.loads((tmp_path / 'result.json').read_text())
    assert values[result['best_step']] == best
    stored = store.open_member(tmp_path / 'predictions/val.npz')
    scored = ordinal_scores(stored.logits['length'], stored.labels['length'])[metric]
    # Of several heads the mean over those that are ordered, here one.
    assert best == pytest.approx(scored) == result['val'][metric] == result['val']['length'][metric]
    shown = capsys.readouterr().err
    assert f'  {metric} {values[4]:.3f}  best so far' in shown
    assert max(len(line) for line in shown.splitlines() if 'val loss' in line) <= 80


def test_the_median_is_answered_by_everybody(run, table, tmp_path, capsys):
    """By training, the verb predict, a loaded run and a vote, by what one key of the run says."""
    run = Path(shutil.copytree(run, tmp_path / 'run'))
    before = json.loads((run / 'result.json').read_text())['test']
    train(run, table, eval__answer='median')  # the run is finished: it is evaluated again
    assert json.loads((run / 'result.json').read_text())['test'] == before
    stored = store.open_member(run / 'predictions/test.npz')
    logits = stored.logits['length']
    wanted = [LENGTHS[k] for k in medians(logits)]
    assert wanted != [LENGTHS[k] for k in logits.argmax(1)]
    said = pd.read_csv(run / 'predictions/test.csv')
    assert said['prediction/length'].tolist() == wanted
    np.testing.assert_allclose(said['probability/length'],
                               softmax(logits, 1)[np.arange(len(logits)), medians(logits)],
                               rtol=1e-4)
    assert said['prediction/kind'].tolist() == [KINDS[k] for k in stored.logits['kind'].argmax(1)]
    (run / 'predictions/test.csv').unlink()
    assert main(['predict', f'--workdir={run}', '--config.predict.source=test']) == 0
    pd.testing.assert_frame_equal(pd.read_csv(run / 'predictions/test.csv')[['id', *(
        f'prediction/{head}' for head in ('length', 'kind'))]], said[['id', *(
            f'prediction/{head}' for head in ('length', 'kind'))]])
    paths = [str(table.parent / name) for name in stored.ids]
    assert train_lib.load(run).predict(paths)['prediction/length'].tolist() == wanted
    assert vote([run], tmp_path / 'vote', '--config.heads=length') == 0
    found = pd.read_csv(tmp_path / 'vote/submission.csv')
    assert found['target'].tolist() == wanted
    assert result_of(tmp_path / 'vote')['medians'] == ['length']
    pd.DataFrame(dict(id=stored.ids, length='')).to_csv(tmp_path / 'sample.csv', index=False)
    submit = ['submit', f'--workdirs={run}', f'--sample={tmp_path / "sample.csv"}',
              f'--images={table.parent}', '--config.heads=length', f'--out={tmp_path / "out"}',
              '--config.columns={"length": "class"}', '--config.extra=ignore']
    capsys.readouterr()
    assert main([*submit, '--config.rule=hard']) == 2  # before anything is predicted
    assert "The rule 'hard' gives no probabilities" in capsys.readouterr().err
    assert not list((run / 'predictions').glob('submit-*'))
    assert main(submit) == 0
    found = pd.read_csv(tmp_path / 'out/submission.csv', dtype=str)
    assert found['length'].tolist() == wanted
    assert main(['export', f'--workdir={run}', '--format=stablehlo']) == 0
    assert 'The classes of `length` have an order, and the run answers the median of their' in (
        run / 'export/stablehlo/README.md').read_text()


def test_the_median_needs_an_order(table, tmp_path, capsys):
    train(tmp_path, table, code=2, eval__answer='median', model=MODEL % '', plan_only=True)
    assert "config.eval.answer = 'median' is for heads whose classes have an order" in \
        capsys.readouterr().err
    train(tmp_path, table, code=2, eval__answer='mean', plan_only=True)
    assert "config.eval.answer = 'mean': choose one of probable, median" in capsys.readouterr().err


def test_a_score_of_the_order_needs_an_order(table, tmp_path, capsys):
    train(tmp_path, table, code=2, eval__metric='qwk', model=MODEL % '', plan_only=True)
    line, = [line for line in capsys.readouterr().err.splitlines() if 'main.py: ' in line]
    assert "config.eval.metric = 'qwk' is a score of heads whose classes have an order" in line
    train(tmp_path, table, eval__metric='qwk', model=MODEL % '', data__ordered='length',
          plan_only=True)


def test_a_stopped_run_goes_on_bit_for_bit(run, table, tmp_path, monkeypatch):
    inner, steps = loop.evaluate, []

    def stopped(*args):
        steps.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'evaluate', stopped)
        train(tmp_path, table, code=130)
    assert steps and loop.evaluate is inner
    train(tmp_path, table)
    assert_same_run(run, tmp_path)


@pytest.mark.slow  # three runs
def test_folds_and_heads_on_features(table, tmp_path, capsys):
    """Scores of folds together, and an ordered head among those on cached features."""
    train(tmp_path / 'folds', table, split__kind='kfold', split__folds=2, split__fold='all',
          duration__steps=2)
    found = json.loads((tmp_path / 'folds/result.json').read_text())['out_of_fold']
    assert found['length']['mae'] is not None and found['kind']['levels']
    assert 'weighted kappa' in (tmp_path / 'folds/report.html').read_text()
    train(tmp_path / 'probe', table, (), data__ordered='length', model=MODEL % '',
          loss__levels='()', probe__cache=tmp_path, eval__answer='median',
          probe__heads='[dict(name="corn", head_order={"length": "corn"})]')
    found = json.loads((tmp_path / 'probe/result.json').read_text())['test']
    assert found['length']['mae'] is not None and found['kind']['levels']
    stored = store.open_member(tmp_path / 'probe/predictions/test.npz')
    wanted = [stored.classes['length'][k] for k in medians(stored.logits['length'])]
    said = tmp_path / 'probe/predictions/test.csv'
    assert pd.read_csv(said)['prediction/length'].tolist() == wanted
    said.unlink()
    capsys.readouterr()
    for name in ('folds', 'probe'):
        assert main(['predict', f'--workdir={tmp_path / name}']) == 0
    assert pd.read_csv(said)['prediction/length'].tolist() == wanted
    assert capsys.readouterr().err.count('length  mae ') == 4  # two folds; one, and all
    # A head of a probing run has no config.json of its own.
    assert vote(f'{tmp_path}/probe/corn-lr*/fold_0', tmp_path / 'vote', '--config.heads=length',
                '--config.temperature=False') == 0
    assert result_of(tmp_path / 'vote')['order'] == {'length': []}


CLASSES = {'age': ('middle', 'old', 'young'), 'size': ('1', '2', '10')}


def config_of(**model):
    config = get_config()
    config.model.update(model)
    return config


def test_an_order_of_the_alphabet_has_to_be_confirmed():
    config = config_of(head_order={'age': 'corn'})
    with pytest.raises(ConfigError, match=r'order of the alphabet \(middle, old, young\)'):
        ordered_heads(config, CLASSES)
    config.data.ordered = ('age',)
    assert ordered_heads(config, CLASSES) == ('age',)
    with config.ignore_type():
        config.data.classes = {'age': ('young', 'middle', 'old')}
    config.data.ordered = ()
    assert ordered_heads(config, CLASSES) == ('age',)
    assert ordered_heads(config_of(head_order={'size': 'corn'}), CLASSES) == ('size',)
    assert ordered_heads(get_config(), CLASSES) == ()


def test_what_does_not_fit_is_refused():
    config = get_config()
    config.data.ordered = ('agee',)
    with pytest.raises(ConfigError, match="'agee', which is not a head: did you mean 'age'"):
        ordered_heads(config, CLASSES)
    with pytest.raises(ConfigError, match="head_order names 'siz'"):
        ordered_heads(config_of(head_order={'siz': 'corn'}), CLASSES)
    config = get_config()
    config.loss.name = 'corn'
    with pytest.raises(ConfigError, match=r"config\.model\.head_order='corn'"):
        check_structure(config, CLASSES)
    config = config_of(head_order={'size': 'corn'})
    config.loss.name = 'binary_cross_entropy'
    with pytest.raises(ConfigError, match='whose logits are log probabilities'):
        check_structure(config, CLASSES)


def test_scores_without_order_and_tree_stay_as_they_are():
    manifest = make_manifest({'id': ['a'], 'location': ['a'], 'label/x/y': [0]},
                             {'x/y': ('a/b', 'a/c', 'd/b', 'd/c')})
    assert with_structure(dict(n=1), {'x/y': np.zeros((1, 4))}, manifest) == dict(n=1)
    assert with_levels({}, get_config(), {}) == {}
