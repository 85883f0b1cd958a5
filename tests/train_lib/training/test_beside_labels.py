"""Unlabelled pictures and a teacher in the training step: the gradient of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from configs import common
from input_pipeline.two_views import STRONG, TRUTH, WEAK
from train_lib.losses.consistency import Consistency
from train_lib.losses.losses import LossSpec, head_loss
from train_lib.losses.mixing import make_mixings, mix
from train_lib.optim.optimizers import make_optimizer
from train_lib.training import beside_labels
from train_lib.training.beside_labels import BesideLabels, Teacher, row_of
from train_lib.training.state import MovingAverage, Weights, make_state
from train_lib.training.step import (
    StepOptions,
    make_eval_step,
    make_normalise,
    make_train_step,
    outputs_of,
    split_model,
)

CLASSES = {'kind': ('a', 'b', 'c'), 'tool': ('x', 'y')}
HEADS = tuple(CLASSES)
SIZES = {head: len(names) for head, names in CLASSES.items()}
CNN = dict(name='small_cnn', width=4, stages=1)  # with BatchNorm
VIT = dict(name='vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=1,
           num_heads=2)
FACTORS = (1.0, 0.5)
NORMALISE = make_normalise((0.5,) * 3, (0.5,) * 3, jnp.float32)
FIXMATCH = Consistency('fixmatch', weight=2.0, threshold=0.6)
MEAN = Consistency('mean_teacher', weight=3.0, threshold=0.0)


def model_of(settings, seed=0):
    settings = dict(settings)
    model = models.create_model(settings.pop('name'), num_classes=SIZES, rngs=nnx.Rngs(seed),
                                **settings)
    graphdef, params, stats = split_model(model)
    # The last BatchNorm of a block starts with scale 0, and the head's kernel is small.
    rng = np.random.default_rng(seed)
    return graphdef, jax.tree.map(lambda leaf: leaf + jnp.asarray(
        rng.normal(0, 1.0, leaf.shape), leaf.dtype), params), stats


def batch(size=8, unlabelled=16, seed=0):
    rng = np.random.default_rng(seed)
    return {'image': rng.integers(0, 256, (size, 16, 16, 3)).astype(np.uint8),
            **{f'label/{head}': rng.integers(-1, count, size).astype(np.int32)
               for head, count in SIZES.items()},
            **{name: rng.integers(0, 256, (unlabelled, 16, 16, 3)).astype(np.uint8)
               for name in (WEAK, STRONG)},
            **{TRUTH + head: rng.integers(-1, count, unlabelled).astype(np.int32)
               for head, count in SIZES.items()}}


def teacher(settings=CNN, weight=0.3, heads=HEADS):
    """(the teacher, its weights): it has the student's classes in the opposite order."""
    graphdef, params, stats = model_of(settings, seed=9)
    step = make_eval_step(graphdef, NORMALISE, HEADS)

    def answer(weights, images):
        return {head: logits[:, ::-1] for head, logits in step(weights, images).items()
                if head in heads}
    return Teacher(answer, weight, 2.0), Weights(params, {}, stats)


def trained(settings, beside, given, weights=None, **options):
    """(the gradient, by SGD of rate 1; the state after the step; the graph definition; the weights
    before it; those of the moving average)"""
    graphdef, params, stats = model_of(settings)
    optimizer = make_optimizer(common.get_config().optimizer.to_dict() | dict(
        name='sgd', momentum=0.0, nesterov=False, clip_norm=0.0, weight_decay=0.0))
    step = make_train_step(graphdef, optimizer, lambda step: 1.0, NORMALISE, StepOptions(
        heads=HEADS, seed=0, head_weights=FACTORS, ema_decay=lambda step: 0.9, beside=beside,
        **options))
    _, average, average_stats = model_of(settings, seed=5)
    copied = lambda tree: jax.tree.map(jnp.copy, tree)
    state = make_state(copied(Weights(params, {}, stats)), optimizer, HEADS,
                       sums=beside.sums(HEADS))
    state = state.replace(ema=copied(MovingAverage(average, average_stats)),
                          teacher=copied(weights))
    after, _ = step(state, given)
    gradient = jax.tree.map(lambda a, b: np.asarray(a - b), params, after.params)
    own, mean = Weights(params, {}, stats), Weights(average, {}, average_stats)
    return gradient, after, graphdef, own, mean


def cross_entropy(logits, labels):
    rows = jnp.arange(len(labels))
    found = -jax.nn.log_softmax(logits)[rows, labels]
    known = labels >= 0
    return jnp.sum(jnp.where(known, found, 0)) / jnp.sum(known)


def alike(found, wanted, scale=3e-6):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    assert largest > 1e-3
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=scale * largest)


