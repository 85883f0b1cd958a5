"""A start from another run takes over what belongs to its weights: the preparation of pictures, the
adapters, the rows of the classes, the positions, and the channels of the stem."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import main
import models
from configs import common
from models.pretrained import adapt_channels, resample_positions
from models.relative_positions import resize_table
from train_lib.optim import param_groups
from train_lib.predictions.store import members_of
from train_lib.probing.backbone import make_backbone
from train_lib.run_dir import workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path, path_name
from train_lib.training.init_from import (
    Target,
    _resample,
    _without_arrays,
    adopt,
    read_weights,
)
from train_lib.training.preprocess_spec import input_record, preprocess_spec
from train_lib.training.soup_run import weights_of, write_run
from train_lib.training.state import Weights
from train_lib.training.step import split_model

MODEL = dict(name='vit_tiny_patch16_224', patch_size=8, embed_dim=16, depth=1, num_heads=2)
TINY = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
        f'--config.model={MODEL}', '--config.batch_size=32', '--config.log.tensorboard=false',
        '--config.duration.steps=3', '--config.eval.every.steps=3', '--config.mixing=[]',
        '--config.curriculum=[]', '--config.report.heat_maps=false', '--config.report.errors=0',
        '--config.init.seen=accept']  # the scores here need not mean anything
STILL = ['--config.schedule.lr=0', '--config.duration.steps=1']  # shows what a run starts with
LORA = ['--config.finetune.lora.rank=2', '--config.finetune.lora.layers=blocks/.*',
        '--config.schedule.lr=0.1']
PREPARED = dict(mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7), resize='crop',
                interpolation='bilinear', crop_pct=0.75)


def run(workdir: Path, *more: str) -> Path:
    settings = dict(one.split('=', 1) for one in (*TINY, *more))  # the later ones count
    assert main.main([*map('='.join, settings.items()), f'--workdir={workdir}']) == 0
    return workdir


def by_id(workdir: Path) -> dict[str, np.ndarray]:
    with np.load(workdir / 'predictions/test.npz', allow_pickle=False) as file:
        return dict(zip(file['ids'].tolist(), file['logits']))


def logits(workdir: Path) -> np.ndarray:
    return np.stack([values for _, values in sorted(by_id(workdir).items())])


def best_of(workdir: Path) -> Path:
    best = json.loads((workdir / 'result.json').read_text())['best_step']
    return workdir / f'checkpoints/{best}'


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A run with adapters, and with pictures prepared in a way of its own."""
    return run(tmp_path_factory.mktemp('source') / 'run', *LORA,
               *(f'--config.image.{key}={value}' for key, value in PREPARED.items()))


def test_a_start_prepares_pictures_as_the_run_that_it_starts_from(source, tmp_path, capfd):
    theirs = shutil.copytree(source, tmp_path / 'theirs')
    new = run(tmp_path / 'new', *LORA, *STILL, f'--config.init.from={theirs}')
    log = capfd.readouterr().err
    assert 'input    16 px, crop 0.75, bilinear\n' in log and f'as in {theirs}' in log
    found = json.loads((new / 'result.json').read_text())['input']
    assert found == json.loads(json.dumps(PREPARED))
    np.testing.assert_allclose(logits(new), logits(source), atol=1e-4)

    # The run knows it from then on: the first one may go.
    shutil.rmtree(theirs)
    shutil.rmtree(new / 'predictions')
    again = run(new, *LORA, *STILL, f'--config.init.from={theirs}')
    assert json.loads((again / 'result.json').read_text())['input'] == found
    shutil.rmtree(new / 'predictions')
    assert main.main(['predict', f'--workdir={new}', '--config.predict.dtype=float32']) == 0
    np.testing.assert_allclose(logits(new), logits(source), atol=1e-4)
    # So do those that start from it, and features.
    assert of(new)['mean'] == PREPARED['mean']
    config = common.get_config()
    config.model, config.image.size, config.init['from'] = MODEL, 16, str(new)
    assert input_record(make_backbone(config).preprocess) == PREPARED


def of(source: Path, run: Path | None = None, **image) -> dict:
    """How a run that starts from another one prepares its pictures."""
    config = common.get_config()
    config.init['from'] = str(source)
    with config.ignore_type():
        config.image.update(image)
    return input_record(preprocess_spec(config, run, say=True))


def test_what_the_config_says_comes_first_and_is_said(source, caplog):
    with caplog.at_level(logging.INFO):
        found = of(source, mean=(0.1, 0.1, 0.1), resize='crop')
    assert found == PREPARED | dict(mean=(0.1, 0.1, 0.1))
    assert 'trained with another mean: config.image decides' in caplog.text
    assert all(len(line) <= 80 for line in caplog.messages if str(source) not in line)


