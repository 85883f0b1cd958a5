"""Runs with a live teacher: it leaks nothing, and stays the same. Killed runs of every objective
besides labels end as if nothing had happened, and two devices give the run of one."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import main
from tests.faults import running
from tests.train_lib.training.few_pictures import (
    FEW,
    FIXMATCH,
    FOLDS,
    TINY,
    flags,
    last_line,
    rows_of,
    write,
)
from train_lib.run_dir import ancestors

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp('pictures'))


@pytest.fixture(scope='module')
def train(pictures):
    """(workdir, *flags) -> exit code."""
    return lambda workdir, *more: main.main([*flags(pictures, *more), f'--workdir={workdir}'])


@pytest.fixture(scope='module')
def first(train, tmp_path_factory) -> Path:
    """A run with few labels and the others hidden."""
    workdir = tmp_path_factory.mktemp('first') / 'run'
    assert train(workdir, *FIXMATCH, FEW) == 0
    return workdir


@pytest.mark.parametrize('flag, message', [
    ('features=1.0', 'config.teacher.features = 1.0 needs config.teacher.workdir'),
    ('weight=2.0', 'config.teacher.weight = 2.0: give a number from 0 to 1')])
def test_settings_of_no_teacher_are_not_ignored(train, tmp_path, capsys, flag, message):
    assert train(tmp_path / 'run', f'--config.teacher.{flag}') == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_accepted_is_marked(train, first, tmp_path):
    workdir = tmp_path / 'run'
    assert train(workdir, '--config.seed=1', f'--config.teacher.workdir={first}',
                 '--config.init.seen=accept') == 0
    result = json.loads((workdir / 'result.json').read_text())
    assert result['seen']['test'] > 0 and result['seen_accepted']
    assert [run['workdir'] for run in result['ancestors']] == [str(first)]
    assert rows_of(workdir)[0]['teacher_loss'] is not None
    # A run that does not know its record derives it from the config.
    for name in (ancestors.NAME, ancestors.ROWS):
        (workdir / name).unlink()
    assert set(ancestors.ancestry_of(workdir).rows) == set(ancestors._below(first, '').rows)


@pytest.mark.slow
def test_another_teacher_does_not_go_on(train, first, tmp_path, capfd):
    teacher = tmp_path / 'teacher'
    shutil.copytree(first, teacher)
    more = (f'--config.teacher.workdir={teacher}', FEW)
    assert train(tmp_path / 'run', *more) == 0
    assert train(tmp_path / 'run', *more) == 0
    shutil.rmtree(teacher)
    assert train(teacher, *FIXMATCH, FEW, '--config.schedule.lr=0.1') == 0
    assert train(tmp_path / 'run', *more) == 2
    assert 'has other best weights' in last_line(capfd)


@pytest.fixture(scope='module')
def kfold(train, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('kfold') / 'folds'
    assert train(workdir, *FOLDS) == 0
    return workdir


@pytest.mark.slow
def test_each_fold_has_its_own_teacher(train, kfold, tmp_path, capfd):
    assert train(tmp_path / 'run', *FOLDS, f'--config.teacher.workdir={kfold}') == 0
    for fold in range(2):
        result = json.loads((tmp_path / f'run/fold_{fold}/result.json').read_text())
        assert result['ancestors'][0]['workdir'] == str(kfold / f'fold_{fold}')
        assert result['seen']['val'] == 0
    capfd.readouterr()
    for more, words in ((f'{kfold}/fold_1', 'trained on'), (kfold, 'holds out other rows')):
        assert train(tmp_path / 'other', *FOLDS, f'--config.teacher.workdir={more}',
                     *(['--config.seed=5'] if words != 'trained on' else [])) == 2
        assert words in last_line(capfd)
    assert train(tmp_path / 'one', f'--config.teacher.workdir={kfold}') == 2
    assert 'is a k-fold run' in last_line(capfd)


@pytest.mark.slow
def test_random_labels_stay_random(tmp_path):
    """Teachers that know their training pictures by heart teach students nothing about pictures
    that both hold out. The two pictures of a person are nearly the same one, so a fold that sees
    one of them knows the label of the other: where people are on both sides, that shows."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(60) % 2
    for person, label in enumerate(labels):
        face = rng.integers(0, 255, (16, 16, 3))
        for k in range(2):
            path = tmp_path / 'data' / 'ab'[label] / f'{person:03}_{k}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), (face + k).clip(0, 255).astype(np.uint8))
    hard = ['--config.duration.steps=150', '--config.batch_size=24', '--config.eval.every.steps=75',
            '--config.model=dict(name="small_cnn", width=16, stages=2)', *FOLDS,
            '--config.early_stopping.restore_best=false']

    def accuracies(name: str, *more: str) -> tuple[float, float]:
        """(out of fold, of training pictures)"""
        assert main.main([*flags(tmp_path / 'data', *hard, *more),
                          f'--workdir={tmp_path / name}']) == 0
        train = [row['accuracy'] for row in rows_of(tmp_path / name / 'fold_0')
                 if row['split'] == 'train']
        result = json.loads((tmp_path / name / 'result.json').read_text())
        return result['out_of_fold']['accuracy'], train[-1]

    out, inside = accuracies('teacher')
    assert inside > 0.95
    taught, inside = accuracies('student', f'--config.teacher.workdir={tmp_path}/teacher',
                                '--config.teacher.weight=0.9')
    assert inside > 0.9
    # 60 people: three standard errors are .19.
    assert abs(out - 0.5) < 0.2 and abs(taught - 0.5) < 0.2
    leaking, _ = accuracies('torn', '--config.split.grouped=false')
    assert leaking > 0.68  # so it would show: half of the people are on both sides


