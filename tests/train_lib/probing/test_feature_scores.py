"""Scores of features, against scikit-learn, and that nothing is chosen by test rows."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from input_pipeline.errors import DataError
from input_pipeline.manifest import make_manifest
from train_lib.metrics.intervals import accuracy_interval
from train_lib.probing.feature_scores import ScoreSpec, score_features, table_of

SPEC = ScoreSpec((1, 5), (1e-3, 1.0), 0)


def data(count=300, seed=0, heads=('kind',)):
    """Features in which three classes overlap, groups of two rows, a few unlabelled rows."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    labels[::50] = -1
    features = rng.normal(size=(count, 8)).astype(np.float32)
    features[:, 0] += 3 * (labels == 0)
    features[:, 1] += 3 * (labels == 1)
    sides = np.array(['train', 'val', 'test'])[np.arange(count) // 2 % 3]
    columns = dict(id=[f'{row}' for row in range(count)], location=[''] * count,
                   group=[f'g{row // 2}' for row in range(count)], split=sides)
    columns |= {f'label/{head}': labels for head in heads}
    return features, make_manifest(columns, dict.fromkeys(heads, ('x', 'y', 'z')))


def test_neighbours_are_those_of_scikit_learn():
    features, manifest = data()
    labels, sides = manifest.labels('kind'), manifest.table['split'].to_numpy(str)
    found = score_features(features, manifest, SPEC)['kind']['knn']
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    train, test = ((sides == name) & (labels >= 0) for name in ('train', 'test'))
    model = KNeighborsClassifier(found['chosen'], metric='cosine', algorithm='brute',
                                 weights=lambda apart: 1 - apart)
    right = model.fit(unit[train], labels[train]).predict(unit[test]) == labels[test]
    one = found['test']
    assert one['n'] == test.sum() and one['accuracy'] == pytest.approx(right.mean())
    groups = manifest.table['group'].to_numpy()[test]
    assert (one['accuracy_low'], one['accuracy_high']) == pytest.approx(
        accuracy_interval(right, groups))
    assert one['accuracy'] > 0.6


def test_test_rows_decide_nothing():
    """With other test labels and features the same values are chosen, with the same scores."""
    features, manifest = data()
    other, test = features.copy(), (manifest.table['split'] == 'test').to_numpy()
    other[test] = 5
    labels = manifest.labels('kind').copy()
    labels[test] = 0
    before = score_features(features, manifest, SPEC)['kind']
    after = score_features(other, manifest.with_column('label/kind', labels), SPEC)['kind']
    for method in ('knn', 'linear'):
        for key in ('chosen', 'tried', 'val'):
            assert before[method][key] == after[method][key]
        assert before[method]['test'] != after[method]['test']


def test_every_head_has_its_scores_and_lines_are_short():
    features, manifest = data(heads=('kind', 'a head with a very long name'))
    found = score_features(features, manifest, SPEC)
    assert found['kind'] == found['a head with a very long name']
    lines = table_of(found)
    assert len(lines) == 9 and max(map(len, lines)) <= 80


def test_the_scale_of_the_features_does_not_matter():
    features, manifest = data()
    assert score_features(features, manifest, SPEC) == score_features(1024 * features, manifest,
                                                                      SPEC)


def test_more_neighbours_than_rows_and_no_test_rows():
    features, manifest = data(count=24)
    sides = manifest.table['split'].replace('test', '')
    found = score_features(features, manifest.with_column('split', sides),
                           ScoreSpec((3, 1000), (1.0,), 0))['kind']['knn']
    assert set(found['tried']) == {'3', '7'} and 'test' not in found  # 8, one of them unlabelled


def test_a_penalty_is_fitted_as_if_it_were_the_only_one():
    features, manifest = data(count=120, seed=3)
    features = np.concatenate([features, np.random.default_rng(1).normal(size=(120, 60))], 1)
    scored = lambda *strengths: score_features(
        features, manifest, ScoreSpec((1,), strengths, 0))['kind']['linear']
    together = scored(1e-4, 1e-2, 1.0, 1e2)
    for strength in (1e-4, 1e-2, 1.0, 1e2):
        assert scored(strength)['tried'][str(strength)] == together['tried'][str(strength)]
    assert len(set(together['tried'].values())) > 2


@pytest.mark.parametrize(('side', 'words'), [('val', 'no validation rows'),
                                             ('train', 'fewer than two classes')])
def test_too_few_rows_are_refused(side, words):
    features, manifest = data(count=60)
    sides = manifest.table['split'].replace(side, '')
    with pytest.raises(DataError, match=words):
        score_features(features, manifest.with_column('split', sides), SPEC)
