"""Runs on rectangular and on grey pictures, from the command to the report and the predictions."""

import base64
import json
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import main
from configs.common import get_config
from models import create_model
from models.pretrained import to_timm
from train_lib.predictions import members
from train_lib.probing import feature_cache
from train_lib.probing.backbone import make_backbone
from train_lib.reporting.overlays import overlay
from train_lib.run_dir.overrides import apply_values
from train_lib.runtime.errors import ConfigError
from train_lib.studies.identity import identity_of
from train_lib.training.data import load_manifest
from train_lib.training.heatmaps import _shown
from train_lib.training.network import model_settings_of
from train_lib.training.preprocess_spec import input_channels, input_size, preprocess_spec
from train_lib.training.soup_run import start_of

DATA = ['--config=configs/sketch_vit.py:curriculum=all', '--config.data.doodles.classes=3',
        '--config.data.doodles.per_class=12', '--config.data.doodles.writers=6',
        '--config.batch_size=8', '--config.log.tensorboard=false']
VIT = '--config.model=dict(name="vit_tiny_patch16_224", patch_size=8, embed_dim=16, depth=1, ' \
      'num_heads=2)'
CNN = '--config.model=dict(name="small_cnn", width=8, stages=2)'
GREY = CNN.replace('stages=2', 'stages=2, in_channels=1')


def config_with(**changes):
    config = get_config()
    config.update_from_flattened_dict({key.replace('__', '.'): value
                                       for key, value in changes.items()})
    return config


def last_line(capfd) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize('model, size, channels', [
    pytest.param(VIT, (16, 64), 3, marks=pytest.mark.slow, id='vit'),
    pytest.param(CNN, (24, 40), 3, marks=pytest.mark.slow, id='cnn'),
    pytest.param(GREY, (24, 40), 1, id='grey')])
def test_training_report_and_predictions(tmp_path, capfd, model, size, channels):
    run = tmp_path / 'run'
    command = [*DATA, model, f'--config.image.size={size}', f'--workdir={run}',
               '--config.checkpoint.every.steps=2']
    assert main.main([*command, '--config.duration.steps=2']) == 0
    saved = json.loads((run / 'config.json').read_text())
    assert saved['image']['size'] == list(size)
    assert len(json.loads((run / 'result.json').read_text())['input']['mean']) == channels
    # Goes on.
    assert main.main([*command, '--config.duration.steps=4']) == 0
    assert 'resume: from step 2 of 4' in capfd.readouterr().err
    # The sheet of the stages and the heat maps have the shape of the input.
    height, width = size
    assert cv2.imread(str(run / 'curriculum.png')).shape[1] >= 3 * width
    with np.load(run / 'heatmaps.npz', allow_pickle=False) as maps:
        assert maps['pictures'].shape[1:] == (*size, 3)
        for name in set(maps) & {'CAM/class', 'Grad-CAM/class', 'rollout'}:
            rows, columns = maps[name].shape[1:]
            assert rows * width == columns * height
    report = (run / 'report.html').read_text()
    assert 'curriculum' in report and re.search(r'class="pic look" src="data:image/webp', report)
    # The same logits again, and views.
    with np.load(run / 'predictions/test.npz', allow_pickle=False) as file:
        trained = dict(file)
    assert main.main(['predict', f'--workdir={run}', '--config.predict.dtype=float32',
                      '--config.predict.views=identity,hflip,transpose,scale1.2,crops5']) == 0
    found = {member.view: member for member in members.find_members([run], 'test')}
    assert len(found) == 9
    np.testing.assert_allclose(found['identity'].logits['class'], trained['logits'], rtol=1e-4,
                               atol=1e-5)
    assert np.ptp([member.logits['class'] for member in found.values()], axis=0).max() > 0
    capfd.readouterr()
    assert main.main(['predict', f'--workdir={run}', '--config.predict.dtype=float32']) == 0
    assert 'reused' in capfd.readouterr().err
    assert main.main(['report', f'--workdir={run}']) == 0
    # Another shape of as many pixels is another run.
    other = size[::-1]
    assert main.main([*command, f'--config.image.size={other}', '--config.duration.steps=4']) == 2
    assert 'config.image.size' in last_line(capfd)


