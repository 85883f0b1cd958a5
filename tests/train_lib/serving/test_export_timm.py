"""What is written for timm is the model, bit for bit, and timm computes the same with it."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from trained_by_recipe import CLASSES, by_recipe, pictures, random_values

import models
from input_pipeline.resize import resize
from main import main
from models import create_model
from models.lora import add_lora
from models.mobilenet import V2
from models.pretrained import load_timm
from models.timm_settings import in_timm, timm_arguments
from train_lib.runtime.errors import ConfigError
from train_lib.serving import export_timm
from train_lib.serving.trained_models import read_models
from train_lib.training.network import make_model
from train_lib.training.step import make_normalise

BOUND = 2e-5  # in standard deviations of timm's logits
SMALL = [('resnet18', dict(layers=(1, 1, 1, 1))),
         ('resnet50', dict(layers=(1, 1, 1, 1), base_width=96, in_channels=1)),
         ('densenet121', dict(block_config=(2, 2, 2, 2), growth_rate=16, in_channels=4)),
         ('vit_tiny_patch16_224', dict(depth=2, size=(32, 64), scan=True)),
         ('vit_tiny_patch16_224', dict(depth=2, size=64, embed_dim=96, num_heads=4, mlp_ratio=3.0,
                                       act='gelu_tanh', qkv_bias=False, init_values=0.1,
                                       class_token=False, global_pool='avg', patch_size=8)),
         ('eva02_tiny_patch14_224', dict(depth=2, size=(28, 56), scan=True)),
         ('eva02_base_patch14_448', dict(depth=1, size=56, embed_dim=96, num_heads=4)),
         ('vit_tiny_patch16_dinov3_qkvb', dict(depth=2, size=(32, 64), scan=True)),
         ('beit_base_patch16_224', dict(depth=2, size=(32, 64), scan=True, embed_dim=96,
                                        num_heads=4))]
# Slow because of the time that XLA takes, or timm's kinds of models that share their code.
LARGE = [('resnet18', {}), ('efficientnet_b0', {}),
         ('resnet18', dict(block='bottleneck', layers=(1, 1, 1, 1))),
         ('resnet18', dict(layers=(1, 1, 1, 1), channels=(64, 32, 32, 48))), ('densenet121', {}),
         ('tf_efficientnet_b0', dict(size=65)), ('tf_efficientnetv2_s', {}),
         ('efficientnet_b0', dict(act='relu6', bn_eps=0.01, pad_type='same', in_channels=1)),
         ('mobilenetv2_100', {}), ('mobilenetv3_large_100', dict(act='relu')),
         ('inception_resnet_v2', dict(size=96)),
         ('eva_giant_patch14_224', dict(depth=1, size=56, embed_dim=64, num_heads=4)),
         ('eva_giant_patch14_224', dict(depth=1, size=(56, 84), embed_dim=64, num_heads=4,
                                        use_rot_pos_emb=True)),
         ('eva02_base_patch14_448', dict(depth=1, size=56, embed_dim=96, num_heads=4, mlp='gelu')),
         ('vit_small_patch16_dinov3', dict(depth=1, size=64, embed_dim=96, num_heads=4,
                                           qkv_bias=True, swiglu_mlp=True, num_reg_tokens=2,
                                           rope_temperature=50.0, global_pool='token')),
         ('vit_small_plus_patch16_dinov3', dict(depth=1, size=64, swiglu_align_to=32,
                                                mlp_ratio=2.3, init_values=None)),
         ('beit_base_patch16_224', dict(depth=1, size=(32, 64), init_values=None, embed_dim=96,
                                        num_heads=4, patch_size=8)),
         ('eva02_base_patch14_448', dict(depth=1, size=56, embed_dim=96, num_heads=4,
                                         mlp='swiglu_packed', scale_mlp=False, qkv_fused=True))]


def values_of(model) -> dict[str, np.ndarray]:
    return {'/'.join(map(str, path)): np.array(variable[...]) for path, variable in
            nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))}


@pytest.mark.parametrize(('name', 'settings'), [
    *SMALL, pytest.param('efficientnet_b0', {}, marks=pytest.mark.slow)])
def test_the_file_is_the_model_bit_for_bit(name, settings, tmp_path):
    trained = by_recipe(name, **settings)
    before = values_of(trained.model)
    export_timm.write(trained, tmp_path)
    model = nnx.eval_shape(lambda: make_model(
        trained.config, trained.classes, jax.devices()[0]))
    load_timm(model, tmp_path / 'model.safetensors', grid=getattr(model, 'grid', None))
    for found in (values_of(model), values_of(trained.model)):
        assert set(found) == set(before)
        for key, value in before.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    written = load_file(tmp_path / 'model.safetensors')
    assert sum(key.endswith('num_batches_tracked') for key in written) == \
        sum(key.endswith('running_var') for key in written)


def test_adapters_and_offsets_are_merged(tmp_path):
    """Into the kernels and the bias of the classifier, whose blocks are stacked."""
    offsets = {'class': np.float32([.1, 0, -.2, .3, 1])}
    trained = by_recipe('vit_tiny_patch16_224', depth=2, embed_dim=48, size=32, scan=True,
                        offsets=offsets)
    paths = add_lora(trained.model, r'blocks/.*/(qkv|fc1)', rank=2, rngs=nnx.Rngs(0))
    random_values(trained.model)
    trained.config.finetune.lora.rank = 2
    said = export_timm.write(trained, tmp_path)['model.safetensors']
    assert 'adapters merged, the logit adjustment is in the bias' in said
    assert len(paths) == 2
    assert not [key for key in load_file(tmp_path / 'model.safetensors') if 'lora' in key]
    model = nnx.eval_shape(lambda: make_model(trained.config, trained.classes, jax.devices()[0]))
    load_timm(model, tmp_path / 'model.safetensors')
    images = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    expected = trained.model(images) + offsets['class']
    assert np.abs(expected).std() > 0.1
    np.testing.assert_allclose(models.eval_view(model)(images), expected, atol=1e-5)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with stacked blocks, adapters, a moving average and logit adjustment."""
    workdir = tmp_path_factory.mktemp('served') / 'run'
    assert main(['--config=configs/sketch_cnn.py:data=digits', f'--workdir={workdir}',
                 '--config.model.name=vit_tiny_patch16_224', '--config.image.size=32',
                 '--config.duration.steps=4', '--config.curriculum=()', '--config.ema.decay=0.9',
                 '--config.finetune.lora.rank=2', '--config.eval.adjust_tau=0.5',
                 '--config.model.depth=2', '--config.model.embed_dim=48',
                 '--config.model.scan=True', '--config.report.heat_maps=False']) == 0
    return workdir


