import itertools
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics

from input_pipeline.products import product_log_probs
from train_lib.ensembles import aligned_logits as module
from train_lib.ensembles.aligned import product_of_heads
from train_lib.ensembles.aligned_logits import AlignedLogits
from train_lib.ensembles.multi_head import vote_then_combine
from train_lib.ensembles.pool import vote, vote_one
from train_lib.ensembles.rules import RULES
from train_lib.ensembles.spec import EnsembleSpec, each_alone
from train_lib.metrics import scores as scores_module
from train_lib.metrics.scores import scores, softmax
from train_lib.runtime.errors import ConfigError

MODELS = ('a', 'b', 'a', 'c', 'b', 'a')


def members_of(seed=0, n=200, classes=8, dtype=np.float64, members=6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return [(rng.normal(size=(n, classes)) * 2 + 2 * np.eye(classes)[labels]).astype(dtype)
            for _ in range(members)], labels


def test_scores_equal_those_of_training_and_scikit_learn():
    logits, labels = members_of()
    logits[0] = np.round(logits[0])  # equal logits rank by their class
    labels[::7] = -1
    known = labels >= 0
    specs = {**{str(i): spec for i, spec in enumerate(each_alone(6))},
             'soft': EnsembleSpec(), 'hard': EnsembleSpec('hard')}
    found = vote(logits, specs, labels=labels)
    for i, member in enumerate(logits):
        want = scores(member, labels)
        assert found[str(i)].summary(labels) == pytest.approx(want, rel=1e-12)
    mean, truth = np.mean([softmax(member) for member in logits], axis=0)[known], labels[known]
    got = found['soft'].summary(labels)
    assert got['n'] == known.sum()
    assert got['nll'] == pytest.approx(metrics.log_loss(truth, mean, labels=range(8)), rel=1e-12)
    assert got['brier'] == pytest.approx(metrics.brier_score_loss(
        truth, mean, labels=range(8), scale_by_half=False), rel=1e-12)
    assert got['top5'] == metrics.top_k_accuracy_score(truth, mean, k=5)
    want = metrics.precision_recall_fscore_support(truth, mean.argmax(1), average='macro')
    assert [got[f'{name}_macro'] for name in ('precision', 'recall', 'f1')] == pytest.approx(
        want[:3], rel=1e-12)
    got = found['hard'].summary(labels)
    assert got['nll'] is got['ece'] is got['brier'] is None
    assert got['accuracy'] == np.mean(found['hard'].predicted[known] == truth)
    assert np.isnan(found['soft'].rows['nll'][::7]).all()


def test_blocks_and_threads_and_half_precision(monkeypatch):
    logits, labels = members_of(dtype=np.float16)
    specs = {f'{inner}-{rule}': EnsembleSpec(rule, inner) for rule in RULES
             for inner in (None, 'soft', 'hard')}
    keep = tuple(specs)
    whole = vote(logits, specs, labels=labels, models=MODELS, keep=keep, threads=1)
    monkeypatch.setattr(module, 'BLOCK_CELLS', 6 * 8 * 7)  # 7 rows per block, and a rest of 4
    parts = vote(logits, specs, labels=labels, models=MODELS, keep=keep)
    finer = vote([member.astype(np.float64) for member in logits], specs, models=MODELS,
                 keep=keep)
    for name in specs:
        np.testing.assert_array_equal(whole[name].scores, parts[name].scores)
        np.testing.assert_array_equal(whole[name].predicted, parts[name].predicted)
        assert whole[name].summary(labels) == parts[name].summary(labels)
        assert whole[name].scores.dtype == np.float32
        np.testing.assert_allclose(whole[name].scores, finer[name].scores, atol=2e-6)


def test_every_pair_of_levels_is_what_two_votes_in_a_row_are():
    logits, _ = members_of(1)
    weights = np.array([1.0, 2.0, 0.5, 1.0, 0.0, 3.0])
    model_weights = {'a': 2.0, 'c': 0.5}
    pairs = list(itertools.product(RULES, RULES))
    specs = {pair: EnsembleSpec(pair[1], pair[0], weights, model_weights) for pair in pairs}
    found = vote(logits, specs, models=MODELS, keep=pairs)
    for inner in RULES:
        levels = []
        for model in 'abc':
            index = [i for i, of in enumerate(MODELS) if of == model]
            levels.append(vote_one([logits[i] for i in index], EnsembleSpec(
                inner, weights=weights[index])))
        for outer in RULES:
            got = found[inner, outer]
            np.testing.assert_allclose(got.scores.sum(1), 1, atol=1e-12)
            if outer == 'hard':
                votes = np.stack([np.eye(8)[level.predicted] for level in levels])
                want = np.einsum('m,mnc->nc', [2, 1, .5], votes) / 3.5
            else:
                tiny = np.finfo(np.float32).tiny  # what a zero counts as in a geometric mean
                want = vote_one([np.log(np.maximum(level.scores, tiny)) for level in levels],
                                EnsembleSpec(outer, weights=[2, 1, .5])).scores
            if outer != 'rank_mean':  # there zeros share a rank, which the floor keeps too
                np.testing.assert_allclose(got.scores, want, atol=1e-6, err_msg=f'{inner, outer}')


def test_hard_hard_counts_one_vote_a_model_and_hard_soft_their_shares():
    # Model a: classes 0, 0, 1; b: 1; c: 1, 0 with 0 ahead by the mean.
    probs = np.array([[.9, .1], [.6, .4], [.2, .8], [.1, .9], [.4, .6], [.9, .1]])[:, None]
    models = ('a', 'a', 'a', 'b', 'c', 'c')
    logits = list(np.log(probs))
    found = vote(logits, {rule: EnsembleSpec(rule, 'hard') for rule in ('hard', 'soft')},
                 models=models, keep=('hard', 'soft'))
    np.testing.assert_allclose(found['hard'].scores[0], [2 / 3, 1 / 3])
    np.testing.assert_allclose(found['soft'].scores[0], [(2 / 3 + 0 + 1 / 2) / 3,
                                                         (1 / 3 + 1 + 1 / 2) / 3])
    assert found['hard'].predicted[0] == 0 and found['soft'].predicted[0] == 1


def test_ties_between_models_are_broken_by_their_members_probabilities():
    probs = np.array([[.6, .4], [.55, .45], [.05, .95]])[:, None]
    got = vote_one(list(np.log(probs)), EnsembleSpec('hard', 'hard'), models=('a', 'a', 'b'))
    assert got.ties == 1 and got.predicted[0] == 1


def test_ensembles_of_other_members_do_not_disturb_each_other():
    logits, _ = members_of(2)
    weights = np.array([1, 2, 3, 1, 2, 1])
    specs = {i: EnsembleSpec('median', weights=np.where(np.arange(6) == i, 0, weights))
             for i in range(6)}
    together = vote(logits, specs, keep=range(6))
    for i, spec in specs.items():
        assert spec.weights[i] == 0
        np.testing.assert_array_equal(together[i].scores, vote_one(logits, spec).scores)


@pytest.mark.parametrize('change, message', [
    (dict(specs={'x': EnsembleSpec('sofd')}), 'did you mean soft'),
    (dict(specs={'x': EnsembleSpec(inner='harder')}, models=MODELS), 'did you mean hard'),
    (dict(specs={'x': EnsembleSpec(weights=(1, 2))}), '2 weights for 6 members'),
    (dict(specs={'x': EnsembleSpec(weights=(1, -2, 1, 1, 1, 1))}), '-2.0 for 1'),
    (dict(specs={'x': EnsembleSpec(weights=(0,) * 6)}), 'all 0'),
    (dict(specs={'x': EnsembleSpec('trimmed_mean', trim=0.5)}), 'trim=0.5'),
    (dict(specs={'x': EnsembleSpec(inner='soft', model_weights={'z': 1})}, models=MODELS), "'z'"),
    (dict(logits=[]), 'no members'),
])
def test_a_wrong_spec_is_one_sentence(change, message):
    options = dict(logits=members_of(n=3)[0], specs={'x': EnsembleSpec()}) | change
    with pytest.raises(ConfigError, match=message):
        vote(options.pop('logits'), options.pop('specs'), **options)


def test_a_diverged_member_is_named():
    logits, _ = members_of()
    logits[4][17, 3] = np.nan
    with pytest.raises(ValueError, match=r'Member 4 .* row 17'):
        vote_one(logits, EnsembleSpec())
    assert vote_one(logits, EnsembleSpec(weights=(1, 1, 1, 1, 0, 1))).ties == 0


def test_members_of_other_rows_are_joined():
    logits, _ = members_of()
    rng = np.random.default_rng(0)
    orders = [rng.permutation(200) for _ in logits]
    shuffled = [member[order] for member, order in zip(logits, orders)]
    rows = [np.argsort(order) for order in orders]
    rows[2], shuffled[2] = None, logits[2]
    np.testing.assert_array_equal(vote_one(AlignedLogits(shuffled, rows), EnsembleSpec()).scores,
                                  vote_one(logits, EnsembleSpec()).scores)


def test_heads_voted_then_combined_and_combined_then_voted():
    rng = np.random.default_rng(0)
    sizes = {'mask': 3, 'age': 2}
    logits = [{head: rng.normal(size=(40, size)) * 2 for head, size in sizes.items()}
              for _ in range(3)]
    heads = ('mask', 'age')
    aligned = {head: AlignedLogits([member[head] for member in logits]) for head in heads}
    product, outcomes = vote_then_combine(aligned, EnsembleSpec())
    means = {head: np.mean([softmax(m[head]) for m in logits], axis=0) for head in heads}
    joint = means['mask'][:, :, None] * means['age'][:, None]
    np.testing.assert_array_equal(product, joint.reshape(40, 6).argmax(1))
    np.testing.assert_allclose(outcomes['age'].scores, means['age'], atol=1e-12)
    backwards = {head: logits.take(np.arange(40)[::-1]) for head, logits in aligned.items()}
    found = vote(product_of_heads(backwards), {'x': EnsembleSpec()}, keep='x')['x']
    want = np.mean([np.exp(product_log_probs(m, heads)) for m in logits], axis=0)
    np.testing.assert_allclose(found.scores, want[::-1], atol=1e-6)
    assert (found.predicted[::-1] != product).any()  # the two ways differ


def test_summary_takes_what_scores_takes():
    assert scores_module.summary({}, np.zeros(0, int), 9) == scores(np.zeros((0, 9)), [])


def test_many_ensembles_counted_together_are_those_counted_alone():
    """More than are counted at once, with ties, and of members with and without probabilities."""
    logits, labels = members_of(5)
    logits = [np.round(member) for member in logits]
    labels[::5] = -1
    specs = {(inner, rule): EnsembleSpec(rule, inner) for rule in RULES for inner in (None, *RULES)}
    specs |= dict(enumerate(each_alone(6)))
    together = vote(logits, specs, labels=labels, models=MODELS, keep=tuple(specs))
    assert sum(outcome.ties for outcome in together.values()) > 100
    for name, spec in specs.items():
        alone = vote_one(logits, spec, labels=labels, models=MODELS)
        found = together[name]
        for what in ('predicted', 'tied', 'scores'):
            np.testing.assert_array_equal(getattr(found, what), getattr(alone, what), str(name))
        for what, values in found.rows.items():
            np.testing.assert_array_equal(values, alone.rows[what], str((name, what)))
        _ranks_are_counted(found, labels)


def _ranks_are_counted(outcome, labels):
    """One row at a time."""
    for i in np.flatnonzero(labels >= 0):
        own = outcome.scores[i, labels[i]]
        want = (0 if outcome.predicted[i] == labels[i] else
                (outcome.scores[i] > own).sum() + (outcome.scores[i, :labels[i]] == own).sum())
        assert outcome.rows['rank'][i] == want


def test_every_half_is_converted_to_the_same_float():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    for values in (finite, halves, finite[::3], finite.reshape(2, -1)[:, ::-1]):
        found = np.empty(values.shape, np.float32)
        module._convert(values, found)
        np.testing.assert_array_equal(found, values.astype(np.float32))
        finite_signs = np.isfinite(values)
        np.testing.assert_array_equal(np.signbit(found)[finite_signs],
                                      np.signbit(values)[finite_signs])


def test_probabilities_alone_are_those_of_the_vote():
    for dtype in (np.float16, np.float64):
        logits = AlignedLogits(members_of(3, dtype=dtype)[0])
        part = slice(20, 90)
        np.testing.assert_array_equal(logits.read_probs(part, np.float32),
                                      logits.read(part, range(6), np.float32).probs)


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr(module, 'BLOCK_CELLS', 1 << 15)
    specs = {(inner, rule): EnsembleSpec(rule, inner) for rule in RULES for inner in (None, 'soft')}
    peaks = []
    for rows in (100, 400):
        logits, labels = members_of(n=rows, classes=1000, dtype=np.float16)
        tracemalloc.start()
        vote(logits, specs, labels=labels, models=MODELS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
