"""The verb pack, from the command line to a manifest that means the same."""

import numpy as np
import pytest
from PIL import Image

import main
from configs import sketch_cnn
from input_pipeline.manifest import digest
from train_lib.training.data import load_data

SMALL = ['--config=configs/sketch_cnn.py', '--config.data.doodles.classes=3',
         '--config.data.doodles.per_class=6', '--config.data.doodles.writers=4']


def test_packed_data_are_the_same_data(tmp_path):
    folder = tmp_path / 'packed'
    assert main.main(['pack', *SMALL, f'--config.pack.folder={folder}']) == 0
    config = sketch_cnn.get_config()
    config.data.doodles.update(classes=3, per_class=6, writers=4)
    packed = sketch_cnn.get_config(f'packed={folder}')
    assert digest(load_data(packed)) == digest(load_data(config))


def test_preprocessing_reports_what_it_could_not_do(tmp_path, capsys):
    assert main.main(['pack', *SMALL, f'--config.pack.folder={tmp_path / "p"}',
                      '--config.pack.preprocess=denoise,face',
                      '--config.pack.quality=lossless']) == 0
    log = capsys.readouterr().err
    assert 'could not process' in log and 'face' in log
    assert (tmp_path / 'p/preprocessing.csv').exists()


@pytest.mark.parametrize(('more', 'words'), [
    ([], ['config.pack.folder is empty']),
    (['--config.pack.folder=x', '--config.pack.quality=1000'], ['quality', '1000']),
    (['--config.pack.folder=x', '--config.pack.preprocess=face'], ['pack.quality']),
    (['--config.pack.folder=x', '--config.pack.quality=90', '--config.pack.preprocess=faces'],
     ["'faces'", 'face']),
])
def test_mistakes(more, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(['pack', *SMALL, *more]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and 'Traceback' not in message


def test_a_folder_that_an_older_version_packed_is_gone_on_with(tmp_path, capsys):
    for number in range(11):  # in the order of text before there were rules
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        (tmp_path / f'data/{number}').mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / f'data/{number}/0.png')
    command = ['pack', f'--config=configs/sketch_vit.py:folder={tmp_path}/data',
               f'--config.pack.folder={tmp_path}/packed']
    assert main.main([*command, '--config.data.rules=1']) == 0
    assert main.main(command) == 2
    assert '--config.data.rules=1' in capsys.readouterr().err.splitlines()[-1]
    assert main.main([*command, '--config.data.rules=1']) == 0
