"""Soft labels and teachers in the loss of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train_lib.training.test_step_options import CNN, batch, make
from train_lib.losses.losses import LossSpec, Mixed, head_loss
from train_lib.losses.mixing import make_mixings, mix
from train_lib.losses.soft_targets import (
    Distillation,
    batch_targets,
    divisors_of,
    taught_loss,
)

RNG = np.random.default_rng(0)
LABELS = np.array([0, 2, -1, 1, -1], np.int32)
LOGITS = RNG.normal(size=(5, 3)).astype(np.float32)
WEIGHTS = np.array([1, 2, 0.5, 3, 1], np.float32)
TEACHER = RNG.dirichlet(np.ones(3), 5).astype(np.float32)
TEACHER[[1, 4]] = 0  # says nothing of these
SOFT = RNG.dirichlet(np.ones(3), 5).astype(np.float32)
SOFT[[0, 2, 4]] = 0
PLAIN = LossSpec()
TOLD = Distillation(weight=0.3, temperature=4.0)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def loss_of(content, distillation, spec=PLAIN, weights=WEIGHTS):
    targets = batch_targets(content, ['kind'], distillation)
    if distillation is None:
        return float(head_loss(spec, jnp.array(LOGITS), targets['kind'], jnp.array(weights),
                               jnp.int32(0)))
    return float(taught_loss('kind', spec, distillation, jnp.array(LOGITS), targets,
                             jnp.array(weights), jnp.int32(0), {}))


def test_a_soft_label_takes_the_place_of_the_label():
    content = {'label/kind': jnp.array(LABELS), 'target/kind': jnp.array(SOFT)}
    wanted = np.eye(3)[[0, 0, 0, 0, 0]] * 0
    wanted[0, 0] = 1
    wanted[[1, 3]] = SOFT[[1, 3]]
    losses = -(wanted * log_softmax(LOGITS)).sum(-1)
    known = [0, 1, 3]
    assert loss_of(content, None) == pytest.approx(
        (losses * WEIGHTS).sum() / WEIGHTS[known].sum(), rel=1e-5)


def test_the_formula_of_a_teacher():
    """(1 - w) label + w T^2 teacher; without a teacher the label, without a label the teacher."""
    content = {'label/kind': jnp.array(LABELS), 'teacher/kind': jnp.array(TEACHER)}
    own = np.where(LABELS >= 0, -log_softmax(LOGITS)[range(5), LABELS], 0)
    told = -(TEACHER * log_softmax(LOGITS / 4)).sum(-1) * 16
    share = np.where(TEACHER.sum(-1) > 0, 0.3, 0)
    labelled = WEIGHTS[LABELS >= 0].sum()
    either = WEIGHTS[(LABELS >= 0) | (share > 0)].sum()
    wanted = (WEIGHTS * (1 - share) * own).sum() / labelled + (
        WEIGHTS * share * told).sum() / either
    assert loss_of(content, TOLD) == pytest.approx(wanted, rel=1e-5)


def test_a_teacher_who_says_nothing_changes_nothing():
    content = {'label/kind': jnp.array(LABELS)}
    silent = content | {'teacher/kind': jnp.zeros((5, 3))}
    spec = LossSpec(label_smoothing=0.1, class_weights=(1.0, 3.0, 0.5))
    assert loss_of(silent, TOLD, spec) == pytest.approx(loss_of(content, None, spec), rel=1e-6)


def test_mixing_mixes_distributions():
    """One mixed pair by hand: labels and distributions are blended by the same share."""
    content = {'label/kind': jnp.array(LABELS), 'teacher/kind': jnp.array(TEACHER)}
    mixings = make_mixings([dict(kind='mixup')], {'kind': ('a', 'b', 'c')}, lambda *_: 0)
    targets = batch_targets(content, ['kind'], TOLD)
    images = jnp.array(np.arange(5 * 4 * 4 * 3).reshape(5, 4, 4, 3).astype(np.float32))
    _, mixed, weights = mix(mixings, 0, jnp.int32(3), images, {'kind': jnp.array(LABELS)},
                            jnp.array(WEIGHTS), targets)
    assert isinstance(mixed['teacher/kind'], Mixed)
    lam = np.asarray(mixed['kind'].lam)
    partner = [int(np.flatnonzero((np.asarray(weights)[i, 1] == WEIGHTS) & (
        np.asarray(mixed['teacher/kind'].labels_b)[i] == 0.3 * TEACHER).all(-1))[0])
               for i in range(5)]
    dense = {name: np.asarray(values) for name, values in targets.items()
             if name != 'label/kind'} | {'label/kind': np.where(
                 (LABELS >= 0)[:, None], np.eye(3)[LABELS], 0)}

    def blended(name):
        values = dense[name] * WEIGHTS[:, None]
        return lam[:, None] * values + (1 - lam[:, None]) * values[partner]

    found = float(taught_loss('kind', LossSpec(), TOLD, jnp.array(LOGITS), mixed, weights,
                              jnp.int32(0), {}))
    own = -(blended('kind') * log_softmax(LOGITS)).sum() / blended('label/kind').sum()
    told = -16 * (blended('teacher/kind') * log_softmax(LOGITS / 4)).sum()
    assert found == pytest.approx(own + told / blended('any/kind').sum(), rel=1e-5)


def taught_batch(size=24):
    rng = np.random.default_rng(5)
    content = batch(size)
    teacher = rng.dirichlet(np.ones(3), size).astype(np.float32)
    teacher[::3] = 0
    soft = rng.dirichlet(np.ones(2), size).astype(np.float32)
    soft[::2] = 0
    return content | {'teacher/kind': teacher, 'target/tool': soft,
                      'weight': rng.uniform(0.5, 2, size).astype(np.float32),
                      'factor': np.where(np.arange(size) % 4, 1, 0.25).astype(np.float32)}


@pytest.mark.parametrize('mixing', [[], [dict(kind='cutmix', per='example')]])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(mixing):
    vit = dict(name='vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=1,
               num_heads=2, num_classes=CNN['num_classes'])
    mixings = make_mixings(mixing, {'kind': ('a', 'b', 'c'), 'tool': ('x', 'y')}, lambda *_: 0)
    ends = []
    for parts in (1, 4):
        step, state = make(vit, accumulate=parts, distillation=TOLD, mixings=mixings)
        ends.append(jax.device_get(step(state(), taught_batch())[0].params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *ends)


def test_the_factor_of_extra_rows_multiplies_the_weight():
    content = {name: values for name, values in batch().items() if name != 'weight'}
    factor = np.where(np.arange(24) % 3, 1, 0.5).astype(np.float32)
    ends = []
    for more in ({'factor': factor}, {'weight': factor},
                 {'weight': np.full(24, 7, np.float32), 'factor': factor}):
        # The last one's weights are over (drawn rows), the factor never is.
        step, state = make(CNN, weights_end=0 if len(more) == 2 else None)
        ends.append(jax.device_get(step(state(), content | more)[0].params))
    for other in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, ends[0], other)


def test_divisors_are_those_of_the_label_before_the_teacher_takes_a_part():
    content = {'label/kind': jnp.array(LABELS), 'teacher/kind': jnp.array(TEACHER)}
    found = divisors_of({'kind': LossSpec()}, batch_targets(content, ['kind'], TOLD),
                        jnp.array(WEIGHTS), jnp.int32(0))
    assert float(found['kind']) == WEIGHTS[LABELS >= 0].sum()
    assert float(found['teacher/kind']) == WEIGHTS[:4].sum()