def test_the_input_is_always_said(caplog):
    with caplog.at_level(logging.INFO):
        preprocess_spec(common.get_config(), say=True)
    assert 'input    64 px, squash, area' in caplog.messages
    assert '         mean 0.5 0.5 0.5, std 0.5 0.5 0.5' in caplog.messages


def test_an_older_run_keeps_what_it_did(source, tmp_path):
    """Before, a start from another run took over nothing."""
    older = shutil.copytree(source, tmp_path / 'older')
    content = json.loads((older / 'config.json').read_text())
    del content['sha256'], content['input']
    content['init']['from'], content['image'] = str(source), dict(size=16)
    (older / 'config.json').write_text(json.dumps(content))
    default = input_record(preprocess_spec(common.get_config()))
    assert of(source, older) == default  # when it goes on
    assert of(older) == default  # when another one starts from it


def test_folds_that_have_not_begun_follow_those_that_have(source, tmp_path):
    config = common.get_config()
    with config.ignore_type():
        config.split.kind, config.split.fold, config.init['from'] = 'kfold', 'all', str(source)
    workdirs.claim(tmp_path, config, 'data')  # an older version began it
    assert of(source, tmp_path / 'fold_1')['resize'] == 'squash'
    assert of(source, tmp_path / 'other')['resize'] == 'crop'


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'init\.from = .* holds no run'):
        of(tmp_path)
    with pytest.raises(ConfigError, match=r'init\.from = .* holds no run'):
        of(tmp_path / 'nowhere', tmp_path / 'new')


# --- weights ------------------------------------------------------------------------------------


def start(source: Path, head: str = 'auto', classes: dict | None = None, **changes
          ) -> tuple[Weights, nnx.GraphDef]:
    """The weights that a run with other settings would start with."""
    config = common.get_config()
    config.image.size, config.model = 16, MODEL
    config.init.head = head
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    classes = {'class': [str(i) for i in range(10)]} if classes is None else classes
    sizes = {name: len(names) for name, names in classes.items()}
    settings = {key: value for key, value in config.model.items() if key != 'name'}
    if 'img_size' in models.model_settings(config.model.name):
        settings['img_size'] = config.image.size
    model = models.create_model(config.model.name, sizes if len(sizes) > 1 else
                                next(iter(sizes.values()), 0), rngs=nnx.Rngs(1), **settings)
    param_groups.prepare(model, config.finetune.to_dict(), seed=1)
    graphdef, params, batch_stats = split_model(model)
    target = Target(config, classes, head)
    return adopt(Weights(params, {}, batch_stats), target, best_of(source)), graphdef


SAME = {'finetune.lora.rank': 2, 'finetune.lora.layers': 'blocks/.*'}
X = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype(np.float32)


def outputs(weights: Weights, graphdef: nnx.GraphDef) -> np.ndarray:
    return models.eval_view(nnx.merge(graphdef, weights.params, weights.batch_stats))(X)


@pytest.mark.parametrize('lora', [
    {}, {'rank': 3}, {'alpha': 8.0}, {'layers': 'blocks/.*/mlp/.*'}], ids=str)
def test_other_adapters_do_not_lose_those_of_the_source(source, lora, caplog):
    """Without them the weights are another function."""
    wanted = outputs(*start(source, **SAME))
    settings = {f'finetune.lora.{key}': value for key, value in lora.items()}
    with caplog.at_level(logging.INFO):
        found = outputs(*start(source, **(SAME | settings if lora else {})))
    assert 'the adapters of 4 layers are merged into their kernels' in caplog.text
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_same_adapters_go_on(source, caplog):
    with caplog.at_level(logging.INFO):
        weights, _ = start(source, **SAME)
    assert 'the adapters of 4 layers go on as adapters' in caplog.text
    before, after = read_weights(best_of(source)), by_path(weights.params)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert all(np.abs(value).max() > 1e-2 for name, value in before.items()
               if name.endswith('lora_b'))  # they matter


def test_features_are_those_of_the_merged_model(source):
    stored = read_weights(best_of(source))
    low = stored['blocks/0/mlp/fc1/lora_a'] @ stored['blocks/0/mlp/fc1/lora_b']
    weights, _ = start(source, classes={})
    np.testing.assert_allclose(by_path(weights.params)['blocks/0/mlp/fc1/kernel'],
                               stored['blocks/0/mlp/fc1/kernel'] + 16 / 2 * low, atol=1e-5)


def test_heads_go_by_the_names_of_the_classes(source, tmp_path, capfd):
    turned = ','.join(str(i) for i in reversed(range(10)))
    new = run(tmp_path / 'new', *STILL, f'--config.init.from={source}',
              f'--config.data.classes={turned}')
    assert 'head class: 0 classes kept, 10 moved, 0 new, 0 left out' in capfd.readouterr().err
    ours, theirs = by_id(new), by_id(source)  # the order of the classes changes the split
    both = ours.keys() & theirs.keys()
    assert len(both) > 20
    np.testing.assert_allclose([ours[name][::-1] for name in both], [theirs[name] for name in both],
                               atol=1e-4)


