"""Mixing: every picture is what its parts and labels say, and nothing else is touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.durations import to_steps
from train_lib.losses.losses import LossSpec, head_loss
from train_lib.losses.mixing import make_mixings, mix
from train_lib.runtime.errors import ConfigError

CLASSES = {'class': ('cat', 'dog', 'newt', 'owl'), 'tool': ('pen', 'brush')}
B, H, W = 12, 10, 16
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (B, H, W, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, -1, 0, 2, 1, 0], np.int32)
TOOLS = np.array([0, 1, 0, -1, 1, 0, 1, 0, 1, 0, 1, 0], np.int32)
# A picture that shows its own number, so that a mixed one shows its partner's.
NUMBERED = np.broadcast_to(np.arange(B, dtype=np.float32)[:, None, None, None], (B, H, W, 1))
BOTH = np.concatenate([NUMBERED, IMAGES], axis=-1)


def steps(duration, key):
    return to_steps(duration, key=key, examples_per_epoch=100, batch_size=10, total_steps=200)


@functools.cache
def compiled(mixings):
    labels = {'class': jnp.array(LABELS), 'tool': jnp.array(TOOLS)}
    return jax.jit(lambda step, images, seed: mix(mixings, seed, step, images, labels,
                                                  jnp.arange(B)))


def mixer(*config):
    run = compiled(make_mixings(config, CLASSES, steps))
    return lambda step, images=BOTH, seed=0: jax.device_get(run(step, images, seed))


def partners(pixels, targets):
    """Each picture's partner, by the number that it shows; itself where it shows only its own."""
    own, lam = np.arange(B), targets['class'].lam
    shown = pixels[..., 0].mean(axis=(1, 2))
    return np.round(np.where(lam < 1, (shown - lam * own) / np.where(lam < 1, 1 - lam, 1),
                             own)).astype(int)


