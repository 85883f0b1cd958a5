"""With random labels nothing that a run learns from others may lift its scores above chance.

Every picture has a twin: nearly the same pixels, in the other fold, with a random label of its own.
So whoever trained on a picture knows the label of its twin's twin: a model of the other fold, asked
about the twin, says the label that the fold is scored on. Each test shows that the rule keeps the
out-of-fold accuracy at chance, and that without the rule the same labels raise it far above.
"""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest

import main

PAIRS = 24  # pictures per fold
SETTINGS = ['--config=configs/sketch_cnn.py', '--config.image.size=8', '--config.curriculum=()',
            '--config.model=dict(name="small_cnn", width=16, stages=2)', '--config.batch_size=24',
            '--config.log.tensorboard=false', '--config.report.heat_maps=false',
            '--config.report.errors=0', '--config.duration.steps=120', '--config.schedule.lr=0.01',
            '--config.schedule.name=constant', '--config.schedule.warmup.steps=0',
            '--config.eval.every.steps=120', '--config.log.every.steps=120',
            '--config.loss.label_smoothing=0', '--config.early_stopping.restore_best=False',
            '--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all',
            '--config.split.test=0', '--config.data.source=csv']
CHANCE, LEAK = 0.67, 0.8  # of 48 rows, 0.67 is 2.3 standard errors above 1/2


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """The pictures of two people, each picture of the one a twin of one of the other."""
    root, rng = tmp_path_factory.mktemp('leaks'), np.random.default_rng(0)
    (root / 'more').mkdir()
    rows = []
    for k in range(PAIRS):
        pixels = rng.integers(0, 256, (8, 8, 3))
        for person, labels in (('p', 'ab'), ('q', 'ab')):
            noisy = np.clip(pixels + rng.integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / f'{person}{k}.png'), noisy)
            rows.append((f'{person}{k}.png', labels[rng.integers(2)], person))
        for copy in range(2):
            noisy = np.clip(pixels + rng.integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / f'more/{k}_{copy}.png'), noisy)
    with open(root / 'rows.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('image', 'label', 'group'), *rows])
    return root


def train(root, name, *flags):
    """The out-of-fold accuracy."""
    given = {flag.partition('=')[0]: flag for flag in (*SETTINGS, *flags)}  # the last one counts
    assert main.main([*given.values(), f'--config.data.csv={root}/rows.csv',
                      f'--workdir={root / name}']) == 0
    return json.loads((root / name / 'result.json').read_text())['out_of_fold']['accuracy']


@pytest.fixture(scope='module')
def teacher(root):
    accuracy = train(root, 'teacher')
    assert 1 - CHANCE < accuracy < CHANCE
    assert main.main(['predict', f'--workdir={root}/teacher', '--config.predict.source=train']) == 0
    return root / 'teacher'


def labelled(root, members):
    out = root / f'{members.name}.csv'
    assert main.main(['pseudo', f'--members={members}', f'--images={root}/more', f'--out={out}',
                      '--config.temperature=False']) == 0
    return f'--config.data.extra.file={out}'


EXTRA = '--config.data.extra.share=0.7'
FIRST = '--config.split.fold=(0,)'  # one fold says enough


@pytest.mark.slow
def test_pseudo_labels_do_not_leak(root, teacher, capfd):
    assert train(root, 'kept', labelled(root, teacher), EXTRA) < CHANCE
    # As if nobody had minded the folds: each learns from the model of the other.
    swapped = root / 'swapped'
    for fold in (0, 1):
        shutil.copytree(teacher / f'fold_{fold}', swapped / f'fold_{1 - fold}')
    shutil.copy(teacher / 'config.json', swapped)
    of_the_other = labelled(root, swapped)
    assert main.main([*SETTINGS, f'--config.data.csv={root}/rows.csv', f'--workdir={root}/never',
                      of_the_other, EXTRA]) == 2
    assert 'trained on 24 of the 24 val rows' in capfd.readouterr().err
    assert train(root, 'leaking', of_the_other, EXTRA, '--config.init.seen=accept', FIRST) > LEAK


@pytest.mark.slow
def test_teachers_do_not_leak(root, teacher, capfd):
    told = [f'--config.distill.teachers={teacher}', '--config.distill.weight=1',
            '--config.distill.temperature=1']
    assert train(root, 'taught', *told, '--config.distill.rows=own') < CHANCE
    assert main.main([*SETTINGS, f'--config.data.csv={root}/rows.csv', f'--workdir={root}/never',
                      *told]) == 2
    assert 'it says nothing of any of the 24 training rows' in capfd.readouterr().err
    assert train(root, 'told', *told, '--config.init.seen=accept', FIRST) > LEAK
