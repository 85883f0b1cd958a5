import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from input_pipeline.loader import LoaderSpec
from input_pipeline.manifest import make_manifest
from input_pipeline.pictures import PreprocessSpec
from models import attention, plain_attention
from train_lib.metrics.scores import softmax
from train_lib.runtime.sharding import make_mesh
from train_lib.training import heatmaps
from train_lib.training.state import Weights
from train_lib.training.step import make_normalise, split_model

TINY = {
    'cnn': ('small_cnn', dict(width=4, stages=2)),
    'dense': ('cnn_basic', dict(img_size=16, widths=(4, 8), dense=8)),
    'vit': ('vit_tiny_patch16_224', dict(img_size=16, patch_size=4, embed_dim=16, depth=2,
                                         num_heads=2)),
    'eva': ('eva02_tiny_patch14_224', dict(img_size=16, patch_size=4, embed_dim=16, depth=2,
                                           num_heads=2)),
    'dinov3': ('vit_tiny_patch16_dinov3_qkvb', dict(img_size=16, patch_size=4, embed_dim=16,
                                                    depth=2, num_heads=2)),
    'beit': ('beit_base_patch16_224', dict(img_size=16, patch_size=4, embed_dim=16, depth=2,
                                           num_heads=2)),
}
CLASSES = np.array([4, 0, 2])


def _images(count=3):
    return np.random.default_rng(7).normal(size=(count, 16, 16, 3)).astype(np.float32)


def _model(kind, num_classes=5, **more):
    name, settings = TINY[kind]
    model = models.create_model(name, num_classes=num_classes, rngs=nnx.Rngs(1),
                                **settings | more)
    rng = np.random.default_rng(2)
    for _, leaf in nnx.iter_graph(model):  # no bias and no scale stays at its start
        if isinstance(leaf, nnx.Param):
            leaf.set_value(np.asarray(leaf[...]) + rng.normal(0, .3, leaf.shape).astype('f'))
    return models.eval_view(model)


def _run(function, model, *arguments):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *given: function(nnx.merge(graphdef, state), *given))(
        state, *arguments)


def _both(model, images, classes):
    return (heatmaps.cam(model, images, classes), heatmaps.grad_cam(model, images, classes),
            model(images))


def test_cam_and_the_bias_sum_to_the_logit_and_grad_cam_is_its_positive_part():
    model = _model('cnn')
    assert heatmaps.method_of(model) == 'CAM'
    cam, grad_cam, logits = _run(_both, model, _images(), CLASSES)
    assert cam.shape == (3, 4, 4)
    want = logits[np.arange(3), CLASSES] - model.head.bias[...][CLASSES]
    np.testing.assert_allclose(cam.sum((1, 2)), want, atol=1e-4)
    assert np.ptp(cam, axis=(1, 2)).min() > 0.05 and (cam < 0).any()
    np.testing.assert_allclose(grad_cam, np.maximum(cam, 0), atol=1e-5)


@pytest.mark.parametrize('kind, more, head', [
    ('dense', {}, ''), ('vit', {}, ''),
    ('cnn', dict(num_classes={'a': 3, 'b': 5}, head='shallow'), 'b')])
