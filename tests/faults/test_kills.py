"""Killed at any instant, a run ends as if nothing had happened, and knows what it cost.

The long form (faults) trains four folds with everything on, kills them two dozen times, at moments
that are aimed at and a little random, and compares every bit with folds that nobody disturbed.
"""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

import main
from tests.faults import running
from tests.faults.running import QUICK, SMALL, Start, finish, result
from train_lib.run_dir import goodput

FOLDS = 4
EVAL, SAVE, EPOCH = 13, 5, 18  # steps; an epoch has 1,078 rows
SETTINGS = [
    *SMALL, '--config.split.kind=kfold', f'--config.split.folds={FOLDS}', '--config.split.fold=all',
    '--config.split.test=0.2', '--config.duration.epochs=10', '--config.log.every.steps=1',
    f'--config.eval.every.steps={EVAL}', f'--config.checkpoint.every.steps={SAVE}',
    '--config.curriculum[0].until.epochs=4',
    '--config.mixing=[dict(kind="mixup", p=0.5), dict(kind="cutmix", p=0.3, per="example")]',
    '--config.resample.kind=balanced', '--config.ema.decay=0.9',
    '--config.schedule.plateau.patience=dict(steps=26)', '--config.schedule.plateau.min_delta=0.05',
    '--config.early_stopping.patience=dict(steps=100)', '--config.early_stopping.min_delta=0.05']



def after_step(numbers) -> str:
    return rf'^step +({"|".join(map(str, numbers))})/'


# What to aim at in each fold, in this order: the line that comes just before it, and so many
# seconds later at most.
AIMS = {
    'a step': (after_step(range(20, 36)), 0.2),
    'an evaluation': (after_step(range(3 * EVAL, 999, EVAL)), 0.02),
    'a commit': (after_step(range(58, 70)), 0.02),
    'a stage': (after_step(range(4 * EPOCH - 1, 4 * EPOCH + 1)), 0.01),
    'an epoch': (after_step(range(5 * EPOCH, 999, EPOCH)), 0.01),
    'the last scores': (rf'^early stopping|^step +{10 * EPOCH}/', 0.8),
    'the end of a fold': ('^val +accuracy', 0.5),
}


def disturb(start: Start, workdir: Path, fold: int, aim: str, number: int, chance: random.Random
            ) -> str | None:
    """Sends the signal there, and returns the last line before it; None if the run was over."""
    pattern, spread = AIMS[aim]
    begun = start.wait_for(rf'^fold {fold + 1} of {FOLDS}')
    if begun is None or start.wait_for(pattern, after=begun) is None:
        return None
    if aim == 'a commit':
        checkpoints = workdir / f'fold_{fold}/checkpoints'
        if not start.wait_until(lambda: any(checkpoints.glob('writing-*'))):
            return None
    time.sleep(chance.uniform(0, spread))
    start.signal(number)
    return start.lines[-1]


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('unbroken') / 'run'
    finish(workdir, *SETTINGS)
    return workdir


def assert_same_folds(left: Path, right: Path, folder: Path) -> None:
    for fold in range(FOLDS):
        running.assert_same_run(left / f'fold_{fold}', right / f'fold_{fold}')
        pages = [page(one / f'fold_{fold}', folder / f'{i}/{fold}') for i, one in
                 enumerate((left, right))]
        assert pages[0] == pages[1]
        assert (left / f'fold_{fold}/split.csv').read_bytes() == (
            right / f'fold_{fold}/split.csv').read_bytes()
    running.assert_same_predictions(left, right)
    assert running.without_times(result(left)) == running.without_times(result(right))
    assert running.leftovers(right) == []


def page(workdir: Path, copy: Path) -> str:
    """The report of a run as it were without times."""
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns('checkpoints'))
    (copy / 'result.json').write_text(json.dumps(running.without_times(result(copy))))
    assert main.main(['report', f'--workdir={copy}']) == 0
    return (copy / 'report.html').read_text()


def lost_seconds(workdir: Path, starts: list[Start]) -> None:
    wall, known = sum(start.seconds for start in starts), result(workdir)['seconds']['total']
    print(f'{len(starts)} starts, wall {wall:.1f} s, result.json {known:.1f} s, '
          f'{100 * (known / wall - 1):+.2f} %')
    # What a start did before it had its workdir or after its last beat, nobody can know.
    assert wall - goodput.BEAT * len(starts) - 0.01 * wall < known < 1.01 * wall


