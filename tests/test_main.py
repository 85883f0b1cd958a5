"""The real entry point: one small run end to end, the files it writes, and how mistakes end."""

import json

import cv2
import numpy as np
import pytest

import main
import train_lib
from train_lib.commands.verbs import VERBS

TINY = ['--config.image.size=16', '--config.model=dict(name="small_cnn", width=8, stages=2)',
        '--config.curriculum=()', '--config.log.every.steps=2', '--config.duration.steps=4',
        '--config.batch_size=16']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run') / 'tiny'
    assert main.main(['--config=configs/sketch_vit.py:data=digits', f'--workdir={workdir}',
                      *TINY]) == 0
    return workdir


def test_what_a_run_leaves_behind(run):
    config = json.loads((run / 'config.json').read_text())
    assert config['batch_size'] == 16
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [(line['step'], line['split']) for line in lines] == [
        (2, 'train'), (4, 'train'), (4, 'val')]
    assert {'epoch', 'loss', 'accuracy', 'lr'} <= set(lines[0])
    result = json.loads((run / 'result.json').read_text())
    for split in ('train', 'val', 'test'):
        assert {'n', 'loss', 'accuracy', 'precision_macro', 'recall_macro', 'f1_macro', 'nll',
                'ece'} <= set(result[split])
    assert result['train']['n'] + result['val']['n'] + result['test']['n'] == 1797
    assert result['steps'] == 4
    seconds = result['seconds']
    assert seconds['total'] == pytest.approx(
        sum(value for kind, value in seconds.items() if kind != 'total'), abs=0.01)
    assert '<html' in (run / 'report.html').read_text()
    assert (run / 'split.csv').exists()
    assert [path.name for path in (run / 'checkpoints').iterdir()] == ['4']


def test_predictions_are_joined_by_id(run):
    with np.load(run / 'predictions/test.npz', allow_pickle=False) as file:
        assert set(file.files) == {'ids', 'labels', 'logits', 'classes'}
        assert len(set(file['ids'])) == len(file['ids']) == len(file['labels'])
        assert file['logits'].shape == (len(file['ids']), 10)
        accuracy = np.mean(file['logits'].argmax(1) == file['labels'])
        assert list(file['classes']) == list('0123456789')
    result = json.loads((run / 'result.json').read_text())
    assert result['test']['accuracy'] == pytest.approx(accuracy)


def test_the_report_can_be_written_anew(run):
    (run / 'report.html').unlink()
    assert main.main(['report', f'--workdir={run}']) == 0
    assert (run / 'report.html').exists()


def test_two_heads_and_weights(tmp_path):
    workdir = tmp_path / 'run'
    assert main.main(['--config=configs/sketch_vit.py', f'--workdir={workdir}', *TINY,
                      '--config.data.doodles.classes=4', '--config.data.doodles.per_class=20',
                      '--config.data.doodles.heads=class,tool']) == 0
    result = json.loads((workdir / 'result.json').read_text())
    assert result['test']['class']['n'] == result['test']['tool']['n'] == result['test']['n']
    with np.load(workdir / 'predictions/test.npz', allow_pickle=False) as file:
        assert {'logits/class', 'logits/tool', 'labels/tool', 'classes/tool'} <= set(file.files)
        groups = {name.split('/')[1].split('-')[0] for name in file['ids']}
    with np.load(workdir / 'predictions/train.npz', allow_pickle=False) as file:
        assert not groups & {name.split('/')[1].split('-')[0] for name in file['ids']}


def test_folds_leave_out_of_fold_predictions(tmp_path):
    workdir = tmp_path / 'run'
    assert main.main(['--config=configs/sketch_vit.py', f'--workdir={workdir}', *TINY,
                      '--config.data.doodles.classes=3', '--config.data.doodles.per_class=20',
                      '--config.split.kind=kfold', '--config.split.folds=2',
                      '--config.split.fold=all']) == 0
    with np.load(workdir / 'predictions/out_of_fold.npz', allow_pickle=False) as file:
        ids = set(file['ids'])
        assert len(ids) == len(file['ids'])
    with np.load(workdir / 'fold_0/predictions/test.npz', allow_pickle=False) as file:
        assert len(ids) + len(file['ids']) == 60
        assert not ids & set(file['ids'])
    assert len(json.loads((workdir / 'result.json').read_text())['folds']) == 2


