"""What trains and what stays: the table, frozen parts, adapters, published weights, end to end."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import models
from configs import common
from models.errors import ModelError
from models.lora import adaptable
from models.pretrained import to_timm
from train_lib.optim import param_groups
from train_lib.optim.optimizers import make_optimizer
from train_lib.run_dir import checkpoints
from train_lib.run_dir.frozen_weights import read_frozen
from train_lib.runtime.errors import CheckpointError, ConfigError
from train_lib.runtime.trees import by_path
from train_lib.training import run
from train_lib.training.data import load_data
from train_lib.training.preprocess_spec import preprocess_spec
from train_lib.training.state import Weights, make_state
from train_lib.training.step import StepOptions, make_normalise, make_train_step

TINY = dict(patch_size=8, embed_dim=16, depth=3, num_heads=2)


def vit(**settings):
    return models.create_model('vit_tiny_patch16_224', 3, rngs=nnx.Rngs(0), img_size=32,
                               **{**TINY, **settings})


def settings(**changes):
    return common.get_config().finetune.to_dict() | changes


def one_step(model, rules, rate=0.1, optimizer='sgd'):
    """(parameters before, after, other variables before, after), flat by name."""
    graphdef, params, frozen, batch_stats = param_groups.split(model, rules)
    rates, decay = param_groups.factors(params, rules)
    config = common.get_config().optimizer.to_dict() | dict(name=optimizer, clip_norm=0.0)
    tx = make_optimizer(config, decay, getattr(model, 'scan', False))
    step = make_train_step(graphdef, tx, lambda step: rate, make_normalise(
        (0.5,) * 3, (0.5,) * 3, jnp.float32), StepOptions(heads=('class',), seed=0, rates=rates))
    state = make_state(Weights(params, frozen, batch_stats), tx, ('class',))
    keys = ('params', 'frozen', 'batch_stats')
    before = jax.device_get({key: getattr(state, key) for key in keys})
    rng = np.random.default_rng(0)
    batch = {'image': rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8),
             'label/class': np.array([0, 1, 2, 0], np.int32)}
    after, _ = step(jax.tree.map(jnp.array, state), batch)
    return ({key: by_path(before[key]) for key in before},
            {key: by_path(jax.device_get(getattr(after, key))) for key in before})


def moved(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_first_match_wins_and_everything_is_covered():
    model = vit()
    rules = param_groups.plan(model, settings(table=(
        (r'blocks/0/.*', dict(lr=0.5)), (r'.*/bias', dict(wd=2.0)), ('.*', dict(train=False)))))
    assert rules['blocks/0/mlp/fc1/bias'] == param_groups.Rule(True, 0.5, None)
    assert rules['blocks/1/mlp/fc1/bias'] == param_groups.Rule(True, 1.0, 2.0)
    assert not rules['blocks/1/mlp/fc1/kernel'].trains


@pytest.mark.parametrize(('table', 'message'), [
    (((r'blocks/.*', {}),), r'does not cover .*cls_token'),
    ((('.*', {}), ('head/.*', {})), r"table\[1\].*'head/\.\*' is the first match of no"),
    ((('.*', dict(rate=1)),), r"table\[0\] has the key 'rate'"),
    ((('(', {}),), r'table\[0\].*not a valid row'),
    ((('.*', dict(lr=-1.0)),), r'lr = -1\.0: give a factor'),
    ((('.*', dict(train=False)),), 'freezes every parameter'),
    (('.*',), r'table\[0\].*not a valid row'),
])
def test_wrong_tables_say_what_is_wrong(table, message):
    with pytest.raises(ConfigError, match=message):
        param_groups.plan(vit(), settings(table=table))


def test_layer_decay_falls_from_the_head_to_the_stem():
    rules = param_groups.plan(vit(), settings(layer_decay=0.5))
    rates = [rules[name].rate for name in (
        'head/kernel', 'norm/scale', 'blocks/2/attn/qkv/kernel', 'blocks/1/norm1/scale',
        'blocks/0/mlp/fc1/bias', 'patch_embed/proj/kernel', 'pos_embed')]
    assert rates == [1, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    cnn = models.create_model('resnet18', 3, rngs=nnx.Rngs(0))
    rules = param_groups.plan(cnn, settings(layer_decay=0.5))
    assert rules['head/kernel'].rate == 1 and rules['layer4/1/conv1/kernel'].rate == 0.5
    assert rules['conv1/kernel'].rate == 0.5 ** 9
    with pytest.raises(ConfigError, match='layer_decay'):
        param_groups.plan(vit(), settings(layer_decay=0))


@pytest.mark.parametrize('name', [
    'resnet18', 'convnext_atto', 'eva02_tiny_patch14_224', 'small_cnn', 'resnet20',
    *(pytest.param(name, marks=pytest.mark.slow) for name in ('densenet121', 'mobilenetv2_100'))])
def test_every_family_knows_its_layers(name):
    model = nnx.eval_shape(lambda: models.create_model(name, 3, rngs=nnx.Rngs(0)))
    rules = param_groups.plan(model, settings(layer_decay=0.9))
    rates = {path: rule.rate for path, rule in rules.items()}
    assert rates['head/kernel'] == 1
    assert min(rates.values()) < 0.9 ** 3
    stem = (model.timm_stem or 'conv1').replace('.', '/') + '/kernel'
    assert rates[stem] == min(rates.values())


# Levels below the classifier as timm 1.0.31 counts them (group_parameters of group_matcher), by the
# start of a name; then as runs of older versions have them.
TIMM_LEVELS = {
    'densenet121': ({
        'head/': 0, 'features/norm5/': 0, 'features/denseblock4/denselayer16/': 1,
        'features/denseblock4/denselayer1/': 16, 'features/transition3/': 17,
        'features/denseblock3/denselayer24/': 17, 'features/denseblock3/denselayer23/': 18,
        'features/transition1/': 53, 'features/denseblock1/denselayer6/': 53,
        'features/denseblock1/denselayer1/': 58, 'features/norm0/': 59, 'features/conv0/': 59},
        {'features/norm5/': 0, 'features/denseblock4/': 1, 'features/transition3/': 2,
         'features/denseblock1/': 4, 'features/conv0/': 5}),
    'vit_tiny_patch16_224': ({'head/': 0, 'norm/': 1, 'blocks/11/': 1, 'blocks/0/': 12,
                              'cls_token': 13, 'patch_embed/': 13}, {'norm/': 0, 'blocks/11/': 1}),
    'vit_base_patch16_clip_224': ({'head/': 0, 'norm/': 1, 'blocks/11/': 1, 'norm_pre/': 13},
                                  {'norm/': 0, 'norm_pre/': 13}),
    'vit_base_patch16_siglip_224': ({'head/': 0, 'attn_pool/': 0, 'norm/': 1, 'pos_embed': 13},
                                    {'attn_pool/': 0, 'norm/': 0, 'pos_embed': 13}),
    'vit_small_patch14_reg4_dinov2': ({'head/': 0, 'norm/': 1, 'blocks/11/ls2/': 1,
                                       'reg_token': 13}, {'norm/': 0, 'reg_token': 13}),
    'eva02_tiny_patch14_224': ({'head/': 0, 'fc_norm/': 0, 'blocks/11/': 1, 'pos_embed': 13},
                               {'fc_norm/': 0, 'pos_embed': 13}),
    'vit_tiny_patch16_dinov3_qkvb': (
        {'head/': 0, 'norm/': 1, 'blocks/11/': 1, 'blocks/0/gamma_1': 12, 'cls_token': 13,
         'reg_token': 13, 'patch_embed/': 13}, {'norm/': 0, 'reg_token': 13}),
    'beit_base_patch16_224': (
        {'head/': 0, 'fc_norm/': 0, 'blocks/11/': 1, 'blocks/0/': 12,
         'blocks/0/attn/relative_position_bias_table': 12, 'cls_token': 13, 'patch_embed/': 13},
        {'fc_norm/': 0, 'cls_token': 13}),
    'efficientnet_b0': ({'head/': 0, 'conv_head/': 1, 'bn2/': 1, 'blocks/6/0/': 1,
                         'blocks/5/3/': 2, 'bn1/': 17}, {'conv_head/': 0, 'bn2/': 0, 'bn1/': 17}),
    'mobilenetv3_large_100': ({'head/': 0, 'conv_head/': 0, 'blocks/6/0/': 1, 'bn1/': 17},
                              {'conv_head/': 0}),
    'resnet18': ({'head/': 0, 'layer4/1/': 1, 'layer1/0/': 8, 'bn1/': 9}, {'bn1/': 9}),
    'convnext_atto': ({
        'head/': 0, 'norm/': 0, 'stages/3/blocks/1/': 1, 'stages/3/blocks/0/': 2,
        'stages/3/downsample/': 2, 'stages/2/blocks/5/': 3, 'stages/2/downsample/': 8,
        'stages/1/downsample/1/': 10, 'stages/0/blocks/0/': 12, 'stem/': 13},
        {'norm/': 0, 'stages/1/downsample/': 10, 'stem/': 13}),
    'convnext_tiny_hnf': ({
        'head/': 0, 'norm_pre/': 1, 'stages/3/blocks/2/': 1, 'stages/3/blocks/1/': 2,
        'stages/3/downsample/': 3, 'stages/1/downsample/': 15, 'stem/': 19}, {'norm_pre/': 1}),
    'inception_resnet_v2': ({'head/': 0, 'conv2d_7b/': 1, 'block8/': 1, 'repeat_2/8/': 2,
                             'conv2d_4a/': 44, 'conv2d_3b/': 44, 'conv2d_2b/': 45},
                            {'conv2d_7b/': 0, 'conv2d_4a/': 44, 'conv2d_1a/': 44}),
}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ('inception_resnet_v2', 'densenet121')))
    for name in TIMM_LEVELS])
def test_levels_of_layer_decay_are_timm_s(name):
    model = nnx.eval_shape(lambda: models.create_model(name, 3, rngs=nnx.Rngs(0)))
    for given, wanted in zip(({}, {'levels': 'groups'}), TIMM_LEVELS[name]):
        rules = param_groups.plan(model, settings(layer_decay=0.5, **given))
        levels = {path: -np.log2(rule.rate) for path, rule in rules.items()}
        for start, level in wanted.items():
            found = {levels[path] for path in levels if path.startswith(start)}
            assert found == {level}, start
        if not given:
            assert max(levels.values()) == max(wanted.values())
    with pytest.raises(ConfigError, match=r"levels = 'tim': choose one of timm, groups"):
        param_groups.plan(model, settings(levels='tim'))


def test_the_step_obeys_the_rates():
    model = vit()
    plain = param_groups.plan(model, settings())
    table = ((r'blocks/0/.*', dict(lr=0.25)), ('.*', {}))
    slow = param_groups.plan(model, settings(table=table))
    (before, full), (_, some) = one_step(model, plain), one_step(model, slow)
    name = 'blocks/0/mlp/fc1/kernel'
    np.testing.assert_allclose(some['params'][name] - before['params'][name],
                               0.25 * (full['params'][name] - before['params'][name]),
                               rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(some['params']['head/kernel'], full['params']['head/kernel'])


@pytest.mark.slow
def test_a_scanned_model_trains_as_an_unscanned_one_with_layer_decay():
    found = []
    for scan in (False, True):
        model = vit(scan=scan)
        rules = param_groups.plan(model, settings(layer_decay=0.5))
        found.append(one_step(model, rules, optimizer='muon')[1]['params'])
    for i in range(3):
        np.testing.assert_allclose(found[0][f'blocks/{i}/mlp/fc1/kernel'],
                                   found[1]['blocks/mlp/fc1/kernel'][i], atol=1e-4)
    with pytest.raises(ConfigError, match='stacked'):
        param_groups.plan(vit(scan=True), settings(
            table=(('blocks/0/.*', dict(train=False)), ('.*', {}))))


def test_what_is_frozen_keeps_its_weights_and_its_statistics():
    model = models.create_model('small_cnn', 3, rngs=nnx.Rngs(0), width=8, stages=2)
    rules = param_groups.prepare(model, settings(
        table=((r'(head|stages/1)/.*', {}), ('.*', dict(train=False)))), seed=0)
    before, after = one_step(model, rules)
    assert not moved(before['frozen'], after['frozen'])
    assert moved(before['params'], after['params']) >= {
        'head/kernel', 'stages/1/0/bn2/scale', 'stages/1/0/shortcut/kernel'}
    statistics = moved(before['batch_stats'], after['batch_stats'])
    assert statistics and all(name.startswith('stages/1/') for name in statistics)


@pytest.mark.parametrize('scan', [False, True])
def test_only_adapters_and_heads_train_with_lora(scan):
    model = vit(scan=scan)
    rules = param_groups.prepare(model, settings(
        lora=settings()['lora'] | dict(rank=2)), seed=0)
    before, after = one_step(model, rules)
    assert all(name.endswith(('lora_a', 'lora_b')) or name.startswith('head/')
               for name in before['params'])
    assert moved(before['params'], after['params']) >= {
        'head/kernel', *filter(lambda name: name.endswith('lora_b'), before['params'])}
    assert not moved(before['frozen'], after['frozen'])
    assert len(adaptable(vit())) == 13  # 4 a block and the patches


def run_config(tmp_path, **changes):
    config = common.get_config()
    config.data.doodles.update(classes=3, per_class=10, writers=8)
    config.image.size = 32
    config.model = dict(name='vit_tiny_patch16_224', **TINY)
    config.duration = dict(epochs=2)
    config.batch_size = 6
    config.checkpoint.every = dict(steps=2)
    config.log.tensorboard = False
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file of weights for 7 classes at another image size, and its arrays."""
    model = models.create_model('vit_tiny_patch16_224', 7, rngs=nnx.Rngs(5), img_size=48, **TINY)
    path = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
    save_file(to_timm(model), path)
    return path