@pytest.mark.parametrize('consistency', [FIXMATCH, MEAN], ids=lambda one: one.kind)
def test_gradient_of_unlabelled_pictures(consistency):
    """One forward pass of labelled pictures and views, whose BatchNorm sees all of them."""
    given = batch()
    gradient, after, graphdef, own, average = trained(CNN, BesideLabels(consistency), given)
    fixmatch = consistency.kind == 'fixmatch'

    def objective(params):
        model = nnx.merge(graphdef, params, {}, own.batch_stats)
        views = [given[WEAK], given[STRONG]] if fixmatch else [given[STRONG]]
        images = NORMALISE(np.concatenate([given['image'], *views]))
        logits = model(images, rngs=nnx.Rngs(dropout=0))
        other = models.eval_view(nnx.merge(graphdef, average.params, average.batch_stats))
        targets = other(NORMALISE(given[WEAK]))
        total = 0
        for head, factor in zip(HEADS, FACTORS):
            labelled, strong = logits[head][:8], logits[head][-16:]
            total += factor * cross_entropy(labelled, given[f'label/{head}'])
            if fixmatch:
                weak = jax.nn.softmax(logits[head][8:24])
                sure, label = weak.max(-1) >= 0.6, weak.argmax(-1)
                losses = -jax.nn.log_softmax(strong)[jnp.arange(16), label]
                total += 2.0 * factor * jnp.sum(jnp.where(sure, losses, 0)) / 16
            else:
                distance = (jax.nn.softmax(targets[head]) - jax.nn.softmax(strong)) ** 2
                total += 3.0 * factor * jnp.mean(jnp.sum(distance, -1))
        return total, split_model(model)[2]

    wanted, stats = jax.grad(objective, has_aux=True)(own.params)
    alike(gradient, wanted)
    alike(after.batch_stats, stats)
    sums = {name: float(value) for name, value in after.metric_sums.items()}
    assert sums['unlabelled/pictures'] == 16 and sums['unlabelled/loss'] > 0
    for head in HEADS:
        known, above = sums[f'unlabelled/known/{head}'], sums[f'unlabelled/above/{head}']
        assert 0 <= sums[f'unlabelled/right/{head}'] <= known <= above <= 16
        assert 0 < above < 16 if fixmatch and head == 'kind' else above == 16


