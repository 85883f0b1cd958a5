"""16-bit pictures through the verbs: one range for a run, recorded and kept."""

import json
import os

import cv2
import numpy as np
import pytest

import main
from input_pipeline.sixteen_bits import FULL
from train_lib.commands.command_line import parse
from train_lib.predictions.store import open_member
from train_lib.run_dir import workdirs
from train_lib.training.data import load_data

SETTINGS = ['--config.image.size=16', '--config.batch_size=8', '--config.curriculum=()',
            '--config.model=dict(name="small_cnn", width=8, stages=2)',
            '--config.log.tensorboard=false', '--config.data.rules=2']


def write_set(root, top: int, brightest: int = 0) -> str:
    """Ten pictures of 16 bits in each of two classes: bright above or below, values up to `top`,
    one of them up to `brightest`. Returns the flag that names them."""
    rng = np.random.default_rng(0)
    for label, rows in (('above', slice(0, 8)), ('below', slice(8, 16))):
        os.makedirs(root / label)
        for k in range(10):
            values = rng.integers(0, top // 4, (16, 16)).astype(np.uint16)
            values[rows] += np.uint16(top - top // 4)
            values[0, 0] = brightest if brightest and k == 0 else top
            cv2.imwrite(str(root / label / f'{k}.png'), values)
    return f'--config=configs/sketch_vit.py:folder={root}'


def call(verb: str, source: str, workdir, *argv: str) -> int:
    return main.main([verb, source, *SETTINGS, f'--workdir={workdir}', *argv])


def config_of(workdir) -> dict:
    return json.loads((workdir / 'config.json').read_text())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp('range16')
    source = write_set(base / 'data', 3000)
    assert call('train', source, base / 'run', '--config.duration.steps=2') == 0
    return source, base / 'run'


def test_the_range_is_recorded(run):
    _, workdir = run
    assert config_of(workdir)['range16'] == [0, 4095]
    assert config_of(workdir)['image']['range16'] == 'auto'
    assert workdirs.range16_of(workdir) == (0, 4095)


def test_a_start_from_a_run_with_another_range_is_told(run, tmp_path, caplog):
    """Its weights saw the same values darker or brighter."""
    source, workdir = run
    other = write_set(tmp_path / 'data', 1500)
    words = 'input    16-bit values: 0 to 2047 here, 0 to 4095 in the run of init.from'
    for data, more in ((other, ''), (source, ''), (other, '(0, 4095)')):
        caplog.clear()
        config = parse([data, f'--config.init.from={workdir}',
                        *([f'--config.image.range16={more}'] if more else [])]).config
        load_data(config)
        assert (words in caplog.messages) == (data == other and not more)


def test_a_run_that_goes_on_keeps_its_range(run, tmp_path):
    """Also where a picture was added that is brighter than all it had."""
    source, workdir = run
    config = parse(['train', source, *SETTINGS, f'--workdir={workdir}']).config
    assert load_data(config, workdir).range16 == (0, 4095)
    assert load_data(config).range16 == (0, 4095)
    other = write_set(tmp_path / 'other', 3000, brightest=60_000)
    bright = parse(['train', other, *SETTINGS]).config
    assert load_data(bright).range16 == FULL
    assert load_data(bright, workdir).range16 == (0, 4095)
    with bright.unlocked():
        bright.init.resume_from = str(workdir)
    assert load_data(bright, tmp_path / 'new').range16 == (0, 4095)
    assert call('train', source, workdir, '--config.duration.steps=3') == 0
    assert config_of(workdir)['range16'] == [0, 4095]


def test_predict_reads_other_data_as_the_run_does(run, tmp_path, capfd):
    source, workdir = run
    other = write_set(tmp_path / 'other', 3000, brightest=60_000)
    for name, data in (('same', source), ('bright', other)):
        assert call('predict', data, workdir, '--config.predict.source=data',
                    f'--config.predict.name={name}', '--config.predict.dtype=float32') == 0
    assert 'have values above 4,095, which become white' in capfd.readouterr().err
    one, two = (open_member(workdir / 'predictions' / name / 'identity')
                for name in ('same', 'bright'))
    differ = np.abs(one.logits['class'] - two.logits['class']).max(axis=1) > 1e-4
    names = [name.rpartition('/')[2] for name in one.ids[differ]]
    assert set(names) <= {'0.png'}  # only the two pictures that are another


def test_a_run_from_before_reads_16_bits_as_it_did(run, tmp_path, capfd):
    source, _ = run
    workdir = tmp_path / 'old'
    assert call('train', source, workdir, '--config.duration.steps=2',
                '--config.image.range16=full') == 0
    content = config_of(workdir)
    assert content['range16'] == list(FULL)
    del content['range16'], content['image']['range16'], content['sha256']
    del content['defaults']['image.range16']
    (workdir / 'config.json').write_text(json.dumps(content))
    assert workdirs.range16_of(workdir) == FULL
    capfd.readouterr()
    assert call('train', source, workdir, '--config.duration.steps=3') == 0  # 'auto' is not asked
    said = capfd.readouterr().err
    assert 'resume: from step 2 of 3' in said and 'reach only the lowest sixteenth' in said
    assert config_of(workdir)['range16'] == list(FULL)


def test_all_folds_share_a_range(run, tmp_path):
    source, _ = run
    assert call('train', source, tmp_path / 'folds', '--config.duration.steps=1',
                '--config.split.kind=kfold', '--config.split.folds=2',
                '--config.split.fold=all') == 0
    for folder in ('', 'fold_0', 'fold_1'):
        assert workdirs.range16_of(tmp_path / 'folds' / folder) == (0, 4095)


def test_a_wrong_range_is_one_sentence(run, tmp_path, capfd):
    source, _ = run
    for verb in ('train', 'explore'):
        assert call(verb, source, tmp_path / verb, '--config.image.range16=(9, 2)') == 2
        assert 'image.range16=(9, 2) is not a valid range' in capfd.readouterr().err


def test_explore_says_that_all_are_empty(tmp_path, capfd):
    source = write_set(tmp_path / 'data', 200)
    assert call('explore', source, tmp_path / 'full', '--config.image.range16=full') == 0
    said = capfd.readouterr().err
    assert 'pictures 20, 0 unreadable, all 20 are empty\n' in said and 'suspicious' not in said
    assert 'All 20 are empty.' in (tmp_path / 'full/explore.html').read_text()
    assert call('explore', source, tmp_path / 'auto') == 0
    said = capfd.readouterr().err
    assert 'are empty' not in said and '16 bits per value and use 8 of them' in said
    page = (tmp_path / 'auto/explore.html').read_text()
    assert 'use 8 of them (up to 200)' in page and 'are empty' not in page