@pytest.fixture(scope='module')
def lora_run(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp('lora')
    config = run_config(folder, **{'init.pretrained': str(weights), 'finetune.lora.rank': 2})
    manifest = load_data(config)
    run.train_one(config, manifest, folder / 'run')
    return folder / 'run', config, manifest


def test_a_run_from_pretrained_weights_with_adapters(lora_run, weights):
    workdir, _, _ = lora_run
    result = json.loads((workdir / 'result.json').read_text())
    assert result['trained_parameters'] < 0.5 * result['parameters']
    assert result['input']['interpolation'] == 'bicubic'  # as the model's default tag asks for
    frozen = read_frozen(workdir / 'checkpoints')
    given = models.create_model('vit_tiny_patch16_224', 7, rngs=nnx.Rngs(5), img_size=48, **TINY)
    kernel = given.blocks[1].mlp.fc1.kernel[...]
    assert np.array_equal(frozen['blocks/1/mlp/fc1/kernel'], kernel)
    step = checkpoints.committed_steps(workdir / 'checkpoints')[-1]
    stored = by_path(checkpoints.read_weights(workdir / f'checkpoints/{step}')['params'])
    assert not any(name in frozen for name in stored)


@pytest.mark.slow
def test_it_resumes_without_the_file_of_weights(lora_run, weights, tmp_path):
    workdir, config, manifest = lora_run
    shutil.copytree(workdir, tmp_path / 'run')
    last = checkpoints.committed_steps(tmp_path / 'run/checkpoints')[-1]
    shutil.rmtree(tmp_path / f'run/checkpoints/{last}')
    weights.rename(weights.with_suffix('.gone'))
    try:
        run.train_one(config, manifest, tmp_path / 'run')
    finally:
        weights.with_suffix('.gone').rename(weights)
    for folder in ('predictions/test.npz', 'predictions/val.npz'):
        a, b = np.load(workdir / folder), np.load(tmp_path / 'run' / folder)
        np.testing.assert_array_equal(a['logits'], b['logits'])


def test_damaged_frozen_weights_are_not_used(lora_run, tmp_path):
    workdir, config, manifest = lora_run
    shutil.copytree(workdir, tmp_path / 'run')
    path = tmp_path / 'run/checkpoints/frozen/weights.safetensors'
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match='frozen is damaged'):
        run.train_one(config, manifest, tmp_path / 'run')


