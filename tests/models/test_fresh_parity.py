"""Logits against an installed timm, with weights and pictures of a seed that is new each time."""

import os

import jax
import numpy as np
import pytest
import timm_reference
from flax import nnx

from models import create_model, eval_view
from models.pretrained import load_timm

timm = pytest.importorskip('timm', reason='needs torch and timm, which are optional peers')
torch = pytest.importorskip('torch', reason='needs torch and timm, which are optional peers')

BOUND = 2e-5  # in standard deviations of timm's logits
SMALL = dict(depth=2, embed_dim=96, num_heads=4)
CASES = (
    ('vit_base_patch16_dinov3', dict(depth=2), (96, 160)),
    ('vit_small_plus_patch16_dinov3', dict(SMALL, num_classes=7), (64, 48)),
    ('vit_huge_plus_patch16_dinov3_qkvb', dict(SMALL, num_classes=0, in_chans=1), (80, 80)),
    ('vit_7b_patch16_dinov3', dict(SMALL, in_chans=4, global_pool='token'), (48, 112)),
    ('beit_large_patch16_224', dict(SMALL, num_classes=0), (64, 160)),
    ('beitv2_large_patch16_224', dict(SMALL, num_classes=9, in_chans=1), (96, 48)),
)


def both(name, settings, size, seed, source=None):
    """(our logits, timm's, with the weights of a seed); `source`: the image size that they are
    made for."""
    build = dict(settings, img_size=source or size)
    theirs = timm.create_model(name, **build).eval()
    weights = {key: timm_reference.by_recipe(key, list(value.shape), seed)
               for key, value in theirs.state_dict().items()}
    state = {key: torch.from_numpy(np.asarray(value, np.float32))
             for key, value in weights.items()}
    if source:
        theirs = timm.create_model(name, **settings, img_size=size).eval()
        from timm.models.beit import checkpoint_filter_fn
        state = checkpoint_filter_fn(state, theirs)
    theirs.load_state_dict(state)
    ours_settings = {'in_channels' if key == 'in_chans' else key: value
                     for key, value in settings.items()}
    ours_settings.setdefault('num_classes', theirs.num_classes)
    ours = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), img_size=size,
                                               **ours_settings))
    load_timm(ours, weights, grid=tuple(side // 16 for side in source or size))
    images = np.random.default_rng(seed).standard_normal(
        (2, *size, settings.get('in_chans', 3))).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    with jax.default_matmul_precision('highest'):
        found = jax.jit(lambda model, x: eval_view(model)(x))(ours, images)
    return np.asarray(found), expected


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(3), 'little')


@pytest.mark.parametrize('name, settings, size', CASES)
def test_logits_are_those_of_timm_with_new_weights(name, settings, size):
    seed = fresh_seed()
    ours, theirs = both(name, settings, size, seed)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() / theirs.std() <= BOUND, f'seed {seed}'


@pytest.mark.parametrize('size', [(96, 144), (32, 32), (64, 64)])
def test_tables_of_another_size_have_timm_s_logits(size):
    seed = fresh_seed()
    ours, theirs = both('beit_base_patch16_224', dict(SMALL, num_classes=9), size, seed, (64, 64))
    assert np.abs(ours - theirs).max() / theirs.std() <= BOUND, f'seed {seed}'