@pytest.mark.slow  # a training and its report
def test_adapters_averages_and_offsets_of_a_run_are_in_the_file(run):
    assert main(['export', f'--workdir={run}', '--format=timm']) == 0
    folder = run / 'export' / 'timm'
    card = (folder / 'README.md').read_text('utf-8')
    assert 'adapters merged, moving average, the logit adjustment' in card
    assert "timm has no 'area'" in card
    trained, = read_models(run)
    assert np.abs(trained.offsets['class']).max() > 0
    model = nnx.eval_shape(lambda: create_model(
        'vit_tiny_patch16_224', len(trained.classes['class']), rngs=nnx.Rngs(0), img_size=32,
        depth=2, embed_dim=48))
    load_timm(model, folder / 'model.safetensors')
    images = make_normalise(trained.preprocess.mean, trained.preprocess.std,
                            np.float32)(pictures(trained, 3))
    expected = trained.model(images) + trained.offsets['class']
    np.testing.assert_allclose(models.eval_view(model)(images), expected, atol=1e-5)
    about = json.loads((folder / 'config.json').read_text())
    assert about['architecture'] == 'vit_tiny_patch16_224'
    assert about['label_names'] == list(trained.classes['class'])
    assert about['model_args'] == dict(depth=2, embed_dim=48, img_size=[32, 32])
    assert about['pretrained_cfg']['mean'] == list(trained.preprocess.mean)


def test_preparation_that_timm_lacks_is_said(tmp_path):
    trained = by_recipe('resnet18', layers=(1, 1, 1, 1), in_channels=4,
                        prepare=dict(resize='pad', interpolation='area', crop_pct=0.9))
    trained.config.data.source = 'packed'
    said = export_timm.write(trained, tmp_path)['config.json']
    for word in ("'area'", 'borders', "convert('RGBA')", '`main.py pack`'):
        assert word in said
    about = json.loads((tmp_path / 'config.json').read_text())
    assert about['preparation']['resize'] == 'pad'
    assert about['pretrained_cfg']['crop_mode'] == 'border'
    assert about['pretrained_cfg']['input_size'] == [4, 64, 64]
    plain = by_recipe('resnet18', layers=(1, 1, 1, 1), prepare=dict(interpolation='bicubic'))
    assert export_timm.differences(plain) == []
    assert all(word in export_timm.LOADING for word in ('EXIF', 'transparent', '16 bits'))


