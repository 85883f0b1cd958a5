"""Where the libraries surprise, this project does not: what they do is said at each test."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.datasets import load_sample_image

import models
from configs import common
from input_pipeline import auto_augment, loader, sources, transforms
from input_pipeline.pictures import PreprocessSpec
from train_lib.ensembles.temperature import fit_temperature, tempered
from train_lib.metrics.scores import reliability, scores, softmax
from train_lib.optim.optimizers import make_optimizer
from train_lib.run_dir import checkpoints
from train_lib.run_dir.checkpoints import Checkpointer, committed_steps
from train_lib.runtime.errors import CheckpointError
from train_lib.runtime.trees import by_path
from train_lib.training import loop, run
from train_lib.training.data import load_data
from train_lib.training.step import split_model

# --- checkpoints: Orbax 0.12.8 ------------------------------------------------------------------


def small_run(workdir):
    config = common.get_config()
    config.data.source = 'digits'
    config.image.size = 8
    config.model = dict(name='small_cnn', width=4, stages=1)
    config.batch_size = 16
    config.duration = dict(steps=12)
    config.eval.every = config.checkpoint.every = config.log.every = dict(steps=4)
    config.checkpoint.keep = 1
    config.log.tensorboard = config.report.heat_maps = False
    return run.train_one(config, load_data(config), workdir)[0]


def test_an_evaluation_of_nan_at_the_end_is_not_the_best_and_evicts_nothing(monkeypatch, tmp_path):
    """A NaN ranks best under Orbax's best_fn, with either order, and good steps go for it."""
    predict, calls = loop.predict, []

    def predicted(*given):
        calls.append(given)
        logits = predict(*given)
        return ({head: np.full_like(values, np.nan) for head, values in logits.items()}
                if len(calls) == 3 else logits)

    monkeypatch.setattr(loop, 'predict', predicted)
    result = small_run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    found = {row['step']: row['accuracy'] for row in rows if row['split'] == 'val'}
    assert sorted(found) == [4, 8, 12] and found.pop(12) is None
    assert result['best_step'] in (4, 8)
    assert found[result['best_step']] == max(found.values())
    assert committed_steps(tmp_path / 'checkpoints') == [result['best_step'], 12]


@pytest.fixture
def batches():
    manifest = sources.load_source({'source': 'digits'}).select(np.arange(8))
    iterator = loader.train_iterator(manifest, PreprocessSpec(size=8), loader.Course(
        stages=loader.curricula.make_stages((), None), steps=2, seed=0), batch_size=4)
    yield iterator
    iterator.close()


def saved(folder, batches, params, **more):
    checkpointer = Checkpointer(folder / 'checkpoints', keep=1)
    checkpointer.save(1, dict(params=params, rest={}) | more, batches, {'best_step': 1}, {1})
    checkpointer.close()
    return folder / 'checkpoints/1'


@pytest.mark.parametrize('averaged', [False, True])
@pytest.mark.parametrize('make', [
    np.zeros, jnp.zeros, lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)],
    ids=['numpy', 'jax', 'abstract'])
@pytest.mark.parametrize('shape', [(4, 3), (8, 3), (6,), (6, 3, 1)])
def test_weights_are_read_into_their_own_shape_only(make, shape, averaged, batches, tmp_path):
    """Orbax checks arrays on devices; into a NumPy array of another shape it reads anything."""
    params = {'a': {'kernel': jnp.ones((6, 3))}}
    folder = saved(tmp_path, batches, params, **(
        {'ema': dict(params=params, rest={})} if averaged else {}))
    like = dict(params={'a': {'kernel': make(shape)}}, rest={})
    with pytest.raises(CheckpointError, match=r'a/kernel of shape \(6, 3\), and \('):
        checkpoints.read_weights(folder, like)
    with pytest.raises(CheckpointError, match=r'params/a/kernel of shape \(6, 3\), and \('):
        checkpoints.restore(folder, like, batches)
    like['params']['a']['kernel'] = np.zeros((6, 3), np.float32)
    assert (checkpoints.read_weights(folder, like)['params']['a']['kernel'] == 1).all()


def test_thirteen_blocks_that_are_read_without_a_target_keep_their_numbers(batches, tmp_path):
    """Orbax gives keys back as text, in the order 0, 1, 10, 11, 12, 2: pairs go by name."""
    model = models.create_model('vit_tiny_patch16_224', 3, rngs=nnx.Rngs(0), img_size=16,
                                patch_size=8, embed_dim=8, depth=13, num_heads=2)
    params = split_model(model)[1]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, path[1].key, leaf.dtype)
        if path[0].key == 'blocks' else leaf, params)
    found = checkpoints.read_weights(saved(tmp_path, batches, params))['params']
    assert list(found['blocks'])[2] == '10'  # so the order of leaves is another one
    ours, theirs = by_path(params), by_path(found)
    assert ours.keys() == theirs.keys() and list(ours) != list(theirs)
    for name, leaf in ours.items():
        np.testing.assert_array_equal(theirs[name], leaf)
    assert (theirs['blocks/12/mlp/fc1/kernel'] == 12).all()


