"""What p is about: new pictures where all runs score the same, new splits where each scores others,
else other seeds only."""

import csv

import numpy as np
import pytest
from scipy import stats

from tests.train_lib.studies.test_study_results import fill, make_study
from train_lib.studies.cell_results import read_cells
from train_lib.studies.cell_rows import read_cell_rows
from train_lib.studies.comparison import (
    FIXED,
    ONE_GROUP,
    REDRAWN,
    SEEDS,
    paired_cells,
    summarise,
)
from train_lib.studies.stopping import judge, stop_level
from train_lib.studies.tables import caption, write_tables

PICTURES = 120


def write_rows(folder, right, ids, groups=None, train=400):
    """predictions/test.npz and split.csv of a run with two classes."""
    (folder / 'predictions').mkdir(parents=True, exist_ok=True)
    logits = np.stack([right, ~right], 1).astype(np.float32)
    np.savez(folder / 'predictions/test.npz', ids=np.array(ids), logits=logits,
             labels=np.zeros(len(ids), np.int64), classes=np.array(['a', 'b']))
    with open(folder / 'split.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['id', 'split', 'group', 'label/class'])
        writer.writerows([name, 'test', '' if groups is None else groups[i], 'a']
                         for i, name in enumerate(ids))
        writer.writerows([f't{k}', 'train', '', 'a'] for k in range(train))


def study_of(workdir, *, redrawn=False, groups=None, seeds=5, seed=0, **settings):
    """Two arms of which one happens to be better on these pictures, in all of its runs."""
    rng = np.random.default_rng(seed)
    study = make_study(['base', 'other'], seeds=seeds, **settings)
    apart = np.repeat([True, False], [PICTURES - 8, 8])  # the baseline fails 8 that the other knows
    values = {'base': [], 'other': []}
    for cell in study.cells():
        own = np.ones(PICTURES, bool) if cell.arm.name == 'other' else apart.copy()
        own[rng.integers(PICTURES, size=3)] ^= True
        first = cell.seed * 10 if redrawn else 0
        write_rows(workdir / cell.folder, own, [f'p{first + k:04d}' for k in range(PICTURES)],
                   groups)
        values[cell.arm.name].append(float(own.mean()))
    fill(workdir, study, values)
    return study


def test_seeds_on_one_test_set_are_no_new_pictures(tmp_path):
    groups = [f'g{k // 30}' for k in range(PICTURES)]  # the 8 pictures are of one of 4 groups
    study = study_of(tmp_path, groups=groups)
    table = summarise(study, read_cells(study, tmp_path)).set_index('arm')
    row = table.loc['other']
    assert row['about'] == FIXED
    assert row['p'] > .1 and row['low'] < 0 < row['high']
    # Seeds alone are certain.
    apart = [one - two for one, two in zip(*(
        read_cells(study, tmp_path).groupby('arm')['value'].apply(list)[['other', 'base']]))]
    assert stats.ttest_1samp(apart, 0).pvalue < .01
    write_tables(study, tmp_path, page=False)
    assert 'about new pictures' in (tmp_path / 'table.md').read_text()


def test_without_groups_pictures_are_counted_one_by_one(tmp_path):
    study = study_of(tmp_path)
    row = summarise(study, read_cells(study, tmp_path)).iloc[1]
    error = np.sqrt(8 / PICTURES * (1 - 8 / PICTURES) / PICTURES)  # of pictures alone
    assert row['high'] - row['low'] > 2 * 1.98 * .9 * error
    assert row['high'] - row['low'] < 2 * 1.98 * 1.6 * error


def test_a_single_group_says_nothing_of_others_and_that_is_said(tmp_path):
    study = study_of(tmp_path, groups=['g'] * PICTURES)
    table = summarise(study, read_cells(study, tmp_path))
    assert table.loc[1, 'about'] == ONE_GROUP and np.isnan(table.loc[1, 'p'])
    assert 'a single group' in caption(study, table)


def test_groups_are_found_whichever_folds_a_run_has(tmp_path):
    write_rows(tmp_path, np.ones(4, bool), list('abcd'), groups=['g', 'g', 'h', 'h'])
    (tmp_path / 'fold_1').mkdir()
    (tmp_path / 'split.csv').rename(tmp_path / 'fold_1/split.csv')
    rows = read_cell_rows(tmp_path, 'test.accuracy')
    assert rows.groups.tolist() == ['group g', 'group g', 'group h', 'group h']
    assert rows.train == 400


def test_redrawn_hold_outs_share_pictures(tmp_path):
    study = study_of(tmp_path, redrawn=True)
    cells = read_cells(study, tmp_path)
    row = summarise(study, cells).iloc[1]
    assert row['about'] == REDRAWN and 'new splits' in caption(study, summarise(study, cells))
    by_arm = cells.groupby('arm')['value'].apply(list)
    apart = np.subtract(by_arm['other'], by_arm['base'])
    error = apart.std(ddof=1) * np.sqrt(1 / 5 + PICTURES / 400)  # Nadeau and Bengio
    assert row['p'] == pytest.approx(2 * stats.t.sf(abs(apart.mean()) / error, 4))


def test_without_predictions_nothing_is_said_of_new_pictures(tmp_path):
    study = study_of(tmp_path)
    (tmp_path / study.cells()[0].folder / 'predictions/test.npz').unlink()
    table = summarise(study, read_cells(study, tmp_path))
    assert table.loc[1, 'about'] == SEEDS
    assert 'say nothing of new pictures' in caption(study, table)
    (tmp_path / study.cells()[1].folder / 'predictions/test.npz').write_bytes(b'damaged')
    assert read_cell_rows(tmp_path / study.cells()[1].folder, 'test.accuracy') is None


@pytest.mark.parametrize('metric', ['accuracy', 'f1_macro', 'nll', 'brier', 'mae', 'mae_median'])
def test_rows_have_the_mean_of_the_metric(tmp_path, metric):
    from train_lib.metrics.scores import scores
    from train_lib.metrics.structured import ordinal_scores

    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(4, size=60)
    (tmp_path / 'predictions').mkdir()
    np.savez(tmp_path / 'predictions/val.npz', ids=[f'{k}' for k in range(60)], labels=labels,
             logits=logits, classes=list('abcd'))
    rows = read_cell_rows(tmp_path, f'val.{metric}')
    found = scores(logits, labels) | ordinal_scores(logits, labels)
    assert rows.values.mean() == pytest.approx(found[metric])
    assert rows.groups is None and rows.train == 0
    assert read_cell_rows(tmp_path, 'val.ece') is None


def test_an_arm_is_not_given_up_for_the_pictures_at_hand(tmp_path):
    groups = [f'g{k // 30}' for k in range(PICTURES)]
    study = study_of(tmp_path, groups=groups, stop=dict(after=2, margin=0.0))
    cells = read_cells(study, tmp_path)
    cells['arm'] = cells['arm'].map({'base': 'other', 'other': 'base'})  # the baseline is better
    assert judge(study, cells) == ({}, 5)
    assert judge(study, cells.assign(rows=None))[0]  # by seeds alone it is
    assert stop_level(2, 1) == pytest.approx(.95) and stop_level(4, 4) > .99


def test_pairs_on_other_pictures_are_not_compared_by_picture(tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    write_rows(one, np.ones(4, bool), list('abcd'))
    write_rows(two, np.ones(4, bool), list('abce'))
    pair = read_cell_rows(one, 'test.accuracy'), read_cell_rows(two, 'test.accuracy')
    assert paired_cells(np.array([.1, .2]), [pair, pair])['about'] == SEEDS
    assert paired_cells(np.array([]), [])['about'] == ''