# --- exactness -----------------------------------------------------------------------------------

EXACT = ['--config.duration.steps=14', '--config.log.every.steps=3', '--config.eval.every.steps=5',
         '--config.checkpoint.every.steps=4', '--config.ema.decay=0.9', '--config.guard.skip=2']
OBJECTIVES = {
    'fixmatch': [*FIXMATCH, FEW, '--config.mixing=["mixup"]', '--config.loader.workers=1'],
    'mean_teacher': ['--config.unlabelled.kind=mean_teacher', FEW, '--config.accumulate=2',
                     '--config.unlabelled.ramp.steps=8', '--config.ema.statistics=16'],
    'teacher': ['--config.teacher.workdir={first}', '--config.teacher.features=3', FEW]}


@pytest.mark.slow
@pytest.mark.parametrize('name', OBJECTIVES)
def test_a_killed_run_ends_as_if_nothing_had_happened(pictures, first, tmp_path, name):
    more = [flag.replace('{first}', str(first)) for flag in OBJECTIVES[name]]
    argv = [sys.executable, 'main.py', *flags(pictures, *EXACT, *more)]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}

    def start(workdir):
        return subprocess.Popen([*argv, f'--workdir={workdir}'], cwd=ROOT, env=environment,
                                stderr=subprocess.PIPE, text=True)

    whole = start(tmp_path / 'whole')
    log = whole.communicate(timeout=600)[1]
    assert whole.returncode == 0, log
    broken = tmp_path / 'broken'
    kills = 0
    for step in (4, 8):
        process = start(broken)
        end = time.monotonic() + 600
        while process.poll() is None and time.monotonic() < end:
            if (broken / f'checkpoints/{step}').exists():
                process.kill()
                kills += 1
                break
            time.sleep(0.005)
        process.communicate()
    process = start(broken)
    log = process.communicate(timeout=600)[1]
    assert process.returncode == 0 and kills == 2, log
    assert 'resume: from step' in log
    running.assert_same_run(tmp_path / 'whole', broken)


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> dict:
    """See two_devices.py."""
    teacher = tmp_path_factory.mktemp('digits') / 'teacher'
    assert main.main(['--config=configs/sketch_cnn.py:data=digits', *TINY,
                      f'--workdir={teacher}']) == 0
    flags_of_xla = ('--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 '
                    '--xla_llvm_disable_expensive_passes=true')
    done = subprocess.run(
        [sys.executable, '-m', 'tests.train_lib.training.two_devices', str(teacher)], cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': flags_of_xla, 'JAX_PLATFORMS': 'cpu'}, capture_output=True,
        text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fixmatch', 'mean_teacher'])
@pytest.mark.parametrize('mesh', ['data', 'fsdp'])
def test_two_devices_give_the_run_of_one(two, kind, mesh):
    one, other = two[kind]['one'], two[kind][mesh]
    np.testing.assert_allclose(other['losses'], one['losses'], rtol=1e-5)
    np.testing.assert_allclose(other['logits'], one['logits'], atol=1e-3)
    for name, value in one['sums'].items():
        np.testing.assert_allclose(other['sums'][name], value, rtol=1e-3, err_msg=name)
    assert one['sums']['unlabelled/loss'] > 1e-6
    if kind == 'fixmatch':
        assert one['teacher'] == 1 and (other['teacher'] < 0.6) == (mesh == 'fsdp')