@pytest.mark.slow
def test_the_other_verbs(tmp_path, capfd):
    command = [*DATA, VIT, '--config.image.size=(16,64)', '--config.duration.steps=2']
    assert main.main(['lr_find', *command, f'--workdir={tmp_path}/sweep',
                      '--config.lr_find.steps=10']) == 0
    assert (tmp_path / 'sweep/lr_find.json').exists()
    probe = '--config.probe.heads=[dict(name="linear")]'
    for extra in ((), ('--config.image.mean=0.4',)):
        assert main.main([*command, probe, *extra, f'--config.probe.cache={tmp_path}/features',
                          f'--workdir={tmp_path}/probe{len(extra)}']) == 0
    assert len(list((tmp_path / 'features').iterdir())) == 2
    capfd.readouterr()
    assert main.main([*command, '--config.plan_only=true']) == 0
    assert 'FLOPs per step' in capfd.readouterr().out


@pytest.mark.slow
def test_pretrained_colours_train_on_grey_pictures(tmp_path, capfd):
    """The stem of weights for three channels is summed; their statistics become those of grey."""
    model = create_model('small_cnn', 3, rngs=nnx.Rngs(0), width=8, stages=2)
    save_file(to_timm(model), tmp_path / 'rgb.safetensors')
    # small_cnn puts 2 x 2 pixels into the channels, so its stem has no single adapted form.
    assert main.main([*DATA, GREY, '--config.image.size=32', f'--workdir={tmp_path}/refused',
                      f'--config.init.pretrained={tmp_path}/rgb.safetensors']) == 2
    assert 'conv1.weight is [8, 12, 3, 3] and should be [8, 4, 3, 3]' in last_line(capfd)
    resnet = dict(layers=(1, 1), channels=(8, 16))
    save_file(to_timm(create_model('resnet18', 3, rngs=nnx.Rngs(0), **resnet)),
              tmp_path / 'rgb.safetensors')
    assert main.main([
        *DATA, '--config.model=dict(name="resnet18", layers=(1, 1), channels=(8, 16), '
        'in_channels=1)', '--config.image.size=(24,40)', '--config.duration.steps=2',
        '--config.image.mean=(0.485, 0.456, 0.406)', '--config.image.std=(0.229, 0.224, 0.225)',
        f'--workdir={tmp_path}/run', f'--config.init.pretrained={tmp_path}/rgb.safetensors']) == 0
    assert 'conv1.weight adapted from 3 to 1 channels' in capfd.readouterr().err
    found = json.loads((tmp_path / 'run/result.json').read_text())['input']
    assert found['mean'] == pytest.approx([0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406])
    assert found['std'] == pytest.approx([0.299 * 0.229 + 0.587 * 0.224 + 0.114 * 0.225])


@pytest.mark.slow
def test_transparency_trains(tmp_path, capfd):
    """The classes differ in it alone; one opaque picture is refused by its name."""
    rng = np.random.default_rng(0)
    for k in range(40):
        folder = tmp_path / 'data' / 'ab'[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (16, 24, 4)).astype(np.uint8)
        picture[..., 3] = 60 + 120 * (k % 2)
        cv2.imwrite(str(folder / f'{k:02}.png'), picture)
    command = [
        f'--config=configs/sketch_vit.py:folder={tmp_path}/data,curriculum=all', '--config.'
        'model=dict(name="small_cnn", width=8, stages=2, in_channels=4)', '--config.batch_size=8',
        '--config.image.size=(16,24)', '--config.duration.epochs=8', '--config.schedule.lr=0.02',
        '--config.log.tensorboard=false']
    assert main.main([*command, f'--workdir={tmp_path}/run']) == 0
    result = json.loads((tmp_path / 'run/result.json').read_text())
    assert result['test']['accuracy'] == 1 and len(result['input']['std']) == 4
    assert main.main(['predict', f'--workdir={tmp_path}/run',
                      '--config.predict.views=identity,hflip']) == 0
    cv2.imwrite(str(tmp_path / 'data/a/opaque.png'), np.zeros((16, 24, 3), np.uint8))
    assert main.main([*command, f'--workdir={tmp_path}/other']) == 2
    assert "Image 'a/opaque.png' has no transparency" in last_line(capfd)


