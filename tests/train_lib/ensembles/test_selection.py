import dataclasses
import itertools

import numpy as np
import pytest
from sklearn import metrics

from train_lib.ensembles.candidates import find_candidates
from train_lib.ensembles.fit.nested import draw_folds, nested
from train_lib.ensembles.fit.selection import choose, convex_weights, greedy, score
from train_lib.ensembles.fit.stacking import fit_stacking
from train_lib.ensembles.temperature import fit_temperature, tempered
from train_lib.metrics.scores import scores, softmax
from train_lib.metrics.statistics import robustness
from train_lib.runtime.errors import ConfigError


def members_of(seed=0, n=240, classes=6, skills=(1.0, 0.3, 2.0, 1.5), shared=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    noise = rng.normal(size=(n, classes)) * shared
    return [skill * np.eye(classes)[labels] + noise + rng.normal(size=(n, classes))
            for skill in skills], labels


@pytest.fixture(scope='module')
def problem():
    logits, labels = members_of()
    labels = labels.copy()
    labels[::11] = -1
    return logits, labels, find_candidates(logits, labels)


def test_candidates_give_the_soft_vote_exactly(problem):
    logits, labels, candidates = problem
    assert len(candidates.classes) < 0.8 * 6 * len(candidates)  # it leaves something out
    rng = np.random.default_rng(0)
    part = candidates.select(rng.permutation(len(candidates))[:50])
    for weights in [*rng.dirichlet(np.full(4, 0.3), 200), *np.eye(4)]:
        mean = np.einsum('m,mnc->nc', weights, [softmax(member) for member in logits])
        got = candidates.predict(weights)
        np.testing.assert_array_equal(got, mean[labels >= 0].argmax(1))
        want = scores(np.log(mean), labels)
        for name in ('accuracy', 'f1_macro', 'nll'):
            assert score(candidates, weights, name) == pytest.approx(want[name], rel=1e-5)
        np.testing.assert_array_equal(part.predict(weights), mean[part.rows].argmax(1))
        want = [softmax(member)[part.rows, part.labels] for member in logits]
        np.testing.assert_allclose(part.label_probs, want, rtol=1e-5)


def test_equal_scores_go_to_the_lowest_class():
    logits, labels = members_of(8)
    for member in logits:
        member[:, 5] = member[:, 4] = member[:, 4] + 2
    predicted = find_candidates(logits, labels).predict(np.full(4, 0.25))
    assert 4 in predicted and 5 not in predicted


def test_greedy_is_the_best_next_pick_each_time(problem):
    """Against a search that scores whole probabilities."""
    logits, labels, candidates = problem
    probs = np.stack([softmax(member)[labels >= 0] for member in logits])
    truth = labels[labels >= 0]
    score_of = {'nll': lambda p: -metrics.log_loss(truth, p, labels=range(6)),
                'accuracy': lambda p: metrics.accuracy_score(truth, p.argmax(1)),
                'f1_macro': lambda p: metrics.f1_score(truth, p.argmax(1), average='macro')}
    for metric, function in score_of.items():
        found = greedy(candidates, metric, rounds=8)
        total, best = np.zeros_like(probs[0]), []
        for pick in range(8):
            values = [function((total + member) / (pick + 1)) for member in probs]
            assert abs(found.scores[0][pick]) == pytest.approx(abs(max(values)), rel=1e-5)
            ties = [i for i, value in enumerate(values) if value > max(values) - 1e-9]
            nlls = [score_of['nll']((total + probs[i]) / (pick + 1)) for i in ties]
            total += probs[ties[int(np.argmax(nlls))]]
            best.append(max(values))
        length = int(np.argmax(np.array(best) > max(best) - 1e-9)) + 1
        assert len(found.paths[0]) == length
        np.testing.assert_allclose(
            found.weights, np.bincount(found.paths[0], minlength=4) / length)


def test_greedy_options(problem):
    _, _, candidates = problem
    singles = [score(candidates, weights, 'accuracy') for weights in np.eye(4)]
    found = greedy(candidates, 'accuracy', rounds=5, start=2)
    assert set(found.paths[0][:2]) == set(np.argsort(singles)[-2:])
    bags = greedy(candidates, rounds=5, bags=4, share=0.5, seed=3)
    assert all(len(set(path)) <= 2 for path in bags.paths) and len(set(bags.paths)) > 1
    assert bags.weights.sum() == pytest.approx(1)
    again = greedy(candidates, rounds=5, bags=4, share=0.5, seed=3)
    np.testing.assert_array_equal(bags.weights, again.weights)
    logits, labels = members_of(9)
    alike = find_candidates([20 * logits[2], logits[2]], labels)  # the first is overconfident
    assert greedy(alike, 'accuracy', rounds=1).paths == ((1,),)
    with pytest.raises(ConfigError, match='start=5'):
        greedy(candidates, rounds=5, start=5)
    with pytest.raises(ConfigError, match='no row has one'):
        greedy(candidates.select(np.arange(0)))


def test_convex_weights_are_the_best_on_a_grid():
    logits, labels = members_of(3, skills=(1.5, 1.2, 0.2), shared=0.3)
    candidates = find_candidates(logits, labels)
    weights, gap = convex_weights(candidates)
    assert gap <= 1e-6 and weights.min() >= 0 and weights.sum() == pytest.approx(1)
    grid = [np.array(w) / 60 for w in itertools.product(range(61), repeat=3) if sum(w) == 60]
    best = min(grid, key=candidates.nll)
    assert candidates.nll(weights) <= candidates.nll(best) <= candidates.nll(weights) + 1e-4
    np.testing.assert_allclose(weights, best, atol=0.03)


def test_the_gap_bounds_how_far_weights_are_from_the_best():
    """Members by the dozen, some of them twice: the best weights are not unique."""
    logits, labels = members_of(4, n=400, skills=tuple(np.linspace(0, 2, 12)))
    candidates = find_candidates([*logits, *logits[:6]], labels)
    weights, gap = convex_weights(candidates)
    assert 0 <= gap <= 1e-6
    rng = np.random.default_rng(0)
    assert all(candidates.nll(w) >= candidates.nll(weights) - gap
               for w in [*rng.dirichlet(np.full(18, 0.2), 300), *np.eye(18)])
    # Probabilities over many orders of magnitude, where the solver alone stays 1e-6 away.
    rng = np.random.default_rng(4)
    own = softmax(np.stack([rng.normal(size=500) * 3 + rng.normal(size=(20, 500))
                            * rng.uniform(.1, 3, size=(20, 1)), np.zeros((20, 500))], -1))[..., 0]
    hard = dataclasses.replace(candidates, label_probs=own ** 8)
    weights, gap = convex_weights(hard, tolerance=1e-9)
    assert 0 <= gap <= 1e-9
    gains = (hard.label_probs / (weights @ hard.label_probs)).mean(1)
    assert np.log(gains.max()) == pytest.approx(gap, abs=1e-12)
    single = find_candidates(logits[-1:], labels)
    np.testing.assert_array_equal(convex_weights(single)[0], [1])


def test_a_fit_that_memorises_looks_perfect_naive_and_is_chance_nested():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=2000)
    seen = []

    def fit(rows):
        seen.append(set(rows))
        return dict(zip(rows, labels[rows]))

    def apply(fitted, rows):
        return np.array([fitted.get(row, row % 4) for row in rows])

    folds = draw_folds(labels, count=5)
    assert (np.bincount(folds) == 400).all()
    found = nested(fit, apply, lambda out, rows: np.mean(out == labels[rows]), folds)
    assert found.naive == 1
    assert found.nested == pytest.approx(0.25, abs=0.04)
    assert np.mean(list(found.folds.values())) == pytest.approx(found.nested)
    assert all(not rows & set(np.flatnonzero(folds == fold))
               for fold, rows in enumerate(seen[1:]))


