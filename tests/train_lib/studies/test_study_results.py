"""Means, paired differences, the stop rule and the tables, from ledgers written by hand."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from configs import common
from train_lib.runtime.errors import ConfigError
from train_lib.studies.cell_results import read_cells
from train_lib.studies.comparison import paired_difference, summarise
from train_lib.studies.definition import Arm, Study
from train_lib.studies.settings import read_settings
from train_lib.studies.stopping import judge, open_cells, unfinished
from train_lib.studies.tables import write_tables

BASE = [0.90, 0.91, 0.93, 0.90, 0.92]
BETTER = [0.93, 0.93, 0.97, 0.94, 0.93]
WORSE = [0.70, 0.72, 0.71, 0.73, 0.70]


def make_study(names, seeds=5, folds=(None,), metric='test.accuracy', **settings) -> Study:
    arms = []
    for i, name in enumerate(names):
        config = common.get_config()
        config.study.update(settings)
        config.schedule.lr = 1e-3 * (i + 1)
        arms.append(Arm(name, f'arm{i}', {'schedule.lr': config.schedule.lr}, config))
    return Study(tuple(arms), tuple(range(seeds)), folds, names[0], metric,
                 read_settings(arms[0].config.study))


def fill(workdir, study, values, *, code='c', data='d', status='done', key='accuracy'):
    """values: {arm: [one value per cell]}; None leaves a cell open."""
    for name, numbers in values.items():
        cells = [cell for cell in study.cells() if cell.arm.name == name]
        for cell, value in zip(cells, numbers):
            if value is None:
                continue
            folder = workdir / cell.folder
            folder.mkdir(parents=True, exist_ok=True)
            (folder / 'cell.json').write_text(json.dumps(dict(
                status=status, attempts=1, codes=[code], memory_bytes=2 ** 20,
                memory_is_of_this_cell=True, error='it broke')))
            (folder / 'result.json').write_text(json.dumps(dict(
                test={key: value, 'n': 5}, seconds=dict(step=1.0, total=2.0), device='1 x cpu')))
            (folder / 'config.json').write_text(json.dumps(dict(data_digest=data)))


def test_differences_are_paired_by_seed_and_corrected_by_holm(tmp_path):
    study = make_study(['base', 'better', 'worse', 'few'])
    # In another order, and with a missing seed: only pairs count.
    fill(tmp_path, study, dict(base=BASE, better=BETTER, worse=WORSE,
                               few=[None, 0.95, None, None, None]))
    table = summarise(study, read_cells(study, tmp_path)).set_index('arm')
    raw = []
    for name, values in (('better', BETTER), ('worse', WORSE)):
        row, d = table.loc[name], np.array(values) - BASE
        expected = stats.ttest_rel(values, BASE)
        low, high = expected.confidence_interval()
        assert row['mean'] == pytest.approx(np.mean(values))
        assert row['sd'] == pytest.approx(np.std(values, ddof=1))
        assert row['difference'] == pytest.approx(d.mean())
        assert (row['low'], row['high']) == pytest.approx((low, high))
        raw.append(expected.pvalue)
    # Three comparisons were planned, the third of which has no p yet.
    assert table.loc['worse', 'p'] == pytest.approx(3 * raw[1])
    assert table.loc['better', 'p'] == pytest.approx(2 * raw[0])
    assert table.loc['few', 'difference'] == pytest.approx(0.95 - 0.91)
    assert np.isnan(table.loc['few', ['low', 'p', 'sd']].astype(float)).all()
    assert (table.loc['few', 'n'], table.loc['few', 'planned']) == (1, 5)
    assert np.isnan(table.loc['base', 'difference'])


def test_folds_share_their_pictures(tmp_path):
    d = np.array([0.01, 0.02, 0.03, 0.01, 0.02])
    plain, corrected = paired_difference(d), paired_difference(d, total_folds=5)
    ratio = np.sqrt((1 / 5 + 1 / 4) / (1 / 5))
    assert corrected['high'] - corrected['difference'] == pytest.approx(
        ratio * (plain['high'] - plain['difference']))
    assert corrected['p'] > plain['p']
    study = make_study(['base', 'better'], seeds=2, folds=(0, 1))
    fill(tmp_path, study, dict(base=BASE, better=BETTER))
    row = summarise(study, read_cells(study, tmp_path)).iloc[1]
    # config.split.folds is 5, of which two were run.
    assert row['p'] == pytest.approx(
        paired_difference(np.subtract(BETTER, BASE)[:4], total_folds=5)['p'])


def test_differences_that_do_not_vary_have_no_interval():
    assert np.isnan(paired_difference(np.full(3, 0.1))['p'])
    assert np.isnan(paired_difference(np.array([0.1]))['low'])
    assert paired_difference(np.array([]))['pairs'] == 0


def test_rows_that_an_ancestor_trained_on_are_marked(tmp_path):
    study = make_study(['base', 'tuned'])
    fill(tmp_path, study, dict(base=BASE, tuned=BETTER))
    for cell in study.cells()[1:6:4]:  # two runs of the second arm
        path = tmp_path / cell.folder / 'result.json'
        path.write_text(json.dumps(json.loads(path.read_text())
                                   | dict(seen=dict(train=9, val=0, test=3))))
    table = summarise(study, read_cells(study, tmp_path)).set_index('arm')
    assert table['seen'].tolist() == [0, 2]
    write_tables(study, tmp_path)
    for name in ('table.md', 'table.csv', 'table.tex', 'report.html'):
        assert '2 scored on rows that an ancestor trained on' in (tmp_path / name).read_text()


def test_other_code_and_other_data_are_marked(tmp_path):
    study = make_study(['base', 'same', 'code', 'data'])
    fill(tmp_path, study, dict(base=BASE, same=BASE))
    fill(tmp_path, study, dict(code=BASE), code='other')
    fill(tmp_path, study, dict(data=BASE), data='other')
    table = summarise(study, read_cells(study, tmp_path)).set_index('arm')
    assert list(table.index[table['other_code']]) == ['code']
    assert list(table.index[table['other_data']]) == ['data']
    write_tables(study, tmp_path, page=False)
    lines = (tmp_path / 'table.md').read_text().splitlines()
    assert [line for line in lines if 'other' in line] == lines[-2:]


def test_the_metric_must_be_there(tmp_path):
    study = make_study(['base'], metric='test.f1')
    fill(tmp_path, study, dict(base=BASE))
    with pytest.raises(ConfigError, match=r"'test.f1'.*test.accuracy"):
        read_cells(study, tmp_path)


def test_tables_say_what_differs_and_nothing_of_time(tmp_path):
    study = make_study(['base', 'a|b & c_d', 'worse'])
    fill(tmp_path, study, {'base': BASE, 'a|b & c_d': BETTER, 'worse': WORSE[:2]})
    fill(tmp_path, study, {'worse': [None, None, 0.1]}, status='failed')
    write_tables(study, tmp_path)
    text = (tmp_path / 'table.md').read_text()
    lines = text.splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    assert 'a\\|b & c_d' in text and 'schedule.lr=0.002' in text
    assert '2/5' in lines[-1] and '1 failed' in lines[-1]
    tex = (tmp_path / 'table.tex').read_text()
    assert r'a|b \& c\_d' in tex and 'toprule' in tex
    table = pd.read_csv(io.StringIO((tmp_path / 'table.csv').read_text()))
    assert table['mean'][1] == pytest.approx(np.mean(BETTER), abs=1e-9)
    times = pd.read_csv(tmp_path / 'times.csv')
    assert len(times) == 15 and times['seconds_total'].sum() == 2.0 * 12
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<circle') == 5 + 5 + 2 + 2  # runs, and differences
    assert 'it broke' in page and 'seconds' not in text and '://' not in page
    before = {name: (tmp_path / name).read_bytes() for name in ('table.md', 'table.csv')}
    fill(tmp_path, study, {'base': BASE})  # written again, later
    write_tables(study, tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_p_of_a_table_is_never_zero(tmp_path):
    study = make_study(['base', 'far'])
    steps = np.array([0, 1e-5, -1e-5, 2e-5, 1e-5])
    fill(tmp_path, study, dict(base=BASE, far=[*(np.array(BASE) - 0.3 + steps)]))
    p = summarise(study, read_cells(study, tmp_path))['p'][1]
    assert 0 < p < 1e-6
    write_tables(study, tmp_path)
    texts = {name: (tmp_path / name).read_text()
             for name in ('table.md', 'table.tex', 'report.html', 'table.csv')}
    assert '| < .001 |' in texts['table.md'].replace('  ', ' ')
    assert '$<$ .001' in texts['table.tex'] and '<td>&lt; .001</td>' in texts['report.html']
    assert all('0.0000' not in texts[name] for name in ('table.md', 'table.tex'))
    table = pd.read_csv(io.StringIO(texts['table.csv']))
    assert table['p'][1] == pytest.approx(p)  # numbers for programs


def test_a_hopeless_arm_is_given_up_and_the_rest_goes_on(tmp_path):
    study = make_study(['base', 'better', 'worse'], stop=dict(after=2, margin=0.05))
    values = dict(base=BASE, better=BETTER, worse=WORSE)

    def seeds_open():
        return {(cell.arm.name, cell.seed) for cell in open_cells(study, tmp_path)}

    assert seeds_open() == {(name, seed) for name in values for seed in (0, 1)}
    fill(tmp_path, study, {name: numbers[:2] for name, numbers in values.items()})
    given_up, allowed = judge(study, read_cells(study, tmp_path))
    assert list(given_up) == ['worse'] and allowed == 3
    assert (given_up['worse'].seeds, given_up['worse'].best) == (2, 'better')
    assert given_up['worse'].high < -0.05
    assert seeds_open() == {('base', 2), ('better', 2)}
    # Later results do not change an earlier decision.
    fill(tmp_path, study, {name: values[name] for name in ('base', 'better')})
    assert judge(study, read_cells(study, tmp_path))[0]['worse'] == given_up['worse']
    assert not unfinished(study, tmp_path)
    write_tables(study, tmp_path, page=False)
    assert 'stopped after 2 seeds' in (tmp_path / 'table.md').read_text()


def test_no_arm_is_given_up_for_less_than_the_margin_or_for_a_smaller_error(tmp_path):
    study = make_study(['base', 'better', 'worse'], stop=dict(after=2, margin=0.5))
    values = dict(base=BASE, better=BETTER, worse=WORSE)
    fill(tmp_path, study, values)
    assert judge(study, read_cells(study, tmp_path)) == ({}, 5)
    study = make_study(['base', 'better', 'worse'], metric='test.nll',
                       stop=dict(after=2, margin=0.05))
    fill(tmp_path, study, values, key='nll')
    assert list(judge(study, read_cells(study, tmp_path))[0]) == ['better']


@pytest.mark.parametrize('stop', [dict(after=1, margin=0.0), dict(after=2, margin=-1.0)])
def test_a_wrong_stop_rule_is_refused(tmp_path, stop):
    with pytest.raises(ConfigError, match=r'study\.stop'):
        open_cells(make_study(['base'], stop=stop), tmp_path)
