"""Disks that are full, write-protected or gone: the run ends with one sentence and not with 0, what
was saved is whole, and with the disk in order it goes on to the same end.

Full disks are real ones where this process may mount a small one (tmpfs), and a limit on the size
of files elsewhere.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

import main
from tests.faults.old_runs.make import SETTINGS
from tests.faults.running import Start, finish
from train_lib.run_dir import checkpoints, lock
from train_lib.run_dir.checkpoints import committed_steps, damage
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.trees import by_path
from train_lib.training.state import to_stored

RUN = [flag for flag in SETTINGS if not re.search('every.steps|duration', flag)] + [
    '--config.log.every.steps=1', '--config.eval.every.steps=10',
    '--config.checkpoint.every.steps=2', '--config.duration.steps=120']


@contextlib.contextmanager
def small_disk(folder: Path, kib: int):
    """A disk of so many KiB mounted on the folder."""
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'tmpfs', str(folder)],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'no disk can be mounted here: {done.stderr}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def one_sentence(log: str, words: str) -> None:
    """At the end. Threads of libraries may have complained before."""
    assert re.search(words, log.splitlines()[-1]), log
    assert not re.search(r'File ".*main\.py"', log), log


def same_end(run: Path, whole: Path) -> None:
    """The same rows and the same last weights."""
    assert (run / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    step = committed_steps(whole / 'checkpoints')[-1]
    ours, theirs = (by_path(checkpoints.read_weights(one / f'checkpoints/{step}'))
                    for one in (run, whole))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def intact(run: Path) -> list[int]:
    steps = committed_steps(run / 'checkpoints')
    for step in steps:
        assert not damage(run / f'checkpoints/{step}'), step
    return steps


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp('whole') / 'run'
    finish(run, *RUN)
    return run


@pytest.mark.faults
@pytest.mark.parametrize('tensorboard', ['false', 'true'])
@pytest.mark.parametrize('room', [40, 120, 260, 330, 400, 470, 540, 640])
def test_a_full_disk(whole, tmp_path, room, tensorboard):
    """With so many KiB of room: not enough for the first files, the frozen weights, a save, ..."""
    more = f'--config.log.tensorboard={tensorboard}'
    flags = [flag for flag in RUN if 'tensorboard' not in flag] + [more]
    with small_disk(tmp_path / 'disk', 4096) as disk:
        run, ballast = disk / 'run', disk / 'ballast'
        ballast.write_bytes(bytes((4096 - room) * 1024))
        start = Start(run, *flags)
        assert start.end() in (1, 2), start.log
        one_sentence(start.log, 'No space left on device')
        steps = intact(run)
        print(f'{room} KiB: checkpoints {steps} when it ended')
        ballast.unlink()
        log = finish(run, *flags).log
        assert not steps or f'resume: from step {steps[-1]} ' in log
        same_end(run, whole)
        assert not list((run / 'checkpoints').glob('writing-*'))


@pytest.mark.faults
@pytest.mark.parametrize('room', [600, 1600, 3000])
def test_a_full_disk_under_a_study(tmp_path, room):
    """It does not count as a failed cell, and with room again the study continues."""
    with small_disk(tmp_path / 'disk', 60_000) as disk:
        ballast, study = disk / 'ballast', disk / 'study'
        ballast.write_bytes(bytes((60_000 - room) * 1024))
        flags = ['--config=configs/studies/digits.py', '--config.duration.epochs=3',
                 '--config.checkpoint.every.steps=2', '--config.checkpoint.keep=99',
                 '--config.study.seeds=(0,)']
        start = Start(study, *flags, verb='study')
        assert start.end() == 2, start.log
        one_sentence(start.log, 'No space left on device')
        assert not list(study.rglob('error.txt'))
        ballast.unlink()
        finish(study, *flags, verb='study')
        assert {json.loads(path.read_text())['status'] for path in study.rglob('cell.json')} == {
            'done'}


@pytest.mark.faults
@pytest.mark.parametrize('limit', [3000, 9000, 16000])
def test_files_that_may_not_grow(whole, tmp_path, limit):
    """A limit on the size of files (quotas look alike), reached by one file or another."""
    program = ('import os, resource, runpy, sys; '
               f'resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); '
               'runpy.run_path("main.py", run_name="__main__")')
    done = subprocess.run(
        [sys.executable, '-c', program, *RUN, '--config.compile_cache=no',
         f'--workdir={tmp_path / "run"}'], cwd=Path(main.__file__).parent, text=True, timeout=400,
        capture_output=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    assert done.returncode in (1, 2), done.stderr
    one_sentence(done.stderr, 'File too large')
    intact(tmp_path / 'run')
    finish(tmp_path / 'run', *RUN)
    same_end(tmp_path / 'run', whole)


@pytest.mark.faults
def test_a_write_protected_disk(whole, tmp_path):
    """As it was before the start: the kernel protects none on which files are being written."""
    with small_disk(tmp_path / 'disk', 8192) as disk:
        shutil.copytree(whole, disk / 'run')
        shutil.rmtree(disk / 'run/checkpoints/120')
        subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
        start = Start(disk / 'run', *RUN)
        assert start.end() in (1, 2), start.log
        one_sentence(start.log, 'Read-only file system')
        subprocess.run(['mount', '-o', 'remount,rw', str(disk)], check=True)
        intact(disk / 'run')
        finish(disk / 'run', *RUN)
        same_end(disk / 'run', whole)


@pytest.mark.faults
@pytest.mark.parametrize('how', ['removed', 'moved'])
def test_a_workdir_that_vanishes(whole, tmp_path, how):
    run, away = tmp_path / 'run', tmp_path / 'away'
    start = Start(run, *RUN)
    assert start.wait_until((run / 'checkpoints/20').exists)
    if how == 'moved':
        run.rename(away)
    else:
        while run.exists():
            shutil.rmtree(run, ignore_errors=True)
    assert start.end() == 1, start.log
    one_sentence(start.log, 'disappeared')
    if how == 'moved':
        shutil.rmtree(run, ignore_errors=True)  # what a save had begun
        intact(away)
        away.rename(run)
        assert 'resume: from step' in finish(run, *RUN).log
        same_end(run, whole)


@pytest.mark.faults
@pytest.mark.parametrize('how', ['ro', 'nr_inodes=3', 'size=24k', 'size=400k'])
def test_caches_that_cannot_be_written_end_nothing(tmp_path, how):
    """Write-protected, without room for a single file, and full at once or after a while."""
    with small_disk(tmp_path / 'cache', 400) as cache:
        subprocess.run(['mount', '-o', f'remount,{how}', str(cache)], check=True)
        folder = tmp_path / 'pictures'
        for name in ('a', 'b'):
            (folder / name).mkdir(parents=True)
            for k in range(30):
                cv2.imwrite(str(folder / name / f'{k}.png'),
                            np.random.default_rng(k).integers(0, 255, (9, 9, 3), np.uint8))
        flags = [flag for flag in RUN if 'long_tail' not in flag and 'duration' not in flag][1:]
        log = finish(tmp_path / 'run', f'--config=configs/sketch_vit.py:folder={folder}', *flags,
                     '--config.duration.steps=4',
                     # Compiled programs go there too, not to the cache of the tests.
                     environment={'XDG_CACHE_HOME': str(cache),
                                  'JAX_COMPILATION_CACHE_DIR': ''}).log
        assert 'Traceback' not in log, log


def test_a_save_that_fails_ends_the_run(tmp_path, monkeypatch, capfd):
    """Orbax fails in the background, the third time it is asked to save."""
    from train_lib.run_dir.checkpoints import ocp
    asked = []
    wait = ocp.AsyncCheckpointer.wait_until_finished

    def fail(self):
        wait(self)
        in_background = threading.current_thread().name.startswith('checkpoint')
        asked.extend([self] * in_background)
        if in_background and len(asked) == 3:
            raise ValueError('DATA_LOSS: Error writing local file "/somewhere/d": Input/output '
                             'error')

    flags = [flag for flag in RUN if 'duration' not in flag]
    monkeypatch.setattr(ocp.AsyncCheckpointer, 'wait_until_finished', fail)
    command = [*flags, '--config.duration.steps=12', f'--workdir={tmp_path}']
    assert main.main(command) == 1
    one_sentence(capfd.readouterr().err, r'/somewhere/d cannot be .*Input/output error')
    assert intact(tmp_path) == [2, 4]
    assert main.main(command) == 0
    assert 'resume: from step 4 of 12' in capfd.readouterr().err


def test_a_bug_is_not_taken_for_a_disk(tmp_path, monkeypatch):
    """And when the run has ended by it, nothing of it writes there any more."""
    def fail(run, state, host, iterator, checkpointer, *_):
        with pytest.raises(ConfigError, match='in use'), lock.held(tmp_path):
            pass
        checkpointer.save(1, to_stored(state), iterator, host.to_json())
        raise KeyError('a bug')

    monkeypatch.setattr('train_lib.training.run.train_loop', fail)
    with pytest.raises(KeyError, match='a bug'):
        main.main([*RUN, f'--workdir={tmp_path}'])
    assert intact(tmp_path) == [1]
    assert not [thread for thread in threading.enumerate() if 'checkpoint' in thread.name]
    assert not (tmp_path / 'lock').exists()