@pytest.mark.parametrize(('name', 'settings', 'words'), [
    ('small_cnn', {}, "timm has no model 'small_cnn'"),
    ('resnet20_cifar', {}, "timm has no model 'resnet20_cifar'"),
    ('resnet18', dict(layers=(1, 1, 1, 1), head='mlp'), "head='mlp'"),
    ('resnet18', dict(layers=(1, 1, 1, 1), stem='3x3'), "stem='3x3'"),
    ('efficientnet_b0', dict(stages=V2[:2]), r'stages=.{40,60} of'),
    ('resnet18', dict(layers=(1, 1, 1), channels=(64, 64, 64)), 'four stages'),
    ('resnet18', dict(layers=(1, 1, 1, 1), channels=(32, 64, 64, 64)), '64 channels'),
    ('vit_tiny_patch16_224', dict(depth=1, stem='conv'), "stem='conv'"),
    ('vit_tiny_patch16_224', dict(depth=1, pos_embed='sincos2d'), "pos_embed='sincos2d'"),
    ('vit_tiny_patch16_224', dict(depth=1, head_pool='separate'), "head_pool='separate'"),
    ('eva02_tiny_patch14_224', dict(depth=1, size=28, mlp='swiglu'), 'gated MLP'),
    ('resnet18', dict(layers=(1, 1, 1, 1), classes={'a': CLASSES, 'b': CLASSES}), r'\(a, b\)')])
def test_what_timm_cannot_build_is_refused_by_name(name, settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words) as refusal:
        export_timm.write(by_recipe(name, **settings), tmp_path)
    assert str(refusal.value).endswith('use --format=stablehlo.')
    assert not list(tmp_path.iterdir())


def test_a_block_of_another_kind_is_built_by_the_name_that_has_it():
    assert timm_arguments('resnet34', dict(block='bottleneck')) == (
        'resnet50', dict(layers=[3, 4, 6, 3], base_width=64))
    assert timm_arguments('resnet50', dict(drop_path=0.1, remat=True, dtype='bfloat16')) == (
        'resnet50', {})


def test_the_names_are_those_of_timm():
    timm = pytest.importorskip('timm', reason='needs timm, an optional peer')
    theirs = set(timm.list_models())
    assert [name for name in models.list_models() if in_timm(name) != (name in theirs)] == []


@pytest.mark.parametrize(('name', 'settings'), [
    *SMALL, *(pytest.param(*one, marks=pytest.mark.slow) for one in LARGE)])
def test_timm_computes_the_same_logits(name, settings, tmp_path):
    torch = pytest.importorskip('torch', reason='needs torch and timm, which are optional peers')
    timm = pytest.importorskip('timm', reason='needs torch and timm, which are optional peers')
    trained = by_recipe(name, **settings, offsets={'class': np.float32([.1, 0, -.2, .3, 1])})
    export_timm.write(trained, tmp_path)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    about = timm.data.resolve_model_data_config(model)
    assert tuple(about['mean']) == trained.preprocess.mean
    assert tuple(about['std']) == trained.preprocess.std
    assert about['input_size'][-2:] in (trained.preprocess.frame, list(trained.preprocess.frame))
    assert model.pretrained_cfg['label_names'] == list(CLASSES)
    images = make_normalise(*(np.float32(about[key]) for key in ('mean', 'std')), np.float32)(
        pictures(trained, 4))
    ours = np.asarray(jax.jit(trained.model)(images)) + trained.offsets['class']
    with torch.no_grad():
        theirs = model(torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(ours - theirs).max() / theirs.std() <= BOUND


@pytest.mark.parametrize('prepare', [
    dict(resize='squash', interpolation='bilinear'),
    dict(resize='squash', interpolation='bicubic', crop_pct=0.9),
    dict(resize='crop', interpolation='bicubic', crop_pct=0.875)])
def test_timm_prepares_pictures_as_the_run_does(prepare, tmp_path):
    pytest.importorskip('torchvision', reason='needs timm, an optional peer')
    timm = pytest.importorskip('timm', reason='needs timm, an optional peer')
    from PIL import Image
    trained = by_recipe('resnet18', layers=(1, 1, 1, 1), prepare=prepare, size=(48, 64))
    export_timm.write(trained, tmp_path)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    theirs = transform(Image.fromarray(picture)).numpy().transpose(1, 2, 0)
    spec = trained.preprocess
    ours = resize(picture, spec.frame, spec.resize, interpolation=spec.interpolation,
                  crop_pct=spec.crop_pct)
    ours = make_normalise(spec.mean, spec.std, np.float32)(ours[None])[0]
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