# --- augmentation: Pillow asked for 0 bits by timm's policies -----------------------------------


@pytest.mark.parametrize('spec', [
    dict(kind='rand_augment'), dict(kind='rand_augment', magnitude=100, bins=11, num_ops=3),
    dict(kind='trivial_augment'), dict(kind='trivial_augment', bins=2)], ids=str)
def test_no_policy_makes_a_picture_black(spec):
    picture = load_sample_image('china.jpg')[100:340:8, 200:440:8]
    assert picture.shape == (30, 30, 3)
    stage = (transforms.make_transform(spec, ''),)
    darkest = 255
    for seed in range(5000 if len(spec) == 1 else 500):
        plan = transforms.draw(stage, np.random.default_rng(seed), picture.shape[:2])
        darkest = min(darkest, transforms.apply(plan, picture, picture.shape[:2]).max())
    assert darkest > 0
    assert darkest < 200  # something was done


@pytest.mark.parametrize('operations', [auto_augment._RAND, auto_augment._TRIVIAL])
def test_posterize_keeps_a_bit_at_every_strength(operations):
    for strength in np.linspace(0, 1, 41):
        _, table = operations[10](strength, 1, (8, 8))
        levels = set(np.asarray(table)[0].tolist())
        assert 2 <= len(levels) <= 256 and len(levels) & (len(levels) - 1) == 0
        assert len(levels) == 256 or max(levels) >= 128  # it is posterize, and no darker


# --- calibration: scikit-learn 1.9.1 takes rounded probabilities for logits ---------------------


def test_calibration_from_bfloat16_is_that_of_float32():
    """Rows of a softmax in bfloat16 do not add up to 1 within 1e-5."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 3000)
    logits = (rng.normal(size=(3000, 5)) + 2 * np.eye(5)[labels]) * 3
    half = np.asarray(jnp.asarray(logits, jnp.bfloat16))
    single = half.astype(np.float32)
    assert half.dtype == jnp.bfloat16
    assert scores(half, labels) == scores(single, labels)
    assert reliability(half, labels).equals(reliability(single, labels))
    wanted = fit_temperature(softmax(single), labels)
    assert fit_temperature(softmax(half), labels) == wanted > 1.3
    # probabilities that were computed in bfloat16, and rounded ones
    rounded = np.asarray(jax.nn.softmax(jnp.asarray(half)))
    assert rounded.dtype == jnp.bfloat16
    assert np.abs(rounded.astype(np.float64).sum(1) - 1).max() > 1e-4
    for probs in (rounded, np.round(softmax(single), 5)):
        assert fit_temperature(probs, labels) == pytest.approx(wanted, rel=0.02)
        assert np.abs(tempered(probs.astype(np.float32), wanted).sum(1) - 1).max() < 1e-5
    # two classes, one logit far above the other: nothing is taken for a probability
    two = np.stack([single[:, 0], np.zeros(3000)], 1)
    assert softmax(two).sum(1) == pytest.approx(1)


# --- muon: Optax 0.2.8 --------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'eva02_tiny_patch14_224', 'resnet18'])
def test_muon_takes_all_kernels_but_those_of_heads_and_nothing_else(name):
    """By itself optax.contrib.muon takes what has two axes: it would leave kernels of attention
    with three to Adam and make biases of (heads, width) orthogonal. Here kernels have two axes or
    are convolutions, and biases one."""
    settings = (dict(layers=(1, 1, 1, 1), channels=(4, 8, 8, 8)) if name == 'resnet18' else
                dict(img_size=28, patch_size=14, embed_dim=8, depth=2, num_heads=2))
    params = jax.eval_shape(lambda: split_model(models.create_model(
        name, 3, rngs=nnx.Rngs(0), **settings))[1])
    optimizer = make_optimizer(common.get_config().optimizer.to_dict() | dict(
        name='muon', weight_decay=0.0, clip_norm=0.0))
    names, of_muon, of_adam = set(by_path(params)), set(), set()
    for path in by_path(jax.eval_shape(optimizer.init, params)):
        for part, found in (('/muon/', of_muon), ('/adam/', of_adam)):
            if part in path:  # .../inner_states/muon/inner_state/0/mu/blocks/0/attn/...
                found |= {one for one in names if path.endswith(f'/{one}')}
    assert of_muon == {one for one in names if one.endswith('/kernel')} - {'head/kernel'}
    assert of_adam == names - of_muon
    if name != 'resnet18':
        attention = {one: leaf.ndim for one, leaf in by_path(params).items() if '/attn/' in one}
        assert {2} == {ndim for one, ndim in attention.items() if one.endswith('kernel')}
        assert {1} == {ndim for one, ndim in attention.items() if not one.endswith('kernel')}