def test_new_classes_start_anew_and_the_others_keep_their_rows(source, caplog):
    before = read_weights(best_of(source))['head/kernel']
    names = ['0', 'ten', '2', '1']
    with caplog.at_level(logging.INFO):
        weights, _ = start(source, classes={'figure': names})  # one head here, one there
    assert 'head figure: 2 classes kept, 1 moved, 1 new, 7 left out' in caplog.text
    assert '         new: ten' in caplog.messages
    fresh = models.create_model(**MODEL, num_classes=4, img_size=16, rngs=nnx.Rngs(1))
    kernel = np.asarray(weights.params['head']['kernel'])
    np.testing.assert_array_equal(kernel[:, [0, 2, 3]], before[:, [0, 2, 1]])
    np.testing.assert_array_equal(kernel[:, 1], fresh.head.kernel[...][:, 1])


def test_a_single_head_becomes_one_of_several(source, caplog):
    before = read_weights(best_of(source))['head/kernel']
    name, = workdirs.start_facts(source)['classes']
    with caplog.at_level(logging.INFO):
        weights, _ = start(source, classes={name: [str(i) for i in range(10)], 'tool': ['a', 'b']})
    assert 'head tool starts anew' in caplog.text
    np.testing.assert_array_equal(weights.params['heads'][name]['kernel'], before)


def test_a_head_may_be_kept_by_order_or_reset(source, caplog):
    before = read_weights(best_of(source))['head/kernel']
    korean = {'class': [f'숫자 {i}' for i in range(10)]}
    kept, _ = start(source, 'keep', korean)
    np.testing.assert_array_equal(kept.params['head']['kernel'], before)
    assert '10 of its classes have other names' in caplog.text
    fresh = models.create_model(**MODEL, num_classes=10, img_size=16, rngs=nnx.Rngs(1))
    for head, classes in (('auto', korean), ('reset', None)):
        anew, _ = start(source, head, classes)
        np.testing.assert_array_equal(anew.params['head']['kernel'], fresh.head.kernel[...])
    assert max(map(len, caplog.messages)) <= 80
    with pytest.raises(ConfigError, match='head/kernel is'):
        start(source, 'keep', {'class': ['0', '1']})


def test_classes_of_an_older_run_are_those_of_its_predictions(source, tmp_path):
    older = shutil.copytree(source, tmp_path / 'older')
    content = json.loads((older / 'config.json').read_text())
    del content['sha256'], content['classes']
    (older / 'config.json').write_text(json.dumps(content))
    weights, _ = start(older, classes={'class': [str(i) for i in reversed(range(10))]})
    np.testing.assert_array_equal(np.asarray(weights.params['head']['kernel'])[:, ::-1],
                                  read_weights(best_of(source))['head/kernel'])


def test_positions_are_resampled_to_another_grid(source, caplog):
    before = read_weights(best_of(source))['pos_embed']  # a class token, and 2 x 2 patches
    with caplog.at_level(logging.INFO):
        weights, _ = start(source, **{'image.size': 32})
    assert 'positions resampled from 2 x 2 to 4 x 4 patches' in caplog.text
    np.testing.assert_array_equal(weights.params['pos_embed'],
                                  resample_positions(before, 1, (4, 4)))


def test_positions_go_by_the_grid_and_not_by_the_count(source):
    """4 x 1 patches are as many as 2 x 2."""
    weights, _ = start(source, **{'image.size': (32, 8)})
    found = np.asarray(weights.params['pos_embed'])
    before = read_weights(best_of(source))['pos_embed']
    assert found.shape == before.shape and not np.allclose(found[:, 1:], before[:, 1:])
    np.testing.assert_allclose(found[:, :1], before[:, :1])
    back = resample_positions(found, 1, (8, 1), (4, 1))
    assert back.shape[1] == 9


@pytest.mark.parametrize('scan', [False, True])
def test_tables_of_relative_positions_are_resampled(scan, caplog):
    configs = []
    for size in (16, (32, 24)):
        configs.append(common.get_config())
        configs[-1].model = MODEL | dict(name='beit_base_patch16_224', depth=2, scan=scan)
        configs[-1].image.size = size
    old, new = ({path_name(path): np.zeros(leaf.shape, np.float32) for path, leaf in
                 nnx.to_flat_state(nnx.state(_without_arrays(config)))} for config in configs)
    names = [name for name in old if name.endswith('relative_position_bias_table')]
    stored = old | {name: np.random.default_rng(i).normal(size=old[name].shape)
                    for i, name in enumerate(names)}
    with caplog.at_level(logging.INFO):
        found = _resample(stored, new, *reversed(configs))
    assert len(names) == (1 if scan else 2)
    assert caplog.text.count('relative positions resampled from 2 x 2 to 4 x 3 patches') == 1
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in new.items()}
    for name in names:
        np.testing.assert_array_equal(found[name], resize_table(stored[name], (4, 3), (2, 2)))


