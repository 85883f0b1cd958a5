import numpy as np
import pytest
from sklearn import metrics

from train_lib.ensembles.candidates import find_candidates
from train_lib.ensembles.contributions import contributions, learning_curve
from train_lib.metrics.scores import softmax


def test_contributions_and_learning_curve():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=200)
    logits = [skill * np.eye(4)[labels] + rng.normal(size=(200, 4)) for skill in (1, 2, 0.5)]
    candidates = find_candidates(logits, labels)
    probs = np.stack([softmax(member) for member in logits])

    def triple(weights):
        mean = np.einsum('m,mnc->nc', weights, probs) / np.sum(weights)
        return (np.mean(mean.argmax(1) == labels),
                metrics.f1_score(labels, mean.argmax(1), average='macro'),
                metrics.log_loss(labels, mean))

    got = contributions(candidates, [2, 1, 1])
    for member, weights in enumerate([(0, 1, 1), (2, 0, 1), (2, 1, 0)]):
        want = np.subtract(triple([2, 1, 1]), triple(weights)) * [1, 1, -1]
        np.testing.assert_allclose(got.loc[member, ['accuracy', 'f1_macro', 'nll']].astype(float),
                                   want, atol=1e-6)
    assert np.isnan(contributions(candidates, [1, 0, 0])['nll'][0])
    curve = learning_curve(candidates, order=[2, 0, 1], draws=40)
    for size, weights in enumerate([(0, 0, 1), (1, 0, 1), (1, 1, 1)]):
        np.testing.assert_allclose(curve.loc[size, ['accuracy', 'f1_macro', 'nll']].astype(float),
                                   triple(weights), atol=1e-6)
    singles = [triple(row)[2] for row in np.eye(3)]
    assert curve['nll_low'][0] == pytest.approx(min(singles), abs=1e-6)
    assert curve['nll_high'][0] == pytest.approx(max(singles), abs=1e-6)
    assert min(singles) < curve['nll_mean'][0] < max(singles)
    assert curve['nll_low'][2] == pytest.approx(curve['nll_high'][2], rel=1e-9)