def test_what_is_refused_is_named(tmp_path, capfd):
    for number, (flag, words) in enumerate((
            ('--config.image.size=big', "config.image.size = 'big': give a number from 1 to"),
            ('--config.image.size=(16,0)', 'config.image.size = (16, 0): give a number'),
            ('--config.image.size=(16,16,3)', 'or (height, width) such as (96, 160)'),
            ('--config.image.size=48.5', 'config.image.size = 48.5'),
            ('--config.model.in_channels=5', 'config.model.in_channels = 5: pictures are read'),
            ('--config.image.mean=(0.5,0.5)', 'config.image.mean = (0.5, 0.5): give three'),
            ('--config.image.std=0', 'config.image.std = (0, 0, 0): give numbers above 0'))):
        assert main.main([*DATA, flag, f'--workdir={tmp_path}/{number}']) == 2
        assert number > 4 or not (tmp_path / f'{number}').exists()
        line = last_line(capfd)
        assert words in line, line
    assert main.main([*DATA, GREY, '--config.curriculum=[dict(transforms=["hue"])]',
                      f'--workdir={tmp_path}/run']) == 2
    assert 'curriculum[0].transforms[0]: hue works on colours' in last_line(capfd)


def test_a_number_stays_a_number():
    for given, want in ((64, 64), (64.0, 64), ((64, 64), 64), ([96, 160], (96, 160)),
                        ((96, 160), (96, 160))):
        config = config_with(image__size=given)
        assert input_size(config) == want and type(input_size(config)) is type(want)
        assert preprocess_spec(config).size == want
        assert model_settings_of(config)['img_size'] == want
    assert '"size": 64,' in get_config().to_json(indent=1)
    arm = apply_values(get_config(), {'image.size': (96, 160)})  # of a study
    assert identity_of(arm)['image.size'] == [96, 160]


def test_a_soup_has_one_grid(tmp_path):
    """4 x 4 and 2 x 8 patches have position embeddings of one shape."""
    starts = []
    for number, size in enumerate((32, 64, (16, 64), (64, 16))):
        config = config_with(image__size=size, init__pretrained='default')
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / 'config.json').write_text(config.to_json())
        starts.append(start_of(SimpleNamespace(workdir=tmp_path / str(number), name='a')))
    assert starts[0] == starts[1] and len(set(starts)) == 3


def test_means_of_each_channel():
    luma = 0.299 * 0.1 + 0.587 * 0.2 + 0.114 * 0.3
    for channels, given, want in (
            (3, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3)), (3, 0.4, (0.4,) * 3), (3, None, (0.5,) * 3),
            (1, (0.1, 0.2, 0.3), (pytest.approx(luma),)), (1, 0.4, (0.4,)), (1, (0.4,), (0.4,)),
            (1, None, (0.5,)), (4, None, (0.5,) * 4), (4, 0.4, (0.4,) * 4),
            (4, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 0.5)), (4, (1, 2, 3, 4), (1, 2, 3, 4))):
        config = config_with(image__mean=given)
        config.model.in_channels = channels
        spec = preprocess_spec(config)
        assert spec.mean == want and spec.channels == len(spec.std) == channels
    config = config_with()
    with pytest.raises(ConfigError, match='give three numbers'):
        preprocess_spec(config_with(image__mean=(1, 2, 3, 4)))
    for wrong in (2, 5, 0, True, 1.0, '1', None):
        config.model = dict(name='small_cnn', in_channels=wrong)
        with pytest.raises(ConfigError, match=r'config\.model\.in_channels'):
            input_channels(config)


def test_features_of_other_shapes_and_channels_are_other_features(tmp_path):
    names = set()
    for size, channels in (((16, 32), 3), ((32, 16), 3), (16, 3), (16, 1), ((16, 32), 1)):
        config = config_with(image__size=size, probe__cache=str(tmp_path))
        config.model = dict(name='small_cnn', width=8, stages=2, in_channels=channels)
        manifest = load_manifest(config)
        backbone, spec = make_backbone(config), feature_cache.feature_cache_spec(config)
        about = json.dumps(feature_cache._identity(manifest, backbone, (), spec))
        names.add(re.sub(r'"weights": "\w+"', '', about))
    assert len(names) == 5


@pytest.mark.parametrize('shape', [(300, 500, 4), (500, 300, 1), (20, 60, 1), (192, 192, 3)])
def test_heat_maps_are_drawn_in_the_shape_of_the_picture(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    shown = _shown(picture)
    scale = min(1, 192 / max(shape))
    assert shown.shape == (round(shape[0] * scale), round(shape[1] * scale), 3)
    uri = overlay(shown, np.random.default_rng(1).random((3, 5)))
    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(',')[1]), np.uint8), 1)
    longest = max(shape[:2])
    assert drawn.shape == (round(shape[0] * 96 / longest), round(shape[1] * 96 / longest), 3)

