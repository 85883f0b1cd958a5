"""Intervals and p values of a vote: of new groups where pictures have groups, however few."""

import numpy as np
import pytest

from tests.train_lib.commands.stored_runs import TEST, TRUTH, kfold, result_of, vote
from train_lib.metrics.intervals import accuracy_interval
from train_lib.metrics.statistics import equal_accuracy, paired_test
from train_lib.predictions import store


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return kfold(tmp_path_factory.mktemp('run') / 'a', 1, strength=1.2)


def test_few_groups_are_not_taken_for_independent_rows(run, tmp_path):
    assert vote([run], tmp_path / 'vote') == 0
    result = result_of(tmp_path / 'vote')
    assert (result['groups'], result['interval_unit']) == (6, 'group')
    labels = np.array([TRUTH[name] for name in TEST])
    visitors = np.arange(24) % 6
    predicted = [store.members_of(run / f'fold_{k}', 'test')[0].logits['class'].argmax(1)
                 for k in range(3)]
    with np.load(tmp_path / 'vote/predictions.npz', allow_pickle=False) as file:
        right = file['predicted'] == labels
    entry = result['ensembles'][result['answer']]
    found = entry['intervals']['group']['accuracy']
    assert (found['low'], found['high']) == pytest.approx(accuracy_interval(right, visitors))
    best = max((one == labels for one in predicted), key=lambda one: one.mean())
    assert entry['mcnemar_best_single']['p'] == pytest.approx(
        paired_test(right, best, visitors, chosen=3)['p'])
    assert result['cochran'] == pytest.approx(equal_accuracy(
        np.stack(predicted) == labels, visitors, draws=50, seed=0))
    rows = entry['intervals']['example']['accuracy']
    assert found['low'] <= rows['low'] and found['high'] >= rows['high']
    page = (tmp_path / 'vote/report.html').read_text()
    assert 'about new groups of pictures' in page and 'few, so they are wide' in page


def test_a_single_group_gives_no_interval(run, tmp_path, capsys):
    table = tmp_path / 'groups.csv'
    table.write_text('id,group\n' + ''.join(f'{name},all\n' for name in TEST))
    assert vote([run], tmp_path / 'vote', f'--config.groups={table}') == 0
    entry = result_of(tmp_path / 'vote')['ensembles']['soft']
    assert entry['mcnemar_best_single']['p_holm'] is None
    assert entry['intervals']['group']['accuracy']['best_single'][1:] == [None, None]
    page = (tmp_path / 'vote/report.html').read_text()
    assert 'no interval from a single group' in page and 'None' not in page
    assert 'n = 24 in a single group' in page and 'Holm' not in page and 'Cochran' not in page
    assert 'none from a single group' in capsys.readouterr().err


def test_rows_that_a_table_of_groups_lacks_are_counted(run, tmp_path, capsys):
    """With the ids of other data all rows would count as independent, and nothing said so."""
    table = tmp_path / 'groups.csv'
    table.write_text('id,group\nelsewhere.png,all\n')
    assert vote([run], tmp_path / 'vote', f'--config.groups={table}') == 0
    assert '24 of 24 rows are not in groups.csv: each counts by itself' in capsys.readouterr().err
