"""Heads on cached features whose pictures have several labels: compared with ordinary training,
their files, votes and predictions."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import main
import train_lib
from configs import common
from input_pipeline.label_sets import UNLABELLED
from tests.train_lib.probing.trained_alone import assert_alone_is_together
from tests.train_lib.tagged_pictures import TAGS, make_tagged
from train_lib.metrics.set_scores import predicted_sets, set_scores, sigmoid
from train_lib.metrics.thresholds import fit_thresholds, nested_scores
from train_lib.predictions import members
from train_lib.predictions.run_folders import separator_of, thresholds_of
from train_lib.probing.probe_folds import make_folds
from train_lib.probing.run_probe import probe
from train_lib.runtime.errors import ConfigError
from train_lib.training import run
from train_lib.training.data import load_data

LOSS = {'tags': 'asymmetric'}


def probe_config(folder, **changes):
    config = common.get_config()
    with config.ignore_type():
        config.data.update(source='csv', csv=str(folder / 't.csv'), multi_label=('tags',))
        config.data.columns.update(labels='tags,kind', group='group')
        config.image.size = 16
        config.model = dict(name='small_cnn', width=8, stages=1)
        config.split.update(kind='kfold', fold='all', folds=2, test=0.2, tolerance=0.0)
        config.duration, config.batch_size, config.curriculum = dict(epochs=20), 8, ()
        config.probe.update(views=0, dtype='float32', cache=str(folder / 'cache'), lr=(1e-1, 1e-2),
                            heads=(dict(name='linear', head='linear'),
                                   dict(name='mlp', head='mlp', head_hidden=8)))
        config.schedule.warmup = dict(steps=0)
        config.loss.name, config.eval.metric = LOSS, 'map'
        config.report.heat_maps = False
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets')
    make_tagged(folder)
    config = probe_config(folder)
    manifest = load_data(config)
    return folder, config, manifest, probe(config, manifest, folder / 'run')


def arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_the_setting_with_the_best_map_is_chosen_and_its_files_are_those_of_any_run(done):
    folder, _, _, result = done
    rows = {row['name']: row for row in result['heads']}
    assert set(rows) == {'linear-lr0.1', 'linear-lr0.01', 'mlp-lr0.1', 'mlp-lr0.01'}
    assert result['chosen'] == max(rows, key=lambda name: rows[name]['map'])
    for name, row in rows.items():
        parts = [arrays(folder / f'run/{name}/fold_{k}/predictions/val.npz') for k in range(2)]
        logits, targets = (np.concatenate([part[f'{what}/tags'] for part in parts])
                           for what in ('logits', 'labels'))
        assert row['map'] == pytest.approx(set_scores(logits, targets)['map'])
        for k in range(2):
            own = parts[k]
            stored = json.loads((folder / f'run/{name}/fold_{k}/thresholds.json').read_text())
            assert list(stored) == ['tags']
            np.testing.assert_allclose([stored['tags'][tag] for tag in TAGS],
                                       fit_thresholds(own['logits/tags'], own['labels/tags']))
    assert rows['linear-lr0.1']['map'] > 0.6  # colours of squares are easy


def test_scores_and_thresholds_of_the_result(done):
    folder, _, manifest, result = done
    out, test = (arrays(folder / f'run/predictions/{name}.npz') for name in ('out_of_fold', 'test'))
    targets = out['labels/tags']
    assert targets.dtype == np.uint8 and set(np.unique(targets)) == {0, 1, UNLABELLED}
    fitted = fit_thresholds(out['logits/tags'], targets)
    np.testing.assert_allclose([result['thresholds']['tags'][tag] for tag in TAGS], fitted)
    groups = dict(zip(manifest.table['id'], manifest.table['group']))
    nested = nested_scores(out['logits/tags'], targets, [f'group {groups[name]}'
                                                         for name in out['ids']])
    assert result['out_of_fold']['tags']['f1_macro_fitted'] == nested['f1_macro']
    parts = [arrays(folder / f'run/{result["chosen"]}/fold_{k}/predictions/test.npz')
             for k in range(2)]
    mean = np.mean([sigmoid(part['logits/tags']) for part in parts], axis=0)
    np.testing.assert_allclose(sigmoid(test['logits/tags']), mean, atol=1e-6)
    known = test['labels/tags'][:, 0] != UNLABELLED
    right = (predicted_sets(test['logits/tags'], fitted) == (test['labels/tags'] == 1)).all(1)
    assert result['test']['tags']['accuracy_fitted'] == pytest.approx(right[known].mean())
    assert 'accuracy' in result['test']['kind'] and 'map' not in result['test']['kind']
    page = (folder / 'run/report.html').read_text()
    assert 'mAP' in page and 'fitted per class' in page


@pytest.mark.slow  # six programs are compiled
def test_stacked_heads_are_those_that_train_alone(done):
    assert_alone_is_together(*done[1:])


@pytest.mark.parametrize('loss', [
    'asymmetric', pytest.param('binary_cross_entropy', marks=pytest.mark.slow)])
def test_a_probe_is_training_with_a_frozen_backbone(done, tmp_path, loss):
    """The same order and the same head: the same logits, and the same thresholds."""
    folder, _, manifest, _ = done
    settings = {'loss.name': {'tags': loss}, 'loss.label_smoothing': 0.1, 'loss.gamma_neg': 2.0,
                'split.fold': 0, 'duration': dict(epochs=4), 'loss.head_weights': (1.0, 0.5)}
    frozen = probe_config(folder, **settings, **{
        'probe.heads': (), 'finetune.table': (('heads?/.*', {}), ('.*', dict(train=False))),
        'schedule.lr': 1e-2, 'eval.every': dict(percent=100), 'report.errors': 0})
    with frozen.ignore_type():
        frozen.model.head_init = 'zeros'
    run.train_one(frozen, manifest, tmp_path / 'frozen')
    probed = probe_config(folder, **settings, **{
        'probe.heads': (dict(name='linear', head='linear', head_init='zeros'),),
        'probe.lr': (1e-2,)})
    probe(probed, manifest, tmp_path / 'probe')
    a = arrays(tmp_path / 'frozen/predictions/test.npz')
    b = arrays(tmp_path / 'probe/linear-lr0.01/fold_0/predictions/test.npz')
    assert list(a['ids']) == list(b['ids'])
    for head in ('tags', 'kind'):
        ours, theirs = (one[f'logits/{head}'] for one in (a, b))
        np.testing.assert_allclose(ours, theirs, atol=5e-4 * np.abs(ours).max())
        assert np.ptp(ours) > 1e-2
    results = [json.loads((tmp_path / name / 'result.json').read_text())
               for name in ('frozen', 'probe')]
    for key in ('map', 'loss', 'f1_macro', 'f1_macro_fitted'):
        assert results[0]['test']['tags'][key] == pytest.approx(results[1]['test']['tags'][key],
                                                                abs=1e-3)


@pytest.fixture(scope='module')
def near(done, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('near') / 'run'
    probe(probe_config(done[0], **{'probe.heads': (dict(name='near', kind='knn', k=5),)}), done[2],
          workdir)
    return workdir


def test_neighbours_answer_with_the_share_that_has_the_label(done, near):
    _, config, manifest, result = done
    fold = make_folds(config, manifest).folds[0]
    features = np.load(f'{result["features"]}/features.npy')[-1].astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    targets = manifest.truth('tags')
    train = fold.train[targets[fold.train, 0] != UNLABELLED]
    cosines = features[fold.test] @ features[train].T
    wanted = []
    for row in cosines:
        nearest = np.argsort(-row, kind='stable')[:5]
        weights = np.exp(row[nearest] / 0.07)
        share = (weights / weights.sum()) @ targets[train][nearest]
        wanted.append((5 * share + 0.5) / 6)
    found = arrays(near / 'near/fold_0/predictions/test.npz')
    np.testing.assert_allclose(sigmoid(found['logits/tags']), wanted, atol=2e-4)


def test_votes_take_them(done, near, tmp_path):
    folder = done[0]
    assert main.main(['vote', '--config=configs/vote/common.py', '--config.heads=tags',
                      f'--config.members={folder}/run/*-lr0.1', f'--workdir={tmp_path}/vote']) == 0
    vote = json.loads((tmp_path / 'vote/vote.json').read_text())
    assert vote['thresholds_from'] == 'out_of_fold' and len(vote['members']) == 4
    names = ('linear-lr0.1', 'mlp-lr0.1')
    parts = [arrays(folder / f'run/{name}/fold_{k}/predictions/test.npz')
             for name in names for k in range(2)]
    said = arrays(tmp_path / 'vote/predictions.npz')
    mean = np.mean([sigmoid(part['logits/tags']) for part in parts], axis=0)
    np.testing.assert_allclose(sigmoid(said['logits']), mean, atol=1e-5)
    hard = ['--config.heads=tags', '--config.rule=hard', f'--config.members={near}/near']
    assert main.main(['vote', '--config=configs/vote/common.py', *hard,
                      f'--workdir={tmp_path}/hard']) == 0
    shares = sigmoid(arrays(tmp_path / 'hard/predictions.npz')['logits'])
    votes = []
    for k in range(2):
        where = near / f'near/fold_{k}'
        chosen = json.loads((where / 'thresholds.json').read_text())['tags']
        probs = sigmoid(arrays(where / 'predictions/test.npz')['logits/tags'])
        votes.append(probs >= [chosen[tag] for tag in TAGS])
    np.testing.assert_allclose(shares, np.mean(votes, axis=0), atol=1e-6)


@pytest.mark.parametrize('kind', ['trained', 'near'])
def test_a_loaded_run_and_the_verb_predict_answer_by_the_thresholds(done, near, kind, tmp_path):
    folder, workdir = done[0], tmp_path / 'run'
    shutil.copytree(folder / 'run' if kind == 'trained' else near, workdir)
    result = json.loads((workdir / 'result.json').read_text())
    before = arrays(workdir / 'predictions/test.npz')
    table = (workdir / 'predictions/test.csv').read_text()
    (workdir / 'predictions/test.npz').unlink()
    assert main.main(['predict', f'--workdir={workdir}', '--config.predict.source=test',
                      '--config.predict.dtype=float32']) == 0
    after = arrays(workdir / 'predictions/test.npz')
    np.testing.assert_array_equal(before['labels/tags'], after['labels/tags'])
    np.testing.assert_allclose(before['logits/tags'], after['logits/tags'], atol=1e-4)
    now = (workdir / 'predictions/test.csv').read_text()
    assert [line.split(',')[:5] for line in now.splitlines()] == \
        [line.split(',')[:5] for line in table.splitlines()]
    ids = before['ids'].tolist()
    said = train_lib.load(workdir).predict([str(folder / name) for name in ids],
                                           probabilities=True)
    probs = sigmoid(before['logits/tags'])
    np.testing.assert_allclose(said[[f'tags/{tag}' for tag in TAGS]].to_numpy(), probs, atol=1e-4)
    thresholds = np.array([result['thresholds']['tags'][tag] for tag in TAGS])
    assert np.abs(probs - thresholds).min() > 1e-4, 'no probability is at its threshold'
    sets = ['|'.join(tag for tag, yes in zip(TAGS, row) if yes) or '|'
            for row in probs >= thresholds]
    assert said['prediction/tags'].tolist() == sets
    other = ['predict', f'--workdir={workdir}', '--config.predict.source=data',
             '--config.data.source=csv', f'--config.data.csv={folder}/t.csv']
    assert main.main([*other, '--config.data.columns.labels=tags,kind',
                      '--config.data.multi_label=tags', '--config.predict.name=other']) == 0
    assert main.main([*other, '--config.predict.labelled=False',
                      '--config.predict.name=bare']) == 0
    stored, bare = (arrays(workdir / f'predictions/{name}.npz') for name in ('other', 'bare'))
    np.testing.assert_array_equal(stored['logits/tags'], bare['logits/tags'])
    assert (bare['labels/tags'] == UNLABELLED).all()
    assert (stored['labels/tags'] == UNLABELLED).all(1).sum() == 6
    assert [one.multi_label for one in members.find_members([workdir], 'other')] == [('tags',)]


@pytest.mark.parametrize(('changes', 'words'), [
    ({'loss.name': 'cross_entropy'}, 'is not a loss for the head'),
    ({'loss.name': {'tags': 'asymmetric', 'kind': 'focal'}}, "no effect on the head 'kind'"),
    ({'loss.name': {'tags': 'asymetric'}}, "did you mean 'asymmetric'"),
    ({'loss.class_weights.kind': 'balanced'}, 'no effect on cached features'),
    ({'probe.heads': (dict(name='m', kind='prototypes'),)}, "m of kind 'prototypes'"),
    ({'eval.thresholds': 'f2'}, 'choose one of f1, half'),
    ({'eval.metric': 'mAP'}, "eval.metric = 'mAP': did you mean map"),
    ({'data.multi_label': (), 'data.columns.labels': 'kind', 'loss.name': 'cross_entropy'},
     'is a score of multi-label heads'),
    ({'data.multi_label': (), 'data.columns.labels': 'kind', 'eval.metric': 'accuracy',
      'loss.name': 'binary_cross_entropy'}, "no effect on the head 'class'")])
def test_what_has_no_meaning_is_refused_before_anything_is_written(done, tmp_path, changes, words):
    config = probe_config(done[0], **changes)
    with pytest.raises(ConfigError, match=words):
        probe(config, load_data(config), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_columns_of_0_and_1_are_labels_too(done, tmp_path):
    table = pd.read_csv(done[0] / 't.csv', dtype=str, keep_default_na=False)
    for tag in TAGS:
        table[f'tag_{tag}'] = [str(int(tag in cell.split('|'))) if cell else ''
                               for cell in table['tags']]
    table.drop(columns='tags').to_csv(done[0] / 'columns.csv', index=False)
    config = probe_config(done[0], **{
        'data.csv': str(done[0] / 'columns.csv'), 'data.multi_label': (),
        'data.columns.labels': 'tags=tag_*,kind', 'duration': dict(steps=1)})
    config.probe.heads, config.probe.lr = config.probe.heads[:1], (0.1,)
    assert set(probe(config, load_data(config), tmp_path / 'run')['thresholds']['tags']) == {*TAGS}


def test_a_fold_of_a_probe_writes_labels_as_its_run_does(tmp_path):
    fold = tmp_path / 'run/linear-lr0.1/fold_0'
    fold.mkdir(parents=True)
    (tmp_path / 'run/config.json').write_text('{"data": {"label_separator": ";"}}')
    assert separator_of(tmp_path / 'run') == ';' and separator_of(fold) == '|'
    (fold / 'head.safetensors').write_text('')
    assert separator_of(fold) == ';'
    (fold / 'thresholds.json').write_text('{"tags": {"red": "high"}}')
    with pytest.raises(ConfigError, match=r'thresholds\.json has thresholds that cannot be read'):
        thresholds_of(fold, {'tags': ('red',)})


def test_a_submission(done, tmp_path):
    folder, workdir = done[0], tmp_path / 'run'
    shutil.copytree(folder / 'run', workdir)
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for name in ('02.png', '00.png', '01.png'):
        shutil.copy(folder / name, pictures / name)
    (tmp_path / 's.csv').write_text('image,labels\n02.png,\n00.png,\n01.png,\n')
    assert main.main(['submit', f'--workdirs={workdir}', f'--sample={tmp_path}/s.csv',
                      f'--images={pictures}', f'--out={tmp_path}/out', '--config.heads=tags',
                      '--config.label_separator= ']) == 0
    said = arrays(tmp_path / 'out/predictions.npz')
    own = json.loads((workdir / 'result.json').read_text())['thresholds']['tags']
    np.testing.assert_allclose(said['thresholds'], [own[tag] for tag in TAGS], atol=1e-6)
    lines = (tmp_path / 'out/submission.csv').read_text().splitlines()[1:]
    chosen = dict(zip(said['ids'], said['predicted']))
    assert lines == [f'{name},' + ' '.join(tag for tag, yes in zip(TAGS, chosen[name]) if yes)
                     for name in ('02.png', '00.png', '01.png')]


def test_half_keeps_the_thresholds(done, tmp_path):
    config = probe_config(done[0], **{'eval.thresholds': 'half',
                                      'probe.heads': (dict(name='near', kind='knn', k=5),)})
    result = probe(config, done[2], tmp_path / 'run')
    assert 'thresholds' not in result and 'f1_macro_fitted' not in result['test']['tags']
    assert json.loads((tmp_path / 'run/near/fold_0/thresholds.json').read_text()) == {}
