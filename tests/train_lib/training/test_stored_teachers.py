"""A student of stored predictions: whose they are, of which rows, and what is refused."""

import json
import shutil

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import main
from train_lib.commands.command_line import parse
from train_lib.metrics.scores import log_softmax
from train_lib.run_dir.ancestors import ancestry_of
from train_lib.training.data import load_data, split_data

SETTINGS = ['--config=configs/sketch_cnn.py', '--config.image.size=8', '--config.curriculum=()',
            '--config.model=dict(name="small_cnn", width=8, stages=2)', '--config.batch_size=16',
            '--config.log.tensorboard=false', '--config.report.heat_maps=false',
            '--config.report.errors=0', '--config.duration.steps=6', '--config.split.test=0.2',
            '--config.schedule.name=constant', '--config.schedule.warmup.steps=0']
KFOLD = ['--config.split.kind=kfold', '--config.split.folds=2', '--config.split.fold=all']


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp('taught'), np.random.default_rng(0)
    for k in range(60):
        path = root / 'train' / 'abc'[k % 3] / f'{k}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (8, 8, 3), np.uint8))
    return root


@pytest.fixture(scope='module')
def teacher(root):
    """Two folds that held out the same twelve pictures as their test."""
    assert train(root, 'teacher', *KFOLD) == 0
    return root / 'teacher'


@pytest.fixture(scope='module')
def held_out(root, teacher):
    """Flags of a student whose test is that of the teacher, and which trains on all else."""
    path = root / 'given.csv'
    path.write_text((teacher / 'fold_0/split.csv').read_text().replace('"val"', '"train"'))
    return ['--config.split.kind=given', f'--config.split.file={path}', '--config.split.val=0']


def flags_of(root, *flags):
    given = {flag.partition('=')[0]: flag for flag in (*SETTINGS, *flags)}  # the last one counts
    return [*given.values(), '--config.data.source=folder', f'--config.data.folder={root}/train']


def train(root, name, *flags):
    return main.main([*flags_of(root, *flags), f'--workdir={root / name}'])


def taught(root, *flags):
    """What the config would be taught, without training."""
    config = parse(flags_of(root, *flags)).config
    data = split_data(config, load_data(config))
    return data.taught, data.parts['train'].table['id'].tolist()


def refused(capsys, code):
    assert code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def logits_of(path):
    with np.load(path) as content:
        return dict(zip(content['ids'].tolist(), content['logits'].astype(float)))


def test_each_row_is_told_by_the_fold_that_did_not_train_on_it(root, teacher, held_out):
    found, ids = taught(root, *held_out, f'--config.distill.teachers={teacher}',
                        '--config.distill.temperature=3')
    assert len(ids) == 48 and found.facts['distill']['rows'] == 48
    told = found.teacher['class'][np.arange(48)]
    out_of_fold = logits_of(teacher / 'predictions/out_of_fold.npz')
    for name, values in zip(ids, told):
        np.testing.assert_allclose(values, np.exp(log_softmax(
            log_softmax(out_of_fold[name][None]) / 3))[0], rtol=1e-4)


def test_own_rows_are_told_by_the_fold_of_the_same_number(root, teacher, capsys):
    assert main.main(['predict', f'--workdir={teacher}', '--config.predict.source=train']) == 0
    fold = [*KFOLD[:2], '--config.split.fold=1', f'--config.distill.teachers={teacher}']
    found, ids = taught(root, *fold, '--config.distill.rows=own', '--config.distill.temperature=1')
    own = logits_of(teacher / 'fold_1/predictions/train.npz')
    told = found.teacher['class'][np.arange(len(ids))]
    for name, values in zip(ids, told):
        np.testing.assert_allclose(values, np.exp(log_softmax(own[name][None]))[0], rtol=2e-3)
    assert found.facts['distill']['left_out'] == 1
    assert [run['workdir'] for run in found.ancestry.runs] == [str(teacher / 'fold_1')]


def test_a_vote_teaches_its_answer(root, teacher, held_out):
    assert main.main(['vote', f'--config=configs/vote/digits.py:members={teacher}',
                      '--config.source=out_of_fold', '--config.bootstrap=10',
                      f'--workdir={root}/vote']) == 0
    found, ids = taught(root, *held_out, f'--config.distill.teachers={root}/vote',
                        '--config.distill.temperature=1')
    answers = logits_of(root / 'vote/predictions.npz')
    told = found.teacher['class'][np.arange(len(ids))]
    np.testing.assert_allclose(told, np.exp([answers[name] for name in ids]), rtol=1e-4)
    assert len(found.ancestry.rows) == 48  # both folds, all rows but the test


def test_rows_without_a_prediction_go_by_their_label(root, teacher, held_out, capfd):
    fold = teacher / 'fold_0'
    assert train(root, 'some', *held_out, f'--config.distill.teachers={fold}') == 0
    assert 'distill  a teacher knows 24 of 48 training rows; the others go by label' in \
        capfd.readouterr().err
    result = json.loads((root / 'some/result.json').read_text())
    assert result['taught']['distill']['rows'] == 24
    assert result['seen'] == dict(train=24, val=0, test=0)  # what that fold trained on
    assert [run['workdir'] for run in ancestry_of(root / 'some').runs] == [str(fold)]


