"""Runs with unlabelled pictures: which they are, what is refused, and that a killed run goes on
exactly. Runs with a teacher: the same, and that it leaks nothing."""

import csv
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
from train_lib.commands.command_line import parse
from train_lib.run_dir import ancestors
from train_lib.training.data import load_data, split_data

ROOT = Path(__file__).parents[3]
TINY = ['--config.image.size=16', '--config.curriculum=()', '--config.batch_size=8',
        '--config.model=dict(name="small_cnn", width=8, stages=2, drop_rate=0.2)',
        '--config.log.tensorboard=false', '--config.report.heat_maps=false',
        '--config.split.val=0.2', '--config.split.test=0.2', '--config.compile_cache=true',
        '--config.duration.steps=2', '--config.unlabelled.batch_size=8']
FIXMATCH = ['--config.unlabelled.kind=fixmatch', '--config.unlabelled.threshold=0.5']
FEW = '--config.data.long_tail.per_class=4'
FOLDS = ['--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all',
         '--config.split.test=0']


def write(folder: Path, people: int = 30, seed: int = 0) -> Path:
    """Two noisy pictures of one class of each person, who is the group."""
    rng = np.random.default_rng(seed)
    for k in range(2 * people):
        path = folder / 'ab'[k // 2 % 2] / f'{k // 2:03}_{k % 2}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (16, 16, 3), np.uint8))
    return folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp('pictures'))


def flags(pictures, *more: str) -> list[str]:
    given = {flag.partition('=')[0]: flag for flag in (*TINY, *more)}  # the last one counts
    return [f'--config=configs/sketch_cnn.py:folder={pictures}',
            r'--config.data.group_regex=/(\d+)_', *given.values()]


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


def data_of(pictures, *more: str):
    config = parse(flags(pictures, *more)).config
    return split_data(config, load_data(config))


def ids(manifest) -> set[str]:
    return set(manifest.table['id'])


def last_line(capfd) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


def rows_of(workdir: Path, name: str = 'metrics.jsonl') -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


# --- which pictures --------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(4))
def test_hidden_rows_train(pictures, seed):
    """Those that the tail leaves out; with all rows they are the rows of a run without a tail."""
    whole = data_of(pictures, f'--config.seed={seed}')
    few = data_of(pictures, *FIXMATCH, FEW, f'--config.seed={seed}')
    hidden = ids(few.unlabelled.rows)
    assert len(few.parts['train']) == 8 and len(hidden) == len(whole.parts['train']) - 8
    assert hidden | ids(few.parts['train']) == ids(whole.parts['train'])
    for name in ('val', 'test'):
        assert ids(few.parts[name]) == ids(whole.parts[name]) and not hidden & ids(few.parts[name])
    groups = set(few.unlabelled.rows.table['group'])
    assert not groups & {*few.parts['val'].table['group'], *few.parts['test'].table['group']}
    assert few.unlabelled.truth and few.unlabelled.held_out == 0


def table_of(pictures, path: Path, label) -> Path:
    """A CSV of all pictures; label(class, number) -> what stands there."""
    names = sorted(str(one.relative_to(pictures)) for one in pictures.rglob('*.png'))
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([('image', 'label', 'group'), *(
            (name, label(name[0], k), Path(name).name[:3]) for k, name in enumerate(names))])
    return path


def test_rows_without_a_label_are_hidden_ones(pictures, tmp_path):
    table = table_of(pictures, tmp_path / 'table.csv', lambda name, k: name if k % 3 else '')
    config = parse([f'--config=configs/sketch_cnn.py:csv={table},images={pictures}', *TINY,
                    *FIXMATCH]).config
    data = split_data(config, load_data(config))
    assert (data.parts['train'].labels('class') >= 0).all()
    assert (data.unlabelled.rows.labels('class') == -1).all() and not data.unlabelled.truth
    table = data.manifest.table
    assert ids(data.unlabelled.rows) | ids(data.parts['train']) == set(
        table['id'][table['split'] == 'train'])
    config.unlabelled.kind = 'none'  # as before: they are in the labelled batches
    assert (split_data(config, load_data(config)).parts['train'].labels('class') < 0).any()