@pytest.mark.parametrize('channels', [1, 4])
def test_the_stem_takes_other_channels(source, channels, caplog):
    with caplog.at_level(logging.INFO):
        weights, _ = start(source, model=MODEL | dict(in_channels=channels))
    assert f'patch_embed/proj/kernel adapted from 3 to {channels} channels' in caplog.text
    before = read_weights(best_of(source))
    wanted = adapt_channels(before['patch_embed/proj/kernel'].transpose(3, 2, 0, 1), channels)
    wanted = wanted.transpose(2, 3, 1, 0)
    np.testing.assert_allclose(weights.params['patch_embed']['proj']['kernel'], wanted, atol=1e-6)


def test_a_stem_on_several_pixels_at_once_takes_other_channels(tmp_path):
    """A grey picture gives the same features, whatever the channels that show it."""
    model = dict(name='small_cnn', width=8, stages=2)
    there = run(tmp_path / 'cnn', f'--config.model={model}', '--config.duration.steps=1',
                '--config.eval.every.steps=1')
    grey = np.random.default_rng(0).random((2, 16, 16, 1), np.float32)
    found = []
    for channels in (1, 3):
        weights, graphdef = start(there, model=model | dict(in_channels=channels))
        merged = nnx.merge(graphdef, weights.params, weights.batch_stats)
        found.append(models.eval_view(merged)(np.repeat(grey, channels, axis=-1)))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_another_model_is_refused(source):
    with pytest.raises(ConfigError, match='do not fit this model'):
        start(source, model=dict(name='small_cnn', width=8, stages=2))
    with pytest.raises(ConfigError, match='do not fit this model'):
        start(source, model=MODEL | dict(patch_size=4))


def test_a_soup_averages_kernels_with_their_adapters(source, tmp_path):
    """The mean of A times the mean of B is not the mean of A B."""
    member, = members_of(source, 'test')
    one, stored = weights_of(member), read_weights(best_of(source))
    assert not any('lora' in name for name in one)
    name = 'blocks/0/attn/qkv'
    merged = stored[f'{name}/kernel'] + 8 * stored[f'{name}/lora_a'] @ stored[f'{name}/lora_b']
    np.testing.assert_allclose(one[f'params/{name}/kernel'], merged, atol=1e-5)
    write_run(tmp_path / 'soup', one, [member])
    found = read_weights(tmp_path / 'soup/checkpoints/0')
    assert {f'params/{name}' for name in found} == one.keys()
    config = workdirs.saved_config(tmp_path / 'soup')
    assert config.finetune.lora.rank == 0  # whose model has no adapters either
    wanted = outputs(*start(source, **SAME))
    os.replace(tmp_path / 'soup/checkpoints/0', tmp_path / 'soup/checkpoints/3')
    shutil.copyfile(source / 'result.json', tmp_path / 'soup/result.json')
    np.testing.assert_allclose(outputs(*start(tmp_path / 'soup')), wanted, atol=1e-4)


def test_a_probe_predicts_with_the_preparation_of_its_training(source, tmp_path, capfd):
    """An older one took over nothing from the run whose backbone it has, and says neither."""
    prepared = dict(mean=0.5, std=0.5, resize='squash', interpolation='area', crop_pct=1.0)
    probe = run(tmp_path / 'probe', f'--config.init.from={source}',
                "--config.probe.heads=[dict(name='linear', head='linear')]",
                f'--config.probe.cache={tmp_path / "cache"}',
                *(f'--config.image.{key}={value}' for key, value in prepared.items()))
    content = json.loads((probe / 'config.json').read_text())
    content['image'] |= dict.fromkeys(prepared)
    (probe / 'config.json').write_text(json.dumps(
        {key: value for key, value in content.items() if key not in ('sha256', 'input')}))
    result = json.loads((probe / 'result.json').read_text())
    del result['backbone']
    (probe / 'result.json').write_text(json.dumps(result))
    fold, = probe.glob('*/fold_0')
    before = logits(fold)
    (fold / 'predictions/test.npz').unlink()
    capfd.readouterr()
    assert main.main(['predict', f'--workdir={probe}', '--config.predict.dtype=float32']) == 0
    log = capfd.readouterr().err
    assert 'input    16 px, squash, area\n' in log and 'not checked: that the backbone' in log
    np.testing.assert_allclose(logits(fold), before, atol=1e-4)
    assert np.ptp(before) > 1e-3