def test_every_verb_has_its_function():
    assert VERBS
    for verb in VERBS.values():
        assert callable(verb.load())


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(['--version'])
    assert not ended.value.code
    assert capsys.readouterr().out == f'{train_lib.__version__}\n'


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(['--help'])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert all(f'  {name} ' in printed and verb.help in printed for name, verb in VERBS.items())


def pictures(folder, classes=('cat', 'dog'), count=8):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / name / f'{number}.png'), image)


def refused(capsys, *argv) -> str:
    """Runs main, and returns the one sentence with which it ends."""
    assert main.main([*argv]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert 'Traceback' not in '\n'.join(printed)
    assert printed[-1].startswith('main.py: ')
    return printed[-1]


def test_broken_pictures_are_named_before_training(tmp_path, capsys):
    folder = tmp_path / 'data'
    pictures(folder)
    (folder / 'cat/0.png').write_bytes(b'')
    good = (folder / 'cat/1.png').read_bytes()
    (folder / 'cat/1.png').write_bytes(good[:len(good) // 2])
    (folder / 'dog/0.jpg').write_text('<html>404</html>')
    argv = [f'--config=configs/sketch_vit.py:folder={folder}', f'--workdir={tmp_path / "run"}',
            *TINY]
    message = refused(capsys, *argv)
    for name in ('cat/0.png', 'cat/1.png', 'dog/0.jpg', '3 of 17', 'data.unreadable=drop'):
        assert name in message
    assert main.main([*argv, '--config.data.unreadable=drop']) == 0
    result = json.loads((tmp_path / 'run/result.json').read_text())
    assert sum(result[split]['n'] for split in ('train', 'val', 'test')) == 14


@pytest.mark.parametrize('argv, words', [
    (['--config=configs/sketch_vit.py:folder={0}/empty'], ['empty']),
    (['--config=configs/sketch_vit.py:folder={0}/nowhere'], ['nowhere']),
    (['--config=configs/sketch_vit.py:folder={0}/single'], ['bird', 'one image']),
    (['--config=configs/sketch_vit.py:csv={0}/no_label.csv'], ['no_label.csv', 'label']),
    (['--config=configs/sketch_vit.py:csv={0}/twice.csv'], ['twice.csv', "'a'"]),
    (['--config=configs/sketch_vit.py:csv={0}/wrong.csv', '--config.data.classes=cat,dog'],
     ['wrong.csv', 'dgo', 'dog']),
    (['--config=configs/sketch_vit.py', '--config.split.test_groups=w99'], ['w99']),
    (['--config=configs/sketch_vit.py', '--config.model.name=vit_tiny_patch16_223'],
     ['vit_tiny_patch16_224']),
    (['--config=configs/sketch_vit.py', '--config.model.detph=3'], ['detph', 'depth']),
    (['--config=configs/sketch_vit.py', '--config.schedule.name=cosin'], ['cosin', 'cosine']),
    (['--config=configs/sketch_vit.py', '--config.precision=half'], ['precision', 'bfloat16']),
    (['--config=configs/sketch_vit.py', '--config.image.size=50'], ['50', 'patch']),
    (['--config=configs/sketch_vit.py', '--config.mesh.data=99'], ['mesh.data']),
])
def test_mistakes_end_with_one_sentence(tmp_path, capsys, argv, words):
    (tmp_path / 'empty').mkdir()
    pictures(tmp_path / 'single')
    pictures(tmp_path / 'single', classes=('bird',), count=1)
    (tmp_path / 'no_label.csv').write_text('image\ncat/0.png\n')
    (tmp_path / 'twice.csv').write_text('id,image,label\na,cat/0.png,cat\na,cat/1.png,cat\n')
    (tmp_path / 'wrong.csv').write_text('image,label\ncat/0.png,cat\ndog/0.png,dgo\n')
    message = refused(capsys, *(word.format(tmp_path) for word in argv),
                      f'--workdir={tmp_path / "run"}')
    for word in words:
        assert word in message