@pytest.fixture(scope='module')
def others(pictures, tmp_path_factory) -> Path:
    """New pictures, and copies of all of the run."""
    folder = write(tmp_path_factory.mktemp('others') / 'new', people=6, seed=1)
    shutil.copytree(pictures, folder / 'copies')
    return folder


def test_copies_of_held_out_pictures_are_left_out(pictures, others):
    more = (*FIXMATCH, '--config.unlabelled.source=folder', f'--config.unlabelled.folder={others}')
    data = data_of(pictures, *more)
    held = len(data.parts['val']) + len(data.parts['test'])
    assert data.unlabelled.held_out == held and not data.unlabelled.kept
    names = {Path(name).name for name in ids(data.unlabelled.rows) if name.startswith('copies')}
    assert names == {Path(name).name for name in ids(data.parts['train'])}
    assert len(data.unlabelled.rows) == 12 + len(data.parts['train'])
    kept = data_of(pictures, *more, '--config.unlabelled.transductive=True').unlabelled
    assert kept.kept and kept.held_out == held and len(kept.rows) == 12 + 60
    archive = shutil.make_archive(str(others.parent / 'archive'), 'zip', others)
    zipped = data_of(pictures, *more[:-1], f'--config.unlabelled.folder={archive}').unlabelled
    assert zipped.held_out == held and len(zipped.rows) == len(data.unlabelled.rows)


def test_groups_of_held_out_pictures_are_left_out(pictures, others, tmp_path):
    """Other pictures of the people who validate or test."""
    table = tmp_path / 'more.csv'
    new = sorted(str(one.relative_to(others)) for one in others.glob('[ab]/*.png'))
    people = sorted({Path(name).name[:3] for name in map(str, pictures.rglob('*.png'))})
    with open(table, 'w', newline='') as file:
        csv.writer(file).writerows([('image', 'group'), *zip(new, people)])
    data = data_of(pictures, *FIXMATCH, '--config.unlabelled.source=csv',
                   f'--config.unlabelled.csv={table}', f'--config.unlabelled.images={others}')
    groups = set(data.unlabelled.rows.table['group'])
    assert groups == {person for person in people[:12]
                      if person in set(data.parts['train'].table['group'])}
    assert data.unlabelled.held_out == 12 - len(groups) > 0


# --- a run ---------------------------------------------------------------------------------------


def test_what_a_run_writes(first):
    row, = [row for row in rows_of(first) if row['split'] == 'train']
    assert {'unlabelled_loss', 'unlabelled_share', 'unlabelled_accuracy'} <= row.keys()
    result = json.loads((first / 'result.json').read_text())
    assert result['unlabelled']['rows'] == len(rows_of_csv(first / ancestors.UNLABELLED)) == 28
    assert result['unlabelled']['held_out'] == 0


def rows_of_csv(path: Path) -> list[dict]:
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_hidden_rows_are_known_to_descendants(train, first, tmp_path, capfd):
    """Who starts from the run, or is taught by it, must not score what it learned unlabelled."""
    hidden = {row['id'] for row in rows_of_csv(first / ancestors.UNLABELLED)}
    assert not hidden & {row['id'] for row in rows_of_csv(first / 'split.csv')}
    known = ancestors._below(first, '').rows
    assert hidden < set(known) and len(known) == 36
    for key in ('init.from', 'teacher.workdir'):
        assert train(tmp_path / 'b', '--config.seed=1', f'--config.{key}={first}') == 2
        line = last_line(capfd)
        assert f'config.{key} = {str(first)!r}' in line and 'trained on' in line
    assert not (tmp_path / 'b/config.json').exists()


