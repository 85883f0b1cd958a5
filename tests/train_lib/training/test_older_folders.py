"""A run that an older version started goes on with the classes that its folders were then."""

import json

import cv2
import numpy as np
import pytest

import main

SETTINGS = ['--config.image.size=16', '--config.batch_size=4', '--config.curriculum=()',
            '--config.model=dict(name="small_cnn", width=8, stages=2)',
            '--config.log.tensorboard=false', '--config.split.kind=holdout']


def write_set(root) -> None:
    rng = np.random.default_rng(0)
    for side in ('Train', 'Test'):
        for name in ('cat', 'dog'):
            (root / side / name).mkdir(parents=True)
            for k in range(6):
                values = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                cv2.imwrite(str(root / side / name / f'{k}.png'), values)


def train(root, workdir, *argv: str) -> int:
    return main.main(['train', f'--config=configs/sketch_vit.py:folder={root}',
                      f'--workdir={workdir}', *SETTINGS, *argv])


def config_of(workdir) -> dict:
    return json.loads((workdir / 'config.json').read_text())


def as_an_older_version_wrote(workdir) -> None:
    content = config_of(workdir)
    del content['data']['rules'], content['data']['class_depth'], content['data']['zip_encoding']
    del content['sha256']
    (workdir / 'config.json').write_text(json.dumps(content))


@pytest.mark.slow
def test_train_and_test_stay_classes_of_an_older_run(tmp_path, capfd):
    root, older, newer = (tmp_path / name for name in ('data', 'older', 'newer'))
    write_set(root)
    assert train(root, older, '--config.data.rules=1', '--config.duration.steps=2') == 0
    as_an_older_version_wrote(older)
    wanted = ['Test/cat', 'Test/dog', 'Train/cat', 'Train/dog']
    assert train(root, older, '--config.duration.steps=4') == 0
    assert 'resume: from step 2' in capfd.readouterr().err
    assert config_of(older)['classes']['class'] == wanted
    assert main.main(['predict', f'--workdir={older}']) == 0
    with np.load(older / 'predictions/test.npz') as file:
        assert file['classes'].tolist() == wanted
    assert train(root, newer, '--config.duration.steps=2') == 0
    assert config_of(newer)['classes']['class'] == ['cat', 'dog']
    with np.load(newer / 'predictions/test.npz') as file:
        assert {name.split('/')[0] for name in file['ids'].tolist()} == {'Test'}
