"""The verb vote on soups: adapters are merged before anything is averaged, and BatchNorm statistics
are those of the averaged weights."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx

import main
import models
from input_pipeline import loader
from tests.train_lib.commands.stored_runs import refused, result_of, vote
from train_lib.run_dir import checkpoints
from train_lib.runtime.trees import by_path
from train_lib.training import init
from train_lib.training.init_from import read_weights

TINY = ['--config=configs/sketch_cnn.py', '--config.image.size=16', '--config.curriculum=()',
        '--config.batch_size=16', '--config.duration.steps=3', '--config.data.doodles.classes=3',
        '--config.data.doodles.per_class=20', '--config.split.seed=0',
        '--config.report.heat_maps=false', '--config.log.tensorboard=false',
        '--config.mixing=[]']
VIT = ['--config.model=dict(name="vit_tiny_patch16_224", patch_size=8, embed_dim=16, depth=1, '
       'num_heads=2)', '--config.schedule.lr=0.05']
CNN = ['--config.model=dict(name="small_cnn", width=8, stages=2)']

pytestmark = pytest.mark.slow  # trains


def members(folder, model, settings) -> list:
    """Two runs from one start."""
    start = folder / 'start'
    assert main.main([*TINY, *model, f'--workdir={start}']) == 0
    runs = []
    for seed, more in enumerate(settings, 1):
        runs.append(folder / f'run_{seed}')
        assert main.main([*TINY, *model, *more, f'--workdir={runs[-1]}', f'--config.seed={seed}',
                          f'--config.init.from={start}']) == 0
    return runs


def weights_of(workdir) -> dict[str, np.ndarray]:
    return read_weights(init.best_checkpoint(workdir))


def test_adapters_are_merged_before_they_are_averaged(tmp_path):
    """The mean of A times the mean of B is not the mean of A B. Ranks may differ, too."""
    lora = [[f'--config.finetune.lora.rank={rank}', f'--config.finetune.lora.alpha={alpha}',
             '--config.finetune.lora.layers=blocks/.*'] for rank, alpha in ((2, 16), (3, 8))]
    runs = members(tmp_path, VIT, lora)
    assert vote(','.join(map(str, runs)), tmp_path / 'v', '--config.soup=uniform',
                '--config.temperature=False') == 0
    soup, parts = weights_of(tmp_path / 'v/soup'), [weights_of(workdir) for workdir in runs]
    assert not any('lora' in name for name in soup)
    name = 'blocks/0/mlp/fc1'
    wanted = [part[f'{name}/kernel'] + alpha / rank * part[f'{name}/lora_a'] @ part[
        f'{name}/lora_b'] for part, rank, alpha in zip(parts, (2, 3), (16, 8))]
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    np.testing.assert_allclose(soup[f'{name}/kernel'], np.mean(wanted, axis=0), atol=1e-5)
    assert soup.keys() == weights_of(tmp_path / 'start').keys()
    # It is a run like any other: it has predicted, and another one starts from it.
    assert result_of(tmp_path / 'v')['soup']['accuracy'] >= 0
    assert main.main([*TINY, *VIT, f'--workdir={tmp_path}/on',
                      f'--config.init.from={tmp_path}/v/soup']) == 0


@pytest.fixture(scope='module')
def normalised(tmp_path_factory):
    folder = tmp_path_factory.mktemp('normalised')
    return folder, members(folder, CNN, [[], []])


def test_batch_norm_statistics_of_a_soup_are_its_own(normalised, tmp_path, capsys):
    _, runs = normalised
    pair = ','.join(map(str, runs))
    flags = ['--config.soup=uniform', '--config.temperature=False']
    assert 'soup_statistics = -1' in refused(capsys, runs, tmp_path / 'no', *flags,
                                             '--config.soup_statistics=-1')
    assert vote(pair, tmp_path / 'averaged', *flags, '--config.soup_statistics=0') == 0
    assert vote(pair, tmp_path / 'own', *flags) == 0
    averaged, own = (weights_of(tmp_path / name / 'soup') for name in ('averaged', 'own'))
    parts = [weights_of(workdir) for workdir in runs]
    for name, value in averaged.items():
        np.testing.assert_allclose(value, (parts[0][name] + parts[1][name]) / 2, rtol=1e-5,
                                   atol=1e-7)
        if not name.endswith(('/mean', '/var')):
            np.testing.assert_array_equal(own[name], value)
    assert any((own[name] != averaged[name]).any() for name in own)
    # The first layer's are those of its outputs on the training pictures, in whole batches.
    wanted = first_layer(tmp_path / 'own/soup', own)
    np.testing.assert_allclose(own['bn1/mean'], wanted.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(own['bn1/var'], wanted.var((0, 1, 2)), rtol=0.02)


def first_layer(workdir, weights) -> np.ndarray:
    """Outputs of the first convolution on two batches of training pictures, [32, h, w, D]."""
    from models.cnn import _space_to_depth
    from train_lib.predictions.run_folders import splits_of
    from train_lib.run_dir.run_config import config_of_run
    from train_lib.training.data import load_data
    from train_lib.training.preprocess_spec import loader_spec, preprocess_spec

    config = config_of_run(workdir)
    manifest, roles = load_data(config, workdir), splits_of(workdir).roles
    rows = manifest.select((manifest.table['id'].map(roles) == 'train').to_numpy())
    rows = rows.select(np.random.default_rng(0).permutation(len(rows))[:32])
    batch, = loader.eval_dataset(rows, preprocess_spec(config), batch_size=len(rows),
                                 loading=loader_spec(config))()
    model = models.create_model('small_cnn', 3, width=8, stages=2, rngs=nnx.Rngs(0))
    model.conv1.kernel.set_value(weights['conv1/kernel'])
    return np.asarray(model.conv1(_space_to_depth((batch['image'] / 255 - 0.5) / 0.5)))


def test_members_with_the_same_statistics_keep_them(normalised, tmp_path):
    """Frozen ones, for example."""
    _, runs = normalised
    twins = [shutil.copytree(runs[0], tmp_path / name) for name in ('a', 'b')]
    assert vote(','.join(map(str, twins)), tmp_path / 'v', '--config.soup=uniform',
                '--config.temperature=False') == 0
    before, after = weights_of(runs[0]), weights_of(tmp_path / 'v/soup')
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert json.loads((tmp_path / 'v/soup/config.json').read_text())['input']
    assert by_path(checkpoints.read_weights(init.best_checkpoint(tmp_path / 'v/soup')))