def test_truth_only_counts():
    """Other labels of unlabelled pictures change the metrics and no weight."""
    first, second = batch(), batch()
    for head in HEADS:
        second[TRUTH + head] = np.full(16, -1, np.int32)
    a, b = (trained(CNN, BesideLabels(FIXMATCH), one) for one in (first, second))
    for x, y in zip(jax.tree.leaves(a[0]), jax.tree.leaves(b[0]), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a[1].metric_sums['unlabelled/known/kind'] > 0
    assert b[1].metric_sums['unlabelled/known/kind'] == 0


def test_gradient_of_a_teacher():
    """It sees the mixed pictures; a head that it does not know learns from labels alone."""
    mixings = make_mixings([dict(kind='mixup')], CLASSES, None)
    given = {name: value for name, value in batch().items() if 'unlabelled' not in name}
    for head in HEADS:
        given[f'label/{head}'] = np.abs(given[f'label/{head}'])
    guide, weights = teacher(heads=('kind',))
    gradient, after, graphdef, own, _ = trained(
        CNN, BesideLabels(teacher=guide), given, weights, mixings=mixings)
    images, targets, _ = mix(mixings, 0, jnp.int32(0), given['image'],
                             {head: given[f'label/{head}'] for head in HEADS})
    assert (images != given['image']).any()

    def objective(params):
        model = nnx.merge(graphdef, params, {}, own.batch_stats)
        logits = model(NORMALISE(images), rngs=nnx.Rngs(dropout=0))
        of_labels = [head_loss(LossSpec(), logits[head], targets[head]) for head in HEADS]
        taught = guide.answer(weights, images)['kind']
        p, q = (jax.nn.log_softmax(one / 2) for one in (taught, logits['kind']))
        distilled = 4 * jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1))
        return 0.7 * of_labels[0] + 0.3 * distilled + 0.5 * of_labels[1]

    alike(gradient, jax.grad(objective)(own.params))
    for a, b in zip(jax.tree.leaves(after.teacher), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradient_of_features():
    """Which labelled pictures a teacher of another width finds alike is learned beside its answers,
    as the formula of the paper, times B; views of unlabelled pictures are left out of it."""
    given = batch()
    wide, weights, stats = model_of(CNN | dict(width=8), seed=9)
    step = make_eval_step(wide, NORMALISE, HEADS, features=True)
    guide, there = Teacher(step, 0.3, 2.0, features=100.0), Weights(weights, {}, stats)
    gradient, after, graphdef, own, _ = trained(
        CNN, BesideLabels(FIXMATCH, guide), given, there)
    without = trained(CNN, BesideLabels(FIXMATCH, Teacher(step, 0.3, 2.0)), given, there)
    taught = step(there, given['image'])['/features']
    assert taught.shape == (8, 8) and own.params["conv1"]["kernel"].shape[-1] != 8

    def alike_rows(features):
        products = features @ features.T
        return products / jnp.linalg.norm(products, axis=1, keepdims=True)

    def objective(params):
        model = nnx.merge(graphdef, params, {}, own.batch_stats)
        images = NORMALISE(np.concatenate([given['image'], given[WEAK], given[STRONG]]))
        features = model.pool(model.forward_features(images))[:8]
        return 100.0 * jnp.sum((alike_rows(features) - alike_rows(taught)) ** 2) / 8

    wanted = jax.grad(objective)(own.params)
    alike(jax.tree.map(lambda a, b: a - b, gradient, without[0]), wanted)
    assert float(after.metric_sums['teacher/features']) == pytest.approx(
        float(objective(own.params)) / 100, rel=1e-5)
    assert 'teacher/features' not in without[1].metric_sums
    assert row_of({'steps': 4, 'teacher/loss': 2.0, 'teacher/features': 1.0}, HEADS) == {
        'teacher_loss': 0.5, 'teacher_features_loss': 0.25}


@pytest.mark.parametrize('consistency', [FIXMATCH, MEAN], ids=lambda one: one.kind)
def test_parts_of_a_batch_have_the_gradient_of_the_batch(consistency):
    """With a teacher as well; in float32, as without unlabelled pictures."""
    guide, weights = teacher()
    whole, parts = (trained(VIT, BesideLabels(consistency, guide), batch(), weights,
                            accumulate=count) for count in (1, 4))
    alike(parts[0], whole[0])
    for name, value in whole[1].metric_sums.items():
        np.testing.assert_allclose(value, parts[1].metric_sums[name], rtol=3e-6, err_msg=name)


def test_nothing_beside_is_the_step_without():
    given = batch()
    plain = trained(CNN, BesideLabels(), {name: value for name, value in given.items()
                                          if 'unlabelled' not in name})
    off = trained(CNN, BesideLabels(Consistency('fixmatch', threshold=0.9999)), given)
    assert set(plain[1].metric_sums) == {'loss', 'steps', *(
        f'{what}/{head}' for what in ('correct', 'labelled') for head in HEADS)}
    assert off[1].metric_sums['unlabelled/loss'] == 0


@pytest.mark.parametrize('sizes', [(8, 16, 16), (6, 4), (5, 7), (4,)], ids=str)
def test_batches_are_joined_and_taken_apart(sizes):
    parts = [jnp.asarray(np.random.default_rng(size).normal(size=(size, 2, 3))) for size in sizes]
    whole = beside_labels._joined(parts)
    assert len(whole) == sum(sizes)
    for part, again in zip(parts, beside_labels._apart(whole, sizes), strict=True):
        np.testing.assert_array_equal(part, again)


def test_what_metrics_say():
    sums = {'steps': 4.0, 'teacher/loss': 2.0, 'unlabelled/loss': 1.0, 'unlabelled/pictures': 40.0,
            'unlabelled/above/kind': 10.0, 'unlabelled/known/kind': 8.0,
            'unlabelled/right/kind': 6.0, 'unlabelled/above/tool': 30.0,
            'unlabelled/known/tool': 0.0, 'unlabelled/right/tool': 0.0}
    assert row_of(sums, HEADS) == {
        'teacher_loss': 0.5, 'unlabelled_loss': 0.25, 'unlabelled_share': 0.5,
        'unlabelled_accuracy': 0.75, 'kind/unlabelled_share': 0.25, 'tool/unlabelled_share': 0.75,
        'kind/unlabelled_accuracy': 0.75, 'tool/unlabelled_accuracy': None}
    nothing = row_of(dict.fromkeys(sums, 0.0), ('kind',))
    assert set(nothing.values()) == {None}
    assert row_of({'steps': 4.0}, HEADS) == {}


def test_features_leave_statistics_and_logits_as_they_are():
    """The dense layer of this CNN pools, and has a BatchNorm whose statistics a step moves once."""
    graphdef, params, stats = model_of(dict(name='cnn_final', img_size=16, widths=(4, 8), dense=8))
    images = NORMALISE(jnp.asarray(batch()['image']))
    found = []
    for features in (False, True):
        model = nnx.merge(graphdef, params, stats)
        logits = outputs_of(model, images, HEADS, nnx.Rngs(dropout=jax.random.key(0)),
                            features=features)
        found.append(({head: logits[head] for head in HEADS}, split_model(model)[2]['dense_norm']))
    jax.tree.map(np.testing.assert_array_equal, *found)