def test_nested_keeps_groups_apart_and_leaves_rows_out():
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(3, size=300), np.repeat(np.arange(100), 3)
    labels[5] = -1
    folds = draw_folds(labels, groups, count=3)
    assert folds[5] == -1 and set(folds) == {-1, 0, 1, 2}
    assert all(len(set(folds[(groups == g) & (folds >= 0)])) == 1 for g in range(100))
    folds = np.where(folds < 0, -1, rng.integers(3, size=300))  # groups torn apart
    fits = []
    found = nested(lambda rows: fits.append(rows), lambda fitted, rows: labels[rows],
                   lambda out, rows: np.mean(out), folds, groups)
    for fold, rows in enumerate(fits[1:]):
        assert len(rows) and not set(groups[rows]) & set(groups[folds == fold])
        assert 5 not in rows
    assert found.outputs[5] == 0
    with pytest.raises(ConfigError, match='share a group'):
        nested(len, lambda fitted, rows: rows, lambda out, rows: 0, folds, np.zeros(300))
    with pytest.raises(ConfigError, match='at least two folds'):
        nested(len, lambda fitted, rows: rows, lambda out, rows: 0, np.zeros(300, int))
    rare = draw_folds(np.array([0] * 20 + [1, 2]), count=5)
    assert np.bincount(rare).min() >= 4


