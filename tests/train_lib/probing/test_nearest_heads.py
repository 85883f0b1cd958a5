"""Nearest neighbours and class means on cached features: right, without leaks, members of votes."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

import train_lib
from configs.common import get_config
from main import main
from train_lib.predictions import store
from train_lib.probing.nearest_heads import fit, read_nearest, rows_at_once
from train_lib.probing.probe_spec import read_probe_spec
from train_lib.probing.stacked_heads import predict_heads
from train_lib.runtime.errors import ConfigError

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), 15)
ROWS = (RNG.normal(size=(4, 6))[LABELS] * 2 + RNG.normal(size=(60, 6))).astype(np.float32)
ASKED = (RNG.normal(size=(40, 6)) * 3).astype(np.float32)
CLASSES = {'class': 4}


def kind(**settings):
    return read_nearest('one', settings, 'here')


def logits(asked, rows=ROWS, labels=LABELS, classes=None, **settings):
    labels = labels if isinstance(labels, dict) else {'class': labels}
    graphdef, params = fit(kind(**settings), rows, labels, classes or CLASSES)
    found = predict_heads(graphdef, params, asked, tuple(labels), rows_at_once(params))
    return found if len(found) > 1 else found['class']


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('k', [1, 7, 500])
@pytest.mark.parametrize('center', [False, True])
def test_neighbours_vote_as_in_scikit_learn(k, center):
    """There of Euclidean distance between rows of length 1: cosine = 1 - distance^2 / 2."""
    origin = ROWS.mean(0) if center else 0
    reference = KNeighborsClassifier(
        min(k, 60), weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), algorithm='brute')
    reference.fit(unit(ROWS - origin), LABELS)
    shares = reference.predict_proba(unit(ASKED - origin))
    n = min(k, 60)
    found = softmax(logits(ASKED, kind='knn', k=k, center=center), axis=1)
    np.testing.assert_allclose(found, (1 / 4 + n * shares) / (n + 1), atol=2e-4)


def test_prototypes_are_the_nearest_class_mean():
    rows = unit(ROWS - ROWS.mean(0))
    asked = unit(ASKED - ROWS.mean(0))
    means = unit(NearestCentroid().fit(rows, LABELS).centroids_)
    np.testing.assert_allclose(logits(ASKED, kind='prototypes', center=True),
                               asked @ means.T / 0.1, atol=1e-4)
    # As many rows at the mean of all as the class has: the mean of both.
    plain = unit(ROWS)
    shrunk = unit([plain[c == LABELS].mean(0) + plain.mean(0) for c in range(4)])
    np.testing.assert_allclose(
        logits(ASKED, kind='prototypes', shrinkage=15, temperature=1.0),
        unit(ASKED) @ shrunk.T, atol=1e-5)


@pytest.mark.parametrize('settings', [dict(kind='knn', k=3), dict(kind='prototypes')])
def test_unlabelled_rows_absent_classes_and_several_heads(settings):
    labels = np.where(np.arange(60) % 5 == 0, -1, LABELS)
    some = labels >= 0
    both = logits(ASKED, labels={'class': labels, 'side': LABELS % 2},
                  classes={'class': 6, 'side': 2}, **settings)
    alone = logits(ASKED, ROWS[some], LABELS[some], classes={'class': 6}, **settings)
    np.testing.assert_allclose(both['class'], alone, atol=1e-5)
    assert np.isfinite(both['class']).all() and both['side'].shape == (40, 2)
    assert (both['class'].argmax(1) < 4).all()  # classes 4 and 5 have no rows
    with pytest.raises(ConfigError, match="labelled training rows of the head 'class'"):
        logits(ASKED, labels=np.full(60, -1), **settings)


@pytest.mark.parametrize(('settings', 'words'), [
    (dict(kind='kn'), r"here\.kind = 'kn': did you mean 'knn'"),
    (dict(kind='knn', n=3), "knn has no setting 'n'"),
    (dict(kind='prototypes', k=3), "prototypes has no setting 'k'"),
    (dict(kind='knn', k=0), r'here\.k = 0: give a whole number of 1 or more'),
    (dict(kind='knn', k=True), 'give a whole number'),
    (dict(kind='knn', temperature=0), 'a number above 0'),
    (dict(kind='prototypes', center=1), 'True or False'),
    (dict(kind='prototypes', shrinkage=-1), 'a number of 0 or more')])
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        kind(**settings)


@pytest.mark.parametrize(('path', 'value'), [('loss.levels', (1.0, 1.0)),
                                            ('model.head_order', 'corn')])
def test_what_heads_on_features_do_not_obey_is_refused(path, value):
    config = get_config()
    with config.unlocked(), config.ignore_type():
        section, key = path.split('.')
        config[section][key] = value
        config.probe.heads = (dict(name='near', kind='knn'),)
    with pytest.raises(ConfigError, match=rf'config\.{path} = .* has no effect'):
        read_probe_spec(config)


# --- runs -------------------------------------------------------------------------------------

BOTH = '[dict(name="near", kind="knn", k=5), dict(name="means", kind="prototypes")]'
SMALL = ['--config=configs/sketch_cnn.py', '--config.init.pretrained=', '--config.image.size=16',
         '--config.model=dict(name="small_cnn", width=8, stages=1)', '--config.curriculum=()',
         '--config.split.kind=kfold', '--config.split.folds=3', '--config.split.fold=all',
         '--config.split.test=0.2', '--config.probe.views=0', '--config.report.heat_maps=False',
         '--config.ema.decay=0', '--config.loss.label_smoothing=0',
         '--config.log.tensorboard=False']


def pictures(root, count, label_of):
    rng = np.random.default_rng(1)
    for number in range(count):
        image = rng.integers(0, 80, (16, 16, 3), np.uint8)
        shape = number % 3
        image[[np.s_[:, 4:7], np.s_[4:7], np.s_[5:11, 5:11]][shape]] = 220
        path = root / 'abc'[label_of(shape, number)] / f'{number:03d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return root


def run_on(folder, workdir, *flags, heads=BOTH, code=0):
    assert main([*SMALL, '--config.data.source=folder', f'--config.data.folder={folder}',
                 f'--config.probe.heads={heads}', f'--config.probe.cache={folder}_cache',
                 f'--workdir={workdir}', *flags]) == code
    return workdir


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp('pictures'), 90, lambda shape, number: shape)


@pytest.fixture(scope='module')
def run(tmp_path_factory, folder):
    return run_on(folder, tmp_path_factory.mktemp('runs') / 'run')


def result(workdir):
    return json.loads((workdir / 'result.json').read_text())


def test_a_run_without_training(run):
    found = result(run)
    assert {row['name'] for row in found['heads']} == {'near', 'means'}
    assert found['out_of_fold']['accuracy'] > 0.9 and found['test']['accuracy'] > 0.9
    assert (run / 'report.html').exists() and (run / 'heads.csv').exists()


def test_random_labels_stay_at_chance(tmp_path):
    """A row that voted for itself would be right for k=1."""
    rng = np.random.default_rng(3)
    random = rng.integers(0, 3, 240)
    root = pictures(tmp_path / 'random', 240, lambda shape, number: random[number])
    one = '[dict(name="near", kind="knn", k=1), dict(name="means", kind="prototypes")]'
    found = result(run_on(root, tmp_path / 'run', heads=one))
    assert all(row['accuracy'] < 0.33 + 4 * (0.22 / 192) ** 0.5 for row in found['heads'])


def test_a_fold_knows_its_training_rows_alone(run):
    for name in ('near', 'means'):
        for fold in sorted((run / name).glob('fold_*')):
            sides = pd.read_csv(fold / 'split.csv').set_index('id')['split'].to_dict()
            stored = load_file(fold / 'head.safetensors')
            if name == 'near':
                assert len(stored['heads/0/labels']) == list(sides.values()).count('train')
            val = store.open_member(fold / 'predictions/val.npz')
            assert {sides[row] for row in val.ids} == {'val'}


def test_predictions_elsewhere_votes_and_programs(run, folder, tmp_path, capsys):
    """The chosen head in the verb predict, in `load`, and as a member of a vote with a CNN."""
    before = store.open_member(run / 'predictions/test.npz')
    assert main(['predict', f'--workdir={run}']) == 0
    after = store.open_member(run / 'predictions/test/identity')
    np.testing.assert_allclose(softmax(after.logits['class'], 1),
                               softmax(before.logits['class'], 1), atol=2e-3)
    paths = [str(folder / name) for name in before.ids]
    table = train_lib.load(run).predict(paths, probabilities=True)
    np.testing.assert_allclose(table[list('abc')].to_numpy(), softmax(before.logits['class'], 1),
                               atol=2e-3)
    assert main(['predict', f'--workdir={run}', '--config.predict.source=train']) == 2
    assert 'each of which would vote for itself' in capsys.readouterr().err
    run_on(folder, run.with_name('other'), heads='[dict(name="means", kind="prototypes")]')
    assert main(['vote', f'--config=configs/vote/digits.py:members={run.parent}/*',
                 f'--workdir={tmp_path / "vote"}']) == 0
    vote = json.loads((tmp_path / 'vote/vote.json').read_text())
    assert {member['name'] for member in vote['members']} == {'run', 'other'}


def test_heads_that_train_and_heads_that_do_not(folder, tmp_path):
    mixed = BOTH.replace(']', ', dict(name="linear", head="linear")]')
    found = result(run_on(folder, tmp_path, '--config.duration.steps=4', heads=mixed))
    names = {row['name'] for row in found['heads']}
    assert {'near', 'means'} < names and len(names) == 3