@pytest.mark.parametrize(('more', 'words'), [
    (['--config.unlabelled.kind=fixmatch'], 'every training row has a label'),
    (['--config.unlabelled.kind=mean_teacher', FEW], 'set config.ema.decay'),
    (['--config.unlabelled.kind=twice'], "kind = 'twice': choose one of"),
    ([*FIXMATCH, FEW, '--config.unlabelled.source=web'], "source = 'web': choose one of"),
    ([*FIXMATCH, '--config.unlabelled.source=csv'], 'needs config.unlabelled.csv'),
    ([*FIXMATCH, FEW, '--config.unlabelled.folder=x'], 'has no meaning with'),
    ([*FIXMATCH, FEW, '--config.unlabelled.batch_size=0'], 'give a positive multiple of 1'),
    ([*FIXMATCH, FEW, '--config.accumulate=2', '--config.unlabelled.batch_size=5'],
     'multiple of 2'),
    ([*FIXMATCH, FEW, '--config.loss.name=binary_cross_entropy'], 'other probabilities'),
    ([*FIXMATCH, FEW, '--config.unlabelled.strong=()'], 'unlabelled.strong is empty'),
    ([*FIXMATCH, FEW, '--config.unlabelled.strong=["rotat"]'], 'config.unlabelled.strong[0]'),
    ([*FIXMATCH, FEW, '--config.unlabelled.weak=3'], 'config.unlabelled.weak = 3 is not a list'),
    ([*FIXMATCH, FEW, '--config.probe.heads=[dict(name="a")]'], 'labels alone'),
    (['--config.teacher.workdir=nowhere'], "config.teacher.workdir = 'nowhere' has no checkpoints"),
    (['--config.teacher.workdir={first}', '--config.teacher.weight=2'], 'teacher.weight = 2'),
    (['--config.teacher.workdir={first}', '--config.teacher.temperature=0'],
     'teacher.temperature = 0'),
    (['--config.teacher.workdir={first}', '--config.image.size=24'], 'both see the same pictures'),
    (['--config.teacher.workdir={first}', '--config.model.in_channels=1'], 'model.in_channels')])
def test_mistakes_are_one_sentence(train, first, pictures, tmp_path, capfd, more, words):
    more = [flag.format(first=first, pictures=pictures) if '{' in flag and 'dict' not in flag
            else flag for flag in more]
    assert train(tmp_path / 'run', *more, '--config.init.seen=accept') == 2
    assert words in last_line(capfd)
    assert not (tmp_path / 'run/config.json').exists()


@pytest.mark.slow
def test_only_held_out_pictures(pictures, train, tmp_path, capfd):
    data = data_of(pictures)
    for name in ids(data.parts['test']):
        shutil.copy(pictures / name, tmp_path)
    more = [*FIXMATCH, '--config.unlabelled.source=folder',
            f'--config.unlabelled.folder={tmp_path}']
    assert train(tmp_path / 'run', *more) == 2
    assert 'are validation or test pictures' in last_line(capfd)
    assert train(tmp_path / 'run', *more, '--config.unlabelled.transductive=True') == 0
    marked = json.loads((tmp_path / 'run/result.json').read_text())['unlabelled']
    assert marked['held_out_kept'] and marked['held_out'] == marked['rows'] == 12
    assert '12 unlabelled pictures' in (tmp_path / 'run/report.html').read_text()


@pytest.mark.slow
def test_other_unlabelled_pictures_do_not_go_on(train, tmp_path, capfd):
    folder = write(tmp_path / 'more', people=4, seed=2)
    more = [*FIXMATCH, '--config.unlabelled.source=folder', f'--config.unlabelled.folder={folder}']
    assert train(tmp_path / 'run', *more) == 0
    assert train(tmp_path / 'run', *more) == 0
    write(folder, people=5, seed=2)
    assert train(tmp_path / 'run', *more) == 2
    assert 'The unlabelled pictures have changed' in last_line(capfd)


# --- a teacher -----------------------------------------------------------------------------------


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
    assert leaking > 0.75  # so it would show


# --- exactness -----------------------------------------------------------------------------------

EXACT = ['--config.duration.steps=14', '--config.log.every.steps=3', '--config.eval.every.steps=5',
         '--config.checkpoint.every.steps=4', '--config.ema.decay=0.9', '--config.guard.skip=2']
OBJECTIVES = {
    'fixmatch': [*FIXMATCH, FEW, '--config.mixing=["mixup"]', '--config.loader.workers=1'],
    'mean_teacher': ['--config.unlabelled.kind=mean_teacher', FEW, '--config.accumulate=2',
                     '--config.unlabelled.ramp.steps=8', '--config.ema.statistics=16'],
    'teacher': ['--config.teacher.workdir={first}', FEW]}


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