@pytest.mark.parametrize('classes', [2, 6])
def test_stacking_mends_members_that_mix_up_classes(classes):
    logits, labels = members_of(5, n=600, classes=classes, shared=0.2)
    logits = [np.roll(member, i, axis=1) for i, member in enumerate(logits)]  # shifted answers
    rows = np.arange(300)
    labels[0] = -1
    stacking = fit_stacking([member[rows] for member in logits], labels[rows])
    probs = stacking.probabilities([member[300:] for member in logits])
    np.testing.assert_allclose(probs.sum(1), 1)
    alone = np.mean(logits[0][300:].argmax(1) == labels[300:])
    assert np.mean(probs.argmax(1) == labels[300:]) > alone + 0.02
    with pytest.raises(ConfigError, match='fits 2,000,000 coefficients'):
        fit_stacking([np.zeros((3, 1000))] * 2, np.arange(3))


def test_stacking_without_examples_of_a_class():
    logits, labels = members_of(6, classes=4)
    labels = np.where(labels == 0, 1, labels)
    probs = fit_stacking(logits, labels).probabilities(logits)
    assert probs.shape == (240, 4) and (probs[:, 0] == 0).all()
    np.testing.assert_allclose(probs.sum(1), 1)


def test_temperature_is_the_minimum_and_undoes_scaling():
    logits, labels = members_of(7)
    labels[3] = -1
    scores_ = softmax(np.mean(logits, axis=0))
    best = fit_temperature(scores_, labels)
    nll = lambda t: scores(np.log(tempered(scores_, t)), labels)['nll']
    assert nll(best) < min(nll(best * 1.01), nll(best / 1.01))
    assert fit_temperature(softmax(3 * np.log(scores_)), labels) == pytest.approx(3 * best, 1e-6)
    np.testing.assert_allclose(tempered(scores_, 1.0), scores_, atol=1e-12)
    right = np.eye(3)[[0, 1, 2]] * 0.5 + 1 / 6
    assert fit_temperature(right, np.arange(3)) == 0.01
    assert fit_temperature(right, np.array([1, 2, 0])) == 100


def test_choice_by_robustness():
    labels = np.array([0] * 8 + [1] * 2 + [-1])
    steady = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0])  # recalls 3/4 and 1
    lucky = np.array([0] * 8 + [0, 0, 1])  # 1 and 0
    half = np.array([0] * 8 + [1, 0, 0])  # 1 and 1/2
    folds = np.array([0, 1] * 5 + [0])
    assert robustness(steady, labels, folds) == {
        'accuracy': 0.8, 'worst_class': 0.75, 'worst_fold': 0.8,
        'evenness': pytest.approx(1 - (1 - .75) / (2 * 1.75))}
    assert robustness(lucky, labels)['evenness'] == 0.5
    assert robustness(1 - steady[:10], labels[:10])['worst_class'] == 0
    answers = dict(lucky=lucky, half=half, steady=steady)
    assert choose(answers, labels, 'accuracy') == 'half'
    assert choose(answers, labels, 'worst_class') == 'steady'
    assert choose(dict(lucky=lucky, half=half), labels, 'evenness') == 'half'
    with pytest.raises(ConfigError, match='needs folds'):
        choose(answers, labels, 'worst_fold')
