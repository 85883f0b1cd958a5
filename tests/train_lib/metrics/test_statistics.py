import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from benchmarks import statistics_before as module
from benchmarks.statistics_before import bootstrap, cochran_q
from train_lib.metrics.statistics import (
    diversity,
    holm,
    macro_f1,
    mcnemar,
    oracle,
    weighted_scores,
)


def answers_of(seed=0, n=150, classes=5, rates=(0.8, 0.7, 0.5)):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    predicted = np.stack([np.where(rng.random(n) < rate, labels, rng.integers(classes, size=n))
                          for rate in rates])
    return predicted, labels


def test_f1_and_weighted_scores_equal_scikit_learn():
    predicted, labels = answers_of()
    labels[labels == 3] = 2
    assert macro_f1(predicted[0], labels, 9) == pytest.approx(
        metrics.f1_score(labels, predicted[0], average='macro', zero_division=0), rel=1e-12)
    want = metrics.precision_recall_fscore_support(
        labels[1:], predicted[0, 1:], average='weighted', zero_division=0)[:3]
    got = weighted_scores(predicted[0], np.r_[-1, labels[1:]])
    assert list(got.values()) == pytest.approx(want, rel=1e-12)
    assert list(got) == ['precision_weighted', 'recall_weighted', 'f1_weighted']


@pytest.mark.parametrize('b, c', [(0, 0), (1, 0), (5, 5), (9, 2), (3, 40), (120, 90)])
def test_mcnemar_is_the_binomial_test(b, c):
    first = np.array([True] * b + [False] * c + [True, False])
    second = np.array([False] * b + [True] * c + [True, False])
    want = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(first, second) == {'only_first': b, 'only_second': c,
                                      'p': pytest.approx(want, rel=1e-12)}


def test_cochran_by_hand():
    # Right: answers 5, 3, 1 of 6; rows 3, 2, 2, 1, 1, 0.
    right = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
    # 2 (3 (25 + 9 + 1) - 81) / (27 - 19) = 2 * 24 / 8
    got = cochran_q(right)
    assert got['q'] == pytest.approx(6.0) and got['degrees'] == 2
    assert got['p'] == pytest.approx(np.exp(-3))  # chi-squared of two degrees
    assert cochran_q(np.ones((3, 4), bool)) == {'q': 0.0, 'degrees': 2, 'p': 1.0}


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1, 1])


def test_diversity_by_hand():
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, -1])
    first = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0])  # right in 6
    second = np.array([0, 0, 0, 0, 1, 2, 0, 1, 1, 2, 5])  # right in 5
    # both right 4, only first 2, only second 1, both wrong 3; different answers in 5 of 10
    got = {name: value[0, 1] for name, value in diversity(np.stack([first, second]),
                                                          labels).items()}
    assert got == pytest.approx({'disagreement': 5 / 10, 'double_fault': 3 / 10,
                                 'q_statistic': (12 - 2) / (12 + 2),
                                 'correlation': 10 / np.sqrt(6 * 4 * 5 * 5)})
    wrong = np.corrcoef(first[:10] != labels[:10], second[:10] != labels[:10])[0, 1]
    assert got['correlation'] == pytest.approx(wrong)
    assert oracle(np.stack([first, second]), labels) == pytest.approx(7 / 10)
    perfect = diversity(np.stack([labels, first]), labels)
    assert np.isnan(perfect['correlation'][0, 1]) and np.isnan(perfect['q_statistic'][0, 1])


@pytest.mark.parametrize('grouped', [False, True])
def test_bootstrap_equals_scoring_the_drawn_rows(grouped, monkeypatch):
    """Against drawing rows and scoring them with scikit-learn."""
    monkeypatch.setattr(module, '_REPETITIONS', 15)
    predicted, labels = answers_of(n=60)
    rng = np.random.default_rng(5)
    nll = rng.exponential(size=60)
    groups = rng.integers(20, size=60) if grouped else np.arange(60)
    _, index = np.unique(groups, return_inverse=True)
    labels[7] = -1
    answers = {'vote': {'predicted': predicted[0], 'nll': nll},
               'best': {'predicted': predicted[1], 'nll': 2 * nll},
               'hard': {'predicted': predicted[2], 'nll': None}}
    got = bootstrap(answers, labels, num_classes=7, reference='best', repetitions=40, level=0.9,
                    groups=groups if grouped else None, seed=4).set_index(['name', 'metric'])
    known = np.flatnonzero(labels >= 0)
    units = [known[index[known] == unit] for unit in np.unique(index[known])]
    drawn = []
    for repetition in range(40):
        chosen = np.random.default_rng((4, repetition)).integers(len(units), size=len(units))
        drawn.append(np.concatenate([units[unit] for unit in chosen]))
    f1 = lambda who, rows: metrics.f1_score(labels[rows], predicted[who, rows], average='macro',
                                            zero_division=0)
    values = {'f1_macro': lambda who, rows: f1(who, rows),
              'accuracy': lambda who, rows: np.mean(predicted[who, rows] == labels[rows]),
              'nll': lambda who, rows: (1 + who) * np.mean(nll[rows])}
    for metric, function in values.items():
        for who, name in enumerate(answers):
            if (name, metric) == ('hard', 'nll'):
                assert (name, metric) not in got.index
                continue
            row = got.loc[name, metric]
            seen = [function(who, rows) for rows in drawn]
            apart = [function(who, rows) - function(1, rows) for rows in drawn]
            assert row['estimate'] == pytest.approx(function(who, known), rel=1e-6)
            np.testing.assert_allclose([row['low'], row['high']],
                                       np.quantile(seen, [.05, .95]), atol=1e-6)
            np.testing.assert_allclose([row['difference_low'], row['difference_high']],
                                       np.quantile(apart, [.05, .95]), atol=1e-6)
    assert not got.loc['best'][['difference', 'difference_low', 'difference_high']].any(axis=None)


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25)
    labels = np.zeros(1000, int)
    predicted = (rng.random(40) < 0.3).astype(int)[groups]  # a group is right or wrong at once
    width = {}
    for name, of in (('rows', None), ('groups', groups)):
        row = bootstrap({'x': {'predicted': predicted, 'nll': None}}, labels, num_classes=2,
                        groups=of, repetitions=300).iloc[0]
        width[name] = row['high'] - row['low']
        assert np.isnan(row['difference'])
    assert width['rows'] == pytest.approx(2 * 1.96 * np.sqrt(.3 * .7 / 1000), rel=0.2)
    assert width['groups'] > 4 * width['rows']