@pytest.mark.faults
def test_sigkill_anywhere_in_folds_changes_nothing(unbroken, tmp_path):
    workdir, seed = tmp_path / 'run', int(os.environ.get('SEED', time.time_ns() % 10**6))
    chance, starts, places = random.Random(seed), [], []
    for fold in range(FOLDS):
        for aim in AIMS:
            starts.append(Start(workdir, *SETTINGS))
            said = disturb(starts[-1], workdir, fold, aim, signal.SIGKILL, chance)
            starts[-1].end()
            places.append(f'fold {fold}, {aim}: {said!r}')
    starts.append(finish(workdir, *SETTINGS))
    killed = sum(start.process.returncode == -signal.SIGKILL for start in starts)
    print(f'seed {seed}, killed {killed} times', *places, sep='\n')
    lost_seconds(workdir, starts)
    assert killed >= 24
    assert_same_folds(unbroken, workdir, tmp_path)


@pytest.mark.faults
def test_sigterm_anywhere_in_folds_loses_no_step(unbroken, tmp_path):
    workdir, seed = tmp_path / 'run', int(os.environ.get('SEED', time.time_ns() % 10**6))
    chance, starts, lost = random.Random(seed), [], []
    for fold in range(FOLDS):
        for aim in AIMS:
            starts.append(Start(workdir, *SETTINGS))
            said = disturb(starts[-1], workdir, fold, aim, signal.SIGTERM, chance)
            code = starts[-1].end(180)
            done = said is None or 'out of fold' in starts[-1].log  # it was over before
            assert code in ((0, -signal.SIGTERM) if done else (75,)), starts[-1].log
            lost.append((fold, aim, said, steps_lost(starts)))
    starts.append(finish(workdir, *SETTINGS))
    print(f'seed {seed}', *lost, sep='\n')
    assert all(entry[-1] <= 1 for entry in lost)
    # No training is lost, but the last scores of a fold that were not yet done are made anew.
    late = sum(aim in ('the last scores', 'the end of a fold') for _, aim, *_ in lost)
    assert result(workdir)['seconds'].get('lost', 0) < 0.5 * late
    lost_seconds(workdir, starts)
    assert_same_folds(unbroken, workdir, tmp_path)


def steps_lost(starts: list[Start]) -> int:
    """Steps that the last start but one had logged and the last one began before."""
    if len(starts) < 2:
        return 0
    logged = re.findall(r'^fold (\d)|^step +(\d+)/', starts[-2].log, re.M)
    resumed = re.findall(r'^fold (\d)|resume: from step (\d+)', starts[-1].log, re.M)

    def last(found):
        of, fold = {}, 0
        for number, step in found:
            fold = int(number or fold)
            if step:
                of[fold] = int(step)
        return of

    before, after = last(logged), last(resumed)
    return max((before[fold] - after[fold] for fold in before if fold in after), default=0)


def test_seconds_by_kind_add_up_to_the_wall_time_of_all_starts(tmp_path):
    workdir = tmp_path / 'run'
    flags = [*SMALL, '--config.checkpoint.every.steps=20', '--config.eval.every.steps=30',
             '--config.log.every.steps=1', *QUICK]
    killed = Start(workdir, *flags, '--config.duration.steps=5000')
    assert killed.wait_until(lambda: (workdir / 'checkpoints/20').exists())
    # It is exact to a beat, so this is just after one.
    beat = os.stat(workdir / goodput.FILE).st_mtime_ns
    assert killed.wait_until(lambda: os.stat(workdir / goodput.FILE).st_mtime_ns != beat)
    killed.kill()
    begun = time.time()
    more = int(running.last_checkpoint(workdir).name) + 40
    finish(workdir, *flags, f'--config.duration.steps={more}')
    written = os.stat(workdir / 'result.json').st_mtime
    wall = killed.seconds + written - begun
    found = result(workdir)
    seconds = found['seconds']
    print(f'wall {wall:.2f} s', seconds)
    assert seconds['total'] == pytest.approx(wall, rel=0.01, abs=0.1)
    kinds = {kind: value for kind, value in seconds.items() if kind != 'total'}
    assert sum(kinds.values()) == pytest.approx(seconds['total'], abs=0.01)
    assert {'start', 'restart', 'compile', 'data', 'step', 'eval', 'checkpoint', 'report',
            'lost'} <= kinds.keys()
    assert kinds['restart'] > 0.5 and kinds['lost'] > 0 and kinds['other'] < 0.1 * wall
    assert found['goodput'] == pytest.approx(kinds['step'] / seconds['total'], abs=1e-3)
