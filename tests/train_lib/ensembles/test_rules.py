"""The rules themselves, through `pool.vote`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, trim_mean
from sklearn.ensemble import VotingClassifier
from sklearn.preprocessing import LabelEncoder

from train_lib.ensembles.aligned_logits import AlignedLogits
from train_lib.ensembles.order_statistics import merge_exchange, rank_shares
from train_lib.ensembles.pool import vote, vote_one
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.spec import EnsembleSpec
from train_lib.metrics.scores import scores, softmax


class Fixed:
    """What scikit-learn's VotingClassifier needs of a fitted member."""

    def __init__(self, probs):
        self.probs = probs

    def predict_proba(self, x):
        return self.probs[x]

    def predict(self, x):
        return self.probs[x].argmax(1)


def random_members(seed, members=5, n=60, classes=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = [rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels] for _ in range(members)]
    return [member.astype(dtype) for member in logits], labels, rng.random(members) + 0.1


@pytest.mark.parametrize('weighted', [False, True])
def test_soft_and_hard_equal_scikit_learn(weighted):
    logits, _, weights = random_members(0)
    weights = weights if weighted else None
    for rule in ('soft', 'hard'):
        peer = VotingClassifier([], voting=rule, weights=weights)
        peer.estimators_ = [Fixed(softmax(member)) for member in logits]
        peer.estimators = [(str(i), member) for i, member in enumerate(peer.estimators_)]
        peer.le_ = LabelEncoder().fit(range(4))
        found = vote_one(logits, EnsembleSpec(rule, weights=weights))
        clear = ~found.tied  # scikit-learn gives ties to the first class
        np.testing.assert_array_equal(
            found.predicted[clear], peer.predict(np.arange(60))[clear])
        if rule == 'soft':
            np.testing.assert_allclose(found.scores, peer.predict_proba(np.arange(60)),
                                       rtol=0, atol=1e-12)


def test_other_rules_equal_their_definitions():
    logits, _, weights = random_members(1)
    probs = np.stack([softmax(member) for member in logits])
    share = weights / weights.sum()
    want = {
        'log_mean': np.exp(np.einsum('m,mnc->nc', share, np.log(probs))),
        'rank_mean': np.einsum('m,mnc->nc', share, rankdata(probs, axis=-1) - 1),
        'median': _by_repeating(probs, weights, np.median),
        'trimmed_mean': _by_repeating(probs, weights, lambda x, axis: trim_mean(x, 0.25, axis)),
    }
    specs = {rule: EnsembleSpec(rule, weights=weights, trim=0.25) for rule in want}
    found = vote(logits, specs, keep=tuple(want))
    for rule, value in want.items():
        # Repeated members stand for weights only to the width of one repetition.
        tolerance = 2e-3 if rule in ('median', 'trimmed_mean') else 1e-12
        np.testing.assert_allclose(found[rule].scores, value / value.sum(1, keepdims=True),
                                   atol=tolerance, err_msg=rule)


def _by_repeating(probs, weights, function):
    counts = np.round(weights / weights.sum() * 4000).astype(int)
    return function(np.repeat(probs, counts, axis=0), axis=0)


@pytest.mark.parametrize('members', [1, 2, 3, 4, 6, 7, 12, 20])
def test_equal_weights_give_the_usual_median_and_trimmed_mean(members):
    logits, _, _ = random_members(members, members)
    probs = np.stack([softmax(member) for member in logits])
    found = vote(logits, {'median': EnsembleSpec('median'),
                          'mean': EnsembleSpec('trimmed_mean', trim=1 / max(members, 3))},
                 keep=('median', 'mean'))
    cut = members // max(members, 3)
    want = {'median': np.median(probs, 0), 'mean': np.sort(probs, 0)[cut:members - cut].mean(0)}
    for name, value in want.items():
        np.testing.assert_allclose(found[name].scores, value / value.sum(1, keepdims=True),
                                   atol=1e-12)


def test_a_median_between_two_weights_is_their_mean():
    probs = np.array([[.1, .9], [.3, .7], [.8, .2]])
    found = vote_one(list(np.log(probs)[:, None]), EnsembleSpec('median', weights=(1, 2, 3)))
    np.testing.assert_allclose(found.scores[0], [.55, .45], atol=1e-9)