def test_a_teacher_that_saw_held_out_rows_is_refused_or_marked(root, teacher, capsys):
    given = [f'--config.distill.teachers={teacher / "fold_0"}', '--config.split.val=0.2']
    words = refused(capsys, train(root, 'seen', *given))
    assert f'config.distill.teachers: {teacher}/fold_0 trained on' in words
    assert not (root / 'seen').exists()
    assert train(root, 'seen', *given, '--config.init.seen=accept') == 0
    result = json.loads((root / 'seen/result.json').read_text())
    assert result['seen']['val'] + result['seen']['test'] > 0 and result['seen_accepted']
    assert 'trained on by an ancestor' in (root / 'seen/report.html').read_text()


def test_no_fold_begins_if_another_would_be_refused(root, teacher, capsys):
    words = refused(capsys, train(root, 'folds', *KFOLD, f'--config.distill.teachers={teacher}'))
    assert 'distill.rows=own' in words and not (root / 'folds').exists()


def test_a_run_goes_on_with_the_teachers_that_it_began_with(root, teacher, held_out, capsys):
    copy = root / 'copy'
    shutil.copytree(teacher, copy)
    told = [*held_out, f'--config.distill.teachers={copy}']
    assert train(root, 'goes_on', *told) == 0
    path = copy / 'fold_0/predictions/val.npz'
    with np.load(path) as content:
        changed = dict(content) | {'logits': content['logits'][::-1]}
    np.savez(path, **changed)
    words = refused(capsys, train(root, 'goes_on', *told, '--config.duration.steps=9'))
    assert 'was started with other labels than config.distill.teachers has today' in words


@pytest.mark.slow
def test_a_killed_student_ends_as_one_that_was_not(root, teacher, held_out):
    """With extra rows that start late, a teacher, mixing and batches in parts: the checkpoints
    after step 4 are taken away, as a kill would have, and the same command ends with the same
    bits."""
    (root / 'more').mkdir()
    for k in range(9):
        pixels = np.random.default_rng(100 + k).integers(0, 255, (8, 8, 3), np.uint8)
        cv2.imwrite(str(root / f'more/{k}.png'), pixels)
    labels = root / 'labels.csv'
    assert main.main(['pseudo', f'--members={teacher}', f'--images={root}/more', '--folds=all',
                      f'--out={labels}']) == 0
    settings = [*held_out, f'--config.distill.teachers={teacher}', '--config.accumulate=2',
                f'--config.data.extra.file={labels}', '--config.data.extra.weight=0.5',
                '--config.data.extra.start.steps=3', '--config.mixing=[dict(kind="mixup")]',
                '--config.curriculum=(dict(transforms=["rotate"]),)', '--config.duration.steps=10',
                '--config.checkpoint.every.steps=2', '--config.checkpoint.keep=9',
                '--config.log.every.steps=1']
    assert train(root, 'whole', *settings) == 0
    whole, killed = root / 'whole', root / 'killed'
    shutil.copytree(whole, killed)
    for step in (6, 8, 10):
        shutil.rmtree(killed / f'checkpoints/{step}')
    (killed / 'result.json').unlink()
    assert train(root, 'killed', *settings) == 0
    assert_same_weights(whole, killed)
    assert (whole / 'metrics.jsonl').read_bytes() == (killed / 'metrics.jsonl').read_bytes()
    results = [json.loads((path / 'result.json').read_text()) for path in (whole, killed)]
    for key in ('test', 'seen', 'taught', 'ancestors'):
        assert results[0][key] == results[1][key]
    assert_same_weights(whole, killed, differ=4)


def assert_same_weights(left, right, differ=None):
    """Every array of the last checkpoint is the same, and none trained is that of step `differ`."""
    paths = [left / f'checkpoints/{differ or 10}/state', right / 'checkpoints/10/state']
    with ocp.PyTreeCheckpointer() as reader:
        a, b = (jax.tree.leaves(reader.restore(path)) for path in paths)
    same = [np.array_equal(one, other) for one, other in zip(a, b, strict=True)]
    assert all(same) if differ is None else not all(same)


@pytest.mark.parametrize(('flags', 'words'), [
    (['--config.distill.weight=0'], 'config.distill.weight = 0'),
    (['--config.distill.weight=1.5'], 'config.distill.weight = 1.5'),
    (['--config.distill.temperature=0'], 'config.distill.temperature = 0'),
    (['--config.distill.rows=mine'], "config.distill.rows = 'mine'"),
    (['--config.distill.teachers=ROOT/nobody'], "'ROOT/nobody' is not a folder"),
    (['--config.distill.rows=own', '--config.distill.teachers=ROOT/bare'],
     'config.predict.source=train'),
    (['--config.data.classes=("c","b","a")'], 'other classes')])
def test_mistakes_are_one_sentence(root, teacher, held_out, capsys, flags, words):
    if not (root / 'bare').exists():
        shutil.copytree(teacher, root / 'bare')
        for path in (root / 'bare').glob('fold_*/predictions/train*'):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    given = [*held_out, f'--config.distill.teachers={teacher}',
             *(flag.replace('ROOT', str(root)) for flag in flags)]
    assert words.replace('ROOT', str(root)) in refused(capsys, train(root, 'wrong', *given))
    assert not (root / 'wrong').exists()


def test_a_teacher_without_its_split_is_refused(root, teacher, held_out, capsys):
    copy = root / 'unknown'
    shutil.copytree(teacher, copy)
    (copy / 'fold_0/split.csv').unlink()
    words = refused(capsys, train(root, 'wrong', *held_out,
                                  f'--config.distill.teachers={copy}'))
    assert 'it is not known what' in words or 'has no split.csv' in words
