"""Votes of folds that were trained in workdirs of their own, or of some folds only."""

import json

import numpy as np
import pytest

from tests.train_lib.commands.stored_runs import (
    TRAIN,
    kfold,
    refused,
    result_of,
    single_folds,
    split,
    vote,
    write,
)

FIT = ['--config.weights=fit', '--config.choose=accuracy']


def test_folds_in_workdirs_of_their_own_are_fitted_like_those_of_one(tmp_path):
    a = single_folds(tmp_path, 'a', 1, strength=0.8)
    b = single_folds(tmp_path, 'b', 2, strength=2.2, model=dict(name='other'))
    kfold(tmp_path / 'weak', 1, strength=0.8)
    kfold(tmp_path / 'strong', 2, strength=2.2)
    for path in (tmp_path / 'weak', tmp_path / 'strong'):
        (path / 'config.json').write_text(json.dumps(dict(split=dict(folds=3, fold='all'))))
    assert vote([*a, *b], tmp_path / 'single', *FIT) == 0
    assert vote([tmp_path / 'weak', tmp_path / 'strong'], tmp_path / 'whole', *FIT) == 0
    found, wanted = (result_of(tmp_path / name)['fit'] for name in ('single', 'whole'))
    assert found['source'] == 'out_of_fold' and found['n'] == len(TRAIN)
    for key in ('temperature', 'answer', 'n', 'folds'):
        assert found[key] == wanted[key]
    for ensemble, weights in wanted['weights'].items():
        np.testing.assert_allclose(list(found['weights'][ensemble].values()),
                                   list(weights.values()), rtol=1e-12)


def test_the_order_of_the_workdirs_and_a_second_set_do_not_matter(tmp_path):
    """Two sets of the same settings: where a fold occurs again, another run begins."""
    a, b = single_folds(tmp_path, 'a', 1), single_folds(tmp_path, 'b', 2)
    assert vote([a[2], b[1], b[0], a[0], a[1], b[2]], tmp_path / 'v', *FIT) == 0
    assert result_of(tmp_path / 'v')['fit']['n'] == len(TRAIN)


def test_two_of_three_folds_are_fitted_on_the_rows_that_they_validated(tmp_path):
    a = single_folds(tmp_path, 'a', 1)
    assert vote([a[0], a[2]], tmp_path / 'v') == 0
    assert result_of(tmp_path / 'v')['fit']['n'] == 24
    # Beside a run of all folds these are other rows.
    kfold(tmp_path / 'whole', 2)
    assert vote([a[0], a[2], tmp_path / 'whole'], tmp_path / 'w') == 0
    result = result_of(tmp_path / 'w')
    assert result['fit'] is None and result['not_fitted'] == 'a0 and whole validate different rows'


@pytest.mark.parametrize('change', [dict(model=dict(name='other')), dict(seed=1)])
def test_without_common_rows_the_fit_is_left_out_with_a_note(tmp_path, capsys, change):
    a = single_folds(tmp_path, 'a', 1)[:2]
    content = json.loads((a[1] / 'config.json').read_text())
    (a[1] / 'config.json').write_text(json.dumps(content | change))
    assert vote(a, tmp_path / 'v') == 0
    said = capsys.readouterr().err
    assert 'no temperature is fitted: a0 and a1 validate different rows' in said
    result = result_of(tmp_path / 'v')
    assert result['fit'] is None and result['not_fitted'] == 'a0 and a1 validate different rows'
    assert 'a0 and a1 validate different rows' in (tmp_path / 'v/report.html').read_text()
    line = refused(capsys, a, tmp_path / 'w', '--config.weights=fit')
    assert "the weights of 'soft' cannot be fitted: a0 and a1 validate different rows" in line


def test_runs_without_folds_may_validate_different_rows(tmp_path):
    for name, held in (('a', TRAIN[:12]), ('b', TRAIN[12:24])):
        write(tmp_path / name, 'val', held, seed=1)
        write(tmp_path / name, 'test', list(TEST_IDS), seed=1)
        split(tmp_path / name, {one: 'val' if one in held else 'train' for one in TRAIN[:24]}
              | dict.fromkeys(TEST_IDS, 'test'))
    assert vote([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'v') == 0
    assert result_of(tmp_path / 'v')['not_fitted'] == 'a and b validate different rows'


TEST_IDS = [f'test/{k:02d}.png' for k in range(24)]


def test_folds_of_other_data_are_not_joined(tmp_path):
    a = single_folds(tmp_path, 'a', 1)
    for path in a[1:]:  # as if a picture had been added after the first fold
        with open(path / 'split.csv', 'a', encoding='utf-8') as file:
            file.write('"new.png","train","",""\n')
    assert vote(a, tmp_path / 'v') == 0
    assert 'validate different rows' in result_of(tmp_path / 'v')['not_fitted']