def test_ranks_share_equal_values():
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, size=(50, 30)).astype(np.float32)
    values[values == 0] *= -1  # -0 equals 0
    values[0] = 1
    np.testing.assert_allclose(
        rank_shares(values), (rankdata(values, axis=-1) - 1) / (30 * 29 / 2), atol=1e-7)


@pytest.mark.parametrize('n', range(1, 11))
def test_the_network_sorts_all_zeros_and_ones(n):
    """Which is enough for all numbers (Knuth's 0-1 principle)."""
    values = (np.arange(2 ** n) >> np.arange(n)[:, None]) & 1
    for i, j in merge_exchange(n):
        values[[i, j]] = values[[i, j]].min(0), values[[i, j]].max(0)
    assert (np.diff(values, axis=0) >= 0).all()


def test_a_tie_goes_to_the_larger_mean_then_the_better_voter_then_the_lower_class():
    def answer(*probs, rule='hard', **options):
        found = vote_one([np.log(np.array([row])) for row in probs], EnsembleSpec(
            rule, weights=options.pop('weights', None)), **options)
        assert found.ties == 1
        return int(found.predicted[0])

    # One vote each: class 2 has more probability, 3 has most but no vote.
    assert answer([.4, .1, .15, .35], [.05, .05, .51, .39]) == 2
    # The means are equal too (to rounding): the better voter decides, whoever comes first.
    left, right = [.6, .3, .1], [.3, .6, .1]
    assert answer(left, right, tie_break=[1, 2]) == 1
    assert answer(left, right, tie_break=[2, 1]) == 0
    assert answer(right, left) == answer(left, right) == 0
    # With weights as tie_break: 3 = 1 + 2 votes, and the heavy voter leads.
    assert answer([.4, .5, .1], [.5, .4, .1], [.5, .4, .1], weights=(3, 1, 2)) == 1
    assert answer(left, right, rule='soft', tie_break=[0, 5]) == 1
    # The best voter counts, not the last.
    assert answer(left, right, right, left, tie_break=[1, 5, 0, 2]) == 1
    # One vote each for three classes.
    assert answer([.5, .4, .1], [.4, .5, .1], [.1, .3, .6]) == 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10 ** 6), rule=st.sampled_from(list(RULES)),
       members=st.integers(2, 7), scale=st.sampled_from([0.5, 3.0, 1024.0]),
       coarse=st.booleans())
def test_invariances(seed, rule, members, scale, coarse):
    logits, labels, weights = random_members(seed, members, n=12)
    if coarse:  # many ties, of votes and of means
        logits, weights = [np.round(member) for member in logits], np.ones(members)
    weights[seed % members] = 0
    base = vote_one(logits, EnsembleSpec(rule, weights=weights), labels=labels)

    def same(found, rows=slice(None), exactly=False):
        np.testing.assert_array_equal(found.predicted, base.predicted[rows])
        np.testing.assert_array_equal(found.tied, base.tied[rows])
        np.testing.assert_allclose(found.scores, base.scores[rows], rtol=0,
                                   atol=0 if exactly else 1e-12)

    rng = np.random.default_rng(seed)
    order = rng.permutation(members)
    same(vote_one([logits[i] for i in order], EnsembleSpec(rule, weights=weights[order])),
         exactly=rule == 'hard' and coarse)
    same(vote_one(logits, EnsembleSpec(rule, weights=scale * weights)))
    there = np.flatnonzero(weights)
    broken = [member if w else np.full_like(member, np.nan) for member, w in zip(logits, weights)]
    same(vote_one([logits[i] for i in there], EnsembleSpec(rule, weights=weights[there])),
         exactly=True)
    same(vote_one(broken, EnsembleSpec(rule, weights=weights)), exactly=True)
    rows = rng.permutation(12)
    same(vote_one(AlignedLogits(logits, [rows] * members), EnsembleSpec(rule, weights=weights)),
         rows, True)
    if RULES[rule].distribution:
        want = scores(np.log(base.scores), labels)
        assert base.summary(labels)['nll'] == pytest.approx(want['nll'], rel=1e-12)
        assert base.summary(labels)['brier'] == pytest.approx(want['brier'], rel=1e-12)
