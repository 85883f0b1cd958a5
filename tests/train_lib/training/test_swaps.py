"""Runs on pictures of arrows: flips without `swap` teach nothing, with it left stays left; and
views that mirror answer in the classes of the picture."""

import json
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

import train_lib
from input_pipeline import loader
from main import main
from tests.faults.running import assert_same_run
from train_lib.predictions import store
from train_lib.runtime.signals import STOPPED

CLASSES = ('left', 'right')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Arrows of 20 px in random places, pointing left or right."""
    root = tmp_path_factory.mktemp('arrows')
    rng = np.random.default_rng(0)
    for number in range(160):
        image = np.full((20, 20, 3), 235, np.uint8)
        image -= rng.integers(0, 30, image.shape, np.uint8)
        x, y = rng.integers(5, 9), rng.integers(6, 14)
        cv2.arrowedLine(image, (int(x) + 7, int(y)), (int(x) - 2, int(y)), (20, 20, 20), 2,
                        tipLength=0.45)
        if number % 2:
            image = np.ascontiguousarray(image[:, ::-1])
        path = root / CLASSES[number % 2] / f'{number:03d}.png'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), image)
    return root


def train(workdir, folder, curriculum, *flags, code=0):
    assert main(['--config=configs/sketch_cnn.py', '--config.data.source=folder',
                 f'--config.data.folder={folder}', f'--config.curriculum={curriculum}',
                 '--config.model=dict(name="small_cnn", width=8, stages=2)',
                 '--config.init.pretrained=', '--config.image.size=20', '--config.batch_size=32',
                 '--config.duration.steps=60', '--config.schedule.lr=0.01',
                 '--config.eval.every.steps=60', '--config.checkpoint.every.steps=20',
                 '--config.split.val=0.25', '--config.split.test=0.25', '--config.ema.decay=0',
                 '--config.report.heat_maps=False', '--config.log.tensorboard=False',
                 '--config.loss.label_smoothing=0', f'--workdir={workdir}', *flags]) == code
    return workdir


SWAPPED = "[dict(transforms=[dict(kind='hflip', swap={'left': 'right'})])]"


@pytest.fixture(scope='module')
def swapped(tmp_path_factory, folder):
    return train(tmp_path_factory.mktemp('swapped'), folder, SWAPPED)


def accuracy(run):
    return json.loads((run / 'result.json').read_text())['test']['accuracy']


def test_flips_are_learnt_from_only_with_swap(swapped, folder, tmp_path, capsys):
    plain = train(tmp_path, folder, "[dict(transforms=['hflip'])]")
    assert [line for line in capsys.readouterr().err.splitlines() if 'swap' in line] == [
        'stages   hflip without swap mirrors left/right (1 pair)']
    assert accuracy(swapped) > 0.95
    # A mirrored picture says the opposite half of the time: nothing can be learnt.
    assert accuracy(plain) < 0.7


def test_views_that_mirror_answer_in_the_classes_of_the_picture(swapped, folder, tmp_path, capsys):
    swapped = Path(shutil.copytree(swapped, tmp_path / 'run'))
    assert main(['predict', f'--workdir={swapped}', '--config.predict.views=identity,hflip',
                 '--config.predict.dtype=float32']) == 0
    assert 'without swap' not in capsys.readouterr().err
    views = [store.open_member(swapped / f'predictions/test/{view}')
             for view in ('identity', 'hflip')]
    labels = views[0].labels['class']
    for view in views:
        assert np.mean(view.logits['class'].argmax(1) == labels) > 0.9
    assert not np.allclose(*(view.logits['class'] for view in views))
    table = train_lib.load(swapped).predict(
        sorted(map(str, folder.glob('*/*.png'))), views=('identity', 'hflip'), probabilities=True)
    assert np.mean([f'/{name}/' in path for name, path in zip(table['prediction'], table['id'])]
                   ) > 0.95
    # The right answer, from the mirrored pictures themselves.
    run = train_lib.load(swapped)
    path = str(folder / 'left/000.png')
    picture = cv2.imread(path)[..., ::-1]
    of_view = run.predict([picture], views='hflip', probabilities=True)
    of_mirrored = run.predict([np.ascontiguousarray(picture[:, ::-1])], probabilities=True)
    np.testing.assert_allclose(of_view['left'], of_mirrored['right'], atol=1e-6)


def test_the_swap_of_a_view_without_flips_in_the_training(folder, tmp_path, capsys):
    run = train(tmp_path, folder, '()')

    def logits(*flags):
        assert main(['predict', f'--workdir={run}', '--config.predict.views=hflip',
                     *flags]) == 0
        return np.array(store.open_member(run / 'predictions/test/hflip').logits['class'])

    plain = logits()
    assert 'views    hflip without swap mirrors left/right (1 pair)' in capsys.readouterr().err
    found = logits("--config.predict.swap={'hflip': {'left': 'right'}}")
    assert 'without swap' not in capsys.readouterr().err
    np.testing.assert_array_equal(found, plain[:, ::-1])  # and what was stored is made anew
    for flag, words in (("{'rotate': {}}", "'rotate' does not mirror"),
                        ("{'hflip': {'lft': 'right'}}", "did you mean 'left'")):
        assert main(['predict', f'--workdir={run}', '--config.predict.views=hflip',
                     f'--config.predict.swap={flag}']) == 2
        assert words in capsys.readouterr().err


def test_a_stopped_run_goes_on_with_the_same_labels(swapped, folder, tmp_path, monkeypatch):
    """Bit for bit, with other numbers of threads and batches ahead."""
    inner = loader._TrainBatch.__call__

    def stopped(self, step):
        if int(step) == 27:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loader._TrainBatch, '__call__', stopped)
        train(tmp_path, folder, SWAPPED, '--config.loader.threads=3', code=STOPPED)
    train(tmp_path, folder, SWAPPED, '--config.loader.prefetch=2')
    assert_same_run(swapped, tmp_path)


def test_cached_views_have_one_label(folder, tmp_path, capsys):
    train(tmp_path, folder, SWAPPED, "--config.probe.heads=[dict(name='linear')]",
          '--config.probe.views=2', f'--config.probe.cache={tmp_path}', code=2)
    assert 'a flip with swap changes labels' in capsys.readouterr().err