def test_grad_cam_finds_what_a_change_of_the_maps_does(kind, more, head):
    """The mean gradient of one channel is what all positions of it together change in the logit."""
    model = _model(kind, **more)
    assert heatmaps.method_of(model, head) == 'Grad-CAM'

    def closed_form(model, images, classes):
        if kind == 'vit':
            first, last = model.each_block()
            features = first(model.embed(images))
            logits = lambda x: model.forward_head(model.finish(last(x)))
        else:
            features = model.forward_features(images)
            logits = model.forward_head
        of_class = lambda x: (logits(x)[head] if head else logits(x))[
            jnp.arange(len(images)), classes].sum()
        patches = model.maps(features)
        places = patches.shape[1] * patches.shape[2]
        whole = jnp.zeros(features.shape).at[..., 0].set(1)
        if kind == 'vit':
            whole = whole.at[:, 0].set(0)  # the class token is not a place in the picture

        def along(channel):
            step = jnp.roll(whole, channel, axis=-1)[None] * jnp.eye(len(images))[
                (slice(None), slice(None)) + (None,) * (features.ndim - 1)]
            return jax.vmap(lambda one: jax.jvp(of_class, (features,), (one,))[1])(step)

        weights = jax.vmap(along, out_axes=-1)(jnp.arange(features.shape[-1])) / places
        return jax.nn.relu((patches * weights[:, None, None]).sum(-1))

    found = _run(lambda m, x, c: heatmaps.class_map(m, x, c, head), model, _images(), CLASSES)
    with pytest.MonkeyPatch.context() as patch:  # whose own gradient has no forward mode
        patch.setattr(plain_attention, 'attention', attention.xla_attention)
        want = _run(closed_form, model, _images(), CLASSES)
    assert found.shape == want.shape and float(want.max()) > 1e-3
    np.testing.assert_allclose(found, want, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize('kind, more', [
    ('vit', {}), ('vit', dict(scan=True)), ('eva', {}), ('dinov3', {})])
def test_rollout_is_the_product_of_mean_attentions(kind, more):
    model = _model(kind, **more)

    def both(model, images):
        return (heatmaps.rollout(model, images), heatmaps.rollout_map(model, images),
                list(model.attention(images)))

    found, places, weights = _run(both, model, _images())
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    first, second = ((np.asarray(one, np.float64).mean(1) + np.eye(one.shape[-1])) / 2
                     for one in weights)
    np.testing.assert_allclose(found, second @ first, atol=1e-6)
    assert np.abs(first @ second - second @ first).max() > 1e-3  # the order is told apart
    row = found[:, 0, 1:] if kind == 'vit' else found[:, -16:, -16:].mean(1)
    np.testing.assert_allclose(places, row.reshape(3, 4, 4), atol=1e-6)


@pytest.mark.parametrize('kind, more', [
    ('vit', dict(scan=True)), ('eva', {}), ('beit', {}),
    pytest.param('beit', dict(scan=True, token_multiple=8), marks=pytest.mark.slow)])
def test_attention_weights_are_those_of_the_blocks(kind, more):
    """The values mixed by them, block after block, become the model's own tokens."""
    model = _model(kind, **more)

    def both(model, images):
        x, inputs = model.embed(images), model.block_inputs()
        for block, weights in zip(model.each_block(), model.attention(images), strict=True):
            value = block.attn.project(block.norm1(x), None, *inputs)[2]
            mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
            first, second = ((getattr(block, f'gamma_{i}')[...] if kind == 'beit' else 1)
                             for i in (1, 2))
            x = x + first * block.attn.proj(mixed.reshape(x.shape))
            x = x + second * block.mlp(block.norm2(x))
        return model.finish(x), model.forward_features(images)

    np.testing.assert_allclose(*_run(both, model, _images()), rtol=1e-4, atol=1e-4)


def test_rollout_to_attention_pooling_is_weighted_by_it():
    model = _model('vit', global_pool='map', reg_tokens=2)

    def both(model, images):
        patches = model.forward_features(images)[:, 3:]
        return (heatmaps.rollout_map(model, images), heatmaps.rollout(model, images),
                model.attn_pool.weights(patches))

    places, found, weights = _run(both, model, _images())
    expected = np.einsum('bq,bqk->bk', weights, found[:, 3:, 3:])
    np.testing.assert_allclose(places, expected.reshape(3, 4, 4), atol=1e-6)
    plain = found[:, 3:, 3:].mean(1).reshape(3, 4, 4)
    assert np.abs(places - plain).max() > 1e-4


def test_errors_are_explained(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (13, 16, 16, 3), np.uint8)
    logits = rng.normal(size=(13, 5)).astype(np.float32)
    labels = (logits.argmax(1) + 1) % 5
    labels[0], labels[12] = logits[0].argmax(), -1  # right, and not known
    for k, picture in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f'{k}.png'), picture[..., ::-1])
    names = tuple('abcde')
    part = make_manifest({
        'id': [f'id{k}' for k in range(13)], 'location': [f'{k}.png' for k in range(13)],
        'label/class': labels}, {'class': names}, root=str(tmp_path))
    model = _model('cnn')
    graphdef, params, batch_stats = split_model(model)
    normalise = make_normalise((.5,) * 3, (.5,) * 3, jnp.float32)
    mesh = make_mesh(dict(data=-1, fsdp=1))
    step = heatmaps.make_heat_step(graphdef, normalise, ('class',), mesh)
    found = heatmaps.explain_errors(
        step, Weights(params, {}, batch_stats), part, {'class': logits},
        PreprocessSpec(size=16), LoaderSpec(threads=1), mesh, most=9)  # a batch of 8, and one of 1
    sure = sorted(range(1, 12), key=lambda k: -softmax(logits[k]).max())[:9]
    assert sorted(found['ids']) == sorted(f'id{k}' for k in sure)
    for k, name in enumerate(found['ids']):
        row = int(name[2:])
        np.testing.assert_array_equal(found['pictures'][k], pixels[row])
        assert found['class/class'][k] == names[logits[row].argmax()]
        want = heatmaps.cam(model, normalise(pixels[row][None]), logits[row].argmax()[None])[0]
        np.testing.assert_allclose(found['CAM/class'][k], want / np.abs(want).max(), atol=2e-3)
    heatmaps.save_heat_maps(tmp_path / 'heatmaps.npz', found)
    with np.load(tmp_path / 'heatmaps.npz', allow_pickle=False) as stored:
        assert set(stored) == set(found)
    right = np.eye(5, dtype=np.float32)[np.maximum(labels, 0)]
    assert heatmaps.explain_errors(step, {}, part, {'class': right}, PreprocessSpec(size=16),
                                       LoaderSpec(), mesh, most=3) == {}