@pytest.mark.parametrize('per', ['batch', 'example'])
def test_mixup_is_rebuilt_from_its_parts(per):
    run = mixer(dict(kind='mixup', alpha=1.0, per=per))
    pixels, targets, _ = run(3, BOTH)
    lam, partner = targets['class'].lam, partners(pixels, targets)
    assert (partner != np.arange(B)).all() and sorted(partner) == list(range(B))
    assert (len(np.unique(lam)) == 1) == (per == 'batch')
    for head, labels in (('class', LABELS), ('tool', TOOLS)):
        np.testing.assert_array_equal(targets[head].labels_b, labels[partner])
        np.testing.assert_array_equal(targets[head].lam, lam)
    share = lam[:, None, None, None]
    expected = share * IMAGES + (1 - share) * IMAGES[partner].astype(float)
    np.testing.assert_allclose(pixels[..., 1:], expected, atol=1e-3)
    if per == 'batch':
        images = run(3, IMAGES)[0]
        assert images.dtype == np.uint8 and np.abs(images - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize('per', ['batch', 'example'])
def test_cutmix_labels_follow_the_pixels(per):
    run = mixer(dict(kind='cutmix', per=per))
    boxes = set()
    for step in range(8):
        pixels, targets, _ = run(step, BOTH)
        for index in range(B):
            rows, columns = np.nonzero(pixels[index, :, :, 0] != index)
            share = 1 - len(rows) / (H * W)
            np.testing.assert_allclose(targets['class'].lam[index], share, atol=1e-6)
            if not len(rows):
                continue
            box = (rows.min(), rows.max(), columns.min(), columns.max())
            boxes.add((step, *box))
            assert len(rows) == (box[1] - box[0] + 1) * (box[3] - box[2] + 1)
            other = int(pixels[index, rows[0], columns[0], 0])
            assert targets['class'].labels_b[index] == LABELS[other]
            patch = np.s_[box[0]:box[1] + 1, box[2]:box[3] + 1]
            expected = IMAGES[index].copy()
            expected[patch] = IMAGES[other][patch]
            np.testing.assert_array_equal(pixels[index, :, :, 1:], expected)
    assert len(boxes) > 8 if per == 'example' else len(boxes) <= 8


def test_a_function_of_seed_and_step():
    run = mixer(dict(kind='cutmix', per='example'))
    first, again, other_step, other_seed = run(5), run(5), run(6), run(5, seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[0] != other_step[0]).any() and (first[0] != other_seed[0]).any()


def test_halves_and_their_weights_and_missing_labels():
    pixels, targets, weights = mixer(dict(kind='halves'))(0, NUMBERED)
    own, other = np.arange(B), pixels[:, 0, -1, 0].astype(int)
    assert (pixels[:, :, :W // 2, 0] == own[:, None, None]).all()
    assert (other != own).all() and (pixels[:, :, W // 2:, 0] == other[:, None, None]).all()
    assert (targets['class'].lam == 0.5).all()
    np.testing.assert_array_equal(weights, np.stack([own, other], 1))
    logits = RNG.normal(size=(B, 4))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    pairs = np.stack([LABELS, LABELS[other]], 1)
    share = weights * (pairs >= 0)
    expected = -(share * np.take_along_axis(log_p, np.maximum(pairs, 0), 1)).sum() / share.sum()
    found = jax.jit(head_loss, static_argnums=0)(LossSpec(), logits, targets['class'], weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_kept_label_keeps_most_of_its_picture():
    run = mixer(dict(kind='mixup', per='example', labels='first'))
    for step in range(4):
        pixels, targets, _ = run(step, np.eye(B, dtype=np.float32)[:, None, None] + np.zeros(
            (1, H, W, 1), np.float32))
        own = np.diagonal(pixels[:, 0, 0])
        assert (own >= 0.5).all() and (own < 1).any()
        assert (targets['class'].lam == 1).all()


def test_chosen_classes_mix_among_themselves_only():
    run = mixer(dict(kind='mixup', per='example', classes=('dog', 'newt')))
    chosen = np.isin(LABELS, [1, 2])
    seen = set()
    for step in range(6):
        pixels, targets, _ = run(step, NUMBERED)
        partner = partners(pixels, targets)
        np.testing.assert_array_equal(pixels[~chosen], NUMBERED[~chosen])
        assert (targets['class'].lam[~chosen] == 1).all() and (partner[chosen]
                                                               != np.arange(B)[chosen]).all()
        assert chosen[partner[chosen]].all()
        seen |= set(map(tuple, np.stack([np.arange(B), partner], 1)[chosen]))
    assert len(seen) > 2 * chosen.sum()  # others each step


def test_partners_of_the_same_class():
    run = mixer(dict(kind='halves', partner='same_class', head='tool'))
    pixels, targets, _ = run(1, NUMBERED)
    other = pixels[:, 0, -1, 0].astype(int)
    np.testing.assert_array_equal(TOOLS[other], TOOLS)
    assert (other == np.arange(B)).tolist() == (TOOLS < 0).tolist()
    np.testing.assert_array_equal(targets['class'].labels_b, LABELS[other])
    np.testing.assert_array_equal(targets['class'].lam, np.where(TOOLS < 0, 1, 0.5))


def test_entries_take_turns_between_their_steps():
    run = mixer(dict(kind='halves', p=0.25, start=dict(steps=20)),
                dict(kind='mixup', alpha=0.5, p=0.5, until=dict(percent=100)))
    lam = np.array([run(step, NUMBERED[:, :1, :2])[1]['class'].lam[0] for step in range(400)])
    halves, nothing = lam == 0.5, lam == 1
    assert not halves[:20].any() and not (~halves & ~nothing)[200:].any()
    assert 0.15 < halves[20:].mean() < 0.35 and 0.4 < (~halves & ~nothing)[:200].mean() < 0.6


def test_shares_have_the_distribution_of_beta():
    stats = pytest.importorskip('scipy.stats')
    mixings = make_mixings([dict(kind='mixup', alpha=0.2, per='example')], CLASSES, steps)
    count = 4000
    run = jax.jit(lambda images, labels: mix(mixings, 0, 0, images, labels))
    labels = np.zeros(count, np.int32)
    lam = run(np.zeros((count, 1, 1, 1), np.uint8), {'class': labels})[1]['class'].lam
    assert stats.kstest(lam, stats.beta(0.2, 0.2).cdf).pvalue > 1e-3


def test_without_entries_nothing_changes():
    images, targets, weights = mix((), 0, 0, IMAGES, {'class': LABELS})
    assert images is IMAGES and targets['class'] is LABELS and weights is None


@pytest.mark.parametrize('config, words', [
    ([dict(kind='mixupp')], "'mixup'"),
    ([dict(alpha=1)], 'use one of'),
    ([dict(kind='mixup', aplha=1)], "'alpha'"),
    ([dict(kind='mixup', alpha=0)], 'alpha = 0'),
    ([dict(kind='mixup', p=1.5)], 'p = 1.5'),
    ([dict(kind='mixup', per='pixel')], 'batch or example'),
    ([dict(kind='mixup', head='tol')], "'tool'"),
    ([dict(kind='mixup', classes=('dogg',))], "'dog'"),
    ([dict(kind='mixup', start=dict(steps=9), until=dict(steps=9))], 'later until'),
    (['mixup', dict(kind='cutmix', start=dict(epochs=1))], 'add up to 2 at step 10'),
])
def test_mistakes_in_the_config(config, words):
    with pytest.raises(ConfigError) as error:
        make_mixings(config, CLASSES, steps)
    assert words in str(error.value) and str(error.value).endswith(('.', '?'))