@pytest.mark.slow
def test_a_full_run_may_start_from_an_adapted_one(lora_run, tmp_path):
    workdir, _, manifest = lora_run
    config = run_config(tmp_path, **{'init.from': str(workdir), 'finetune.lora.rank': 2,
                                     'finetune.table': (('.*', {}),)})
    result, _, _ = run.train_one(config, manifest, tmp_path / 'run')
    assert result['trained_parameters'] == result['parameters']


@pytest.mark.parametrize(('changes', 'error', 'message'), [
    ({'init.pretrained': 'a1_in1k'}, ConfigError, 'not a tag of vit_tiny.*augreg_in21k_ft_in1k'),
    ({'init.pretrained': 'gone.safetensors'}, ModelError, 'gone.safetensors'),
    ({'init.pretrained': 'default', 'init.from': 'x'}, ConfigError, 'exclude each other'),
])
def test_wrong_sources_of_weights(changes, error, message, tmp_path):
    config = run_config(tmp_path, **changes)
    with pytest.raises(error, match=message):
        run.train_one(config, load_data(config), tmp_path / 'run')


def test_a_tag_brings_its_preparation_unless_the_config_says_otherwise():
    config = common.get_config()
    config.model.name = 'eva02_large_patch14_448'
    assert preprocess_spec(config).mean == (0.5, 0.5, 0.5)
    config.init.pretrained = 'default'
    prepared = preprocess_spec(config)
    assert prepared.mean[0] == 0.48145466 and prepared.std[2] == 0.27577711
    assert (prepared.resize, prepared.interpolation) == ('squash', 'bicubic')
    with config.ignore_type():
        config.image.mean = (0.0, 0.0, 0.0)
        config.image.resize = 'pad'
    prepared = preprocess_spec(config)
    assert prepared.mean == (0, 0, 0) and prepared.resize == 'pad'
    assert prepared.std[2] == 0.27577711
    with config.ignore_type():
        config.image.std = (1, 0, 1)
    with pytest.raises(ConfigError, match=r'image\.std'):
        preprocess_spec(config)
